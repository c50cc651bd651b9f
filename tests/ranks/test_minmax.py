"""The allocation against all combinations, and its laws, on tables of options made up for the purpose."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ranks.tables import brute_force, brute_force_grid, random_tables, table
from tenfold.ranks.minmax import allocate, curve, staircase

SEEDS = st.integers(0, 2**31)
TWO = ("params", "macs")


def total(tables, choice, name):
    return sum(int(t.costs[name][c]) for t, c in zip(tables, choice, strict=True))


def worst(tables, choice):
    return max(float(t.error[c]) for t, c in zip(tables, choice, strict=True))


def budgets(tables, names, rng):
    """Limits from below what can be reached to all of it, together and apart."""
    for share in (0.0, 0.1, 0.25, 0.5, 0.75, 1.0):
        limits = {}
        for name in names:
            low, high = (sum(int(f(t.costs[name])) for t in tables) for f in (np.min, np.max))
            jitter = rng.integers(-3, 4) if share not in (0.0, 1.0) else 0
            limits[name] = int(low + share * (high - low)) + int(jitter)
        yield limits
    yield {name: value - 1 for name, value in limits.items()}


def check_laws(tables, limits, found):
    """What must hold for any answer; the level itself is compared by the caller."""
    assert all(total(tables, found.choice, n) <= limits[n] for n in limits)
    assert worst(tables, found.choice) == found.level
    if found.lower is not None:
        assert found.lower < found.level
        assert brute_force(tables, limits) > found.lower  # the certificate
    else:
        assert found.level == max(t.error.min() for t in tables)


@given(SEEDS, st.integers(1, 3), st.integers(1, 6))
def test_one_limit_gives_the_level_of_brute_force(seed, layers, options):
    rng = np.random.default_rng(seed)
    tables = random_tables(rng, layers, options)
    for limits in budgets(tables, ("params",), rng):
        found, expected = allocate(tables, limits), brute_force(tables, limits)
        assert (found is None) == (expected is None)
        if found is not None:
            assert found.level == expected
            check_laws(tables, limits, found)


@pytest.mark.parametrize("unlike", [False, True])
@given(seed=SEEDS, layers=st.integers(1, 3), options=st.integers(1, 6))
def test_two_limits_give_the_level_of_brute_force(unlike, seed, layers, options):
    rng = np.random.default_rng(seed)
    tables = random_tables(rng, layers, options, TWO, unlike=unlike)
    for limits in budgets(tables, TWO, rng):
        found, expected = allocate(tables, limits), brute_force(tables, limits)
        assert (found is None) == (expected is None)
        if found is not None:
            assert found.level == expected
            check_laws(tables, limits, found)


@given(SEEDS)
def test_three_limits_give_the_level_of_brute_force(seed):
    rng = np.random.default_rng(seed)
    names = ("params", "macs", "third")
    tables = random_tables(rng, 3, 5, names, unlike=True)
    for limits in budgets(tables, names, rng):
        found, expected = allocate(tables, limits), brute_force(tables, limits)
        assert (found.level if found else None) == expected


@given(SEEDS)
def test_limits_met_to_the_last_unit_are_found(seed):
    """The solver's own tolerance is relative: it must neither let a limit be exceeded nor miss one that is met."""
    rng = np.random.default_rng(seed)
    tables = random_tables(rng, 4, 6, TWO, high=60_000, unlike=True)
    choice = [int(rng.integers(len(t.error))) for t in tables]
    limits = {name: total(tables, choice, name) for name in TWO}
    assert allocate(tables, limits).level == brute_force_grid(tables, limits)


@given(SEEDS)
def test_huge_limits_are_kept_and_met_to_a_few_millionths(seed):
    rng = np.random.default_rng(seed)
    tables = random_tables(rng, 4, 6, TWO, high=3_000_000_000, unlike=True)
    choice = [int(rng.integers(len(t.error))) for t in tables]
    limits = {name: total(tables, choice, name) for name in TWO}
    found = allocate(tables, limits)
    tighter = brute_force_grid(tables, {name: int(value * (1 - 4e-6)) for name, value in limits.items()})
    if found is not None:
        assert all(total(tables, found.choice, n) <= limits[n] for n in TWO)
        assert found.level >= brute_force_grid(tables, limits)
    assert tighter is None or found.level <= tighter


def test_a_choice_that_exceeds_a_huge_limit_by_one_hides_no_other():
    """The cheapest choice breaks a limit by less than the solver can tell; the next one keeps it."""
    billion = 1_000_000_000
    tables = [table([0, 0.5, 0.5], params=[10**6, 10, 11], macs=[2 * billion, billion + 1, billion - 10**5])]
    found = allocate(tables, {"params": 11, "macs": billion})
    assert found is not None
    assert found.choice == (2,)


@given(SEEDS, st.booleans())
def test_the_level_never_rises_with_the_budget(seed, unlike):
    rng = np.random.default_rng(seed)
    tables = random_tables(rng, 4, 8, TWO, unlike=unlike)
    dense = {name: sum(int(t.costs[name].max()) for t in tables) for name in TWO}
    last = np.inf
    for share in np.linspace(0, 1, 21):
        found = allocate(tables, {name: int(share * value) for name, value in dense.items()})
        level = np.inf if found is None else found.level
        assert level <= last
        last = level
    assert last == 0


def test_the_whole_budget_gives_level_zero_and_replaces_nothing():
    tables = [table([0, 0.5, 0.2], params=[10, 2, 6]), table([0, 0.1], params=[7, 3])]
    found = allocate(tables, {"params": 17})
    assert (found.choice, found.level, found.lower) == ((0, 0), 0.0, None)


