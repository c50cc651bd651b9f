"""The separable fit against the singular value decomposition of the rearranged covariance."""

import pytest
import torch
from torch.testing import assert_close

from linalg.unfolded import generic
from tenfold.errors import ArgumentError
from tenfold.linalg.separable import separable_fit

F, T = 5, 3


def covariance(generator, rank=20, batch=()):
    a = generic(generator, *batch, F * T, rank)
    return (a @ a.mT).reshape(*batch, F, T, F, T)


def kron(f_part, t_part):
    return torch.einsum("...ab,...tu->...atbu", f_part, t_part)


def test_many_steps_reach_the_nearest_kronecker_product(generator):
    s = covariance(generator)
    rearranged = s.permute(0, 2, 1, 3).reshape(F * F, T * T)
    u, sigma, vh = torch.linalg.svd(rearranged)
    nearest = (sigma[0] * u[:, :1] @ vh[:1]).reshape(F, F, T, T).permute(0, 2, 1, 3)
    assert_close(kron(*separable_fit(s, steps=100)), nearest, rtol=1e-9, atol=1e-9)


def test_every_step_brings_it_nearer(generator):
    s = covariance(generator)
    off = [float((s - kron(*separable_fit(s, steps=n))).norm()) for n in (1, 2, 3, 10)]
    assert off == sorted(off, reverse=True)
    assert off[0] > off[-1]


def test_what_is_separable_is_found_exactly(generator):
    a, b = generic(generator, 2, F, F), generic(generator, 2, T, T)
    s = kron(a @ a.mT, b @ b.mT)
    f_part, t_part = separable_fit(s)
    assert_close(kron(f_part, t_part), s, rtol=1e-9, atol=1e-9)
    assert_close(t_part.diagonal(dim1=-2, dim2=-1).sum(-1), torch.full((2,), float(T), dtype=s.dtype))


def test_one_position_is_left_as_it_is(generator):
    s = covariance(generator)[:, :1, :, :1]
    f_part, t_part = separable_fit(s)
    assert torch.equal(f_part, s[:, 0, :, 0])
    assert torch.equal(t_part, torch.ones(1, 1, dtype=s.dtype))


@pytest.mark.parametrize("rank", [1, 2, 20])
def test_both_parts_are_positive_semi_definite(generator, rank):
    for part in separable_fit(covariance(generator, rank)):
        values = torch.linalg.eigvalsh(part)
        assert values.min() > -1e-12 * values.max()


def test_each_of_a_batch_is_fitted_on_its_own(generator):
    s = covariance(generator, batch=(2, 3))
    together = separable_fit(s)
    for i, j in ((0, 0), (1, 2)):
        for part, alone in zip(together, separable_fit(s[i, j]), strict=True):
            assert_close(part[i, j], alone, rtol=1e-12, atol=1e-12)


def test_no_covariance_at_all_is_finite():
    for part in separable_fit(torch.zeros(F, T, F, T, dtype=torch.float64)):
        assert torch.isfinite(part).all()


def test_steps_below_one_are_refused(generator):
    with pytest.raises(ArgumentError, match=r"`steps` must be >= 1; got 0"):
        separable_fit(covariance(generator), steps=0)
