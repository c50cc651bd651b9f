"""Uniform ranks on made-up tables; `tests/methods/test_svd.py` has the real layers."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ranks.tables import table
from tenfold.ranks.uniform import allocate


def layer(full: int, saving: int, per_rank: int):
    """A layer of full rank ``full`` whose first ``saving`` ranks save."""
    ranks = range(1, saving + 1)
    return table([0.0, *(1 / (j + 1) for j in ranks)], params=[(saving + 1) * per_rank, *(j * per_rank for j in ranks)])


def at(layers, fulls, a):
    ranks = [max(1, int(np.floor(a * full + 0.5))) for full in fulls]
    return [j if j < len(t.rank) else 0 for t, j in zip(layers, ranks, strict=True)]


def spent(layers, choice):
    return sum(int(t.costs["params"][c]) for t, c in zip(layers, choice, strict=True))


@given(st.lists(st.tuples(st.integers(1, 12), st.floats(0, 1), st.integers(1, 9)), min_size=1, max_size=4))
def test_every_budget_gives_the_choice_of_the_largest_fraction_that_fits(rows):
    fulls = [full for full, _, _ in rows]
    layers = [layer(full, int(share * (full - 1)), per_rank) for full, share, per_rank in rows]
    steps = sorted({(j - 0.5) / full for full in fulls for j in range(1, full + 1)} | {0.0, 1.0})
    choices = [at(layers, fulls, (a + b) / 2) for a, b in itertools.pairwise(steps)]
    costs = [spent(layers, choice) for choice in choices]
    assert costs == sorted(costs)
    for limit in range(costs[0] - 1, costs[-1] + 2):
        found = allocate(layers, fulls, fulls, {"params": limit})
        fitting = [choice for choice, cost in zip(choices, costs, strict=True) if cost <= limit]
        assert (found is None) == (not fitting)
        if found is not None:
            assert found[0] == fitting[-1]
            assert spent(layers, found[0]) <= limit
            assert 0 < found[1] <= 1


def test_all_limits_hold_at_once():
    t = table([0.0, 0.5, 0.4, 0.3], params=[40, 10, 20, 30], macs=[400, 90, 180, 270])
    assert allocate([t], [4], [4], {"params": 30, "macs": 180})[0] == [2]
    assert allocate([t], [4], [4], {"params": 19, "macs": 400})[0] == [1]
    assert allocate([t], [4], [4], {"params": 40, "macs": 89}) is None


def test_given_ranks_are_scaled_by_one_factor_up_to_the_full_ones():
    layers = [layer(10, 10, 3), layer(6, 6, 5), layer(4, 4, 2)]
    ranks, fulls = [4, 2, 4], [10, 6, 4]
    for limit in range(10, 76):
        choice, factor = allocate(layers, ranks, fulls, {"params": limit})
        scaled = [min(n, max(1, int(np.floor(factor * r + 0.5 + 1e-9)))) for r, n in zip(ranks, fulls, strict=True)]
        assert choice == scaled
        assert spent(layers, choice) <= limit
        wider = [min(n, max(1, int(np.floor((factor + 0.26) * r + 0.5)))) for r, n in zip(ranks, fulls, strict=True)]
        assert wider == scaled or spent(layers, wider) > limit


@given(
    st.lists(
        st.tuples(st.integers(1, 12), st.floats(0, 1), st.integers(1, 9), st.integers(1, 12)), min_size=1, max_size=4
    ),
    st.integers(1, 14),
    st.sampled_from([0.0, 0.5]),
)
def test_no_rank_is_below_the_least_and_the_largest_factor_that_fits_is_taken(rows, least, half):
    """One step of the factor more is too much."""
    fulls, ranks = [full for full, *_ in rows], [min(r, full) for full, _, _, r in rows]
    layers = [layer(full, int(share * (full - 1)), per_rank) for full, share, per_rank, _ in rows]

    def scaled(a):
        found = [min(n, max(least, int(np.floor(a * r + half + 1e-9)))) for r, n in zip(ranks, fulls, strict=True)]
        return [j if j < len(t.rank) else 0 for t, j in zip(layers, found, strict=True)]

    bottom = [n if n < least else least for n in fulls]
    bottom = [j if j < len(t.rank) else 0 for t, j in zip(layers, bottom, strict=True)]
    steps = sorted({(j - half) / r for r, n in zip(ranks, fulls, strict=True) for j in range(1, n + 1)})
    for limit in range(spent(layers, bottom) - 1, spent(layers, scaled(99)) + 2):
        found = allocate(layers, ranks, fulls, {"params": limit}, half=half, least=least)
        assert (found is None) == (spent(layers, bottom) > limit)
        if found is None:
            continue
        choice, factor = found
        assert choice == scaled(factor)
        assert spent(layers, choice) <= limit
        assert all(j == 0 or j >= min(least, n) for j, n in zip(choice, fulls, strict=True))
        more = next((a for a in steps if scaled(a) != choice and a > factor), None)
        assert more is None or spent(layers, scaled(more)) > limit