@given(SEEDS, st.booleans())
def test_the_curve_from_one_sort_agrees_with_every_allocation(seed, exact):
    rng = np.random.default_rng(seed)
    tables = random_tables(rng, 3, 7)
    if not exact:  # layers that cannot be had without error, as where dense is no option
        tables = [dataclasses.replace(t, error=t.error + rng.random() / 2) for t in tables]
    level, cost = curve(tables, "params")
    assert (np.diff(level) > 0).all()
    assert (np.diff(cost) < 0).all()
    assert cost[-1] == sum(int(t.costs["params"].min()) for t in tables)
    top = sum(int(t.costs["params"].max()) for t in tables)
    for budget in {int(c) + d for c in cost for d in (-1, 0, 1)} | {top}:
        found = allocate(tables, {"params": budget})
        fits = np.flatnonzero(cost <= budget)
        assert (found is None) == (len(fits) == 0)
        if found is not None:
            assert found.level == level[fits[0]]


@given(SEEDS, st.sampled_from([("params",), TWO]))
def test_after_the_second_pass_the_budget_is_used_or_nothing_can_be_lowered(seed, names):
    rng = np.random.default_rng(seed)
    tables = random_tables(rng, 4, 8, names, high=2000)
    for limits in budgets(tables, names, rng):
        found = allocate(tables, limits)
        if found is None:
            continue
        left = {n: limits[n] - total(tables, found.choice, n) for n in names}
        if any(left[n] <= 0.002 * limits[n] for n in names):
            continue
        for t, c in zip(tables, found.choice, strict=True):
            better = np.flatnonzero(t.error < t.error[c])
            assert all(any(t.costs[n][i] - t.costs[n][c] > left[n] for n in names) for i in better)


@given(SEEDS, st.booleans())
def test_the_allocation_is_deterministic(seed, unlike):
    a, b = (random_tables(np.random.default_rng(seed), 4, 8, TWO, unlike=unlike) for _ in range(2))
    limits = {name: sum(int(t.costs[name].max()) for t in a) // 2 for name in TWO}
    assert allocate(a, limits) == allocate(b, limits)


def test_the_second_pass_lowers_the_largest_error_first():
    # All at the level 0.5 cost 9; 3 are left, enough for one step in either layer: the one at 0.5 takes it.
    tables = [
        table([0, 0.5, 0.4], params=[100, 3, 6]),
        table([0, 0.45, 0.3], params=[100, 3, 6]),
        table([0, 0.5], params=[100, 3]),
    ]
    found = allocate(tables, {"params": 12})
    assert (found.level, found.choice) == (0.5, (2, 1, 1))


def test_the_second_pass_steps_over_a_stair_that_one_limit_forbids():
    tables = [
        table([0, 0.5, 0.4, 0.3], params=[100, 10, 20, 30], macs=[100, 10, 90, 30]),
        table([0, 0.5], params=[100, 10], macs=[100, 10]),
    ]
    found = allocate(tables, {"params": 60, "macs": 60})
    assert (found.level, found.choice) == (0.5, (3, 1))


@pytest.mark.parametrize("order", list(itertools.permutations(range(1, 4))))
def test_ties_in_cost_go_to_the_lower_error_then_to_fewer_slices(order):
    rows = {1: (0.5, 2), 2: (0.4, 4), 3: (0.4, 2)}  # of one cost: (error, slices)
    error, slices = zip(*(rows[i] for i in order), strict=True)
    for names in (("params",), TWO):
        tables = [table([0.0, *error], [1, *slices], **{name: [9, 5, 5, 5] for name in names})]
        found = allocate(tables, dict.fromkeys(names, 5))
        assert found.level == 0.4
        assert order[found.choice[0] - 1] == 3


@given(SEEDS, st.sampled_from([("params",), TWO]))
def test_a_staircase_falls_in_error_and_rises_in_cost_and_holds_the_cheapest_of_each_level(seed, names):
    (t,) = random_tables(np.random.default_rng(seed), 1, 12, names)
    stairs = staircase(t, names)
    assert (np.diff(stairs.error) < 0).all()
    assert (np.diff(stairs.cost[:, 0]) > 0).all()
    for level in np.unique(t.error):
        first = np.flatnonzero(stairs.error <= level)[0]
        assert stairs.cost[first, 0] == t.costs["params"][t.error <= level].min()
        assert t.costs["params"][stairs.index[first]] == stairs.cost[first, 0]


def test_limits_below_the_cheapest_options_give_none():
    tables = [table([0, 0.5], params=[10, 4], macs=[10, 9])]
    assert allocate(tables, {"params": 3}) is None
    assert allocate(tables, {"params": -5}) is None
    assert allocate(tables, {"params": 10, "macs": 8}) is None
    assert allocate(tables, {"params": 4, "macs": 9}).choice == (1,)


def test_unused_layers_need_no_integer_programme(monkeypatch):
    """A layer that the example inputs never reach costs no MACs at any rank: no conflict between the limits."""
    monkeypatch.setattr("tenfold.ranks.minmax.cheapest", None)
    tables = [
        table([0, 0.5, 0.3], params=[10, 4, 6], macs=[0, 0, 0]),
        table([0, 0.5, 0.3], params=[10, 4, 6], macs=[20, 8, 12]),
    ]
    assert allocate(tables, {"params": 12, "macs": 12}).level == 0.3
    assert allocate(tables, {"params": 8, "macs": 7}) is None
