"""What is kept in a core's coordinates goes along when its bases change."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import basis, normal
from tenfold.linalg.change_of_basis import (
    grow,
    grow_square,
    leading,
    new_directions,
    tangent_gradient,
    turn,
    turn_square,
)
from tenfold.linalg.subspace import fresh_directions
from tenfold.linalg.tucker import Limits, tucker_cut, tucker_full

CASES = [((7, 6), (2, 2)), ((6, 5, 3, 3), (3, 2)), ((5, 4, 3), (2, 3, 2))]


def tucker(shape, ranks, seed: int = 0) -> tuple[torch.Tensor, list[torch.Tensor]]:
    core = normal(*ranks, *shape[len(ranks) :], seed=seed)
    return core, [basis(n, r, seed + i) for i, (n, r) in enumerate(zip(shape, ranks, strict=False))]


@pytest.mark.parametrize("groups", [1, 3])
def test_growing_pads_with_zeros_and_leaves_the_tensor_alone(groups) -> None:
    core = normal(groups * 2, 3, 4)
    grown = grow(core, (4, 5), groups)
    assert grown.shape == (groups * 4, 5, 4)
    for i in range(groups):
        part = grown[4 * i : 4 * i + 4]
        assert torch.equal(part[:2, :3], core[2 * i : 2 * i + 2])
        assert part.count_nonzero() == 2 * 3 * 4
    assert torch.equal(leading(grown, (2, 3), groups), core)


@pytest.mark.parametrize("groups", [1, 2])
def test_grown_second_moments_are_the_mean_of_what_they_stand_beside(groups) -> None:
    v = normal(groups * 2, 3, 4).square()
    grown = grow_square(v, (3, 5), groups).unflatten(0, (groups, 3))
    old = v.unflatten(0, (groups, 2))
    assert torch.equal(grown[:, :2, :3], old)
    torch.testing.assert_close(grown[:, 2, :3], old.mean(1))
    torch.testing.assert_close(grown[:, :2, 4], old.mean(2))
    torch.testing.assert_close(grown[:, 2, 3], old.mean((1, 2)))


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize(("shape", "ranks"), CASES)
def test_a_moment_inside_the_kept_span_arrives_exactly_and_another_as_its_projection(shape, ranks, aligned) -> None:
    core, bases = tucker(shape, ranks)
    cut = tucker_cut(core, bases, 0.5, limits=Limits(1, [r - 1 for r in ranks]), aligned=aligned)
    assert cut.core.shape != core.shape
    inside = tucker_full(normal(*cut.core.shape, seed=9), [p[0] for p in cut.turns])
    arrived = turn(inside, cut.turns)
    torch.testing.assert_close(tucker_full(arrived, cut.bases), tucker_full(inside, bases), rtol=0, atol=1e-12)
    m = normal(*core.shape, seed=8)
    projected = tucker_full(tucker_full(m, bases), [u @ u.mT for u in cut.bases])
    torch.testing.assert_close(tucker_full(turn(m, cut.turns), cut.bases), projected, rtol=0, atol=1e-12)


def test_turned_second_moments_are_those_of_turned_gradients_that_are_not_correlated() -> None:
    """``E (P^T g)_i^2 = sum_j P_ji^2 E g_j^2``: by enumeration of all signs."""
    p = basis(5, 3)
    v = normal(5).square()
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 5)
    expected = ((signs * v.sqrt()) @ p).square().mean(0)
    torch.testing.assert_close(turn_square(v, [p[None]]), expected, rtol=1e-12, atol=1e-13)


@given(st.integers(0, 99))
def test_turned_second_moments_stay_positive_and_never_grow_in_sum(seed) -> None:
    v = normal(5, 4, 3, seed=seed).square()
    turned = turn_square(v, [basis(5, 3, seed)[None], basis(4, 2, seed)[None]])
    assert bool((turned >= 0).all())
    assert turned.sum() <= v.sum() + 1e-12


def test_without_rotation_second_moments_are_left_as_they_are() -> None:
    v = normal(4, 3).square()
    eye = [torch.eye(n, dtype=torch.float64)[None, :, : n - 1] for n in (4, 3)]
    torch.testing.assert_close(turn_square(v, eye), v[:3, :2])


def gradients(w_gradient, core, bases):
    parts = [core.clone().requires_grad_(), *[u.clone().requires_grad_() for u in bases]]
    loss = (tucker_full(parts[0], parts[1:]) * w_gradient).sum()
    found = torch.autograd.grad(loss, parts)
    return found[0], [g[None] for g in found[1:]]


def tangent_projection(core, bases, g) -> torch.Tensor:
    """By the Jacobian of ``(C, U) -> W``."""
    jacobian = torch.autograd.functional.jacobian(lambda c, *u: tucker_full(c, u).reshape(-1), (core, *bases))
    u, s, _ = torch.linalg.svd(torch.cat([j.flatten(1) for j in jacobian], 1), full_matrices=False)
    u = u[:, s > 1e-10 * s[0]]
    return (u @ (u.mT @ g.reshape(-1))).reshape(g.shape)


@pytest.mark.parametrize(("shape", "ranks"), CASES)
def test_the_tangent_gradient_is_the_projection_on_the_tangent_space(shape, ranks) -> None:
    for seed in range(3):
        core, bases = tucker(shape, ranks, seed)
        g = normal(*shape, seed=seed + 50)
        grad_core, grads = gradients(g, core, bases)
        fresh = [fresh_directions(u[None], x) for u, x in zip(bases, grads, strict=True)]
        found = tangent_gradient(grad_core, core, fresh, grads)
        whole = tucker_full(found, [torch.cat([u, f[0]], 1) for u, f in zip(bases, fresh, strict=True)])
        torch.testing.assert_close(whole, tangent_projection(core, bases, g), rtol=0, atol=1e-12)


def test_small_singular_values_make_nothing_large_where_a_plain_inverse_would() -> None:
    """With s_min = 1e-8 a step of a factor, which has s divided out, is 1e8 times as long as the gradient."""
    u, v = basis(8, 3), basis(7, 3, 1)
    core = torch.diag(torch.tensor([1.0, 0.3, 1e-8], dtype=torch.float64))
    g = normal(8, 7, seed=5)
    grad_core, grads = gradients(g, core, [u, v])
    fresh = [fresh_directions(b[None], x) for b, x in zip((u, v), grads, strict=True)]
    found = tangent_gradient(grad_core, core, fresh, grads)
    assert float(found.norm()) <= float(g.norm()) * (1 + 1e-6)
    plain = (g @ v) / torch.diag(core)  # what a factor in place of a basis would be moved by
    assert float(plain.norm()) > 1e7 * float(g.norm())


def test_singular_values_that_are_rounding_errors_are_left_out() -> None:
    u, v = basis(8, 3), basis(7, 3, 1)
    core = torch.diag(torch.tensor([1.0, 0.3, 1e-17], dtype=torch.float64))
    g = normal(8, 7, seed=5)
    grad_core, grads = gradients(g, core, [u, v])
    noisy = [x + 1e-16 * normal(*x.shape, seed=3) for x in grads]
    fresh = [fresh_directions(b[None], x) for b, x in zip((u, v), noisy, strict=True)]
    found = tangent_gradient(grad_core, core, fresh, noisy)
    assert math.isfinite(float(found.norm()))
    assert float(found.norm()) <= float(g.norm()) * (1 + 1e-6)


def rough(smallest: float, mixed: bool) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
    """A float32 matrix of rank 4 in factors, whose singular values fall to ``smallest``, and a gradient in it."""
    core = torch.diag(torch.logspace(0, math.log10(smallest), 4, dtype=torch.float64))
    core = basis(4, 4, 5) @ core @ basis(4, 4, 6).mT if mixed else core
    return core.float(), [basis(24, 4).float(), basis(20, 4, 1).float()], normal(24, 20, seed=9).float()


@pytest.mark.parametrize(("smallest", "mixed"), [(1e-2, True), (1e-5, True), (1e-5, False), (1e-8, False)])
def test_small_singular_values_cost_no_direction_and_no_length_in_float32(smallest, mixed) -> None:
    core, bases, g = rough(smallest, mixed)
    grad_core, grads = gradients(g, core, bases)
    fresh = new_directions(core, [u[None] for u in bases], grads, (4, 4))
    assert [f.shape[-1] for f in fresh] == [4, 4]
    found = tangent_gradient(grad_core, core, fresh, grads)
    whole = tucker_full(found.double(), [torch.cat([u, f[0]], 1).double() for u, f in zip(bases, fresh, strict=True)])
    u, v = (x.double() for x in bases)
    left, right = u @ u.mT @ g.double(), g.double() @ v @ v.mT
    projected = left + right - u @ u.mT @ right  # on the tangent space of matrices of rank 4
    torch.testing.assert_close(whole, projected, rtol=0, atol=2e-3 * float(projected.norm()))
    torch.testing.assert_close(whole.norm(), projected.norm(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("most", [1, 2])
@pytest.mark.parametrize("smallest", [1.0, 1e-3, 1e-5])
def test_few_directions_hold_as_much_of_the_gradient_as_so_few_can(smallest, most) -> None:
    """Chosen by the gradients of the bases, they would be those before the large singular values of the core."""
    core, bases, g = rough(smallest, True)
    _, grads = gradients(g, core, bases)
    fresh = new_directions(core, [u[None] for u in bases], grads, (most, most))
    (u, v), w = (x.double() for x in bases), g.double()
    for f, k in zip(fresh, (w @ v - u @ u.mT @ w @ v, w.mT @ u - v @ v.mT @ w.mT @ u), strict=True):
        possible = torch.linalg.svdvals(k)[:most].square().sum()
        assert (f[0].double().mT @ k).square().sum() >= 0.999 * possible


def test_what_is_known_to_few_digits_is_not_amplified() -> None:
    """Gradients computed in bfloat16, before a singular value of 1e-5: an inverse makes of them more than there was."""
    core, bases, g = rough(1e-5, True)
    parts = [x.bfloat16().requires_grad_() for x in (core, *bases)]
    found = torch.autograd.grad((tucker_full(parts[0], parts[1:]) * g.bfloat16()).sum(), parts)
    grad_core, grads = found[0].float(), [x.float()[None] for x in found[1:]]
    lengths = []
    for rounding in (None, 2.0**-7):
        fresh = new_directions(core, [u[None] for u in bases], grads, (4, 4), rounding=rounding)
        lengths.append(float(tangent_gradient(grad_core, core, fresh, grads, rounding=rounding).norm()))
    assert lengths[0] > 2 * float(g.norm())
    assert lengths[1] <= 1.01 * float(g.norm())


def test_groups_are_groups_of_tensors() -> None:
    parts = [tucker((6, 5, 3), (3, 2), seed) for seed in (0, 10)]
    gs = [normal(6, 5, 3, seed=s) for s in (20, 21)]
    found = [gradients(g, *part) for g, part in zip(gs, parts, strict=True)]
    fresh = [
        [fresh_directions(u[None], x) for u, x in zip(part[1], grads, strict=True)]
        for part, (_, grads) in zip(parts, found, strict=True)
    ]
    alone = [tangent_gradient(f[0], p[0], n, f[1]) for f, p, n in zip(found, parts, fresh, strict=True)]
    together = tangent_gradient(
        torch.cat([f[0] for f in found]),
        torch.cat([p[0] for p in parts]),
        [torch.cat(pair) for pair in zip(*fresh, strict=True)],
        [torch.cat(pair) for pair in zip(*(f[1] for f in found), strict=True)],
    )
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-12, atol=1e-13)
