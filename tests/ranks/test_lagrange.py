"""Allocation by multipliers against all combinations, and its hulls and its dual against scipy's."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.spatial import ConvexHull

from ranks.tables import random_tables, table
from tenfold.ranks.lagrange import _dual, _hull, allocate

SEEDS = st.integers(0, 2**31)
TWO = ("params", "macs")


def made(seed, layers=3, options=6, names=("params",), **how):
    rng = np.random.default_rng(seed)
    tables = random_tables(rng, layers, options, names, **how)
    return tables, [t.error**2 for t in tables]


def total(tables, choice, name="params"):
    return sum(int(t.costs[name][c]) for t, c in zip(tables, choice, strict=True))


def least_loss(tables, losses, limits):
    """The smallest loss over *all* combinations within the limits; None where there is none."""
    loss, costs = np.zeros(1), {n: np.zeros(1, dtype=np.int64) for n in limits}
    for t, f in zip(tables, losses, strict=True):
        loss = (loss[:, None] + f[None, :]).ravel()
        costs = {n: (costs[n][:, None] + t.costs[n][None, :]).ravel() for n in limits}
    fits = np.all([costs[n] <= limits[n] for n in limits], axis=0)
    return float(loss[fits].min()) if fits.any() else None


def lost(losses, choice):
    return sum(float(f[c]) for f, c in zip(losses, choice, strict=True))


def shares(tables, rng):
    """Limits on both costs, from just below what each can be alone to all of it."""
    for _ in range(6):
        limits = {}
        for name in TWO:
            low, high = (sum(int(f(t.costs[name])) for t in tables) for f in (np.min, np.max))
            limits[name] = int(low - 1 + rng.random() ** 2 * (high + 2 - low))
        yield limits


def prices(tables, losses):
    """Every multiplier at which some layer could change its mind: between any two of its options."""
    costs = relative(tables)
    found = {0.0}
    for cost, loss in zip(costs, losses, strict=True):
        for i, j in itertools.permutations(range(len(loss)), 2):
            if cost[i] > cost[j]:
                found.add(float((loss[j] - loss[i]) / (cost[i] - cost[j])))
    return sorted(p for p in found if p >= 0)


def relative(tables, name="params"):
    """The cost over that of the dense layers."""
    return [t.costs[name] / sum(o.costs[name][0] for o in tables) for t in tables]


def cheapest_minimiser(tables, losses, multiplier):
    """Cost of the choice that minimises loss + multiplier x cost, of several the one that costs least."""
    spent = 0
    for t, cost, loss in zip(tables, relative(tables), losses, strict=True):
        value = loss + multiplier * cost
        spent += min(int(t.costs["params"][i]) for i in np.flatnonzero(value <= value.min() + 1e-9))
    return spent


def every_limit(tables):
    low, high = (sum(int(f(t.costs["params"])) for t in tables) for f in (np.min, np.max))
    return range(low - 2, high + 3, max(1, (high - low) // 25))


@given(seed=SEEDS)
def test_the_choice_minimises_the_lagrangian_over_all_combinations_at_its_multiplier(seed):
    tables, losses = made(seed)
    costs = relative(tables)
    combinations = list(itertools.product(*(range(len(t.error)) for t in tables)))

    def lagrangian(choice, multiplier):
        return sum(f[c] + multiplier * w[c] for f, w, c in zip(losses, costs, choice, strict=True))

    for share in (0.3, 0.6, 0.9):
        limits = {"params": int(share * sum(int(t.costs["params"][0]) for t in tables))}
        if (found := allocate(tables, losses, limits)) is not None:
            choice, multiplier, _ = found
            least = min(lagrangian(c, multiplier) for c in combinations)
            assert lagrangian(choice, multiplier) == pytest.approx(least, abs=1e-9)
            # Everett: no combination that costs no more loses less
            spent = sum(w[c] for w, c in zip(costs, choice, strict=True))
            for other in combinations:
                if sum(w[c] for w, c in zip(costs, other, strict=True)) <= spent - 1e-9:
                    assert lost(losses, other) >= lost(losses, choice) - 1e-9


@given(SEEDS)
def test_the_multiplier_is_the_smallest_of_all_whose_choice_fits(seed):
    tables, losses = made(seed)
    candidates = prices(tables, losses)
    for limit in every_limit(tables):
        found = allocate(tables, losses, {"params": limit})
        fitting = [p for p in candidates if cheapest_minimiser(tables, losses, p) <= limit]
        assert (found is None) == (not fitting)
        if found is not None:
            assert found[1] == pytest.approx(min(fitting), abs=1e-9)


@pytest.mark.parametrize("unlike", [False, True])
@given(seed=SEEDS, layers=st.integers(1, 4))
def test_two_limits_are_kept_wherever_a_choice_keeps_them_and_the_loss_is_the_least(unlike, seed, layers):
    tables, losses = made(seed, layers, names=TWO, unlike=unlike)
    for limits in shares(tables, np.random.default_rng(seed)):
        found, least = allocate(tables, losses, limits), least_loss(tables, losses, limits)
        assert (found is None) == (least is None)
        if found is not None:
            assert all(total(tables, found[0], n) <= limits[n] for n in TWO)
            assert lost(losses, found[0]) <= least * (1 + 1e-3) + 1e-9


@settings(max_examples=10)
@given(SEEDS)
def test_two_limits_with_many_options_lose_the_least_and_what_a_pair_of_multipliers_reaches_is_that(seed):
    rng = np.random.default_rng(seed)
    tables, losses = made(seed, 4, 24, TWO, high=5000, unlike=True)
    pair = rng.exponential(2, 2)
    params, macs = (relative(tables, n) for n in TWO)
    choice = [int(np.argmin(f + pair[0] * p + pair[1] * m)) for f, p, m in zip(losses, params, macs, strict=True)]
    limits = {n: total(tables, choice, n) for n in TWO}
    found, *_ = allocate(tables, losses, limits)
    assert lost(losses, found) == pytest.approx(
        lost(losses, choice), rel=1e-3
    )  # Everett: nothing within them is better
    for limits in shares(tables, rng):
        found, least = allocate(tables, losses, limits), least_loss(tables, losses, limits)
        assert (found is None) == (least is None)
        if found is not None:
            assert lost(losses, found[0]) <= least * (1 + 1e-3) + 1e-9


@pytest.mark.parametrize("seed", range(5))
def test_a_deep_network_keeps_both_limits_and_loses_at_most_a_hundredth_more_than_the_dual_allows(seed):
    rng = np.random.default_rng(seed)
    tables, losses = [], []
    for full in rng.integers(40, 200, 80):
        tail = np.cumsum(rng.random(full) * np.arange(1, full + 1) ** rng.uniform(0, 2))[::-1]
        each, uses = int(rng.integers(10, 50)), int(rng.integers(1, 60))
        params = np.append(each * full, each * np.arange(1, full))
        dearer = rng.integers(1, 4, full)  # some ranks come in a fold that costs more MACs
        tables.append(table(np.append(0, tail[1:] / tail[0]), params=params, macs=uses * params * dearer))
        losses.append(np.append(0, tail[1:]))
    limits = {n: int(0.4 * sum(int(t.costs[n][0]) for t in tables)) for n in TWO}
    found, *_ = allocate(tables, losses, limits)
    assert all(total(tables, found, n) <= limits[n] for n in TWO)
    units = [f / lost(losses, found) for f in losses]
    costs = [np.stack([t.costs[n] / limits[n] for n in TWO], 1) for t in tables]
    at = _dual(units, costs, np.ones(2))
    assert sum((u + c @ at).min() for u, c in zip(units, costs, strict=True)) - at.sum() > 0.99


@given(SEEDS, st.booleans())
def test_the_multipliers_are_those_of_the_linear_relaxation(seed, unlike):
    tables, losses = made(seed, 4, 12, TWO, unlike=unlike)
    scale = sum(f.max() for f in losses) or 1.0
    costs = [np.stack(pair, 1) for pair in zip(*(relative(tables, n) for n in TWO), strict=True)]
    low, high = (sum(f(c, 0) for c in costs) for f in (np.min, np.max))
    bound = low + np.random.default_rng(seed).uniform(0.3, 1, 2) * (high - low)
    units = [f / scale for f in losses]
    layer = np.repeat(np.arange(len(costs)), [len(c) for c in costs])
    expected = linprog(
        np.concatenate(units),
        A_ub=np.concatenate(costs).T,
        b_ub=bound,
        A_eq=(layer == np.arange(len(costs))[:, None]).astype(float),
        b_eq=np.ones(len(costs)),
    )
    if expected.status == 0:
        at = _dual(units, costs, bound)
        value = sum((f + c @ at).min() for f, c in zip(units, costs, strict=True)) - at @ bound
        assert value == pytest.approx(expected.fun, abs=2e-5)
        assert np.all(at >= 0)


def test_limits_that_only_a_mixture_keeps_are_kept_and_nothing_below_is():
    """Each layer can be thin in one cost or in the other: only one of each is thin enough in both."""
    tables = [table([0.0, 0.5, 0.6], params=[10, 1, 9], macs=[10, 9, 1]) for _ in range(2)]
    losses = [t.error for t in tables]
    choice, multiplier, _ = allocate(tables, losses, {"params": 10, "macs": 10})
    assert sorted(choice) == [1, 2]
    assert multiplier > 0
    for limits in ({"params": 9, "macs": 10}, {"params": 10, "macs": 9}, {"params": 9, "macs": 9}):
        assert allocate(tables, losses, limits) is None
    assert allocate(tables, losses, {"params": 2, "macs": 18})[0] == [1, 1]


@settings(max_examples=6)
@given(SEEDS)
def test_a_second_limit_that_does_not_bind_costs_no_loss(seed):
    tables, losses = made(seed, names=TWO, unlike=True)
    whole = sum(int(t.costs["macs"].max()) for t in tables)
    for limit in every_limit(tables):
        alone = allocate(tables, losses, {"params": limit})
        both = allocate(tables, losses, {"params": limit, "macs": whole})
        assert (alone is None) == (both is None)
        if alone is not None:
            assert lost(losses, both[0]) <= lost(losses, alone[0]) * (1 + 1e-3) + 1e-9


@given(SEEDS)
def test_a_larger_budget_never_costs_loss_nor_raises_the_multiplier(seed):
    tables, losses = made(seed)
    spent, multipliers = [], []
    for limit in every_limit(tables):
        if (found := allocate(tables, losses, {"params": limit})) is not None:
            spent.append(lost(losses, found[0]))
            multipliers.append(found[1])
    assert spent == sorted(spent, reverse=True)
    assert multipliers == sorted(multipliers, reverse=True)


@settings(max_examples=8)
@given(SEEDS)
def test_what_the_multiplier_leaves_is_spent_to_within_a_thousandth_of_the_least_loss(seed):
    tables, losses = made(seed)
    for limit in every_limit(tables):
        found, walked = (allocate(tables, losses, {"params": limit}, spend=spend) for spend in (True, False))
        assert (found is None) == (walked is None)
        if found is not None and walked is not None:
            assert total(tables, found[0]) <= limit
            assert lost(losses, found[0]) <= min(
                lost(losses, walked[0]), least_loss(tables, losses, {"params": limit}) * (1 + 2e-3) + 1e-9
            )
            assert found[1] == pytest.approx(walked[1])


def test_the_whole_budget_loses_nothing():
    tables, losses = made(3)
    choice, multiplier, _ = allocate(tables, losses, {"params": total(tables, [0] * len(tables))})
    assert multiplier == 0
    assert all(loss[c] == 0 for loss, c in zip(losses, choice, strict=True))


def test_scaling_all_losses_scales_the_multiplier_and_nothing_else():
    tables, losses = made(5)
    low, high = (sum(int(f(t.costs["params"])) for t in tables) for f in (np.min, np.max))
    limits = {"params": (low + high) // 2}
    choice, multiplier, _ = allocate(tables, losses, limits)
    scaled = allocate(tables, [1e6 * x for x in losses], limits)
    assert scaled[0] == choice
    assert scaled[1] == pytest.approx(1e6 * multiplier)


@pytest.mark.parametrize("seed", range(20))
def test_corners_are_those_of_scipys_convex_hull(seed):
    rng = np.random.default_rng(seed)
    cost, loss = rng.random(30), rng.random(30)
    corners, edges = _hull(cost, loss)
    points = np.stack([cost, loss], 1)
    # beside a point far up and one far right the hull of the rest is its lower left chain
    hull = ConvexHull(np.concatenate([points, [[cost.min(), 99.0], [99.0, loss.min()], [99.0, 99.0]]]))
    expected = sorted((i for i in hull.vertices if i < len(points)), key=lambda i: loss[i])
    assert corners.tolist() == expected
    assert edges == sorted(edges)
    slopes = [(loss[b] - loss[a]) / (cost[a] - cost[b]) for a, b in itertools.pairwise(corners)]
    np.testing.assert_allclose(edges, slopes, rtol=1e-12)


def test_points_on_an_edge_and_equal_points_are_no_corners():
    cost, loss = np.array([3.0, 2.0, 1.0, 1.0, 3.0, 1.0]), np.array([0.0, 1.0, 2.0, 2.0, 0.0, 5.0])
    corners, edges = _hull(cost, loss)
    assert (cost[corners].tolist(), loss[corners].tolist(), edges) == ([3.0, 1.0], [0.0, 2.0], [1.0])


def test_a_layer_that_is_never_used_does_not_divide_by_its_cost_of_nothing():
    t = table([0.0, 0.5], macs=[0, 0])
    assert allocate([t], [t.error], {"macs": 0})[:2] == ([0], 0.0)
