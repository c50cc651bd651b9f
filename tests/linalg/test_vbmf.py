"""Bayes ranks against planted ones, the equations of the source written again, and a brute-force grid."""

import math

import numpy as np
import pytest
import torch

from tenfold.errors import ArgumentError
from tenfold.linalg.vbmf import _noise, _threshold, vbmf_rank

SHAPES = [(20, 30), (40, 40), (12, 100), (60, 9)]


def rank_of(a: np.ndarray) -> int:
    s = np.linalg.svd(a, compute_uv=False)
    return vbmf_rank(torch.from_numpy(s), min(a.shape), max(a.shape))


def planted(rng, m, n, rank, signal, noise):
    """Orthogonal components of strength ``signal`` times the noise's largest singular value, and noise."""
    u, v = (np.linalg.qr(rng.standard_normal((k, rank)))[0] for k in (m, n))
    edge = noise * (math.sqrt(m) + math.sqrt(n))
    return u @ np.diag(signal * edge * (1 + rng.random(rank))) @ v.T + noise * rng.standard_normal((m, n))


def free_energy(power, short, long, variance):
    """Twice the free energy over ``long``, up to constants, as the source writes it: a plain loop."""
    alpha = short / long
    tau0 = root(alpha)
    total = 0.0
    for p in power:
        x = p / (long * variance)
        total += x - math.log(x)
        if x > (1 + tau0) * (1 + alpha / tau0):
            tau = 0.5 * (x - (1 + alpha) + math.sqrt((x - (1 + alpha)) ** 2 - 4 * alpha))
            total += math.log(tau + 1) + alpha * math.log(tau / alpha + 1) - tau
    return total


def root(alpha):
    """tau_0 by bisection."""

    def phi(z):
        return math.log(z + 1) / z - 0.5

    low, high = 1e-9, 3.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if phi(middle) + phi(middle / alpha) > 0 else (low, middle)
    return low


def evbmf(a: np.ndarray) -> tuple[int, float]:
    """Rank and noise variance by the source's theorem, the variance on 40,000 points between its bounds."""
    short, long = min(a.shape), max(a.shape)
    alpha, tau0 = short / long, root(short / long)
    power = np.linalg.svd(a, compute_uv=False) ** 2
    threshold = (1 + tau0) * (1 + alpha / tau0)
    most = min(math.ceil(short / (1 + alpha)) - 1, short - 1)
    low, high = max(power[most] / (long * threshold), power[most:].mean() / long), power.sum() / (short * long)
    grid = np.geomspace(low, high, 40_000)
    x = power[:, None] / (long * grid)
    total = x - np.log(x)
    y = np.where(x > threshold, x, threshold)  # psi_1 is zero at the threshold
    tau = (y - (1 + alpha) + np.sqrt((y - (1 + alpha)) ** 2 - 4 * alpha)) / 2
    total = (total + np.log(tau + 1) + alpha * np.log(tau / alpha + 1) - tau).sum(0)
    variance = grid[np.argmin(total)]
    return int((power > long * variance * threshold).sum()), float(variance)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 3, 5])
@pytest.mark.parametrize("noise", [1e-6, 1.0])
def test_planted_components_are_counted(shape, rank, noise):
    rng = np.random.default_rng(rank)
    assert rank_of(planted(rng, *shape, rank, 1.5, noise)) == rank


@pytest.mark.parametrize("shape", SHAPES)
def test_pure_noise_has_rank_zero(shape):
    rng = np.random.default_rng(0)
    assert [rank_of(rng.standard_normal(shape)) for _ in range(5)] == [0] * 5


@pytest.mark.parametrize("shape", SHAPES)
def test_scale_and_transposition_change_nothing(shape):
    a = planted(np.random.default_rng(1), *shape, 4, 0.7, 1.0)
    expected = rank_of(a)
    assert rank_of(a.T) == expected
    for scale in (1e-12, 1e-3, 1e9):
        assert rank_of(scale * a) == expected


def test_a_zero_matrix_has_rank_zero():
    assert vbmf_rank(torch.zeros(5), 5, 8) == 0


@pytest.mark.parametrize("dust", [0.0, 1e-12, 1e-9])
def test_without_noise_the_rank_is_that_of_the_matrix_whether_the_rest_is_zero_or_dust(dust):
    s = torch.cat([torch.tensor([5.0, 3.0, 1.0]), dust * torch.linspace(2, 1, 17)]).double()
    assert vbmf_rank(s, 20, 30) == 3


def test_one_row_is_noise_for_all_that_can_be_known():
    assert vbmf_rank(torch.tensor([3.0]), 1, 50) == 0


@pytest.mark.parametrize("alpha", [1e-4, 0.01, 0.3, 0.8, 1.0])
def test_the_threshold_solves_its_equation(alpha):
    x0 = _threshold(alpha)
    b = x0 - 1 - alpha
    tau = (b + math.sqrt(b * b - 4 * alpha)) / 2
    assert abs((math.log1p(tau) / tau - 0.5) + (math.log1p(tau / alpha) / (tau / alpha) - 0.5)) < 1e-9
    assert tau == pytest.approx(root(alpha), rel=1e-8)
    if alpha >= 0.3:  # where the approximation that is often used instead is close
        assert tau == pytest.approx(2.5129 * math.sqrt(alpha), rel=0.05)
    assert x0 > (1 + math.sqrt(alpha)) ** 2  # above the edge of the noise


@pytest.mark.parametrize("seed", range(12))
def test_rank_and_noise_are_those_of_the_sources_equations_on_a_fine_grid(seed):
    rng = np.random.default_rng(seed)
    m, n = int(rng.integers(5, 40)), int(rng.integers(5, 40))
    a = planted(rng, m, n, int(rng.integers(1, min(m, n) // 2 + 1)), rng.uniform(0.3, 2), 1.0)
    if seed % 3 == 0:
        a = a * np.linspace(1, 0.01, n)  # a spectrum that decays, as those of kernels do
    short, long = min(m, n), max(m, n)
    power = np.linalg.svd(a, compute_uv=False) ** 2
    rank, variance = evbmf(a)
    found = _noise(power, short, long, _threshold(short / long))
    assert rank_of(a) == rank
    assert free_energy(power, short, long, found) <= free_energy(power, short, long, variance) + 1e-9
    assert found == pytest.approx(variance, rel=1e-3)


def test_the_noise_that_was_put_in_is_found():
    a = planted(np.random.default_rng(3), 80, 120, 4, 2.0, 0.3)
    power = np.linalg.svd(a, compute_uv=False) ** 2
    assert _noise(power, 80, 120, _threshold(80 / 120)) == pytest.approx(0.09, rel=0.05)


def test_what_is_switched_off_would_only_raise_the_free_energy():
    """psi_1 is zero at the threshold and negative above: a component is on where that is worth it."""
    for alpha in (0.1, 0.5, 1.0):
        x = _threshold(alpha) * np.linspace(1, 3, 50)
        b = x - 1 - alpha
        tau = (b + np.sqrt(b * b - 4 * alpha)) / 2
        gain = np.log1p(tau) + alpha * np.log1p(tau / alpha) - tau
        assert abs(gain[0]) < 1e-9
        assert (np.diff(gain) < 0).all()


@pytest.mark.parametrize(("short", "long"), [(0, 5), (6, 5), (4, 9)])
def test_sides_that_do_not_fit_the_spectrum_are_refused(short, long):
    with pytest.raises(ArgumentError, match="short, long"):
        vbmf_rank(torch.ones(5), short, long)
