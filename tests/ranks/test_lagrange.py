"""Allocation by one multiplier against all combinations, and its hulls against scipy's."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial import ConvexHull

from ranks.nets import random_tables, table
from tenfold.ranks.lagrange import _hull, allocate

SEEDS = st.integers(0, 2**31)
TWO = ("params", "macs")


def made(seed, layers=3, options=6, names=("params",)):
    rng = np.random.default_rng(seed)
    tables = random_tables(rng, layers, options, names)
    return tables, [t.error**2 for t in tables]


def total(tables, choice, name="params"):
    return sum(int(t.costs[name][c]) for t, c in zip(tables, choice, strict=True))


def prices(tables, losses, names=("params",)):
    """Every multiplier at which some layer could change its mind: between any two of its options."""
    costs = relative(tables, names)
    found = {0.0}
    for cost, loss in zip(costs, losses, strict=True):
        for i, j in itertools.permutations(range(len(loss)), 2):
            if cost[i] > cost[j]:
                found.add(float((loss[j] - loss[i]) / (cost[i] - cost[j])))
    return sorted(p for p in found if p >= 0)


def relative(tables, names=("params",)):
    """Each cost over that of the dense layers, added up."""
    return [sum(t.costs[n] / sum(o.costs[n][0] for o in tables) for n in names) for t in tables]


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


@pytest.mark.parametrize("names", [("params",), TWO])
@given(seed=SEEDS)
def test_the_choice_minimises_the_lagrangian_over_all_combinations_at_its_multiplier(names, seed):
    tables, losses = made(seed, names=names)
    costs = relative(tables, names)
    combinations = list(itertools.product(*(range(len(t.error)) for t in tables)))

    def lagrangian(choice, multiplier):
        return sum(f[c] + multiplier * w[c] for f, w, c in zip(losses, costs, choice, strict=True))

    for share in (0.3, 0.6, 0.9):
        limits = {n: int(share * sum(int(t.costs[n][0]) for t in tables)) for n in names}
        if (found := allocate(tables, losses, limits)) is not None:
            choice, multiplier = found
            least = min(lagrangian(c, multiplier) for c in combinations)
            assert lagrangian(choice, multiplier) == pytest.approx(least, abs=1e-9)
            # Everett: no combination that costs no more loses less
            spent = sum(w[c] for w, c in zip(costs, choice, strict=True))
            lost = sum(f[c] for f, c in zip(losses, choice, strict=True))
            for other in combinations:
                if sum(w[c] for w, c in zip(costs, other, strict=True)) <= spent - 1e-9:
                    assert sum(f[c] for f, c in zip(losses, other, strict=True)) >= lost - 1e-9


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


@given(SEEDS)
def test_the_budget_is_never_exceeded_and_none_means_that_it_cannot_be_kept(seed):
    tables, losses = made(seed, names=TWO)
    for share in (0.05, 0.2, 0.4, 0.7, 1.0):
        limits = {n: int(share * sum(int(t.costs[n][0]) for t in tables)) for n in TWO}
        found = allocate(tables, losses, limits)
        least = {n: sum(int(t.costs[n].min()) for t in tables) for n in TWO}
        assert (found is None) == any(least[n] > limits[n] for n in TWO)
        if found is not None:
            assert all(total(tables, found[0], n) <= limits[n] for n in TWO)


@given(SEEDS)
def test_a_larger_budget_never_costs_loss_nor_raises_the_multiplier(seed):
    tables, losses = made(seed)
    lost, multipliers = [], []
    for limit in every_limit(tables):
        if (found := allocate(tables, losses, {"params": limit})) is not None:
            lost.append(sum(float(f[c]) for f, c in zip(losses, found[0], strict=True)))
            multipliers.append(found[1])
    assert lost == sorted(lost, reverse=True)
    assert multipliers == sorted(multipliers, reverse=True)


def test_the_whole_budget_loses_nothing():
    tables, losses = made(3)
    choice, multiplier = allocate(tables, losses, {"params": total(tables, [0] * len(tables))})
    assert multiplier == 0
    assert all(loss[c] == 0 for loss, c in zip(losses, choice, strict=True))


def test_scaling_all_losses_scales_the_multiplier_and_nothing_else():
    tables, losses = made(5)
    low, high = (sum(int(f(t.costs["params"])) for t in tables) for f in (np.min, np.max))
    limits = {"params": (low + high) // 2}
    choice, multiplier = allocate(tables, losses, limits)
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
    assert allocate([t], [t.error], {"macs": 0}) == ([0], 0.0)
