"""The integrators step as their equations say: float64, one tensor, no network."""

import itertools
from collections.abc import Iterable, Iterator

import pytest
import torch
from torch import nn

from optim.toys import Kernel, basis, integrator, kernel, normal, of, orthonormality, run, teacher, turned
from tenfold.errors import ArgumentError, TenfoldWarning
from tenfold.linalg.tucker import tucker_full
from tenfold.optim.tucker.integrator import Integrator
from tenfold.optim.tucker.settings import IntegratorSettings

SHAPES = [((6, 5), (2, 2)), ((6, 5, 3, 3), (3, 2)), ((4, 5, 3), (2, 3, 2))]
STALLS = pytest.mark.filterwarnings("ignore:the ranks of .* cannot grow")  # rightly, where a cycle has one step
ONE_PASS, TWO_PASS = IntegratorSettings(0.0, every=1), IntegratorSettings(0.0, twice=True)


def named(settings: IntegratorSettings) -> str:
    return "two-pass" if settings.twice else f"cycle-{settings.every}"


def quadratic(shape, seed=11):
    """``L(W) = <B, W> + |D o W|^2 / 2``, its gradient and its smoothness."""
    b, d = normal(*shape, seed=seed), normal(*shape, seed=seed + 1)
    return lambda w: (b * w).sum() + (d * w).square().sum() / 2, lambda w: b + d**2 * w, float(d.square().max())


def toward(target):
    """``|W - target|^2 / 2``."""
    return lambda model, _: (model() - target).square().sum() / 2


def projector(model: Kernel) -> torch.Tensor:
    """On the tangent space at the tensor, from the Jacobian of ``(C, U) -> W``."""
    parts = [model.core.detach(), *[b.detach() for b in model.bases]]
    jacobian = torch.autograd.functional.jacobian(lambda c, *u: tucker_full(c, u).reshape(-1), tuple(parts))
    u, s, _ = torch.linalg.svd(torch.cat([j.flatten(1) for j in jacobian], 1), full_matrices=False)
    u = u[:, s > 1e-10 * s[0]]
    return u @ u.mT


@pytest.mark.parametrize(("shape", "ranks"), SHAPES)
def test_one_pass_equals_a_riemannian_gradient_step_before_its_cut(shape, ranks) -> None:
    model, (loss, gradient, _) = kernel(shape, ranks), quadratic(shape)
    w = model.full.detach()
    step = 0.1 * (projector(model) @ gradient(w).reshape(-1)).reshape(shape)
    run(model, integrator(model, ONE_PASS, lr=0.1), lambda m, _: loss(m()), 1)
    torch.testing.assert_close(model.full.detach(), w - step, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("shape", "ranks"), SHAPES)
def test_a_fixed_rank_step_is_that_step_cut_to_the_ranks(shape, ranks) -> None:
    model, (loss, gradient, _) = kernel(shape, ranks), quadratic(shape)
    w = model.full.detach()
    step = 0.1 * (projector(model) @ gradient(w).reshape(-1)).reshape(shape)
    run(model, integrator(model, IntegratorSettings(0.0, every=1, pinned=True), lr=0.1), lambda m, _: loss(m()), 1)
    assert model.ranks == ranks
    torch.testing.assert_close(model.full.detach(), of(w - step, ranks).full.detach(), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("shape", "ranks"), SHAPES)
def test_two_pass_equals_the_gradient_projected_on_the_grown_bases(shape, ranks) -> None:
    model, (loss, gradient, _) = kernel(shape, ranks), quadratic(shape)
    w = model.full.detach()
    loss(model()).backward()
    step = 0.1 * gradient(w)
    for mode, u in enumerate(model.bases):
        u, _, _ = torch.linalg.svd(torch.cat([u.detach(), u.grad], 1), full_matrices=False)
        step = torch.tensordot(u @ u.mT, step, ([1], [mode])).movedim(0, mode)
    run(model, integrator(model, TWO_PASS, lr=0.1), lambda m, _: loss(m()), 1)
    torch.testing.assert_close(model.full.detach(), w - step, rtol=0, atol=1e-13)


