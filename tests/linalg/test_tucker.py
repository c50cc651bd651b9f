"""Laws of the Tucker format, against einsum and tensorly."""

import itertools
import math

import numpy as np
import pytest
import tensorly
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensorly.decomposition import tucker as tensorly_tucker
from torch.testing import assert_close

from helpers import assert_orthonormal
from tenfold.errors import ArgumentError, TenfoldError
from tenfold.linalg import hooi, hosvd, hosvd_bound, tucker_full, tucker_truncate
from tenfold.linalg.tucker import Limits, mode_product, tensor_cut, tucker_cut, unfold

CASES = (  # shape, ranks
    ((7, 6, 5), (3, 4, 2)),
    ((7, 6, 5, 4), (3, 2, 2, 3)),
    ((8, 6, 3, 3), (4, 3)),  # a convolution: the spatial modes are left alone
    ((9, 20), (4, 4)),
    ((20, 9), (4,)),
    ((5, 4, 3), (5, 4, 3)),
    ((5, 4, 3), (1, 1, 1)),
    ((4, 3, 4, 3, 2), (2, 2, 3, 1)),
)
SEQUENTIAL = pytest.mark.parametrize("sequential", [True, False])

tensors = st.tuples(st.lists(st.integers(1, 6), min_size=2, max_size=4), st.integers(0, 2**31)).map(
    lambda t: torch.randn(t[0], dtype=torch.float64, generator=torch.Generator().manual_seed(t[1]))
)


def decaying(shape: tuple[int, ...]) -> torch.Tensor:
    """Generic, with multilinear spectra that fall: what truncation is for."""
    w = torch.randn(shape, dtype=torch.float64)
    for mode, n in enumerate(shape):
        a = torch.randn(n, n, dtype=torch.float64) * 2.0 ** -torch.arange(n)
        w = torch.tensordot(a, w, dims=([1], [mode])).movedim(0, mode)
    return w


def orthonormal(n: int, r: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(n, r, dtype=torch.float64))[0]


