"""The five measures against approximations that are built slice by slice."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

import tenfold
from tenfold.linalg.fold import divisors
from tenfold.ranks import measures
from tenfold.ranks.measures import MEASURES

CHAIN = ("max", "spectral", "rss", "bound")
ATOL = 1e-7  # Gram spectra are good to 2e-8 of the largest value

LAYERS = {
    "linear": (lambda: nn.Linear(12, 7), ("channel",)),
    "wide linear": (lambda: nn.Linear(6, 30), ("channel",)),
    "conv": (lambda: nn.Conv2d(6, 5, 3), ("channel", "spatial", "spatial-t", "input", "decoupled")),
    "grouped": (lambda: nn.Conv2d(8, 6, 3, groups=2), ("channel", "spatial", "input", "decoupled")),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, (3, 2), groups=2), ("channel", "spatial-t", "decoupled")),
    "conv1d": (lambda: nn.Conv1d(6, 8, 5), ("channel", "input")),
}


def kernel_of(layer: nn.Module) -> np.ndarray:
    """``(g, f, c, *k)``, from the layer's own layout."""
    w = layer.weight.detach().double().numpy()
    g = getattr(layer, "groups", 1)
    w = w.reshape(g, w.shape[0] // g, *w.shape[1:])
    return np.swapaxes(w, 1, 2) if isinstance(layer, nn.ConvTranspose2d) else w


def matrix(w: np.ndarray, fold: str) -> np.ndarray:
    """One group and slice ``(f, c, *k)`` as a matrix."""
    if fold == "channel":
        return w.reshape(w.shape[0], -1)
    if fold in ("input", "decoupled"):  # (f k1 k2) x c
        return np.moveaxis(w, 1, -1).reshape(-1, w.shape[1])
    if fold == "spatial":  # (f k2) x (c k1)
        return w.transpose(0, 3, 1, 2).reshape(w.shape[0] * w.shape[3], -1)
    return w.transpose(0, 2, 1, 3).reshape(w.shape[0] * w.shape[2], -1)  # spatial-t: (f k1) x (c k2)


def explicit(layer: nn.Module, fold: str, k: int, j: int) -> dict[str, float]:
    """All five measures from the approximation ``W_hat`` itself."""
    whole, next_values, residuals = [], [], []
    kernel = kernel_of(layer)
    for group in kernel.reshape(-1, 1, *kernel.shape[2:]) if fold == "decoupled" else kernel:
        whole.append(matrix(group, fold))
        values, parts = [], []
        for piece in np.split(group, k, axis=1):
            m = matrix(piece, fold)
            u, s, vh = np.linalg.svd(m, full_matrices=False)
            w_hat = (u[:, :j] * s[:j]) @ vh[:j]
            parts.append(m - w_hat)
            values.append(np.linalg.norm(parts[-1], 2) if j < len(s) else 0.0)
        next_values.append(values)
        residuals.append(np.concatenate(parts, axis=1))
    norm = max(np.linalg.norm(w, 2) for w in whole)
    frobenius = math.sqrt(sum(np.linalg.norm(w) ** 2 for w in whole))
    return {
        "max": max(map(max, next_values)) / norm,
        "spectral": max(np.linalg.norm(r, 2) for r in residuals) / norm,
        "rss": max(np.linalg.norm(v) for v in next_values) / norm,
        "bound": math.sqrt(k) * max(map(max, next_values)) / norm,
        "fro": math.sqrt(sum(np.linalg.norm(r) ** 2 for r in residuals)) / frobenius,
    }


def errors(layer: nn.Module, fold: str = "channel") -> dict[int, dict[str, torch.Tensor]]:
    """``{k: {measure: errors for j = 1..p}}``."""
    (site,) = (problem := tenfold.survey(layer)).sites
    (spectra,) = problem.spectra(fold)
    top = spectra[1].max()
    return {
        k: {name: measure(s, top, lambda k=k: site.matrices(fold, k)) for name, measure in MEASURES.items()}
        for k, s in spectra.items()
    }


def of_weight(w: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(w.shape[1], w.shape[0], dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(w)
    return layer


@pytest.mark.parametrize(("name", "fold"), [(n, f) for n, (_, folds) in LAYERS.items() for f in folds])
def test_measures_equal_the_error_of_the_explicit_approximation(name, fold):
    layer = LAYERS[name][0]().double()
    found = errors(layer, fold)
    assert tuple(found) == ((1,) if fold == "decoupled" else divisors(kernel_of(layer).shape[2]))
    for k, by_measure in found.items():
        for j in range(1, len(by_measure["max"]) + 1):
            for measure, expected in explicit(layer, fold, k, j).items():
                assert float(by_measure[measure][j - 1]) == pytest.approx(expected, abs=ATOL), (measure, k, j)


def test_spectral_error_of_large_kernels_equals_the_explicit_one():
    """Above `_LANCZOS` rows the largest eigenvalue comes from another solver."""
    layer = of_weight(torch.randn(measures._LANCZOS + 6, 24, dtype=torch.float64))
    for k, by_measure in errors(layer).items():
        for j in range(1, len(by_measure["max"]) + 1):
            expected = explicit(layer, "channel", k, j)["spectral"]
            assert float(by_measure["spectral"][j - 1]) == pytest.approx(expected, abs=ATOL)


def test_spectral_error_is_right_where_each_residual_is_orthogonal_to_the_last():
    """Diagonal slices: the last eigenvector is one of the next residual too, and no longer the largest."""
    n = measures._LANCZOS + 20
    d = torch.rand(n, dtype=torch.float64) + 0.1
    layer = of_weight(torch.cat([torch.diag(d), torch.diag(d[torch.randperm(n)])], dim=1))
    found = errors(layer)[2]
    for j in range(1, n + 1, 7):
        assert float(found["spectral"][j - 1]) == pytest.approx(explicit(layer, "channel", 2, j)["spectral"], abs=ATOL)


@given(st.integers(1, 6), st.integers(1, 8), st.integers(1, 4), st.sampled_from([1, 2]), st.integers(0, 2**31))
def test_the_measures_form_a_chain(f, c, size, groups, seed):
    torch.manual_seed(seed)
    layer = nn.Conv1d(c * groups, f * groups, size, groups=groups, dtype=torch.float64)
    for by_measure in errors(layer).values():
        for low, high in itertools.pairwise(CHAIN):
            assert (by_measure[low] <= by_measure[high] + ATOL).all(), (low, high)


@pytest.mark.parametrize("k", [2, 3, 4])
def test_equal_slices_attain_the_bound(k):
    layer = of_weight(torch.randn(7, 5, dtype=torch.float64).repeat(1, k))
    found = errors(layer)[k]
    assert_close(found["spectral"], found["bound"], rtol=0, atol=ATOL)
    assert_close(found["rss"], found["bound"], rtol=0, atol=ATOL)
    assert float(found["bound"][0]) > math.sqrt(k) * 0.9 * float(found["max"][0]) > 0


@pytest.mark.parametrize("name", LAYERS)
def test_errors_never_rise_with_the_rank_and_end_at_zero(name):
    make, folds = LAYERS[name]
    layer = make()
    for fold in folds:
        for by_measure in errors(layer, fold).values():
            for e in by_measure.values():
                assert e.dtype == torch.float64
                assert (e[1:] <= e[:-1] + ATOL).all()
                assert float(e[-1]) == 0


@pytest.mark.parametrize("shape", [(5, 12), (80, 12)])
def test_a_zero_kernel_has_error_zero(shape):
    for by_measure in errors(of_weight(torch.zeros(shape))).values():
        for e in by_measure.values():
            assert_close(e, torch.zeros_like(e), rtol=0, atol=0)


@pytest.mark.parametrize("measure", MEASURES)
def test_one_zero_group_leaves_the_errors_finite(measure):
    layer = nn.Conv2d(8, 6, 3, groups=2)
    with torch.no_grad():
        layer.weight[:3] = 0
    for k, by_measure in errors(layer).items():
        assert torch.isfinite(by_measure[measure]).all()
        assert float(by_measure[measure][0]) == pytest.approx(explicit(layer, "channel", k, 1)[measure], abs=1e-6)


def same_errors(a: nn.Module, b: nn.Module) -> None:
    for (k, x), y in zip(errors(a).items(), errors(b).values(), strict=True):
        for measure in MEASURES:
            assert_close(x[measure], y[measure], rtol=0, atol=2 * ATOL, msg=f"{measure}, {k} slices")


@pytest.mark.parametrize("factor", [1e-12, 1e-3, -7.0, 1e9])
def test_scaling_a_layer_changes_nothing(factor):
    w = torch.randn(7, 12, dtype=torch.float64)
    same_errors(of_weight(w), of_weight(factor * w))


def test_rotating_the_outputs_changes_nothing():
    w = torch.randn(7, 12, dtype=torch.float64)
    q, _ = torch.linalg.qr(torch.randn(7, 7, dtype=torch.float64))
    same_errors(of_weight(w), of_weight(q @ w))


@pytest.mark.parametrize("k", [2, 3, 6])
def test_permuting_channels_inside_slices_or_slices_changes_nothing(k):
    conv = nn.Conv2d(12, 5, 3, dtype=torch.float64)
    size = 12 // k
    inside = torch.cat([i * size + torch.randperm(size) for i in range(k)])
    blocks = torch.cat([torch.arange(size) + i * size for i in torch.randperm(k).tolist()])
    before = errors(conv)[k]
    for order in (inside, blocks):
        moved = nn.Conv2d(12, 5, 3, dtype=torch.float64)
        with torch.no_grad():
            moved.weight.copy_(conv.weight[:, order])
        for measure, e in errors(moved)[k].items():
            assert_close(e, before[measure], rtol=0, atol=2 * ATOL, msg=measure)


def test_half_precision_weights_are_measured_in_double():
    layer = nn.Linear(12, 7).to(torch.bfloat16)
    exact = of_weight(layer.weight.detach().double())
    same_errors(layer, exact)