def test_clipping_sees_all_gradients_and_shortens_the_whole_step() -> None:
    """Their norm is that of ``(C, U)`` as plain parameters, and does not depend on which basis spans a subspace."""
    shape, ranks = SHAPES[1]
    model, (loss, gradient, _) = kernel(shape, ranks), quadratic(shape)
    w = model.full.detach()
    optimizer = integrator(model, ONE_PASS, lr=0.1)
    loss(model()).backward()
    norm = torch.stack([p.grad.square().sum() for p in (model.core, *model.bases)]).sum().sqrt()
    other = turned(model)
    loss(other()).backward()
    torch.testing.assert_close(nn.utils.clip_grad_norm_(other.parameters(), 1.0), norm)
    torch.testing.assert_close(nn.utils.clip_grad_norm_(model.parameters(), float(norm) / 3), norm)
    optimizer.step()
    step = 0.1 / 3 * (projector(kernel(shape, ranks)) @ gradient(w).reshape(-1)).reshape(shape)
    torch.testing.assert_close(model.full.detach(), w - step, rtol=0, atol=1e-6)


def test_clipping_one_layer_shortens_its_step_and_no_other() -> None:
    shape, ranks = SHAPES[1]
    loss, gradient, _ = quadratic(shape)
    model = nn.ModuleList([kernel(shape, ranks), kernel(shape, ranks, seed=5)])
    w = [m.full.detach() for m in model]
    steps = [(projector(m) @ gradient(x).reshape(-1)).reshape(shape) for m, x in zip(model, w, strict=True)]
    optimizer = integrator(model, ONE_PASS, lr=0.1)
    sum(loss(m()) for m in model).backward()
    norm = float(nn.utils.clip_grad_norm_(model[0].parameters(), 1e-3))
    optimizer.step()
    for m, x, step, share in zip(model, w, steps, (1e-3 / norm, 1), strict=True):
        moved = x - m.full.detach()
        torch.testing.assert_close(moved, 0.1 * share * step, rtol=1e-4, atol=1e-13)


CLEARED = {
    "optimizer": lambda model, optimizer: optimizer.zero_grad(),
    "optimizer, kept": lambda model, optimizer: optimizer.zero_grad(set_to_none=False),
    "module": lambda model, optimizer: model.zero_grad(),
    "none": lambda model, optimizer: [setattr(p, "grad", None) for p in model.parameters()],
    "in place": lambda model, optimizer: [p.grad.zero_() for p in model.parameters() if p.grad is not None],
}


@pytest.mark.parametrize("cleared", CLEARED)
@pytest.mark.parametrize("settings", [IntegratorSettings(0.05, every=3), ONE_PASS], ids=named)
def test_however_gradients_are_cleared_a_discarded_batch_leaves_nothing(settings, cleared) -> None:
    """A batch whose loss is not a number, or a thousand times as large, and is thrown away."""
    shape, ranks = SHAPES[1]
    loss = quadratic(shape)[0]
    plain, other = kernel(shape, ranks), kernel(shape, ranks)
    optimizers = [integrator(m, settings, lr=0.02, momentum=0.9) for m in (plain, other)]
    run(plain, optimizers[0], lambda m, _: loss(m()), 7)
    for step in range(7):
        for discarded in (float("nan"), 1e3):
            (discarded * loss(other())).backward()
            CLEARED[cleared](other, optimizers[1])
        loss(other()).backward()
        optimizers[1].step()
        assert optimizers[1].report["steps"] == step + 1
        CLEARED[cleared](other, optimizers[1])
    assert plain.ranks == other.ranks
    assert torch.equal(plain.full, other.full)
    assert optimizers[1].report["nonfinite"] == 0


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize(("shape", "ranks"), SHAPES)
def test_the_loss_falls_as_smoothness_promises_and_the_cut_costs_what_it_may(shape, ranks, twice) -> None:
    """``L(W+) <= L(W) - lr (1 - lr L / 2) |step / lr|^2`` before the cut; the cut adds ``|grad| e + L e^2 / 2``."""
    loss, gradient, smooth = quadratic(shape)
    tau = 0.2
    for lr in (0.1 / smooth, 1 / smooth, 1.9 / smooth):
        whole, cut = kernel(shape, ranks), kernel(shape, ranks)
        w = whole.full.detach()
        run(whole, integrator(whole, IntegratorSettings(0.0, every=1, twice=twice), lr=lr), lambda m, _: loss(m()), 1)
        after = whole.full.detach()
        projected = float(((after - w) / lr).square().sum())
        assert float(loss(after)) <= float(loss(w)) - lr * (1 - lr * smooth / 2) * projected + 1e-10
        optimizer = integrator(cut, IntegratorSettings(tau, every=1, twice=twice), lr=lr)
        run(cut, optimizer, lambda m, _: loss(m()), 1)
        error = float((cut.full.detach() - after).norm())
        assert error <= tau * float(after.norm()) * (1 + 1e-12)
        torch.testing.assert_close(optimizer.report["error"][""] * float(after.norm()), error, rtol=1e-9, atol=1e-12)
        added = float(gradient(after).norm()) * error + smooth / 2 * error**2
        assert float(loss(cut.full.detach())) <= float(loss(after)) + added + 1e-10


