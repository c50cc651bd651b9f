"""Projection with a row metric and energy transfer: the laws of trained rank pruning and of LRPET."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tenfold.errors import ArgumentError, TenfoldError
from tenfold.linalg import Fold, nuclear_subgradient, project, singular_values
from tenfold.linalg.projection import Basis, Weighted, full_precision, transfer_scale
from tenfold.linalg.svd import energy_rank

TIGHT = {"rtol": 1e-10, "atol": 1e-10}


def matrix(seed: int, m: int = 7, n: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(m, n, dtype=torch.float64, generator=g), torch.randn(m, dtype=torch.float64, generator=g)


shapes = st.tuples(st.integers(0, 99), st.integers(2, 9), st.integers(2, 9))


@given(shapes, st.booleans())
def test_the_result_has_the_rank(shape, transfer) -> None:
    a, metric = matrix(*shape)
    r = min(a.shape) // 2 or 1
    s = singular_values(project(a, r, metric=metric, transfer=transfer))
    assert r == len(s) or s[r] <= 1e-12 * s[0]


@given(shapes)
def test_it_equals_the_truncated_svd_of_the_weighted_matrix_divided_again(shape) -> None:
    a, metric = matrix(*shape)
    r = min(a.shape) // 2 or 1
    u, s, vh = torch.linalg.svd(metric[:, None] * a, full_matrices=False)
    cut = (u[:, :r] * s[:r]) @ vh[:r]
    torch.testing.assert_close(project(a, r, metric=metric), cut / metric[:, None], rtol=1e-7, atol=1e-7)
    c = s.norm() / s[:r].norm()
    got = project(a, r, metric=metric, transfer=True)
    torch.testing.assert_close(metric[:, None] * got, c * cut, **TIGHT)


def test_no_random_matrix_of_the_rank_is_nearer_in_the_metric() -> None:
    a, metric = matrix(3)
    best = (metric[:, None] * (a - project(a, 3, metric=metric))).norm()
    g = torch.Generator().manual_seed(0)
    for _ in range(200):
        right = torch.randn(3, 10, dtype=torch.float64, generator=g)
        weighted = metric[:, None] * a
        other = weighted @ right.T @ torch.linalg.inv(right @ right.T) @ right  # the best with this row space
        assert (weighted - other).norm() >= best * (1 - 1e-12)


@given(shapes, st.floats(0, 1))
def test_transfer_keeps_the_energy_in_the_metric_for_any_tail(shape, tail) -> None:
    a, metric = matrix(*shape)
    got = project(a, min(a.shape) // 2 or 1, metric=metric, transfer=True, tail=tail)
    torch.testing.assert_close((metric[:, None] * got).norm(), (metric[:, None] * a).norm(), **TIGHT)


def test_the_scale_is_one_only_where_nothing_is_lost() -> None:
    a, _ = matrix(1)
    low = project(a, 3)
    torch.testing.assert_close(project(low, 3, transfer=True), low, **TIGHT)
    assert project(a, 3, transfer=True).norm() > low.norm() * (1 + 1e-3)


@pytest.mark.parametrize("transfer", [False, True])
def test_projecting_twice_is_projecting_once(transfer) -> None:
    a, metric = matrix(5)
    once = project(a, 3, metric=metric, transfer=transfer)
    torch.testing.assert_close(project(once, 3, metric=metric, transfer=transfer), once, **TIGHT)


def test_full_rank_is_bitwise_the_identity() -> None:
    a, metric = matrix(6)
    assert torch.equal(project(a, 7, metric=metric, transfer=True), a)
    assert torch.equal(project(a.T, 99), a.T)


def test_the_metric_counts_by_ratios_of_magnitudes_only() -> None:
    a, metric = matrix(7)
    got = project(a, 3, metric=metric, transfer=True)
    torch.testing.assert_close(project(a, 3, metric=-metric, transfer=True), got, **TIGHT)
    torch.testing.assert_close(project(a, 3, metric=2 * metric, transfer=True), got, **TIGHT)


def test_rotations_and_permutations_of_rows_and_columns_go_through() -> None:
    a, metric = matrix(8)
    q, _ = torch.linalg.qr(matrix(9, 7, 7)[0])
    p, _ = torch.linalg.qr(matrix(10, 10, 10)[0])
    torch.testing.assert_close(project(q @ a @ p, 3), q @ project(a, 3) @ p, **TIGHT)
    order = torch.tensor([2, 0, 6, 1, 3, 5, 4])
    got = project(a[order], 3, metric=metric[order], transfer=True)
    torch.testing.assert_close(got, project(a, 3, metric=metric, transfer=True)[order], **TIGHT)


def test_dead_channels_and_zero_matrices_stay_finite() -> None:
    a, metric = matrix(11)
    metric[2] = 0.0
    got = project(a, 3, metric=metric, transfer=True)
    assert torch.isfinite(got).all()
    assert singular_values(got)[3] <= 1e-12 * singular_values(got)[0]
    assert torch.equal(project(torch.zeros(4, 5), 2, transfer=True), torch.zeros(4, 5))


def test_a_batch_is_its_matrices_one_by_one_and_nothing_is_changed() -> None:
    stack = torch.stack([matrix(i)[0] for i in range(3)])
    metric = torch.stack([matrix(i)[1] for i in range(3)])
    before = stack.clone()
    got = project(stack, 2, metric=metric, transfer=True)
    for i in range(3):
        torch.testing.assert_close(got[i], project(stack[i], 2, metric=metric[i], transfer=True), **TIGHT)
    assert torch.equal(stack, before)
    assert project(stack.bfloat16(), 2).dtype == torch.bfloat16


@pytest.mark.parametrize("bad", [{"rank": 0}, {"rank": 2, "tail": 1.5}])
def test_values_out_of_range_are_refused(bad) -> None:
    with pytest.raises(ArgumentError):
        project(matrix(0)[0], **bad)


def test_the_nuclear_subgradient_is_autograds_at_full_rank_and_has_norm_one() -> None:
    a, _ = matrix(12)
    leaf = a.clone().requires_grad_()
    torch.linalg.svdvals(leaf).sum().backward()
    torch.testing.assert_close(nuclear_subgradient(a, 7), leaf.grad, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(torch.linalg.svdvals(nuclear_subgradient(a, 3))[0], torch.tensor(1.0).double(), **TIGHT)


def test_the_subgradient_inequality_holds_at_the_projected_matrix() -> None:
    a, _ = matrix(13)
    at = project(a, 3)
    g = nuclear_subgradient(a, 3)
    for seed in range(20, 60):
        other, _ = matrix(seed)
        nuclear = torch.linalg.svdvals(other).sum()
        assert nuclear >= torch.linalg.svdvals(at).sum() + (g * (other - at)).sum() - 1e-10


def test_single_precision_weights_are_projected_as_well_as_double_ones() -> None:
    a, metric = matrix(14, 16, 40)
    got = project(a.float(), 5, metric=metric.float(), transfer=True)
    wanted = project(a.float().double(), 5, metric=metric.float().double(), transfer=True)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-6)


# ---- the scale


@given(st.integers(0, 99), st.integers(2, 9), st.floats(0, 1))
def test_the_scale_is_that_of_the_formula_and_never_below_one(seed, n, tail) -> None:
    s = torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).sort(descending=True)[0] + 0.1
    for r in range(1, n + 1):
        whole, kept = (s**2).sum(), (s[:r] ** 2).sum()
        wanted = ((whole - tail**2 * (s[r:] ** 2).sum()) / kept).sqrt()
        got = transfer_scale(whole, kept, tail)
        torch.testing.assert_close(got, wanted, **TIGHT)
        assert got >= 1
        assert r < n or got == 1
        assert r == n or tail > 0.99 or got > 1


def test_where_nothing_is_kept_the_scale_is_one() -> None:
    zero = torch.zeros(2, dtype=torch.float64)
    assert torch.equal(transfer_scale(torch.tensor([0.0, 3.0]).double(), zero), torch.ones(2).double())


@given(shapes)
def test_the_tail_is_kept_at_rho_of_what_it_was(shape) -> None:
    a, metric = matrix(*shape)
    r, rho = min(a.shape) // 2 or 1, 0.3
    u, s, vh = torch.linalg.svd(metric[:, None] * a, full_matrices=False)
    scaled = torch.cat([s[:r], rho * s[r:]])
    torch.testing.assert_close(metric[:, None] * project(a, r, metric=metric, tail=rho), (u * scaled) @ vh, **TIGHT)


# ---- the energy rule


def shed(a: torch.Tensor, energy: float) -> torch.Tensor:
    """One projection at the rank that the energy rule gives."""
    return project(a, int(energy_rank(singular_values(a), energy)))


def test_the_energy_rule_goes_on_shedding_on_weights_that_stand_still() -> None:
    a, _ = matrix(15, 64, 90)
    ranks = [int(energy_rank(singular_values(a), 0.9))]
    for _ in range(60):
        a = shed(a, 0.9)
        ranks.append(int(energy_rank(singular_values(a), 0.9)))
    assert ranks == sorted(ranks, reverse=True)
    assert ranks[1] < ranks[0]  # not idempotent
    assert ranks[-1] == ranks[-2] < 1 / (1 - 0.9)  # a fixed point


@given(st.integers(0, 99), st.floats(0.5, 0.95))
def test_fixed_points_of_the_energy_rule_have_a_rank_below_one_over_one_minus_energy(seed, energy) -> None:
    a, _ = matrix(seed, 24, 30)
    last = 25
    while (rank := int(energy_rank(singular_values(a), energy))) < last:
        a, last = project(a, rank), rank
    assert rank <= 1 / (1 - energy) + 1e-9


@given(st.integers(0, 99), st.floats(0.5, 0.99), st.floats(0.01, 0.999))
def test_updates_smaller_than_the_energy_that_may_go_do_not_raise_the_rank(seed, energy, share) -> None:
    a, _ = matrix(seed, 12, 16)
    at = shed(a, energy)
    r = int((singular_values(at) > 1e-10).sum())
    step, _ = matrix(seed + 100, 12, 16)
    # ||D||^2 = share (1 - T) ||at + t D||^2, solved for the length of the step by bisection
    low, high = 0.0, 10.0
    for _ in range(80):
        t = (low + high) / 2
        small = (t * step).square().sum() <= share * (1 - energy) * (at + t * step).square().sum()
        low, high = (t, high) if small else (low, t)
    assert int(energy_rank(singular_values(at + low * step), energy)) <= r


# ---- zeros, types, batches


@pytest.mark.parametrize("shape", [(7, 10), (10, 7), (6, 6), (1, 5), (5, 1)])
def test_zeros_in_the_metric_are_harmless_in_any_shape(shape) -> None:
    a, metric = matrix(16, *shape)
    metric[:1] = 0.0
    for r in range(1, min(shape)):
        got = project(a, r, metric=metric, transfer=True)
        assert torch.isfinite(got).all()
        assert singular_values(got)[r] <= 1e-10 * singular_values(got)[0]
        u, s, vh = torch.linalg.svd(metric[:, None] * a, full_matrices=False)
        cut = (u[:, :r] * s[:r]) @ vh[:r] * (s.norm() / s[:r].norm())
        torch.testing.assert_close(metric[:, None] * got, cut, **TIGHT)
        assert torch.isfinite(project(a, r, metric=torch.zeros_like(metric), transfer=True)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(7, 10), (10, 7)])
def test_half_types_are_projected_in_a_finer_one_and_cast_back(dtype, shape) -> None:
    a, metric = matrix(17, *shape)
    a = a.to(dtype)
    wanted = project(a.double(), 3, metric=metric, transfer=True)
    got = project(a, 3, metric=metric, transfer=True)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), wanted, rtol=torch.finfo(dtype).eps, atol=1e-3 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("shape", [(3, 2, 6, 8), (2, 2, 8, 6)])
def test_a_batch_of_any_depth_may_share_one_metric(shape) -> None:
    a = torch.randn(shape, dtype=torch.float64)
    metric = torch.rand(shape[-2], dtype=torch.float64)
    got = project(a, 2, metric=metric.expand(*shape[:2], -1), transfer=True)
    for i, j in itertools.product(range(shape[0]), range(shape[1])):
        torch.testing.assert_close(got[i, j], project(a[i, j], 2, metric=metric, transfer=True), **TIGHT)


def test_autocast_changes_nothing() -> None:
    a, metric = (x.float() for x in matrix(18))
    wanted = project(a, 3, metric=metric, transfer=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(project(a, 3, metric=metric, transfer=True), wanted)


def test_the_users_precision_is_put_back() -> None:
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision
    try:
        settings.fp32_precision = "tf32"
        with full_precision(torch.ones(1)):
            assert settings.fp32_precision == "ieee"
        assert settings.fp32_precision == "tf32"
    finally:
        settings.fp32_precision = before


@pytest.mark.parametrize("where", ["a", "metric"])
def test_what_is_not_finite_is_refused(where) -> None:
    a, metric = matrix(19)
    (a if where == "a" else metric).view(-1)[0] = float("nan")
    with pytest.raises(TenfoldError, match="NaN or infinite"):
        project(a, 3, metric=metric)


# ---- the spatial view: output channels in the columns of the paper's matrix


@pytest.mark.parametrize("kernel", [(5, 4, 3, 2), (3, 6, 3, 3), (9, 2, 2, 3)])
def test_the_spatial_fold_in_the_metric_is_the_left_projection_of_the_papers_matrix(kernel) -> None:
    """There ``(C kh) x (N kw)``, column block n scaled by ``a_n``: ``W_hat = c U_r U_r^T M``."""
    f, c, kh, kw = kernel
    w, a = torch.randn(kernel, dtype=torch.float64), torch.randn(f, dtype=torch.float64)
    m = w.permute(1, 2, 0, 3).reshape(c * kh, f * kw)
    u, s, _ = torch.linalg.svd(m * a.repeat_interleave(kw), full_matrices=False)
    for r in range(1, min(m.shape)):
        wanted = (s.norm() / s[:r].norm()) * u[:, :r] @ u[:, :r].T @ m
        fold = Fold(kernel, name="spatial")
        got = project(fold.matrices(w), r, metric=a.repeat_interleave(kw)[None], transfer=True)
        back = fold.kernel(got).permute(1, 2, 0, 3).reshape(c * kh, f * kw)
        torch.testing.assert_close(back, wanted, rtol=1e-8, atol=1e-8)


# ---- the nuclear norm


@pytest.mark.parametrize("shape", [(7, 10), (10, 7), (6, 6)])
def test_the_subgradient_is_u_v_of_the_leading_directions(shape) -> None:
    a, _ = matrix(21, *shape)
    u, _, vh = torch.linalg.svd(a, full_matrices=False)
    for r in range(1, min(shape) + 1):
        torch.testing.assert_close(nuclear_subgradient(a, r), u[:, :r] @ vh[:r], rtol=1e-7, atol=1e-7)


def test_no_rank_outside_the_matrix_has_a_subgradient() -> None:
    for rank in (0, 8):
        with pytest.raises(ArgumentError, match="`rank`"):
            nuclear_subgradient(matrix(0)[0], rank)


# ---- one warm step


def warm(a, metric, old, *, coarse=False):
    """The projection after one subspace step from an old basis, and its residual."""
    weighted = Weighted.of(a, metric, coarse=coarse)
    basis, residual = weighted.refined(old)
    left, right = weighted.factors(basis)
    return left @ right, residual


def exact_basis(a, metric, rank) -> Basis:
    return Weighted.of(a, metric).spectrum().leading(rank)


def low(shape, rank=3) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix of the rank, as it is after a projection, and a metric."""
    a, metric = matrix(22, *shape)
    return project(a, rank)[None], (metric.abs() + 0.5)[None]


