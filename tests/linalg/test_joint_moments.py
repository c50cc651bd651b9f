"""Moments of batches against numpy's on all samples at once."""

import numpy as np
import torch
from torch.testing import assert_close

from linalg.unfolded import generic
from tenfold.linalg.joint_moments import JointMoments, pooled

G, N, M, F = 2, 50, 4, 3
TENSORS = ("mean_x", "mean_y", "xx", "yx", "yy")


def samples(generator, n=N):
    x = generic(generator, G, n, M) + 100 * generic(generator, M)
    return x, x @ generic(generator, M, F) + generic(generator, G, n, F)


def test_they_are_the_sums_of_deviations_from_the_mean(generator):
    x, y = samples(generator)
    found = JointMoments.of(x, y)
    for g in range(G):
        both = np.cov(torch.cat([x[g], y[g]], 1).numpy().T, bias=True) * N
        assert_close(found.xx[g], torch.from_numpy(both[:M, :M]), rtol=1e-9, atol=1e-9)
        assert_close(found.yx[g], torch.from_numpy(both[M:, :M]), rtol=1e-9, atol=1e-9)
        assert_close(found.yy[g], torch.from_numpy(both.diagonal()[M:].copy()), rtol=1e-9, atol=1e-9)


def test_how_samples_are_split_does_not_matter(generator):
    x, y = samples(generator)
    whole = JointMoments.of(x, y)
    for sizes in ([25, 25], [1, 1, 48], [10, 39, 1], [1] * N):
        parts = [JointMoments.of(a, b) for a, b in zip(x.split(sizes, 1), y.split(sizes, 1), strict=True)]
        merged = parts[0]
        for part in parts[1:]:
            merged = merged.merged(part)
        assert merged.count == N
        for name in TENSORS:
            assert_close(getattr(merged, name), getattr(whole, name), rtol=1e-9, atol=1e-9)


def test_about_zero_they_are_the_sums_of_products(generator):
    x, y = samples(generator)
    found = JointMoments.of(x, y).about_zero()
    assert_close(found.xx, x.mT @ x, rtol=1e-9, atol=1e-9)
    assert_close(found.yx, y.mT @ x, rtol=1e-9, atol=1e-9)
    assert_close(found.yy, y.square().sum(1), rtol=1e-9, atol=1e-9)
    assert not found.mean_x.any()
    assert not found.shift(generic(generator, G, F, M)).any()


def test_through_a_matrix_they_are_those_of_the_product(generator):
    x, y = samples(generator)
    a = generic(generator, G, 2, M)
    found, wanted = JointMoments.of(x, y).through(a), JointMoments.of(x @ a.mT, y)
    for name in TENSORS:
        assert_close(getattr(found, name), getattr(wanted, name), rtol=1e-9, atol=1e-9)


def test_the_error_is_what_the_best_bias_leaves(generator):
    x, y = samples(generator)
    moments, d = JointMoments.of(x, y), generic(generator, G, F, M)
    left = y - x @ d.mT - moments.shift(d)[:, None]
    assert_close(left.mean(1), torch.zeros(G, F, dtype=x.dtype), rtol=0, atol=1e-9)
    assert_close(moments.error(d), float(left.square().sum() / N), rtol=1e-9, atol=1e-9)


def test_pooled_deviations_are_from_a_mean_of_each_ones_own(generator):
    each = [samples(generator), samples(generator, 20)]
    found = pooled(JointMoments.of(*one) for one in each)
    centred = [tuple(t - t.mean(1, keepdim=True) for t in one) for one in each]
    x, y = (torch.cat(parts, 1) for parts in zip(*centred, strict=True))
    assert found.count == N + 20
    assert_close(found.xx, x.mT @ x, rtol=1e-9, atol=1e-9)
    assert_close(found.yx, y.mT @ x, rtol=1e-9, atol=1e-9)
    assert_close(found.yy, y.square().sum(1), rtol=1e-9, atol=1e-9)


def test_memory_is_that_of_the_tensors(generator):
    assert JointMoments.of(*samples(generator)).bytes == 8 * G * (M + F + M * M + F * M + F)