@STALLS
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(
    "settings",
    [IntegratorSettings(0.05, every=4), IntegratorSettings(0.05, every=1), IntegratorSettings(0.05, twice=True)],
    ids=named,
)
@pytest.mark.parametrize(("shape", "ranks"), SHAPES)
def test_the_basis_does_not_matter_to_sgd_and_heavy_ball(shape, ranks, settings, momentum) -> None:
    loss = quadratic(shape)[0]
    a = kernel(shape, ranks)
    b = turned(a)
    for model in (a, b):
        hyper = {"lr": 0.02, "momentum": momentum, "weight_decay": 0.01}
        run(model, integrator(model, settings, **hyper), lambda m, _: loss(m()), 12)
    assert a.ranks == b.ranks
    torch.testing.assert_close(a.full, b.full, rtol=0, atol=1e-10)


def test_momentum_goes_along_exactly() -> None:
    """With nothing cut, heavy ball in changing bases is heavy ball on the whole matrix, whose bases are all there."""
    loss, gradient, _ = quadratic((4, 4))
    model = of(normal(4, 4), (4, 4))
    w, m = model.full.detach(), torch.zeros(4, 4, dtype=torch.float64)
    run(model, integrator(model, IntegratorSettings(0.0, every=3), lr=0.02, momentum=0.9), lambda k, _: loss(k()), 30)
    for _ in range(30):
        m = 0.9 * m + gradient(w)
        w = w - 0.02 * m
    torch.testing.assert_close(model.full.detach(), w, rtol=0, atol=1e-11)


def test_weight_decay_of_the_core_is_that_of_the_weight() -> None:
    model = kernel((6, 5, 3), (3, 2))
    w = model.full.detach()
    optimizer = integrator(model, IntegratorSettings(0.0, every=2), base=torch.optim.AdamW, lr=0.1, weight_decay=0.5)
    run(model, optimizer, lambda m, _: 0 * m().sum(), 1)
    torch.testing.assert_close(model.full.detach(), 0.95 * w, rtol=1e-12, atol=1e-12)


@STALLS
@pytest.mark.parametrize(
    "settings",
    [IntegratorSettings(0.1, every=10), IntegratorSettings(0.1, every=1), IntegratorSettings(0.1, twice=True)],
    ids=named,
)
def test_bases_stay_orthonormal_through_a_thousand_steps_of_adamw_with_decay(settings) -> None:
    model = kernel((6, 5, 3), (3, 2))
    target = normal(6, 5, 3, seed=4)
    optimizer = integrator(model, settings, base=torch.optim.AdamW, lr=0.01, weight_decay=0.1)
    noise = torch.Generator().manual_seed(0)
    worst = 0.0

    def loss(m, _):
        return (m() - target - torch.randn(6, 5, 3, dtype=torch.float64, generator=noise)).square().sum()

    for _ in range(100 if settings.every == 10 and not settings.twice else 4):
        run(model, optimizer, loss, 10)
        worst = max(worst, orthonormality(model))
    run(model, optimizer, loss, 3)  # in the middle of a cycle, too
    assert max(worst, orthonormality(model)) <= 1e-12
    assert optimizer.report["nonfinite"] == 0


# ---- growth


@pytest.mark.parametrize("settings", [IntegratorSettings(0.0, every=5), IntegratorSettings(0.0, twice=True)], ids=named)
@pytest.mark.parametrize("inside", [False, True])
def test_growing_leaves_the_weight_alone_with_a_gradient_of_zero_or_inside_the_span(settings, inside) -> None:
    model = kernel((6, 5, 3), (3, 2))
    w = model.full.detach()
    direction = tucker_full(normal(3, 2, 3, seed=5), [b.detach() for b in model.bases])
    optimizer = integrator(model, settings, lr=0.0)
    run(model, optimizer, lambda m, _: (direction * m()).sum() * float(inside), 1)
    torch.testing.assert_close(model.full.detach(), w, rtol=0, atol=1e-13)
    assert orthonormality(model) <= 1e-13
    assert model.ranks == (3, 2)  # nothing lies outside


