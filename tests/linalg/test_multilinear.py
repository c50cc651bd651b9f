"""Multilinear ranks: which are possible, and what each pair loses."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tenfold.linalg.multilinear import feasible, rank_pair_errors
from tenfold.linalg.tucker import hooi, hosvd, tucker_full


@given(
    ranks=st.lists(st.integers(1, 9), min_size=2, max_size=4),
    sizes=st.lists(st.integers(1, 9), min_size=4, max_size=4),
    rest=st.integers(1, 4),
)
def test_feasible_ranks_are_possible_and_the_largest_such(ranks, sizes, rest):
    sizes = sizes[: len(ranks)]

    def possible(r):
        others = [rest * math.prod(r[:i] + r[i + 1 :]) for i in range(len(r))]
        return all(1 <= a <= min(n, m) for a, n, m in zip(r, sizes, others, strict=True))

    found = feasible(ranks, sizes, rest)
    assert possible(found)
    below = itertools.product(*(range(1, min(r, n) + 1) for r, n in zip(ranks, sizes, strict=True)))
    for other in below:  # the possible ones form a lattice: there is one largest
        if possible(other):
            assert all(a <= b for a, b in zip(other, found, strict=True))


def test_a_generic_tensor_has_the_ranks_that_are_feasible(generator):
    w = torch.randn(9, 3, 2, generator=generator, dtype=torch.float64)
    found = feasible((9, 3), (9, 3), 2)
    assert found == tuple(np.linalg.matrix_rank(np.moveaxis(w.numpy(), i, 0).reshape(w.shape[i], -1)) for i in (0, 1))


@pytest.mark.parametrize("shape", [(5, 4, 3), (12, 2, 2), (2, 9, 3), (4, 4), (6, 3), (3, 1, 2)])
def test_the_errors_of_all_pairs_are_those_of_the_higher_order_svd(shape, generator):
    w = torch.randn(shape, generator=generator, dtype=torch.float64)
    errors = rank_pair_errors(w)
    assert errors.shape == shape[:2]
    rest = math.prod(shape[2:])
    for outer, inner in itertools.product(range(1, shape[0] + 1), range(1, shape[1] + 1)):
        if feasible((outer, inner), shape[:2], rest) != (outer, inner):
            continue
        core, bases = hosvd(w, (outer, inner), sequential=False)
        expected = float((w - tucker_full(core, bases)).square().sum())
        torch.testing.assert_close(float(errors[outer - 1, inner - 1]), expected, rtol=1e-9, atol=1e-12)
        better = float((w - tucker_full(*hooi(w, (outer, inner), sweeps=3))).square().sum())
        assert better <= expected * (1 + 1e-9) + 1e-20


def test_errors_fall_in_both_ranks_and_end_at_zero(generator):
    errors = rank_pair_errors(torch.randn(7, 5, 3, 3, generator=generator))
    assert (errors.diff(dim=0) <= 0).all()
    assert (errors.diff(dim=1) <= 0).all()
    assert float(errors[-1, -1]) == 0


def test_small_errors_are_not_lost_in_large_energies(generator):
    """A tail of 1e-10 beside a head of 1: found by sums of its own, not as a difference."""
    core = torch.randn(6, 6, 4, generator=generator, dtype=torch.float64)
    core[3:] *= 1e-10
    core[:, 3:] *= 1e-10
    u, v = (torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))[0] for _ in range(2))
    w = tucker_full(core, (u, v))
    kept = tucker_full(*hosvd(w, (3, 3), sequential=False))
    found = float(rank_pair_errors(w)[2, 2])
    torch.testing.assert_close(found, float((w - kept).square().sum()), rtol=1e-2, atol=0)
    assert 0 < found < 1e-18
