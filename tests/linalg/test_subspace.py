"""Bases that grow and cores that are cut: the laws of dynamical low-rank training, on generic input."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import basis, normal
from tenfold.errors import ArgumentError, TenfoldError
from tenfold.linalg import augment, truncate_core
from tenfold.linalg.subspace import align, fresh_directions, orthonormalise

shapes = st.tuples(st.integers(0, 99), st.integers(2, 9), st.integers(1, 9), st.integers(1, 9))


def orthonormal_to(u: torch.Tensor) -> float:
    return float((u.mT @ u - torch.eye(u.shape[-1], dtype=u.dtype)).abs().max())


# ---- cutting a core between two bases


def test_v_is_turned_by_q_and_not_by_its_transpose() -> None:
    """The law that three public ports break: a generic core, square, neither diagonal nor symmetric, nothing cut."""
    for seed in range(5):
        u, core, v = basis(7, 4, seed), normal(4, 4, seed=seed), basis(6, 4, seed + 1)
        left, middle, right = truncate_core(u, core, v, 0.0)
        torch.testing.assert_close(left @ middle @ right.mT, u @ core @ v.mT, rtol=0, atol=1e-13)


@given(shapes, st.sampled_from([0.0, 1e-6, 0.1, 0.3, 0.7, 0.99]))
def test_a_cut_stays_within_its_tolerance_and_is_the_best_of_its_rank(shape, tolerance) -> None:
    seed, n, a, b = shape
    u, core, v = basis(n + 10, a, seed), normal(a, b, seed=seed), basis(n + 11, b, seed + 1)
    left, middle, right = truncate_core(u, core, v, tolerance)
    error = float((u @ core @ v.mT - left @ middle @ right.mT).norm())
    scale = float(core.norm())
    assert error <= tolerance * scale + 1e-13 * scale
    s = np.linalg.svd(core.numpy(), compute_uv=False)
    rank = middle.shape[0]
    assert abs(error - np.sqrt((s[rank:] ** 2).sum())) <= 1e-12 * scale
    assert rank == 1 or np.sqrt((s[rank - 1 :] ** 2).sum()) > tolerance * scale  # one less would break it
    assert middle.shape == (rank, rank)
    assert torch.equal(middle, torch.diag(torch.diag(middle)))
    assert max(orthonormal_to(left), orthonormal_to(right)) <= 1e-12
    for new, old in ((left, u), (right, v)):
        torch.testing.assert_close(old @ old.mT @ new, new, rtol=0, atol=1e-12)


def test_coarse_types_are_cut_in_float64() -> None:
    u, core, v = basis(7, 4).float(), normal(4, 3).float(), basis(6, 3).float()
    parts = truncate_core(u, core, v, 0.2)
    assert {x.dtype for x in parts} == {torch.float32}
    left, middle, right = (x.double() for x in parts)
    whole = u.double() @ core.double() @ v.double().mT
    assert float((whole - left @ middle @ right.mT).norm()) <= (0.2 + 1e-6) * float(whole.norm())


def test_a_zero_core_keeps_rank_one_and_nonsense_is_refused() -> None:
    left, middle, right = truncate_core(basis(5, 3), torch.zeros(3, 3, dtype=torch.float64), basis(6, 3), 0.1)
    assert middle.shape == (1, 1)
    assert not middle.any()
    assert max(orthonormal_to(left), orthonormal_to(right)) <= 1e-13
    for tolerance in (-0.1, 1.0, float("nan")):
        with pytest.raises(ArgumentError, match="`tolerance`"):
            truncate_core(basis(5, 3), normal(3, 3), basis(6, 3), tolerance)
    with pytest.raises(TenfoldError, match="NaN or infinite"):
        truncate_core(basis(5, 3), normal(3, 3) * float("nan"), basis(6, 3), 0.1)


# ---- growing a basis


@given(shapes)
def test_a_grown_basis_spans_the_old_one_and_the_gradient_and_nothing_else(shape) -> None:
    seed, n, r, q = shape
    u, x = basis(n + 9, r, seed), normal(n + 9, q, seed=seed)
    grown = augment(u, x)
    assert torch.equal(grown[:, :r], u)  # in front, bit for bit: the core is padded with zeros
    assert orthonormal_to(grown) <= 1e-12
    both = torch.cat([u, x], 1)
    torch.testing.assert_close(grown @ grown.mT @ both, both, rtol=0, atol=1e-11)
    assert grown.shape[1] == np.linalg.matrix_rank(both.numpy())


@given(shapes, st.sampled_from([0.0, 1e-14, 1e-6, 1.0]))
def test_a_gradient_inside_the_span_adds_nothing(shape, size) -> None:
    seed, n, r, q = shape
    u = basis(n + 9, r, seed)
    assert torch.equal(augment(u, size * u @ normal(r, q, seed=seed)), u)


@pytest.mark.parametrize("nearly", [1e-3, 1e-9, 1e-13])
def test_a_gradient_nearly_inside_the_span_gives_directions_orthogonal_to_it_all_the_same(nearly) -> None:
    """One projection would leave ``eps / nearly`` behind."""
    u = basis(12, 4)
    outside = augment(u, normal(12, 2, seed=3))[:, 4:]
    found = fresh_directions(u, u @ normal(4, 2, seed=1) + nearly * outside @ normal(2, 2, seed=2))
    assert orthonormal_to(torch.cat([u, found], 1)) <= 1e-13
    torch.testing.assert_close(outside @ outside.mT @ found, found, rtol=0, atol=1e-14 / nearly)


def test_under_a_cap_the_leading_singular_directions_are_taken_not_the_first_columns() -> None:
    u = basis(20, 3)
    x = normal(20, 6, seed=4) * torch.tensor([1e-3, 1e-3, 1e-2, 0.1, 1.0, 10.0], dtype=torch.float64)
    outside = x - u @ (u.mT @ x)
    found = fresh_directions(u, x, 2)
    s = torch.linalg.svdvals(outside)
    energy = (found.mT @ outside).square().sum()
    torch.testing.assert_close(energy, s[:2].square().sum(), rtol=1e-12, atol=0)
    first = torch.linalg.qr(outside)[0][:, :2]
    assert (first.mT @ outside).square().sum() < 0.9 * energy


def test_a_basis_that_is_coarse_grows_orthogonally_to_what_it_spans() -> None:
    u = basis(30, 5).float()
    grown = augment(u, normal(30, 5, seed=1).float())
    assert grown.dtype == torch.float32
    assert orthonormal_to(grown.double()) <= 1e-6


def test_a_batch_grows_by_one_count_and_stays_orthonormal() -> None:
    u = torch.stack([basis(9, 2), basis(9, 2, 1)])
    x = torch.stack([normal(9, 3), u[1] @ normal(2, 3)])  # the second has nothing to add
    grown = augment(u, x)
    assert grown.shape == (2, 9, 5)
    for one, alone in zip(grown, (augment(u[0], x[0]), None), strict=True):
        assert orthonormal_to(one) <= 1e-12
        if alone is not None:
            torch.testing.assert_close(one @ one.mT, alone @ alone.mT, rtol=0, atol=1e-12)


def test_a_full_basis_cannot_grow_and_arguments_are_not_changed() -> None:
    u, x = basis(4, 4), normal(4, 2)
    before = (u.clone(), x.clone())
    assert augment(u, x).shape == (4, 4)
    assert torch.equal(u, before[0])
    assert torch.equal(x, before[1])


# ---- bases of one subspace


@given(shapes)
def test_orthonormalising_keeps_the_product_and_nearly_a_basis(shape) -> None:
    seed, n, r, _ = shape
    x = normal(n + 8, r, seed=seed)
    q, upper = orthonormalise(x)
    torch.testing.assert_close(q @ upper, x, rtol=0, atol=1e-12)
    assert orthonormal_to(q) <= 1e-12
    assert bool((upper.diagonal() >= 0).all())
    near = q + 1e-9 * normal(n + 8, r, seed=seed + 1)
    torch.testing.assert_close(orthonormalise(near)[0], q, rtol=0, atol=1e-7)


@given(shapes)
def test_alignment_is_a_rotation_and_no_random_rotation_comes_nearer(shape) -> None:
    seed, _, r, q = shape
    p = basis(r + q, q, seed)
    target = torch.eye(r + q, dtype=torch.float64)[:, :q]
    turn = align(p)
    torch.testing.assert_close(turn.mT @ turn, torch.eye(q, dtype=torch.float64), rtol=0, atol=1e-12)
    best = (p @ turn - target).norm()
    for i in range(20):
        assert best <= (p @ basis(q, q, seed + i) - target).norm() + 1e-12


def test_leading_columns_in_another_order_and_sign_are_brought_back() -> None:
    eye = torch.eye(6, dtype=torch.float64)
    p = eye[:, [2, 0, 1]] * torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(p @ align(p), eye[:, :3], rtol=0, atol=1e-14)