def test_in_a_cycle_the_ranks_are_larger_and_after_it_the_cut_ones() -> None:
    model, target = kernel((8, 7, 3), (2, 2)), teacher((8, 7, 3), (8, 7))
    optimizer = integrator(model, IntegratorSettings(0.3, every=4), lr=0.1)
    for step in range(8):
        run(model, optimizer, toward(target), 1)
        assert bool(model.augmented) == (step % 4 != 3)
        assert model.constant_bases == (step % 4 != 3)
        assert all(b.requires_grad and b.grad is None for b in model.bases)
    assert model.ranks != (2, 2)
    settled = model.ranks
    run(model, optimizer, toward(target), 1)
    assert model.ranks > settled
    whole = model.full.detach()
    optimizer.end_cycle_()
    assert not bool(model.augmented)
    assert float((model.full.detach() - whole).norm()) <= 0.3 * float(whole.norm())


@pytest.mark.parametrize(
    "settings", [IntegratorSettings(0.01, every=10), IntegratorSettings(0.01, twice=True)], ids=named
)
def test_too_large_ranks_come_down_to_the_true_ones(settings) -> None:
    model, target = kernel((12, 10, 3, 3), (8, 8)), teacher((12, 10, 3, 3), (3, 2))
    run(model, integrator(model, settings, lr=0.3), toward(target), 50)
    assert model.ranks == (3, 2)
    torch.testing.assert_close(model.full.detach(), target, rtol=0, atol=0.02 * float(target.norm()))


def test_too_small_ranks_grow_to_the_true_ones_in_ten_steps_and_stall_in_one() -> None:
    def start() -> Kernel:
        torch.manual_seed(0)
        return of(0.1 * normal(12, 10, 3, 3, seed=21), (1, 1))

    target = teacher((12, 10, 3, 3), (3, 2))
    long, short = start(), start()
    loss = toward(target)
    run(long, integrator(long, IntegratorSettings(0.1, every=10), lr=0.1), loss, 80)
    assert long.ranks == (3, 2)
    optimizer = integrator(short, IntegratorSettings(0.1, every=1), lr=0.01)
    with pytest.warns(TenfoldWarning, match="cannot grow"):
        run(short, optimizer, loss, 60)
    assert short.ranks == (1, 1)
    assert optimizer.report["growth"][""] < 1


# ---- small singular values


def spectrum(values, seed: int = 0) -> Kernel:
    s = torch.tensor(values, dtype=torch.float64)
    return Kernel(torch.diag(s), [basis(8, len(s), seed), basis(7, len(s), seed + 1)])


@pytest.mark.parametrize("settings", [ONE_PASS, TWO_PASS], ids=named)
def test_a_tiny_singular_value_moves_nothing_by_more_than_the_gradient(settings) -> None:
    model, (loss, gradient, _) = spectrum([1.0, 0.5, 1e-8]), quadratic((8, 7))
    w = model.full.detach()
    run(model, integrator(model, settings, lr=0.1), lambda m, _: loss(m()), 1)
    assert float((model.full.detach() - w).norm()) <= 0.1 * float(gradient(w).norm()) * (1 + 1e-6)
    s = torch.linalg.svdvals(model.core.detach())
    assert float(s[2]) > 1e-4  # and that it moves is not for want of trying


def test_a_start_with_zero_singular_values_moves() -> None:
    for settings in (
        IntegratorSettings(0.0, every=1),
        IntegratorSettings(0.0, twice=True),
        IntegratorSettings(0.0, every=4),
    ):
        model, target = spectrum([1.0, 0.0, 0.0]), teacher((8, 7), (3, 3))
        losses = run(model, integrator(model, settings, lr=0.5), toward(target), 40)
        assert losses[-1] < 1e-6 * losses[0]


CONDITIONS = (1.0, 1e4, 1e8, 1e12, 1e16)


def conditioned(condition: float) -> Kernel:
    """A matrix of rank 3 with this condition number."""
    return spectrum([1.0, condition**-0.5, 1 / condition])


