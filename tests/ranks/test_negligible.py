"""The smallest layers that together stay within a share, against the definition."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tenfold.ranks.negligible import smallest_within


@given(st.integers(0, 12), st.integers(1, 3), st.floats(0, 0.99), st.integers(0, 2**31))
def test_they_are_the_smallest_fit_together_and_one_more_does_not(layers, costs, most, seed):
    rng = np.random.default_rng(seed)
    shares = rng.random((layers, costs)) * rng.choice([0.01, 0.1, 1], (layers, 1))
    found = smallest_within(shares, most)
    size = shares.max(1) if layers else np.zeros(0)
    rest = sorted(set(range(layers)) - set(found), key=lambda i: size[i])
    assert len(set(found)) == len(found)
    assert all(size[i] <= size[j] for i in found for j in rest)
    assert np.all(shares[found].sum(0) <= most + 1e-12)
    if rest and most > 0:
        assert np.any(shares[[*found, rest[0]]].sum(0) > most - 1e-12)


def test_of_many_equal_layers_only_the_share_is_left_not_all_of_them():
    assert len(smallest_within(np.full((200, 1), 1 / 200), 0.0101)) == 2
    assert smallest_within(np.full((200, 1), 1 / 200), 0.004) == []


def test_at_zero_there_is_none_even_where_layers_cost_nothing():
    assert smallest_within(np.zeros((3, 1)), 0.0) == []
    assert smallest_within(np.zeros((3, 2)), 0.01) == [0, 1, 2]
