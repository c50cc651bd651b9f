"""The warm oracles of the spectral balls: always in the set, nearly exact after a few steps, and never stuck."""

import math
import subprocess
import sys

import pytest
import torch

from linalg.ball_cases import draw
from tenfold import balls
from tenfold.errors import ArgumentError

R = 1.7
BALLS = [
    balls.Nuclear(),
    balls.SpectralKSupport(1),
    balls.SpectralKSupport(0.25),
    balls.SpectralKSparse(0.25),
    balls.SpectralKSupport(1.0),
    balls.SpectralKSparse(1.0),
]
over_balls = pytest.mark.parametrize("ball", BALLS, ids=str)
over_types = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def decaying(seed: int, m: int = 24, n: int = 40, power: float = 0.7, rank: int | None = None) -> torch.Tensor:
    u, v = (torch.linalg.qr(draw(seed + i, k, min(m, n)))[0] for i, k in enumerate((m, n)))
    s = torch.arange(1, min(m, n) + 1, dtype=torch.float64) ** -power
    s[min(m, n) if rank is None else rank :] = 0
    return (u * s) @ v.T


def inside(ball, v, tolerance: float = 1e-6) -> bool:
    return bool(ball.contains(v, R, tolerance, stacked=True).all())


@over_balls
@over_types
@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (24, 10, 2, 2)])
def test_three_steps_come_near_the_optimum_of_a_slowly_turning_gradient(ball, dtype, shape) -> None:
    g = torch.stack([decaying(seed, shape[0], math.prod(shape[1:])).view(shape) for seed in (0, 10)]).to(dtype)
    basis = torch.randn(ball.warm(g, R).basis.shape, generator=torch.Generator().manual_seed(1))
    for step in range(3):
        now = g + 0.02 * step * draw(20, *g.shape).to(dtype) * g.abs().amax()
        warm = ball.warm(now, R, basis)
        basis = warm.basis
        assert inside(ball, warm.vertex)
    best = ball.support(now, stacked=True)
    assert (warm.value >= 0.9 * best).all()
    assert (warm.value <= best * (1 + 1e-5)).all()
    torch.testing.assert_close(warm.value, -(now * warm.vertex).flatten(1).sum(1) / R, rtol=1e-4, atol=0)


@over_balls
@over_types
def test_one_step_is_exact_where_the_basis_is_as_wide_as_the_rank(ball, dtype) -> None:
    k = ball.width(24) or 24
    g = torch.stack([decaying(seed, rank=k) for seed in (2, 4)]).to(dtype)
    assert torch.linalg.matrix_rank(g[0], rtol=1e-4) == k
    basis = torch.randn(ball.warm(g, R).basis.shape, generator=torch.Generator().manual_seed(1))
    warm = ball.warm(g, R, basis)
    tolerance = 2e-4 if dtype == torch.float32 else 1e-5
    torch.testing.assert_close(warm.vertex, ball.lmo(g, R, stacked=True), rtol=0, atol=10 * tolerance)
    torch.testing.assert_close(warm.value.double(), ball.support(g, stacked=True), rtol=tolerance, atol=0)
    torch.testing.assert_close(warm.share, torch.ones(2, dtype=dtype), rtol=1e-5, atol=0)


@over_balls
@over_types
@pytest.mark.parametrize("kind", ["zero", "nan", "inf", "equal", "ones", "huge", "tiny", "foreign"])
def test_any_basis_gives_a_point_of_the_set_and_the_next_is_good_again(ball, dtype, kind) -> None:
    g = torch.stack([decaying(6), decaying(8)]).to(dtype)
    good = ball.warm(g, R).basis
    bad = {
        "zero": torch.zeros_like(good),
        "nan": torch.full_like(good, math.nan),
        "inf": torch.full_like(good, math.inf),
        "equal": good[:, :1].expand_as(good),
        "ones": torch.ones_like(good),
        "huge": good * 1e12,
        "tiny": good * 1e-12,
        "foreign": draw(9, *good.shape).to(dtype),
    }[kind]
    warm = ball.warm(g, R, bad)
    assert inside(ball, warm.vertex)
    assert not warm.vertex.isnan().any()
    for _ in range(3):
        warm = ball.warm(g, R, warm.basis)
    assert (warm.value >= 0.9 * ball.support(g, stacked=True)).all()


@over_balls
def test_directions_that_a_deficient_gradient_has_lost_come_back(ball) -> None:
    flat = torch.stack([decaying(10, rank=1)]).float()
    full = torch.stack([decaying(12)]).float()
    warm = ball.warm(flat, R)
    assert inside(ball, warm.vertex)
    for _ in range(4):
        warm = ball.warm(full, R, warm.basis)
    assert (warm.value >= 0.9 * ball.support(full, stacked=True)).all()