def well_conditioned() -> torch.Tensor:
    """What is approached from there: rank 3, singular values 1, 0.85 and 0.17."""
    target = teacher((8, 7), (3, 3), seed=8)
    return target / torch.linalg.matrix_norm(target, 2)


def steps_to_1e_4(losses: Iterable[float], most: int) -> int:
    """How many steps it takes until ``|W - A|`` has fallen to 1e-4 of what it was; ``most`` if that takes longer."""
    first = None
    for i, loss in enumerate(itertools.islice(losses, most)):
        first = loss if first is None else first
        if loss <= 1e-8 * first:
            return i
    return most


def factor_descent(factors, product, lr: float) -> Iterator[float]:
    """The losses of gradient descent on ``|product(factors) - A|^2 / 2``, all factors at once."""
    target, factors = well_conditioned(), [f.clone().requires_grad_() for f in factors]
    while True:
        loss = (product(*factors) - target).square().sum() / 2
        yield float(loss.detach())
        with torch.no_grad():
            for factor, gradient in zip(factors, torch.autograd.grad(loss, factors), strict=True):
                factor -= lr * gradient


@pytest.mark.parametrize(
    "settings",
    [
        IntegratorSettings(0.0, twice=True, pinned=True),
        IntegratorSettings(0.0, every=1, pinned=True),
        IntegratorSettings(0.0, every=4, pinned=True),
    ],
    ids=named,
)
def test_the_condition_of_the_start_does_not_cost_the_integrators_steps(settings) -> None:
    needed = []
    for condition in CONDITIONS:
        model = conditioned(condition)
        losses = run(model, integrator(model, settings, lr=0.7), toward(well_conditioned()), 16)
        needed.append(steps_to_1e_4(losses, 16))
    assert max(needed) <= 12  # 8 to 11, where gradient descent on a full matrix takes 8
    assert max(needed) <= needed[0] + 3


def test_it_costs_gradient_descent_on_two_factors_more_steps_with_every_decade() -> None:
    """The same problem, starts and rate: 66 steps from condition 1, 182 from 1e16; at a rate of 1, never."""
    needed = []
    for condition in CONDITIONS:
        model = conditioned(condition)
        root = model.core.detach().diagonal().sqrt()
        pair = [basis.detach() * root for basis in model.bases]  # balanced
        needed.append(steps_to_1e_4(factor_descent(pair, lambda a, b: a @ b.mT, 0.7), 400))
    assert needed == sorted(needed)
    assert needed[0] >= 4 * 12  # well conditioned starts are slower already
    assert 2.5 * needed[0] <= needed[-1] < 400
    assert all(b - a >= 20 for a, b in itertools.pairwise(needed[1:]))


def test_it_costs_gradient_descent_on_three_factors_many_times_the_steps() -> None:
    """``U S V^T`` with nothing that keeps U and V orthonormal, at 0.5 (at 0.7, never): 190 steps, then 1,620."""
    needed = []
    for condition in CONDITIONS[:2]:
        model = conditioned(condition)
        triple = [model.bases[0].detach(), model.core.detach(), model.bases[1].detach()]
        needed.append(steps_to_1e_4(factor_descent(triple, lambda u, s, v: u @ s @ v.mT, 0.5), 1000))
    assert needed[0] < 250
    assert needed[1] >= 4 * needed[0]


# ---- limits, and what does not go well


def test_a_cap_that_overrides_the_tolerance_is_reported() -> None:
    model, target = kernel((8, 7, 3), (2, 2)), teacher((8, 7, 3), (4, 4))
    optimizer = integrator(model, IntegratorSettings(0.01, every=5, cap=0.25), lr=0.1)
    with pytest.warns(TenfoldWarning, match="`cap` overrides `tau`"):
        run(model, optimizer, toward(target), 20)
    assert max(model.ranks) <= 2
    assert optimizer.report["overridden"][""] > 0
    assert optimizer.report["error"][""] > 0.01


def test_floor_and_multiple_hold() -> None:
    model, target = kernel((16, 16, 3), (8, 8)), teacher((16, 16, 3), (1, 1))
    run(model, integrator(model, IntegratorSettings(0.1, every=5, floor=3), lr=0.5), toward(target), 20)
    assert model.ranks == (3, 3)
    model = kernel((16, 16, 3), (8, 8))
    settings = IntegratorSettings(0.1, every=5, floor=3, multiple=4)
    run(model, integrator(model, settings, lr=0.5), toward(target), 20)
    assert model.ranks == (4, 4)


