"""Norm balls against a convex solver that is told what each set *is*, and not how its norm is computed."""

import cvxpy as cp
import pytest
import torch

from linalg.ball_cases import ALL, SHAPES, draw, number, subsets, total
from tenfold import balls

CASES = [(ball, SHAPES[type(ball.split).__name__][0]) for ball in ALL]
over_cases = pytest.mark.parametrize(("ball", "shape"), CASES, ids=[str(c[0]) for c in CASES])
R = 1.3


def member(ball: balls.Ball, shape: tuple[int, ...]):
    """A variable with one row per entry, filter or matrix row; a bound on its gauge; and what makes it one."""
    n, k = total(ball, shape), number(ball, shape)
    if isinstance(ball, balls.Spectral):
        x = cp.Variable((shape[0], torch.Size(shape[1:]).numel()))
        if isinstance(ball, balls.Nuclear):
            return x, cp.normNuc(x), []
        if isinstance(ball, balls.SpectralKSparse):
            return x, cp.maximum(cp.sigma_max(x), cp.normNuc(x) / k), []
        # The hull of rank k and Frobenius norm 1: min (tr X^T T^-1 X + s) / 2 over 0 <= T <= s I, tr T <= k s.
        t, s = cp.Variable((shape[0], shape[0]), PSD=True), cp.Variable()
        return x, (cp.matrix_frac(x, t) + s) / 2, [s * torch.eye(shape[0]).numpy() - t >> 0, cp.trace(t) <= k * s]
    x = cp.Variable((n, torch.Size(shape).numel() // n))
    flat = cp.vec(x, order="C")
    if isinstance(ball, balls.KSupport | balls.GroupKSupport):
        # The hull itself: one summand for every k rows there are, and the norms of all of them add up.
        parts = [(s, cp.Variable((k, x.shape[1]))) for s in subsets(n, k)]
        spread = [torch.eye(n).numpy()[:, s] @ part for s, part in parts]
        return x, sum(cp.norm(part, "fro") for _, part in parts), [x == sum(spread)]
    gauge = {
        balls.L1: lambda: cp.norm1(flat),
        balls.L2: lambda: cp.norm2(flat),
        balls.LInf: lambda: cp.norm_inf(flat),
        balls.Lp: lambda: cp.pnorm(flat, ball.p),
        balls.KSparse: lambda: cp.maximum(cp.norm_inf(flat), cp.norm1(flat) / k),
    }
    return x, gauge[type(ball)](), []


def solve(objective, constraints) -> float:
    return cp.Problem(objective, constraints).solve(solver=cp.CLARABEL)


@over_cases
def test_the_oracle_finds_the_minimum_and_the_gauge_is_the_smallest_radius(ball, shape) -> None:
    g, point = draw(0, *shape), draw(1, *shape)
    x, gauge, makes = member(ball, shape)
    best = solve(cp.Minimize(cp.sum(cp.multiply(g.reshape(x.shape).numpy(), x))), [*makes, gauge <= R])
    torch.testing.assert_close(float((g * ball.lmo(g, R)).sum()), best, rtol=1e-6, atol=1e-6)
    smallest = solve(cp.Minimize(gauge), [*makes, x == point.reshape(x.shape).numpy()])
    torch.testing.assert_close(float(ball.gauge(point)), smallest, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("ball", "shape"), [c for c in CASES if c[0].projects], ids=lambda x: str(x))
def test_the_projection_is_the_nearest_point(ball, shape) -> None:
    point = draw(2, *shape)
    r = 0.4 * float(ball.gauge(point))
    x, gauge, makes = member(ball, shape)
    solve(cp.Minimize(cp.sum_squares(x - point.reshape(x.shape).numpy())), [*makes, gauge <= r])
    got = ball.project(point, r).reshape(x.shape)
    torch.testing.assert_close(got, torch.from_numpy(x.value), rtol=0, atol=1e-4)