@over_balls
@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
def test_a_gradient_without_direction_leaves_its_basis_and_its_neighbours_alone(ball, bad) -> None:
    g = torch.stack([decaying(14), decaying(16)]).float()
    basis = ball.warm(g, R).basis
    alone = ball.warm(g[1:], R, basis[1:])
    g[0] = bad
    warm = ball.warm(g, R, basis)
    torch.testing.assert_close(warm.vertex[1:], alone.vertex, rtol=1e-5, atol=1e-6)
    assert torch.equal(warm.basis[0], basis[0])
    if bad == 0:
        assert not warm.vertex[0].any()
        assert warm.value[0] == warm.share[0] == 0
    else:
        assert warm.vertex[0].isnan().all()
        assert warm.value[0].isnan()
        assert warm.share[0].isnan()


@over_balls
def test_the_share_is_the_energy_in_the_basis(ball) -> None:
    k = ball.width(24) or 24
    g = torch.stack([decaying(18)]).float()
    warm = ball.warm(g, R)
    for _ in range(5):
        warm = ball.warm(g, R, warm.basis)
    s = torch.linalg.svdvals(g[0].double())
    best = float(s[:k].square().sum() / s.square().sum())
    assert 0.98 * best <= float(warm.share) <= best * (1 + 1e-5)


@over_balls
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_keep_a_basis_in_single_precision(ball, dtype) -> None:
    g = decaying(22)[None].to(dtype)
    warm = ball.warm(g, R)
    assert warm.vertex.dtype == dtype
    assert warm.basis.dtype == torch.float32
    assert inside(ball, warm.vertex, 1e-2)


@over_balls
@pytest.mark.parametrize("shape", [(6, 4, 1, 1), (8, 1, 3, 3), (5, 7), (4, 3, 5), (3, 2, 2, 2, 2), (9,), (1, 1, 1, 1)])
def test_every_kind_of_parameter_has_a_warm_vertex(ball, shape) -> None:
    g = draw(24, 2, *shape).float()
    warm = ball.warm(g, torch.tensor([R, R]))
    assert warm.vertex.shape == g.shape
    assert inside(ball, warm.vertex)
    assert ball.warm(g, R, warm.basis).basis.shape == warm.basis.shape


def test_a_basis_of_another_shape_is_refused() -> None:
    with pytest.raises(ArgumentError, match="`basis` must be of shape"):
        balls.SpectralKSupport(2).warm(draw(0, 1, 5, 6), R, torch.zeros(1, 3, 6))


def test_a_cold_start_is_the_same_in_every_process_and_draws_no_global_number() -> None:
    code = (
        "import sys, torch; from tenfold import balls; torch.manual_seed(int(sys.argv[1]));"
        "g = torch.arange(1., 241).sin().view(1, 12, 20);"
        "print(balls.SpectralKSupport(3).warm(g, 1.0).vertex.double().sum().item())"
    )
    done = subprocess.run([sys.executable, "-c", code, "1"], capture_output=True, text=True, check=True)
    g = torch.arange(1.0, 241).sin().view(1, 12, 20)
    assert float(done.stdout) == balls.SpectralKSupport(3).warm(g, 1.0).vertex.double().sum().item()
    before = torch.get_rng_state()
    balls.SpectralKSupport(5).warm(draw(0, 1, 11, 12), R)
    assert torch.equal(before, torch.get_rng_state())


@over_balls
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_gradient_of_any_finite_scale_is_as_good_as_one_of_scale_one(ball, dtype) -> None:
    """Powers of two change no digit: down to where squares vanish, up to where they overflow."""
    info = torch.finfo(dtype)
    g = torch.stack([decaying(6), decaying(8)]).to(dtype)
    basis = ball.warm(g, R).basis
    one = ball.warm(g, R, basis)
    for scale in (2.0 ** math.floor(math.log2(info.tiny) + 20), 2.0 ** math.floor(math.log2(info.max) - 4)):
        warm = ball.warm(g * scale, R, basis)
        assert inside(ball, warm.vertex, 1e-6 if dtype != torch.bfloat16 else 1e-2)
        torch.testing.assert_close(warm.vertex, one.vertex, rtol=1e-2, atol=1e-4)
        torch.testing.assert_close(warm.value / scale, one.value, rtol=1e-3, atol=0)
    least = ball.warm(torch.full_like(g, info.smallest_normal * info.eps), R, basis)
    assert inside(ball, least.vertex, 1e-6 if dtype != torch.bfloat16 else 1e-2)
    assert torch.isfinite(least.basis).all()
    assert (least.vertex.abs().amax((1, 2)) > 0).all()