def test_pinned_ranks_stay() -> None:
    target = teacher((8, 7, 3), (4, 4))
    loss = toward(target)
    model = kernel((8, 7, 3), (3, 2))
    losses = run(model, integrator(model, IntegratorSettings(0.0, every=1, pinned=True), lr=0.2), loss, 60)
    assert model.ranks == (3, 2)
    best = (of(target, (3, 2)).full.detach() - target).square().sum() / 2
    assert losses[-1] <= 1.05 * float(best)  # its bases have moved to where they should be


@pytest.mark.parametrize("freeze", [20, None])
def test_frozen_ranks_stay_where_others_would_fall(freeze) -> None:
    model = kernel((8, 7, 3), (1, 1))
    optimizer = integrator(model, IntegratorSettings(0.01, every=5, freeze=freeze, steps=43), lr=0.5)
    run(model, optimizer, toward(teacher((8, 7, 3), (4, 4))), 20)
    assert model.ranks == (4, 4)
    run(model, optimizer, toward(teacher((8, 7, 3), (1, 1), seed=9)), 23)
    assert model.ranks == ((1, 1) if freeze is None else (4, 4))
    assert not bool(model.augmented)  # the last step of the run ends its cycle


def test_a_gradient_that_is_not_finite_grows_nothing_and_is_counted() -> None:
    model = kernel((6, 5, 3), (3, 2))
    optimizer = integrator(model, IntegratorSettings(0.1, every=2), lr=0.0)
    model().sum().mul(float("nan")).backward()
    model.core.grad = None
    before = [b.detach().clone() for b in model.bases]
    optimizer.step()
    assert model.ranks == (3, 2)
    assert all(torch.equal(a, b) for a, b in zip(before, model.bases, strict=True))
    assert optimizer.report["nonfinite"] == 1


def test_steps_that_a_scaler_skips_do_nothing_and_scaled_steps_are_as_unscaled_ones() -> None:
    loss = quadratic((6, 5, 3))[0]
    plain, scaled = kernel((6, 5, 3), (3, 2)), kernel((6, 5, 3), (3, 2))
    run(plain, integrator(plain, IntegratorSettings(0.05, every=1), lr=0.02), lambda m, _: loss(m()), 4)
    optimizer = integrator(scaled, IntegratorSettings(0.05, every=1), lr=0.02)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for i in range(5):
        optimizer.zero_grad()
        value = loss(scaled())
        scaler.scale(value * float("inf") if i == 2 else value).backward()
        before = scaled.full.detach()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(before, scaled.full.detach()) == (i == 2)
    assert optimizer.report["steps"] == 4
    assert optimizer.report["nonfinite"] == 0
    torch.testing.assert_close(scaled.full, plain.full, rtol=0, atol=1e-10)


def test_accumulated_gradients_make_one_step() -> None:
    loss = quadratic((6, 5, 3))[0]
    whole, parts = kernel((6, 5, 3), (3, 2)), kernel((6, 5, 3), (3, 2))
    run(whole, integrator(whole, IntegratorSettings(0.0, every=3), lr=0.02), lambda m, _: loss(m()), 6)
    optimizer = integrator(parts, IntegratorSettings(0.0, every=3), lr=0.02)
    for _ in range(6):
        optimizer.zero_grad()
        for share in (0.25, 0.75):
            (share * loss(parts())).backward()
        optimizer.step()
    torch.testing.assert_close(parts.full, whole.full, rtol=0, atol=1e-12)


def test_what_cannot_be_served_is_refused() -> None:
    model = kernel((6, 5), (2, 2))
    with pytest.raises(ArgumentError, match="none of its bases"):
        Integrator(torch.optim.SGD(model.parameters(), lr=0.1), model, IntegratorSettings(0.1))
    with pytest.raises(ArgumentError, match="`closure` must be given"):
        integrator(model, IntegratorSettings(0.1, twice=True), lr=0.1).step()
    with pytest.raises(ArgumentError, match="`model` must be one with layers in Tucker format"):
        integrator(nn.Linear(2, 2), IntegratorSettings(0.1), lr=0.1)
    with pytest.raises(ArgumentError, match="`base`"):
        integrator(model, IntegratorSettings(0.1), base=torch.optim.LBFGS)