def draw_ranks(data: st.DataObject, shape: torch.Size) -> list[int]:
    """Ranks that leave every mode possible, also after the earlier modes were cut."""
    sizes, ranks = list(shape), []
    for mode, n in enumerate(shape):
        rank = data.draw(st.integers(1, min(n, math.prod(sizes) // sizes[mode])))
        ranks.append(rank)
        sizes[mode] = rank
    return ranks


# Algebra


@given(tensors)
def test_unfolding_is_tensorlys(w):
    for mode in range(w.ndim):
        assert torch.equal(unfold(w, mode), torch.from_numpy(np.array(tensorly.unfold(w.numpy(), mode))))


@given(tensors, st.integers(1, 5))
def test_mode_product_is_einsum_and_tensorlys_and_acts_on_the_unfolding(w, p):
    letters = "abcd"[: w.ndim]
    for mode in range(w.ndim):
        a = torch.randn(p, w.shape[mode], dtype=torch.float64, generator=torch.Generator().manual_seed(mode))
        product = mode_product(w, a, mode)
        by_einsum = torch.einsum(f"z{letters[mode]},{letters}->{letters.replace(letters[mode], 'z')}", a, w)
        assert_close(product, by_einsum, rtol=0, atol=1e-12)
        by_tensorly = tensorly.tenalg.mode_dot(w.numpy(), a.numpy(), mode)
        assert_close(product, torch.from_numpy(np.array(by_tensorly)), rtol=0, atol=1e-12)
        assert_close(unfold(product, mode), a @ unfold(w, mode), rtol=0, atol=1e-12)


def test_mode_products_of_a_vector_and_of_different_modes():
    vector, a = torch.randn(4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    assert unfold(vector, 0).shape == (4, 1)
    assert_close(mode_product(vector, a, 0), a @ vector, rtol=0, atol=1e-13)
    w, b = torch.randn(4, 5, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    one, other = mode_product(mode_product(w, a, 0), b, 1), mode_product(mode_product(w, b, 1), a, 0)
    assert_close(one, other, rtol=0, atol=1e-13)
    assert_close(one, a @ w @ b.mT, rtol=0, atol=1e-13)


def test_tucker_full_is_tensorlys():
    core = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    bases = [torch.randn(n, r, dtype=torch.float64) for n, r in ((6, 2), (5, 3), (4, 4), (7, 5))]
    expected = tensorly.tucker_to_tensor((core.numpy(), [b.numpy() for b in bases]))
    assert_close(tucker_full(core, bases), torch.from_numpy(np.array(expected)), rtol=0, atol=1e-12)
    assert_close(tucker_full(core, bases[:2]), torch.einsum("abcd,xa,yb->xycd", core, *bases[:2]), rtol=0, atol=1e-12)


# HOSVD


@SEQUENTIAL
@pytest.mark.parametrize(("shape", "ranks"), CASES)
def test_bases_are_orthonormal_and_the_core_is_the_projection(shape, ranks, sequential):
    w = decaying(shape)
    core, bases = hosvd(w, ranks, sequential=sequential)
    assert core.shape == (*ranks, *shape[len(ranks) :])
    assert [b.shape for b in bases] == [(n, r) for n, r in zip(shape, ranks, strict=False)]
    for basis in bases:
        assert_orthonormal(basis)
    assert_close(core, tucker_full(w, [b.mT for b in bases]), rtol=0, atol=1e-12 * float(w.norm()))


@SEQUENTIAL
@pytest.mark.parametrize(("shape", "ranks"), [c for c in CASES if len(c[0]) == len(c[1])])
def test_error_is_close_to_that_of_tensorlys_alternating_optimum(shape, ranks, sequential):
    w = decaying(shape)
    core, bases = hosvd(w, ranks, sequential=sequential)
    error = float((w - tucker_full(core, bases)).norm())
    best = tensorly_tucker(w.numpy(), rank=list(ranks), init="svd", n_iter_max=100, tol=1e-12)
    best_error = float(np.linalg.norm(w.numpy() - tensorly.tucker_to_tensor(best)))
    scale = 1e-7 * float(w.norm())
    assert error >= best_error - scale
    assert error <= math.sqrt(len(ranks)) * best_error + scale  # quasi-optimal


@pytest.mark.parametrize(("shape", "ranks"), CASES)
def test_plain_hosvd_projects_on_the_left_singular_vectors_of_every_unfolding(shape, ranks):
    w = decaying(shape)
    core, bases = hosvd(w, ranks, sequential=False)
    expected = w.numpy()
    for mode, rank in enumerate(ranks):
        u = np.linalg.svd(tensorly.unfold(w.numpy(), mode), full_matrices=False)[0][:, :rank]
        expected = tensorly.tenalg.mode_dot(expected, u @ u.T, mode)
    assert_close(tucker_full(core, bases), torch.from_numpy(np.array(expected)), rtol=0, atol=1e-10 * float(w.norm()))


@given(tensors, st.data())
def test_error_stays_below_the_bound_and_the_bound_below_sqrt_d_times_any_other(w, data):
    ranks = draw_ranks(data, w.shape)
    tails = [np.linalg.svd(tensorly.unfold(w.numpy(), i), compute_uv=False)[r:] for i, r in enumerate(ranks)]
    bound = hosvd_bound(w, ranks)
    slack = 1e-12 * float(w.norm())
    assert math.isclose(bound, math.sqrt(sum((t**2).sum() for t in tails)), abs_tol=slack)
    for sequential in (True, False):
        core, bases = hosvd(w, ranks, sequential=sequential)
        error = float((w - tucker_full(core, bases)).norm())
        assert error <= bound + slack
        assert bound <= math.sqrt(len(ranks)) * error + slack  # holds for the best of these ranks, so for any
    generator = torch.Generator().manual_seed(0)
    other = w
    for mode, rank in enumerate(ranks):
        random = torch.randn(w.shape[mode], rank, dtype=torch.float64, generator=generator)
        q = torch.linalg.qr(random)[0]
        other = mode_product(other, q @ q.mT, mode)
    assert bound <= math.sqrt(len(ranks)) * float((w - other).norm()) + slack


@pytest.mark.parametrize(("shape", "ranks"), CASES)
def test_sequential_error_is_exactly_the_discarded_energy(shape, ranks):
    w = decaying(shape)
    core, bases = hosvd(w, ranks)
    discarded, left = 0.0, w.numpy()
    for mode, rank in enumerate(ranks):
        u, s, _ = np.linalg.svd(tensorly.unfold(left, mode), full_matrices=False)
        discarded += float((s[rank:] ** 2).sum())
        left = tensorly.tenalg.mode_dot(left, u[:, :rank].T, mode)
    total = float(w.square().sum())
    assert math.isclose(float((w - tucker_full(core, bases)).square().sum()), discarded, abs_tol=1e-13 * total)
    assert math.isclose(total - float(core.square().sum()), discarded, abs_tol=1e-13 * total)


@SEQUENTIAL
@given(w=tensors)
def test_full_ranks_reproduce_the_tensor(w, sequential):
    ranks = list(w.shape)
    for mode, n in enumerate(w.shape):
        ranks[mode] = min(n, math.prod(ranks) // n)  # a mode longer than all others together carries no more
    core, bases = hosvd(w, ranks, sequential=sequential)
    assert_close(tucker_full(core, bases), w, rtol=0, atol=1e-12 * float(w.norm()))


@SEQUENTIAL
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_coarse_types_are_factorised_in_float64_and_cast_back(dtype, sequential):
    w = decaying((8, 6, 3, 3)).to(dtype)
    core, bases = hosvd(w, (4, 3), sequential=sequential)
    assert {core.dtype, *(b.dtype for b in bases)} == {dtype}
    exact = tucker_full(*hosvd(w.double(), (4, 3), sequential=sequential))
    mine = tucker_full(core.double(), [b.double() for b in bases])
    assert float((mine - exact).norm()) <= 4 * torch.finfo(dtype).eps * float(exact.norm())


@SEQUENTIAL
def test_zero_and_rank_deficient_tensors(sequential):
    core, bases = hosvd(torch.zeros(4, 3, 2, dtype=torch.float64), (2, 2, 2), sequential=sequential)
    assert not core.any()
    for basis in bases:
        assert_orthonormal(basis)
    w = tucker_full(torch.randn(2, 2, 2, dtype=torch.float64), [orthonormal(n, 2) for n in (5, 6, 7)])
    for dtype, atol in ((torch.float64, 1e-13), (torch.float32, 1e-6)):
        core, bases = hosvd(w.to(dtype), (4, 3, 3), sequential=sequential)
        assert_close(tucker_full(core, bases), w.to(dtype), rtol=0, atol=atol * float(w.norm()))
        for basis in bases:
            assert_orthonormal(basis, atol * 10)
    assert hosvd_bound(w, (2, 2, 2)) <= 1e-13 * float(w.norm())
    assert hosvd_bound(w, ()) == 0.0


@SEQUENTIAL
def test_arguments_are_not_modified_gradients_not_tracked_and_results_contiguous(sequential):
    w = torch.randn(8, 6, 3, 3, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_()
    before = w.detach().clone()
    core, bases = hosvd(w, (4, 3), sequential=sequential)
    small, fewer = tucker_truncate(core, bases, 0.3)
    for x in (core, *bases, small, *fewer):
        assert not x.requires_grad
        assert x.is_contiguous()
        assert x.untyped_storage().nbytes() == x.numel() * x.element_size()
    assert torch.equal(w, before)
    again, _ = hosvd(before.contiguous(), (4, 3), sequential=sequential)
    assert_close(core.abs(), again.abs(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("ranks", [(0, 1), (8, 1), (3, 7), (1, 1, 1, 1, 1), (7, 6, 43)])
def test_ranks_out_of_range_raise(ranks):
    with pytest.raises(ArgumentError, match="`ranks"):
        hosvd(torch.randn(7, 6, 5), ranks)


def test_a_rank_above_what_earlier_cuts_left_raises():
    with pytest.raises(ArgumentError, match=r"`ranks\[2\]` must be in 1\.\.1"):
        hosvd(torch.randn(3, 3, 3), (1, 1, 2))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_infinity_raise(bad):
    w = torch.randn(3, 4, 5)
    w[0, 1, 2] = bad
    for call in (
        lambda: hosvd(w, (2, 2)),
        lambda: hosvd_bound(w, (2, 2)),
        lambda: tucker_truncate(w, (torch.eye(3),), 0.1),
    ):
        with pytest.raises(TenfoldError, match="NaN or infinite"):
            call()


# Truncation of a core

CORES = (((9, 8), 1), ((7,), 1), ((6, 7), 2), ((6, 5, 3, 3), 2), ((5, 4, 4, 3), 4), ((4, 4, 3, 3, 2), 4))
TOLERANCES = (0.0, 1e-8, 0.01, 0.1, 0.3, 0.7, 0.99)


def cut_by_loop(core: np.ndarray, modes: int, tolerance: float) -> tuple[list[int], list[float], list[np.ndarray]]:
    """Ranks, shares and spectra of the shared-budget rule with numpy, one singular value at a time."""
    left = tolerance**2 * float((core**2).sum())
    ranks, shares, spectra = [], [], []
    for mode in range(modes):
        u, s, _ = np.linalg.svd(np.moveaxis(core, mode, 0).reshape(core.shape[mode], -1), full_matrices=False)
        share = max(left, 0.0) / (modes - mode)
        rank, tail = len(s), 0.0
        while rank > 1 and tail + float(s[rank - 1]) ** 2 <= share:
            rank -= 1
            tail += float(s[rank]) ** 2
        ranks.append(rank)
        shares.append(share)
        spectra.append(s)
        left -= tail
        core = np.moveaxis(np.tensordot(u[:, :rank].T, core, (1, mode)), 0, mode)
    return ranks, shares, spectra


def tucker_of(shape: tuple[int, ...], modes: int, *, decay: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
    core = decaying(shape) if decay else torch.randn(shape, dtype=torch.float64)
    return core, [orthonormal(r + 3, r) for r in shape[:modes]]


@pytest.mark.parametrize("decay", [True, False])
@pytest.mark.parametrize("tolerance", TOLERANCES)
@pytest.mark.parametrize(("shape", "modes"), CORES)
def test_truncation_stays_within_its_tolerance_and_keeps_bases_orthonormal(shape, modes, tolerance, decay):
    core, bases = tucker_of(shape, modes, decay=decay)
    small, fewer = tucker_truncate(core, bases, tolerance)
    error = float((tucker_full(core, bases) - tucker_full(small, fewer)).norm())
    scale = float(core.norm())
    assert error <= tolerance * scale + 1e-13 * scale
    # The discarded energy is the squared error: nothing is lost in between.
    assert math.isclose(error**2, scale**2 - float(small.square().sum()), abs_tol=1e-12 * scale**2)
    assert small.shape == (*(b.shape[1] for b in fewer), *shape[modes:])
    for old, new in zip(bases, fewer, strict=True):
        assert_orthonormal(new)
        assert_close(old @ old.mT @ new, new, rtol=0, atol=1e-12)  # inside the old span


@pytest.mark.parametrize("decay", [True, False])
@pytest.mark.parametrize("tolerance", [0.01, 0.1, 0.3, 0.7, 0.99])
@pytest.mark.parametrize(("shape", "modes"), CORES)
def test_truncation_is_not_needlessly_loose(shape, modes, tolerance, decay):
    core, bases = tucker_of(shape, modes, decay=decay)
    _, fewer = tucker_truncate(core, bases, tolerance)
    ranks, shares, spectra = cut_by_loop(core.numpy(), modes, tolerance)
    sizes = (*ranks, *shape[modes:])
    possible = [math.prod(sizes) // rank for rank in ranks]  # what a mode can use of what the others left
    assert [b.shape[1] for b in fewer] == [min(pair) for pair in zip(ranks, possible, strict=True)]
    for rank, share, s in zip(ranks, shares, spectra, strict=True):
        assert rank == 1 or float((s[rank - 1 :] ** 2).sum()) > share  # one less would break this mode's share


def test_truncation_finds_the_multilinear_rank_of_an_inflated_tensor():
    bases = [orthonormal(8, 5), orthonormal(9, 6)]
    inner = [orthonormal(5, 2), orthonormal(6, 3)]
    core = tucker_full(torch.randn(2, 3, 4, dtype=torch.float64), inner)
    small, fewer = tucker_truncate(core, bases, 1e-10)
    assert small.shape == (2, 3, 4)
    assert_close(tucker_full(small, fewer), tucker_full(core, bases), rtol=0, atol=1e-12 * float(core.norm()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_truncation_of_coarse_types(dtype):
    core, bases = tucker_of((6, 5, 3), 2, decay=True)
    core, bases = core.to(dtype), [b.to(dtype) for b in bases]
    small, fewer = tucker_truncate(core, bases, 0.1)
    assert {small.dtype, *(b.dtype for b in fewer)} == {dtype}
    error = tucker_full(core.double(), [b.double() for b in bases])
    error = error - tucker_full(small.double(), [b.double() for b in fewer])
    assert float(error.norm()) <= (0.1 + 10 * torch.finfo(dtype).eps) * float(core.double().norm())


def test_truncating_a_zero_core_leaves_rank_one():
    small, fewer = tucker_truncate(torch.zeros(3, 4, 2, dtype=torch.float64), [orthonormal(5, 3), orthonormal(6, 4)], 0)
    assert small.shape == (1, 1, 2)
    assert not small.any()
    for basis in fewer:
        assert_orthonormal(basis)


@pytest.mark.parametrize("tolerance", [-0.1, 1.0, 2.0, math.nan])
def test_tolerance_out_of_range_raises(tolerance):
    with pytest.raises(ArgumentError, match="`tolerance`"):
        tucker_truncate(torch.randn(3, 3), [torch.eye(3)], tolerance)


# ---- cuts under limits, for groups, and the orthogonal iteration


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize(("shape", "modes"), CORES)
def test_the_realised_error_is_the_true_one_whatever_the_limits(shape, modes, aligned):
    core, bases = tucker_of(shape, modes, decay=False)
    low = [max(1, r - 2) for r in shape[:modes]]
    for limits in (Limits(), Limits(3), Limits(1, low), Limits(low, low), Limits(multiple=2)):
        for tolerance in (0.0, 0.2, 0.6):
            cut = tucker_cut(core, bases, tolerance, limits=limits, aligned=aligned)
            error = float((tucker_full(core, bases) - tucker_full(cut.core, cut.bases)).norm() / core.norm())
            assert math.isclose(cut.error, error, rel_tol=1e-9, abs_tol=1e-13)
            assert cut.overridden == (error > tolerance + 1e-12)
            for old, new, p in zip(bases, cut.bases, cut.turns, strict=True):
                assert_orthonormal(new)
                assert_close(old @ p[0], new, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("shape", "modes"), CORES)
def test_a_tensor_is_cut_as_a_core_between_identities(shape, modes):
    w = torch.randn(shape, dtype=torch.float64)
    eyes = [torch.eye(n, dtype=torch.float64) for n in shape[:modes]]
    for tolerance, limits in ((0.0, None), (0.3, None), (0.3, Limits(2, [3] * modes))):
        cut, expected = tensor_cut(w, modes, tolerance, limits=limits), tucker_cut(w, eyes, tolerance, limits=limits)
        assert (cut.error, cut.overridden) == (expected.error, expected.overridden)
        assert_close(tucker_full(cut.core, cut.bases), tucker_full(expected.core, expected.bases), rtol=0, atol=1e-12)
        for basis in cut.bases:
            assert_orthonormal(basis)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-5, 1e-7, 1e-8, 0.0])
@pytest.mark.parametrize("groups", [1, 2])
def test_in_float32_tolerance_and_error_hold_to_what_a_gram_matrix_resolves(tolerance, groups):
    """Spectra over 14 decades: most of them are below 1e-8 of the largest value, where a Gram matrix sees nothing."""
    n, decades = 16, 10.0 ** -torch.arange(0, 16)
    parts = [tucker_full(torch.randn(n, n, 9, dtype=torch.float64) * decades[:, None, None] * decades[None, :, None],
                         [orthonormal(n, n), orthonormal(n, n)]) for _ in range(groups)]  # fmt: skip
    w = torch.cat(parts).float()
    cut = tensor_cut(w, 2, tolerance, groups=groups)
    lost = 0.0
    for g, part in enumerate(w.double().chunk(groups)):
        kept = tucker_full(part, [turn[g] @ turn[g].mT for turn in cut.turns])
        lost += float((part - kept).square().sum())
    true = math.sqrt(lost) / float(w.double().norm())
    assert abs(cut.error - true) <= 1e-8 * math.sqrt(n)
    assert true <= tolerance + 1e-8 * math.sqrt(n)
    exact = tensor_cut(w.double(), 2, tolerance, groups=groups)  # by singular values, to all digits
    assert exact.error <= tolerance
    assert cut.overridden == (cut.error > tolerance + 1e-12)


def test_limits_hold_and_the_cap_goes_before_the_floor():
    core, bases = tucker_of((6, 5, 9), 2, decay=True)
    ranks = lambda **k: tuple(tucker_cut(core, bases, 0.9, limits=Limits(**k)).core.shape[:2])  # noqa: E731
    assert ranks() == (1, 1)
    assert ranks(least=3) == (3, 3)
    assert ranks(least=(2, 4)) == (2, 4)
    assert ranks(least=3, multiple=4) == (4, 4)
    assert ranks(least=5, most=(2, 3)) == (2, 3)
    assert ranks(least=6, multiple=8) == (6, 5)  # no more than there is
    exact = tucker_cut(core, bases, 0.0, limits=Limits(1, (2, 3)))
    assert exact.core.shape[:2] == (2, 3)
    assert exact.overridden
    assert exact.error > 0


@pytest.mark.parametrize("tolerance", [0.0, 0.1, 0.5, 0.9])
def test_ranks_are_those_that_a_tensor_can_have_and_a_matrix_has_one(tolerance):
    for shape, modes in (((6, 7), 2), ((9, 8, 1), 2), ((8, 2, 2), 2), ((8, 3, 2), 3)):
        core, bases = tucker_of(shape, modes, decay=False)
        small = tucker_cut(core, bases, tolerance, limits=Limits(2)).core
        for mode in range(modes):
            assert small.shape[mode] <= small.numel() // small.shape[mode]


def test_a_matrix_loses_what_the_best_matrix_of_its_rank_loses():
    core, bases = tucker_of((6, 7), 2, decay=False)
    s = np.linalg.svd(core.numpy(), compute_uv=False)
    for tolerance in (0.1, 0.3, 0.6):
        cut = tucker_cut(core, bases, tolerance)
        rank = cut.core.shape[0]
        assert math.isclose(cut.error, math.sqrt((s[rank:] ** 2).sum()) / float(core.norm()), rel_tol=1e-12)
        assert rank == 1 or math.sqrt((s[rank - 1 :] ** 2).sum()) > tolerance * float(core.norm())


def test_groups_share_their_ranks_and_one_budget():
    parts = [tucker_of((5, 4, 3), 2, decay=decay) for decay in (True, False)]
    core = torch.cat([p[0] for p in parts])
    bases = [torch.cat(pair) for pair in zip(*(p[1] for p in parts), strict=True)]
    whole = torch.cat([tucker_full(*p) for p in parts])
    for tolerance in (0.0, 0.2, 0.5):
        cut = tucker_cut(core, bases, tolerance, groups=2, aligned=True)
        made = torch.cat(
            [tucker_full(c, bs) for c, *bs in zip(cut.core.chunk(2), *(b.chunk(2) for b in cut.bases), strict=True)]
        )
        error = float((whole - made).norm() / whole.norm())
        assert error <= tolerance + 1e-13
        assert math.isclose(error, cut.error, abs_tol=1e-13)
        for basis in cut.bases:
            for part in basis.chunk(2):
                assert_orthonormal(part)
    alone = tucker_cut(*parts[1], 0.3)
    assert_close(tucker_cut(parts[1][0], parts[1][1], 0.3, groups=1).core, alone.core)


def test_one_budget_for_all_modes_is_kept_where_one_for_each_is_not():
    """Per mode at the tolerance the error may be sqrt(modes) times it; here it is."""
    core = torch.zeros(2, 2, 3, dtype=torch.float64)
    core[0, 0, 0], core[1, 0, 1], core[0, 1, 2] = 1.0, 0.1, 0.1
    bases = [orthonormal(5, 2), orthonormal(6, 2)]
    tolerance = 0.105
    each = [np.linalg.svd(tensorly.unfold(core.numpy(), i), compute_uv=False) for i in range(2)]
    assert all(s[1] <= tolerance * float(core.norm()) for s in each)  # either alone may go
    cut = tucker_cut(core, bases, tolerance)
    assert cut.error <= tolerance
    assert cut.core.shape[:2] != (1, 1)


@pytest.mark.parametrize(("shape", "ranks"), CASES)
def test_the_orthogonal_iteration_never_errs_more_and_ends_where_tensorlys_does(shape, ranks):
    w = decaying(shape)
    first = float((w - tucker_full(*hosvd(w, ranks))).norm())
    errors = [float((w - tucker_full(*hooi(w, ranks, sweeps=n))).norm()) for n in (0, 1, 3, 30)]
    slack = 1e-12 * float(w.norm())
    assert math.isclose(errors[0], first, abs_tol=slack)
    assert all(b <= a + slack for a, b in itertools.pairwise(errors))
    if len(shape) == len(ranks):
        best = tensorly_tucker(w.numpy(), rank=list(ranks), init="svd", n_iter_max=200, tol=1e-13)
        expected = float(np.linalg.norm(w.numpy() - tensorly.tucker_to_tensor(best)))
        assert errors[-1] <= expected * (1 + 1e-3) + 1e-6 * float(w.norm())


def test_the_orthogonal_iteration_checks_its_sweeps():
    with pytest.raises(ArgumentError, match="`sweeps`"):
        hooi(torch.randn(3, 4), (1, 1), sweeps=-1)
