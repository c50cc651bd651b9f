"""Refits against ridge regression on the samples themselves, and their law: the error on the data never grows."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from linalg.unfolded import Layer, convolution, forms, generic
from tenfold.errors import ArgumentError
from tenfold.linalg.fold import Fold
from tenfold.linalg.joint_moments import JointMoments
from tenfold.linalg.refit import refit_both, refit_last, refit_tucker
from tenfold.linalg.svd import low_rank_factors
from tenfold.linalg.tucker import batch_product, hooi, stacked

G, N, M, F = 2, 80, 5, 3


def regression(generator, noise=0.5, n=N):
    x = generic(generator, G, n, M) * torch.logspace(0, -2, M, dtype=torch.float64) @ generic(generator, M, M) + 3
    d = generic(generator, G, F, M)
    y = x @ d.mT + generic(generator, G, 1, F) + noise * generic(generator, G, n, F)
    return x, y, d


def explicit_error(x, y, d):
    gap = y - x @ d.mT
    return float((gap - gap.mean(1, keepdim=True)).square().sum() / x.shape[1])


def test_it_is_ridge_regression_towards_the_factor_before(generator):
    x, y, _ = regression(generator)
    before = generic(generator, G, F, M)
    found = refit_last(JointMoments.of(x, y), before, ridge=0.1)
    for g in range(G):
        a, b = x[g] - x[g].mean(0), y[g] - y[g].mean(0)
        variance = a.square().mean(0)
        noise = (N * (0.1 * variance + 1e-8 * variance.mean())).sqrt().diag()
        rows, wanted = torch.cat([a, noise]), torch.cat([b, noise @ before[g].mT])
        exact = np.linalg.lstsq(rows.numpy(), wanted.numpy(), rcond=None)[0].T
        assert_close(found[g], torch.from_numpy(exact), rtol=1e-8, atol=1e-8)


def test_without_noise_and_with_next_to_no_ridge_it_finds_the_factor(generator):
    x, y, d = regression(generator, noise=0.0)
    found = refit_last(JointMoments.of(x, y), torch.zeros_like(d), ridge=0.0)
    assert explicit_error(x, y, found) < 1e-7 * explicit_error(x, y, 0 * d)


@pytest.mark.parametrize("n", [2, 4, N])
def test_a_factor_that_fits_is_left_as_it_is(generator, n):
    x, y, d = regression(generator, noise=0.0, n=n)
    moments = JointMoments.of(x, y)
    assert_close(refit_last(moments, d), d, rtol=1e-9, atol=1e-9)
    assert_close(moments.shift(d), (y - x @ d.mT)[:, 0], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("n", [1, 3, N])
@pytest.mark.parametrize("ridge", [0.0, 1e-3, 10.0])
def test_the_error_on_the_data_never_grows(generator, n, ridge):
    x, y, _ = regression(generator, n=n)
    moments, before = JointMoments.of(x, y), generic(generator, G, F, M)
    after = refit_last(moments, before, ridge)
    assert explicit_error(x, y, after) <= explicit_error(x, y, before) + 1e-12
    assert torch.isfinite(after).all()


def test_without_a_bias_it_is_a_fit_through_zero(generator):
    x, y, _ = regression(generator)
    found = refit_last(JointMoments.of(x, y).about_zero(), generic(generator, G, F, M), ridge=0.0)
    exact = torch.linalg.lstsq(x, y).solution.mT
    assert_close(found, exact, rtol=1e-3, atol=1e-3)


def test_inputs_that_never_vary_change_nothing(generator):
    _, y, d = regression(generator)
    x = torch.ones(G, N, M, dtype=y.dtype)
    assert_close(refit_last(JointMoments.of(x, y), d), d, rtol=0, atol=0)


def test_how_the_samples_are_split_does_not_matter(generator):
    x, y, d = regression(generator)
    one = JointMoments.of(x, y)
    several = JointMoments.of(x[:, :7], y[:, :7]).merged(JointMoments.of(x[:, 7:], y[:, 7:]))
    assert_close(refit_last(one, d * 0), refit_last(several, d * 0), rtol=1e-9, atol=1e-9)


def test_a_negative_ridge_is_refused(generator):
    x, y, d = regression(generator)
    with pytest.raises(ArgumentError, match="`ridge` must be >= 0; got -1"):
        refit_last(JointMoments.of(x, y), d, -1.0)


def drifted(generator, layer: Layer, strength=0.2):
    """What the layer gets in a compressed network, and what it puts out in the dense one."""
    turn = strength * generic(generator, layer.inputs.shape[-1], layer.inputs.shape[-1])
    inputs = layer.inputs + layer.inputs @ turn / len(turn) + strength * generic(generator, *layer.inputs.shape)
    return Layer(layer.kernel, inputs, layer.groups), layer.outputs + 1.5


def error_to(layer, y, kernel):
    gap = y - Layer(kernel, layer.inputs, layer.groups).outputs
    return float((gap - gap.mean(1, keepdim=True)).square().sum() / gap.shape[1])


@pytest.mark.parametrize("groups", [1, 2])
def test_both_factors_are_never_worse_than_before_nor_than_the_last_alone(generator, groups):
    layer, y = drifted(generator, convolution(generator, channels=8, groups=groups))
    moments = JointMoments.of(layer.inputs, y)
    gains = []
    for fold in forms(layer):
        for rank in (1, 2):
            left, right = low_rank_factors(fold.matrices(layer.kernel), rank)
            new = refit_both(fold, moments, layer.kernel, left, right)
            before, after = (error_to(layer, y, fold.kernel(a @ b)) for a, b in ((left, right), new))
            held = refit_both(fold, moments, layer.kernel, left, right, rounds=0)
            assert after <= error_to(layer, y, fold.kernel(held[0] @ held[1])) * (1 + 1e-9)
            assert after <= before
            gains.append(after / before)
    assert max(gains) < 0.9


def test_a_ridge_that_draws_too_hard_to_the_dense_kernel_is_not_followed(generator):
    layer, y = drifted(generator, convolution(generator), strength=1.0)
    moments = JointMoments.of(layer.inputs, y)
    for fold in forms(layer, (1,)):
        left, right = refit_both(
            fold, moments, layer.kernel, *low_rank_factors(fold.matrices(layer.kernel), 1), ridge=0.0, rounds=10
        )
        new = refit_both(fold, moments, layer.kernel, left, right, ridge=30.0)
        before, after = (error_to(layer, y, fold.kernel(a @ b)) for a, b in ((left, right), new))
        assert after <= before * (1 + 1e-9)


def test_with_next_to_no_ridge_both_factors_reach_the_closed_form_of_reduced_rank_regression(generator):
    layer, y = drifted(generator, convolution(generator))
    x, target = (t[0] - t[0].mean(0) for t in (layer.inputs, y))
    best = torch.linalg.lstsq(x, target).solution  # (n, f)
    _, _, vh = torch.linalg.svd(x @ best, full_matrices=False)
    fold = forms(layer, (1,))[0]
    for rank in (1, 3):
        exact = (best @ vh[:rank].mT @ vh[:rank]).mT.reshape(layer.kernel.shape)
        left, right = low_rank_factors(fold.matrices(layer.kernel), rank)
        moments = JointMoments.of(layer.inputs, y)
        left, right = refit_both(fold, moments, layer.kernel, left, right, ridge=0.0)
        assert error_to(layer, y, fold.kernel(left @ right)) == pytest.approx(error_to(layer, y, exact), rel=1e-6)


@pytest.mark.parametrize("strength", [0.0, 0.2])
def test_at_full_rank_both_factors_stay_as_the_dense_kernel_where_the_inputs_are_the_dense_ones(generator, strength):
    layer = convolution(generator)
    seen, y = (layer, layer.outputs + 1.5) if strength == 0 else drifted(generator, layer, strength)
    for fold in forms(layer):
        left, right = low_rank_factors(fold.matrices(layer.kernel), fold.full_rank)
        left, right = refit_both(fold, JointMoments.of(seen.inputs, y), layer.kernel, left, right)
        kernel = fold.kernel(left @ right)
        if strength == 0:
            assert_close(kernel, layer.kernel, rtol=1e-6, atol=1e-6)
        else:
            assert error_to(seen, y, kernel) < error_to(seen, y, layer.kernel)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("ranks", [(1, 1), (2, 3), (2, 2)])
def test_tucker_factors_are_never_worse_than_before(generator, groups, ranks):
    layer, y = drifted(generator, convolution(generator, channels=8, groups=groups))
    fold = Fold(tuple(layer.kernel.shape), groups, 1, "input")
    each = [hooi(part, ranks) for part in layer.kernel.chunk(groups)]
    before = tuple(torch.cat(parts) for parts in zip(*((core, *bases) for core, bases in each), strict=True))
    moments = JointMoments.of(layer.inputs, y)
    after = refit_tucker(fold, moments, layer.kernel, *before)
    assert [a.shape for a in after] == [b.shape for b in before]

    def error(core, outer, inner):
        full = stacked(core, groups)
        for mode, basis in enumerate((outer, inner)):
            full = batch_product(full, stacked(basis, groups), mode)
        return error_to(layer, y, full.flatten(0, 1))

    assert error(*after) < error(*before)
    again = refit_tucker(fold, moments, layer.kernel, *after, ridge=30.0)
    assert error(*again) <= error(*after) * (1 + 1e-9)