@pytest.mark.parametrize("with_metric", [False, True])
@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_the_error_of_a_warm_step_falls_with_the_third_power_of_the_change(shape, with_metric) -> None:
    a, metric = low(shape)
    metric = metric if with_metric else None
    step, _ = matrix(23, *shape)
    old = exact_basis(a, metric, 3).vectors
    errors = []
    for d in (1e-1, 1e-2, 1e-3):
        moved = a + d * a.norm() * step / step.norm()
        got, _ = warm(moved, metric, old)
        errors.append(float((got - project(moved, 3, metric=metric)).norm() / a.norm()))
    assert errors[0] < 1e-2
    assert errors[1] < 3e-3 * errors[0]  # a thousandth, and some room
    assert errors[2] < 1e-11 or errors[2] < 3e-3 * errors[1]


def test_the_residual_tells_a_bad_basis_from_a_good_one() -> None:
    a, metric = low((12, 20))
    good = exact_basis(a, metric, 3).vectors
    bad = torch.linalg.qr(matrix(24, 12, 3)[0])[0][None]
    assert warm(a, metric, good)[1] < 1e-14
    a = a + 0.1 * matrix(23, 12, 20)[0]
    assert warm(a, metric, bad)[1] > 1e-5
    assert warm(a, metric, torch.full_like(bad, torch.nan))[1] == torch.inf


