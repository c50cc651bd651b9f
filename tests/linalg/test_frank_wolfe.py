"""The step of stochastic Frank-Wolfe: lengths, scales, feasibility, convergence where the answer is known."""

import pytest
import torch

from helpers import normal
from tenfold.linalg import balls
from tenfold.linalg.frank_wolfe import RESCALINGS, Lengths, blend, forgotten, step_size, toward_

TIGHT = {"rtol": 1e-12, "atol": 1e-12}
SETS = [
    balls.L1(),
    balls.L2(),
    balls.LInf(),
    balls.KSparse(k=3),
    balls.KSupport(k=3),
    balls.GroupKSupport(k=2),
    balls.SpectralKSupport(k=2),
]


def lengths(m, theta, v, diameter=2.0) -> Lengths:
    flat = [x.flatten(1).norm(dim=1) for x in (m, theta - v)]
    return Lengths(*flat, torch.full_like(flat[0], diameter))


def toward(theta, v, eta) -> torch.Tensor:
    """One step of each tensor of a stack."""
    new = theta.clone()
    toward_(new.unbind(), v.unbind(), eta, torch.ones_like(eta))
    return new


def test_momentum_in_both_conventions_is_a_geometric_sum_or_mean() -> None:
    gradients = [normal(4, seed=i) for i in range(5)]
    heavy, mean = torch.zeros(4).double(), torch.zeros(4).double()
    for g in gradients:
        (heavy,), (mean,) = blend([heavy], [g], 0.9), blend([mean], [g], 0.9, 0.9)
    wanted = sum(0.9 ** (4 - i) * g for i, g in enumerate(gradients))
    torch.testing.assert_close(heavy, wanted, **TIGHT)
    torch.testing.assert_close(mean, 0.1 * wanted, **TIGHT)


@pytest.mark.parametrize("ball", SETS, ids=lambda b: type(b).__name__)
def test_with_the_gradient_rescaling_a_step_is_as_long_as_sgds_and_points_to_the_vertex(ball) -> None:
    m, theta = normal(3, 5, 4), 0.1 * normal(3, 5, 4, seed=1)
    v = ball.lmo(m, 50.0, stacked=True)
    eta, clipped = step_size(RESCALINGS["gradient"], 0.3, lengths(m, theta, v))
    step = toward(theta, v, eta) - theta
    assert not clipped.any()
    torch.testing.assert_close(step.flatten(1).norm(dim=1), 0.3 * m.flatten(1).norm(dim=1), rtol=1e-10, atol=0)
    cosine = torch.nn.functional.cosine_similarity(step.flatten(1), (v - theta).flatten(1))
    torch.testing.assert_close(cosine, torch.ones(3).double(), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("name", "wanted"), [("none", 0.1), ("diameter", 0.05), ("radius", 0.3), ("gradient", 0.06)])
def test_each_rescaling_is_its_formula(name, wanted) -> None:
    sizes = Lengths(*(torch.tensor([x], dtype=torch.float64) for x in (3.0, 5.0, 2.0)))
    eta, _ = step_size(RESCALINGS[name], 0.1, sizes)
    torch.testing.assert_close(eta, torch.tensor([wanted], dtype=torch.float64), **TIGHT)


def test_a_step_size_is_clipped_at_the_maximum_and_says_so() -> None:
    sizes = Lengths(*(torch.tensor([x, y], dtype=torch.float64) for x, y in ((100.0, 1.0), (1.0, 1.0), (2.0, 2.0))))
    eta, clipped = step_size(RESCALINGS["gradient"], 0.5, sizes, 0.9)
    assert eta.tolist() == [0.9, 0.5]
    assert clipped.tolist() == [True, False]


@pytest.mark.parametrize("name", RESCALINGS)
def test_without_momentum_or_on_the_vertex_nothing_moves(name) -> None:
    zero, one = torch.zeros(1).double(), torch.ones(1).double()
    for sizes in (Lengths(zero, one, one), Lengths(one, zero, one), Lengths(zero, zero, one)):
        eta, clipped = step_size(RESCALINGS[name], 10.0, sizes)
        assert eta == 0
        assert not clipped


def test_the_ends_of_a_step_are_exact() -> None:
    theta, v = torch.randn(2, 7), torch.randn(2, 7)
    assert torch.equal(toward(theta, v, torch.zeros(2)), theta)
    assert torch.equal(toward(theta, v, torch.ones(2)), v)
    half = toward(theta, v, torch.tensor([0.5, 0.25]))
    torch.testing.assert_close(half[1], 0.75 * theta[1] + 0.25 * v[1])


def test_a_momentum_that_is_not_finite_has_no_step() -> None:
    one = torch.ones(3).double()
    momentum = torch.tensor([torch.nan, torch.inf, 1.0], dtype=torch.float64)
    for rescaling in RESCALINGS.values():
        eta, clipped = step_size(rescaling, 5.0, Lengths(momentum, one, one))
        assert eta.tolist() == [0, 0, 1]
        assert clipped.tolist() == [False, False, True]


