"""Aligned ranks: multiples, as wide as leaves a choice."""

import pytest

from tenfold.ranks.aligned import aligned_ranks, knots, step_of


@pytest.mark.parametrize("multiple", [1, 8, 16])
@pytest.mark.parametrize("most", [0, 1, 5, 11, 24, 63, 64, 96, 97, 500])
def test_aligned_ranks_are_all_multiples_up_to_the_largest(most, multiple):
    ranks, step = aligned_ranks(most, multiple), step_of(most, multiple)
    assert ranks == [r for r in range(1, most + 1) if r % step == 0]
    assert multiple % step == 0
    assert step == 1 or len(ranks) >= 12
    assert step == multiple or most // (2 * step) < 12  # no wider step leaves a dozen


def test_few_ranks_are_all_measured_and_of_many_a_dozen_with_both_ends():
    assert knots([4, 8, 12]) == [4, 8, 12]
    many = list(range(16, 769, 16))
    some = knots(many)
    assert len(some) == 12
    assert (some[0], some[-1]) == (16, 768)
    assert set(some) <= set(many)
