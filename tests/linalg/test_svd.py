"""Laws of the SVD front door, against numpy, plain loops and torch.linalg called directly."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from torch.testing import assert_close

from helpers import assert_orthonormal
from tenfold.errors import ArgumentError, TenfoldError
from tenfold.linalg import energy_rank, low_rank_factors, singular_values, stable_rank, tail_rank, truncated_svd
from tenfold.linalg.svd import left_basis

DRIVERS = ("auto", "gram", "svd")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((9, 4), (4, 9), (6, 6), (1, 7), (7, 1), (1, 1), (3, 5, 8), (2, 3, 8, 5), (0, 4, 3))
SPECTRA = {
    "fast decay": lambda p: 10.0 ** -torch.arange(p, dtype=torch.float64),
    "rank deficient": lambda p: torch.cat([torch.ones(p // 3 + 1), torch.zeros(p - p // 3 - 1)]).double(),
    "near ties": lambda p: 1 + 1e-12 * torch.arange(p, 0, -1, dtype=torch.float64),
    "ties": lambda p: torch.ones(p, dtype=torch.float64),
    "zero": lambda p: torch.zeros(p, dtype=torch.float64),
    "huge": lambda p: 1e30 * torch.rand(p, dtype=torch.float64).sort(descending=True)[0],
    "tiny": lambda p: 1e-30 * torch.rand(p, dtype=torch.float64).sort(descending=True)[0],
}

matrices = st.tuples(st.integers(1, 14), st.integers(1, 14), st.integers(0, 2**31)).map(
    lambda t: torch.randn(t[0], t[1], dtype=torch.float64, generator=torch.Generator().manual_seed(t[2]))
)


def with_spectrum(m: int, n: int, s: torch.Tensor) -> torch.Tensor:
    """A generic matrix with the singular values ``s``."""
    p = min(m, n)
    u = torch.linalg.qr(torch.randn(m, p, dtype=torch.float64))[0]
    v = torch.linalg.qr(torch.randn(n, p, dtype=torch.float64))[0]
    return (u * s) @ v.mT


def break_svd(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "svd", fail)
    monkeypatch.setattr(torch.linalg, "svdvals", fail)


# Singular values


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_equal_numpys(shape, driver):
    a = torch.randn(shape, dtype=torch.float64)
    expected = torch.from_numpy(np.linalg.svd(a.numpy(), compute_uv=False))
    assert_close(singular_values(a, driver=driver), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize(("m", "n"), [(40, 40), (30, 200), (200, 30)])
def test_drivers_agree_to_1e_7_of_the_largest_singular_value(name, m, n):
    a = with_spectrum(m, n, SPECTRA[name](min(m, n)))
    exact = singular_values(a, driver="svd")
    scale = float(exact[0])
    assert_close(singular_values(a, driver="gram"), exact, rtol=0, atol=1e-7 * scale)
    assert_close(truncated_svd(a, min(m, n), driver="gram")[1], exact, rtol=0, atol=1e-12 * scale)
    assert_close(left_basis(a, driver="gram")[1], exact, rtol=0, atol=1e-7 * scale)


@pytest.mark.parametrize("name", SPECTRA)
def test_plain_svd_keeps_all_digits_of_float64(name):
    s = SPECTRA[name](20)
    assert_close(singular_values(with_spectrum(30, 20, s)), s, rtol=0, atol=1e-14 * float(s[0]))
    assert_close(left_basis(with_spectrum(20, 90, s))[1], s, rtol=0, atol=1e-14 * float(s[0]))


@given(matrices)
def test_singular_values_are_descending_nonnegative_and_carry_the_frobenius_norm(a):
    for driver in DRIVERS:
        s = singular_values(a, driver=driver)
        assert s.dtype == torch.float64
        assert s.shape == (min(a.shape),)
        assert (s >= 0).all()
        assert (s.diff() <= 0).all()
        assert_close(s.square().sum(), a.square().sum(), rtol=1e-12, atol=0)


@given(matrices, st.floats(-30, 30))
def test_singular_values_scale_with_the_matrix_and_ignore_transposition(a, exponent):
    scale = 10.0**exponent
    for driver in DRIVERS:
        s = singular_values(a, driver=driver)
        atol = 1e-7 * float(s[0])
        assert_close(singular_values(a * scale, driver=driver) / scale, s, rtol=0, atol=atol)
        assert_close(singular_values(a.mT, driver=driver), s, rtol=0, atol=atol)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (3, 0, 4), (0, 4, 3)])
def test_empty_matrices_have_empty_spectra(shape):
    s = singular_values(torch.zeros(shape))
    assert s.dtype == torch.float64
    assert s.shape == (*shape[:-2], min(shape[-2:]))


# Truncation


@given(matrices, st.data())
def test_eckart_young_residual_equals_tail_energy(a, data):
    rank = data.draw(st.integers(1, min(a.shape)))
    s = np.linalg.svd(a.numpy(), compute_uv=False)
    tail = math.sqrt((s[rank:] ** 2).sum())
    tolerance = 1e-7 * s[0]  # the Gram driver's
    for driver in DRIVERS:
        u, kept, v = truncated_svd(a, rank, driver=driver)
        residual = a - (u * kept) @ v.mT
        assert abs(float(residual.norm()) - tail) <= tolerance
        spectral = float(torch.linalg.matrix_norm(residual, ord=2))
        assert abs(spectral - (s[rank] if rank < len(s) else 0)) <= tolerance
    left, right = low_rank_factors(a, rank)
    assert abs(float((a - left @ right).norm()) - tail) <= 1e-12 * s[0]


@given(matrices, st.data())
def test_no_other_matrix_of_the_same_rank_comes_closer(a, data):
    rank = data.draw(st.integers(1, min(a.shape)))
    left, right = low_rank_factors(a, rank)
    error = float((a - left @ right).norm())
    generator = torch.Generator().manual_seed(1)
    for step in (0.0, 1e-3, 1e-1, 1.0):
        basis = left + step * torch.randn(left.shape, dtype=torch.float64, generator=generator)
        best = basis @ torch.linalg.lstsq(basis, a, driver="gelsd").solution  # the best right factor for this left one
        assert float((a - best).norm()) >= error - 1e-12 * float(a.norm())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize(("m", "n"), [(12, 12), (8, 30), (30, 8), (1, 6), (6, 1)])
def test_singular_vectors_are_orthonormal_whatever_the_spectrum(name, m, n, driver, dtype):
    a = with_spectrum(m, n, SPECTRA[name](min(m, n))).to(dtype)
    a = a if a.isfinite().all() else torch.ones(m, n, dtype=dtype)
    atol = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
    for rank in {1, max(min(m, n) // 2, 1), min(m, n)}:
        u, s, v = truncated_svd(a, rank, driver=driver)
        assert (u.shape, s.shape, v.shape) == ((m, rank), (rank,), (n, rank))
        assert {u.dtype, s.dtype, v.dtype} == {dtype}
        assert (s.diff() <= 0).all()
        assert (s >= 0).all()
        assert_orthonormal(u, atol)
        assert_orthonormal(v, atol)


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("m", "n"), [(10, 25), (25, 10), (14, 14)])
def test_left_basis_diagonalises_the_left_gram_matrix(m, n, dtype, driver):
    a = torch.randn(3, m, n).to(dtype)
    u, s = left_basis(a, driver=driver)
    assert u.dtype == s.dtype == torch.float64
    assert_orthonormal(u, 1e-12)
    w = a.double()
    assert_close(u.mT @ w @ w.mT @ u, torch.diag_embed(s.square()), rtol=0, atol=1e-11 * float(s.max()) ** 2)
    assert_close(u @ u.mT @ w, w, rtol=0, atol=1e-12 * float(s.max()))


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize(("m", "n"), [(20, 20), (12, 50), (50, 12), (1, 9), (9, 1)])
def test_full_rank_factors_reproduce_the_matrix(name, m, n):
    a = with_spectrum(m, n, SPECTRA[name](min(m, n)))
    left, right = low_rank_factors(a, min(m, n))
    assert float((left @ right - a).norm()) <= 1e-12 * float(a.norm())
    coarse = a.float()
    left, right = low_rank_factors(coarse, min(m, n))
    assert float((left.double() @ right.double() - coarse.double()).norm()) <= 1e-6 * float(coarse.double().norm())


@given(matrices, st.data())
def test_factors_are_balanced(a, data):
    rank = data.draw(st.integers(1, min(a.shape)))
    left, right = low_rank_factors(a, rank)
    s = torch.linalg.svdvals(a)[:rank]
    atol = 1e-9 * float(s[0])
    assert_close(left.mT @ left, torch.diag(s), rtol=0, atol=atol)
    assert_close(right @ right.mT, torch.diag(s), rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize(("m", "n"), [(20, 20), (12, 50), (50, 12)])
def test_no_factor_is_larger_than_the_root_of_the_spectral_norm(name, m, n, dtype):
    """Else directions of singular value zero, pure noise, could overflow on one side and vanish on the other."""
    a = with_spectrum(m, n, SPECTRA[name](min(m, n)).clamp(max=1)).to(dtype)
    a[:, 0] = a[:, 1]
    bound = math.sqrt(float(torch.linalg.matrix_norm(a.double(), ord=2))) * (1 + 1e-5)
    for factor in low_rank_factors(a, min(m, n)):
        assert float(torch.linalg.matrix_norm(factor.double(), ord=2)) <= max(bound, 1.0 if name == "zero" else 0.0)


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize(("m", "n"), [(5, 8), (8, 5)])
def test_a_batch_is_the_matrices_one_by_one(m, n, driver):
    a = torch.randn(2, 3, m, n, dtype=torch.float64)
    u, s, v = truncated_svd(a, 3, driver=driver)
    left, right = low_rank_factors(a, 3)
    values = singular_values(a, driver=driver)
    assert values.shape == (2, 3, 5)
    for i in range(2):
        for j in range(3):
            u1, s1, v1 = truncated_svd(a[i, j], 3, driver=driver)
            assert_close(s[i, j], s1, rtol=1e-10, atol=0)
            product = (u1 * s1) @ v1.mT
            assert_close((u[i, j] * s[i, j]) @ v[i, j].mT, product, rtol=0, atol=1e-10)
            assert_close(left[i, j] @ right[i, j], product, rtol=0, atol=1e-7)
            assert_close(values[i, j], singular_values(a[i, j], driver=driver), rtol=1e-10, atol=0)


def test_batches_may_hold_zero_and_rank_deficient_matrices():
    a = torch.randn(4, 6, 9, dtype=torch.float64)
    a[1] = 0
    a[2] = torch.outer(a[2, :, 0], a[2, 0])
    for dtype in (torch.float64, torch.float32):
        w = a.to(dtype)
        left, right = low_rank_factors(w, 6)
        assert_close(left @ right, w, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-5)
        u, s, v = truncated_svd(w, 6)
        assert_orthonormal(u, 1e-5)
        assert_orthonormal(v, 1e-5)
        assert_close(u * s[..., None, :] @ v.mT, w, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_coarse_types_are_factorised_in_float64_and_cast_back(dtype):
    a = torch.randn(10, 17, dtype=torch.float64).to(dtype)
    exact = np.linalg.svd(a.double().numpy(), compute_uv=False)
    assert_close(singular_values(a), torch.from_numpy(exact), rtol=1e-7, atol=0)
    eps = torch.finfo(dtype).eps
    assert_close(truncated_svd(a, 4)[1], torch.from_numpy(exact[:4]).to(dtype), rtol=eps, atol=0)
    left, right = low_rank_factors(a, 10)
    assert left.dtype == right.dtype == dtype
    error = float((left.double() @ right.double() - a.double()).norm())
    assert error <= 2 * eps * float(a.double().norm())


def test_autocast_does_not_reach_the_factorisation():
    a = torch.randn(20, 30)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = singular_values(a), *truncated_svd(a, 5), *low_rank_factors(a, 5)
    outside = singular_values(a), *truncated_svd(a, 5), *low_rank_factors(a, 5)
    for x, y in zip(inside, outside, strict=True):
        assert_close(x, y, rtol=0, atol=0)


# Arguments


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity_raise(bad, dtype):
    a = torch.randn(3, 4, 5).to(dtype)
    a[1, 2, 3] = bad
    for call in (singular_values, left_basis, lambda x: truncated_svd(x, 2), lambda x: low_rank_factors(x, 2)):
        with pytest.raises(TenfoldError, match="NaN or infinite"):
            call(a)


@pytest.mark.parametrize("rank", [-1, 0, 5, 100])
def test_rank_out_of_range_raises(rank):
    a = torch.randn(4, 6)
    for call in (truncated_svd, low_rank_factors):
        for matrix in (a, a.mT):
            with pytest.raises(ArgumentError, match=r"`rank` must be in 1\.\.4"):
                call(matrix, rank)


def test_an_empty_matrix_has_no_rank_to_ask_for():
    for call in (truncated_svd, low_rank_factors):
        with pytest.raises(ArgumentError, match="`rank`"):
            call(torch.zeros(0, 3), 1)


def calls(a):
    """Everything that the front door offers, in a list."""
    return [singular_values(a), *truncated_svd(a, 3), *low_rank_factors(a, 3), *left_basis(a)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(8, 5), (5, 8), (6, 6)])
def test_arguments_are_not_modified_and_gradients_not_tracked(shape, dtype):
    a = torch.randn(shape).to(dtype).requires_grad_()
    before = a.detach().clone()
    for result in calls(a):
        assert not result.requires_grad
        assert result.untyped_storage().data_ptr() != a.untyped_storage().data_ptr()
    assert torch.equal(a, before)
    assert a.grad is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_memory_layout_does_not_matter(dtype):
    base = torch.randn(16, 12, dtype=dtype)
    views = [base.mT, base[::2, ::3], base[:, 1:6], torch.randn(8, 6, 5, 5, dtype=dtype)[..., 0, 0]]
    kernel = torch.randn(8, 4, 3, 3, dtype=dtype).to(memory_format=torch.channels_last)
    views.append(kernel.permute(0, 2, 3, 1).flatten(1))
    for view in views:
        (u, s, v), (left, right) = truncated_svd(view, 3), low_rank_factors(view, 3)
        u2, s2, v2 = truncated_svd(view.contiguous(), 3)
        tolerance = {"rtol": 0, "atol": 1e-10 if dtype == torch.float64 else 1e-5}
        assert_close(singular_values(view), singular_values(view.contiguous()), rtol=1e-10, atol=0)
        assert_close((u * s) @ v.mT, (u2 * s2) @ v2.mT, **tolerance)
        assert_close(left @ right, (u2 * s2) @ v2.mT, **tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(30, 20), (20, 30), (2, 9, 9)])
def test_results_are_contiguous_and_hold_no_more_memory_than_they_show(shape, dtype):
    a = torch.randn(shape, dtype=dtype)
    for result in (*truncated_svd(a, 2)[::2], *low_rank_factors(a, 2)):
        assert result.is_contiguous()
        assert result.untyped_storage().nbytes() == result.numel() * result.element_size()


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize(("m", "n"), [(15, 40), (40, 15), (15, 15), (1, 4)])
def test_a_solver_that_does_not_converge_is_replaced_by_one_that_does(name, m, n, monkeypatch):
    p = min(m, n)
    a = with_spectrum(m, n, SPECTRA[name](p)).expand(2, m, n)
    scale = float(torch.linalg.matrix_norm(a[0], ord=2))
    expected = torch.linalg.svdvals(a)
    break_svd(monkeypatch)
    assert_close(singular_values(a), expected, rtol=0, atol=1e-7 * scale)
    for rank in {p, (p + 1) // 2}:
        u, s, v = truncated_svd(a, rank)
        assert_orthonormal(u, 1e-12)
        assert_orthonormal(v, 1e-12)
        if rank == p:
            assert_close(s, expected, rtol=0, atol=1e-13 * scale)
            assert_close((u * s[..., None, :]) @ v.mT, a, rtol=0, atol=1e-13 * scale)
        left, right = low_rank_factors(a, rank)
        tail = expected[:, rank:].square().sum(-1).sqrt()
        assert_close((left @ right - a).norm(dim=(-2, -1)), tail, rtol=0, atol=1e-12 * scale)


def test_shapes_in_signatures_are_checked_in_tests():
    with pytest.raises(TypeCheckError, match="singular_values"):
        singular_values(torch.randn(3))
    with pytest.raises(TypeCheckError, match="truncated_svd"):
        truncated_svd(torch.randn(3, 3), 1.5)


# Rank rules


def energy_rank_by_loop(s, energy):
    total = math.fsum(x * x for x in s)
    for k in range(1, len(s) + 1):
        # In exact arithmetic sum_{i<=k} >= energy * total; written with tails, which fsum rounds once.
        if math.fsum(x * x for x in s[k:]) <= (1 - energy) * total:
            return k
    raise AssertionError("the last tail is empty")


def tail_rank_by_loop(s, budget):
    return next(k for k in range(len(s) + 1) if math.fsum(x * x for x in s[k:]) <= budget * budget)


# Small integers: their squares and sums are exact, so that both sides meet every boundary exactly.
spectra = st.lists(st.integers(0, 40), min_size=1, max_size=12).map(lambda x: sorted(map(float, x), reverse=True))


@given(spectra, st.sampled_from([0.0, 0.25, 0.5, 0.75, 0.9375, 0.99, 1 - 1e-12, 1.0]))
def test_energy_rank_is_the_smallest_that_keeps_the_energy(s, energy):
    assert int(energy_rank(torch.tensor(s), energy)) == energy_rank_by_loop(s, energy)


@given(spectra, st.one_of(st.integers(0, 150).map(float), st.floats(0, 150)))
def test_tail_rank_is_the_smallest_that_meets_the_budget(s, budget):
    assert int(tail_rank(torch.tensor(s), budget)) == tail_rank_by_loop(s, budget)


def test_energy_rank_boundaries():
    s = torch.tensor([2.0, 1.0, 1.0, 1.0, 1.0, 0.0])  # energies 4, 1, 1, 1, 1, 0 of 8
    for energy, rank in [(0.0, 1), (0.5, 1), (0.5000001, 2), (0.625, 2), (0.875, 4), (0.876, 5), (1.0, 5)]:
        assert int(energy_rank(s, energy)) == rank, energy
    assert int(energy_rank(torch.zeros(4), 0.5)) == 1
    assert int(energy_rank(torch.zeros(4), 1.0)) == 1
    assert int(energy_rank(torch.tensor([1.0, 1e-10]), 1.0)) == 2  # an energy of 1e-20 still counts


def test_tail_rank_boundaries():
    s = torch.tensor([12.0, 4.0, 3.0])
    for budget, rank in [(0.0, 3), (2.999, 3), (3.0, 2), (4.999, 2), (5.0, 1), (12.999, 1), (13.0, 0), (1e9, 0)]:
        assert int(tail_rank(s, budget)) == rank, budget
    assert int(tail_rank(torch.zeros(4), 0.0)) == 0
    assert int(tail_rank(torch.zeros(0), 0.0)) == 0


def test_rank_rules_take_batches_and_a_budget_for_each():
    s = torch.rand(3, 4, 7, dtype=torch.float64).sort(-1, descending=True)[0]
    budgets = torch.rand(3, 4, dtype=torch.float64)
    by_energy, by_tail, by_each = energy_rank(s, 0.8), tail_rank(s, 0.7), tail_rank(s, budgets)
    assert by_energy.shape == by_tail.shape == by_each.shape == (3, 4)
    for i in range(3):
        for j in range(4):
            values = s[i, j].tolist()
            assert int(by_energy[i, j]) == energy_rank_by_loop(values, 0.8)
            assert int(by_tail[i, j]) == tail_rank_by_loop(values, 0.7)
            assert int(by_each[i, j]) == tail_rank_by_loop(values, float(budgets[i, j]))


@pytest.mark.parametrize("energy", [-0.1, 1.1, math.nan])
def test_energy_outside_0_1_raises(energy):
    with pytest.raises(ArgumentError, match="`energy`"):
        energy_rank(torch.ones(3), energy)


@pytest.mark.parametrize("budget", [-1e-9, math.nan])
def test_negative_budget_raises(budget):
    with pytest.raises(ArgumentError, match="`budget`"):
        tail_rank(torch.ones(3), budget)


@pytest.mark.parametrize("shape", [(9, 4), (4, 9), (2, 3, 8, 5)])
def test_the_stable_rank_is_the_energy_over_that_of_the_largest_value(shape):
    a = torch.randn(*shape, dtype=torch.float64)
    s = torch.linalg.svdvals(a)
    assert_close(stable_rank(a), a.square().sum((-2, -1)) / s[..., 0].square())
    assert_close(stable_rank(7 * a), stable_rank(a))
    assert (stable_rank(a) <= min(shape[-2:])).all()
    assert float(stable_rank(torch.ones(3, 5))) == pytest.approx(1)
    assert float(stable_rank(torch.eye(4))) == pytest.approx(4)
    assert float(stable_rank(torch.zeros(4, 3))) == 0
    assert stable_rank(torch.zeros(0, 3)) == 0