def test_the_vertex_of_an_l2_ball_need_not_be_there() -> None:
    """Tensors of two shapes: the momentum, scaled, does for the vertex."""
    m, theta = [normal(7), normal(3, 4)], [normal(7, seed=1), normal(3, 4, seed=2)]
    eta = torch.tensor([0.3, 0.9]).double()
    wanted = [toward(t[None], balls.L2().lmo(x, 5.0)[None], e[None])[0] for t, x, e in zip(theta, m, eta, strict=True)]
    toward_(theta, m, eta, -5.0 / torch.stack([x.norm() for x in m]))
    for mine, other in zip(theta, wanted, strict=True):
        torch.testing.assert_close(mine, other, **TIGHT)


def test_the_forgetting_factor_is_the_weight_of_the_start() -> None:
    start, kept = normal(1, 6), torch.zeros(1).double()
    theta, rest = start.clone(), torch.zeros_like(start)
    for i in range(6):
        eta, v = torch.tensor([0.1 * i]).double(), normal(1, 6, seed=10 + i)
        theta, rest, kept = toward(theta, v, eta), toward(rest, v, eta), forgotten(kept, eta)
    torch.testing.assert_close(theta, kept.exp() * start + rest, **TIGHT)
    assert forgotten(kept, torch.ones(1).double()) == -torch.inf


def test_in_an_l2_ball_the_radius_rescaling_is_sgd_with_a_decay_by_the_gradients_norm() -> None:
    """``eta = lr ||m|| / r``, so ``theta - eta theta - eta r m / ||m|| = (1 - lr ||m|| / r) theta - lr m``."""
    m, theta, r, lr = normal(2, 9), 0.1 * normal(2, 9, seed=1), 7.0, 0.2
    ball = balls.L2()
    v = ball.lmo(m, r, stacked=True)
    eta, _ = step_size(RESCALINGS["radius"], lr, lengths(m, theta, v, ball.diameter(r, (9,))))
    norm = m.norm(dim=1, keepdim=True)
    torch.testing.assert_close(toward(theta, v, eta), (1 - lr * norm / r) * theta - lr * m, **TIGHT)


class Known:
    """Least squares over a k-support ball with a solution on the boundary that is no vertex.

    With the k-th largest entry of c tied, ``x`` mixes vertices that all maximise ``<c, x>``; b is made so that the
    gradient there is ``-c``: x is optimal.
    """

    def __init__(self) -> None:
        n, self.radius = 8, 2.0
        self.ball = balls.KSupport(k=3)
        c = torch.tensor([3, -2, 1, 1, -1, 0.5, 0.2, 0.1], dtype=torch.float64)
        top = torch.tensor([3, -2, 0.5, 0.3, -0.2, 0, 0, 0], dtype=torch.float64)
        self.x = self.radius * top / (9 + 4 + 1) ** 0.5
        self.a = torch.eye(n).double() + 0.3 * normal(n, n) / n**0.5
        self.b = self.a @ self.x + torch.linalg.solve(self.a.T, c)
        self.best = float(self.f(self.x))

    def f(self, x: torch.Tensor) -> torch.Tensor:
        return 0.5 * (self.a @ x - self.b).square().sum()

    def run(self, rescale, rate, steps) -> tuple[float, list[float]]:
        theta, gaps = torch.zeros(1, 8).double(), []
        for t in range(steps):
            g = (self.a.T @ (self.a @ theta[0] - self.b))[None]
            v = self.ball.lmo(g, self.radius, stacked=True)
            gaps.append(float((g * (theta - v)).sum()))
            eta, _ = step_size(RESCALINGS[rescale], rate(t), lengths(g, theta, v, 2 * self.radius))
            theta = toward(theta, v, eta)
        return float(self.f(theta[0])) - self.best, gaps


def test_the_textbooks_step_converges_like_one_over_t() -> None:
    known = Known()
    excess, gaps = known.run("none", lambda t: 2 / (t + 2), 400)
    lipschitz = float(torch.linalg.matrix_norm(known.a, 2)) ** 2
    curvature = lipschitz * (2 * known.radius) ** 2
    assert -1e-9 <= excess <= 2 * curvature / 402
    assert all((t + 2) * min(gaps[: t + 1]) <= 7 * curvature for t in range(400))  # Jaggi 2013, theorem 2


def test_gradient_rescaling_needs_a_rate_that_falls_to_zero() -> None:
    known = Known()
    falling, _ = known.run("gradient", lambda t: 1 - t / 2000, 2000)
    constant, _ = known.run("gradient", lambda t: 1.0, 300)
    assert -1e-9 <= falling <= 1e-5 * known.best
    assert constant > 1e-2 * known.best