def test_an_invariant_space_that_does_not_lead_has_no_residual() -> None:
    """Why the exact answer is taken from time to time."""
    a, _ = low((12, 20))
    a = a + 0.1 * matrix(23, 12, 20)[0]
    others = Weighted.of(a).spectrum().vectors[..., 3:6]
    got, residual = warm(a, None, others)
    assert residual < 1e-12
    assert (got - a).norm() > (project(a, 3) - a).norm()


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_a_warm_step_in_single_precision_is_as_good_as_single_precision(shape) -> None:
    a, metric = low(shape)
    moved = (a + 1e-3 * matrix(25, *shape)[0]).float()
    got, residual = warm(moved, metric, exact_basis(a, metric, 3).vectors, coarse=True)
    assert got.dtype == torch.float32
    assert residual < 1e-5
    torch.testing.assert_close(got.double(), project(moved.double(), 3, metric=metric), rtol=1e-4, atol=1e-5)


def test_a_warm_step_knows_the_energy_that_it_keeps() -> None:
    a, metric = low((12, 20))
    weighted = Weighted.of(a + 0.1 * matrix(23, 12, 20)[0], metric)
    basis, _ = weighted.refined(weighted.spectrum().leading(3).vectors)
    left, right = weighted.factors(basis)
    assert basis.energy < 0.999 * weighted.energy
    torch.testing.assert_close(
        basis.energy, (metric[..., None] * (left @ right)).square().sum((-2, -1)), rtol=1e-8, atol=0
    )


