"""Projection with a row metric and energy transfer: the laws of trained rank pruning and of LRPET."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tenfold.errors import ArgumentError
from tenfold.linalg import nuclear_subgradient, project, singular_values

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
