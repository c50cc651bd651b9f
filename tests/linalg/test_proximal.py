"""Proximal maps against their variational definition, sub-gradients against the inequality that defines them."""

import pytest
import torch

from helpers import normal
from tenfold.errors import ArgumentError, TenfoldError
from tenfold.linalg import nuclear_subgradient, row_subgradient, shrink_rows, shrink_spectrum

TIGHT = {"rtol": 1e-10, "atol": 1e-10}
NORMS = {
    "rows": (lambda x: x.norm(dim=-1).sum(-1), shrink_rows, row_subgradient),
    "spectrum": (
        lambda x: torch.linalg.svdvals(x).sum(-1),
        shrink_spectrum,
        lambda x: nuclear_subgradient(x, min(x.shape)),
    ),
}


@pytest.fixture(params=NORMS.values(), ids=NORMS)
def norm(request):
    return request.param


@pytest.mark.parametrize("shape", [(4, 6), (6, 4)])
@pytest.mark.parametrize("t", [0.3, 1.5])
def test_no_point_has_a_smaller_proximal_objective(norm, shape, t) -> None:
    f, prox, _ = norm
    a = normal(*shape)
    x = prox(a, t)
    best = 0.5 * (x - a).square().sum() + t * f(x)
    for seed in range(60):
        for scale in (1e-3, 0.1, 1.0):
            y = x + scale * normal(*shape, seed=seed)
            assert 0.5 * (y - a).square().sum() + t * f(y) >= best - 1e-12
    for y in (a, torch.zeros_like(a)):
        assert 0.5 * (y - a).square().sum() + t * f(y) >= best - 1e-12


@pytest.mark.parametrize("shape", [(4, 6), (6, 4)])
def test_what_the_map_takes_away_is_a_subgradient_at_its_result(norm, shape) -> None:
    """``(A - X) / t`` in the sub-differential at X: ``f(Y) >= f(X) + <(A - X) / t, Y - X>``."""
    f, prox, _ = norm
    a = normal(*shape)
    x = prox(a, 0.7)
    for seed in range(40):
        y = normal(*shape, seed=seed + 1)
        assert f(y) >= f(x) + ((a - x) / 0.7 * (y - x)).sum() - 1e-10


def test_the_subgradient_inequality(norm) -> None:
    f, _, subgradient = norm
    low = normal(5, 2) @ normal(2, 6, seed=1)
    low[0] = 0  # a row and singular values of zero
    for x in (normal(5, 6), low):
        g = subgradient(x)
        for seed in range(40):
            y = normal(5, 6, seed=seed + 2)
            assert f(y) >= f(x) + (g * (y - x)).sum() - 1e-10


def test_rows_of_zeros_have_the_subgradient_zero() -> None:
    assert torch.equal(row_subgradient(torch.zeros(2, 3)), torch.zeros(2, 3))


def test_every_singular_value_falls_by_the_threshold_and_no_lower_than_zero() -> None:
    a = normal(7, 5)
    s = torch.linalg.svdvals(a)
    t = float(s[2])
    got = torch.linalg.svdvals(shrink_spectrum(a, t))
    torch.testing.assert_close(got, (s - t).clamp(min=0), rtol=1e-8, atol=1e-10)


def test_a_batch_is_its_matrices_and_a_threshold_of_zero_changes_nothing(norm) -> None:
    _, prox, _ = norm
    stack = normal(3, 4, 5)
    for one, whole in zip(stack, prox(stack, 0.4), strict=True):
        torch.testing.assert_close(prox(one, 0.4), whole, **TIGHT)
    assert torch.equal(prox(stack, 0.0), stack)


def test_values_out_of_range_are_refused(norm) -> None:
    _, prox, _ = norm
    with pytest.raises(ArgumentError, match="`threshold`"):
        prox(normal(3, 3), -1.0)
    with pytest.raises(TenfoldError, match="NaN"):
        shrink_spectrum(torch.full((2, 2), torch.nan), 0.1)