# ---- what else is projected with the same directions


@pytest.mark.parametrize("with_metric", [False, True])
@pytest.mark.parametrize("shape", [(7, 10), (10, 7)])
def test_another_matrix_is_projected_on_the_same_row_space(shape, with_metric) -> None:
    a, metric = matrix(26, *shape)
    metric = metric if with_metric else None
    weighted = Weighted.of(a, metric)
    vh = torch.linalg.svd(a if metric is None else metric[:, None] * a, full_matrices=False)[2][:3]
    momentum, _ = matrix(27, *shape)
    got = weighted.within(momentum, weighted.spectrum().leading(3))
    torch.testing.assert_close(got, momentum @ vh.T @ vh, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("shape", [(3, 7, 10), (3, 10, 7)])
def test_each_matrix_of_a_batch_may_have_a_rank_of_its_own(shape) -> None:
    a = torch.randn(shape, dtype=torch.float64)
    ranks = torch.tensor([1, 4, 2])
    weighted = Weighted.of(a)
    spectrum = weighted.spectrum()
    basis = spectrum.leading(ranks)
    left, right = weighted.factors(basis)
    for i, r in enumerate(ranks.tolist()):
        torch.testing.assert_close((left @ right)[i], project(a[i], r), **TIGHT)
        torch.testing.assert_close(basis.energy[i], (torch.linalg.svdvals(a[i])[:r] ** 2).sum(), **TIGHT)
        torch.testing.assert_close(
            weighted.polar(spectrum, ranks)[i], nuclear_subgradient(a[i], r), rtol=1e-7, atol=1e-7
        )
