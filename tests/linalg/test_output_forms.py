"""Output-aware forms against the unfolded layer itself: what the built factors put out, and dense least squares."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from linalg.unfolded import Layer, convolution, forms, generic, linear
from tenfold.errors import ArgumentError, TenfoldError
from tenfold.linalg.fold import Fold
from tenfold.linalg.output_aware import output_basis, output_factors
from tenfold.linalg.output_decoders import (
    balanced,
    decoder,
    factors,
    lost,
    outer_basis,
    tucker_factors,
    tucker_lost,
)
from tenfold.linalg.output_forms import OutputForm, encoder_start, weight_start
from tenfold.linalg.svd import low_rank_factors
from tenfold.linalg.tucker import batch_product, stacked

CASES = {
    "plain": {},
    "strided": {"stride": 2, "padding": 1},
    "dilated": {"dilation": 2, "padding": (2, 1)},
    "grouped": {"groups": 2, "channels": 8, "padding": 1},
    "wide": {"out": 20, "channels": 4, "k": (2, 2)},
    "narrow": {"out": 2, "channels": 6},
    "deficient": {"channels": 4, "dead": True},
    "linear": {"linear": True},
}


def layer_of(name, generator) -> Layer:
    options = dict(CASES[name])
    if options.pop("linear", False):
        return linear(generator)
    dead = options.pop("dead", False)
    layer = convolution(generator, **options)
    if dead:  # a channel that is always off, and one that repeats another
        x = layer.inputs.unflatten(-1, (4, -1)).clone()
        x[..., 1, :] = 0.7
        x[..., 3, :] = 2 * x[..., 0, :]
        layer = Layer(layer.kernel, x.flatten(-2))
    return layer


def built(form, v, rank, h=None):
    """The kernel of the layer with the first rows of ``v``, through the factors that a layer takes."""
    v = v[:, :, :rank]
    left, right = factors(form, v, decoder(form, v) if h is None else h)
    fold = form.fold
    return fold.product(fold.encoder(right), fold.decoder(left))


def cases(generator, name, damping=0.0):
    layer = layer_of(name, generator)
    for fold in forms(layer):
        yield layer, OutputForm.of_inputs(fold, layer.kernel, layer.covariance, damping)


@pytest.mark.parametrize("name", CASES)
def test_the_error_predicted_for_every_rank_is_that_of_the_built_factors(generator, name):
    for layer, form in cases(generator, name):
        v = encoder_start(form)
        predicted = lost(form, v)
        total = layer.error(torch.zeros_like(layer.kernel))
        assert float(predicted[0]) == pytest.approx(total, rel=1e-9)
        assert v.shape[2] == form.fold.full_rank
        for rank in range(1, v.shape[2] + 1):
            found = layer.error(built(form, v, rank))
            assert found == pytest.approx(float(predicted[rank]), rel=1e-6, abs=1e-9 * total), (form.fold, rank)


@pytest.mark.parametrize("name", CASES)
def test_errors_fall_with_rank_and_full_rank_is_exact(generator, name):
    for layer, form in cases(generator, name, damping=1e-6):
        v = encoder_start(form)
        errors = lost(form, v)
        assert (errors.diff() <= 0).all()
        assert float(errors[-1]) == 0
        assert_close(built(form, v, v.shape[2]), layer.kernel, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_the_decoder_is_the_least_squares_solution_for_its_encoder(generator, name):
    for layer, form in cases(generator, name):
        fold = form.fold
        v = encoder_start(form)[:, :, :2]
        # Every rank, slice and T is one column of the encoder's outputs, computed by the fold from its own kernel.
        unit = torch.eye(form.rank_rows // fold.slices, dtype=v.dtype)
        for g in range(fold.groups):
            x = layer.inputs[g] - layer.inputs[g].mean(0)
            single = dataclasses.replace(fold, shape=(len(unit), *fold.shape[1:]), groups=1)
            columns = []
            for s in range(fold.slices):
                for row in v[g, s]:
                    matrices = torch.zeros(fold.slices, single.rows, single.columns, dtype=v.dtype)
                    # one output channel for each T: its row of the fold's matrices is the encoder's row
                    for t in range(len(unit)):
                        matrices[s, t * len(unit) + t] = row
                    columns.append(x @ single.kernel(matrices).flatten(1).T)
            z = torch.cat(columns, 1)
            y = x @ form_kernel(layer, fold)[g].T
            best = np.linalg.lstsq(z.numpy(), y.numpy(), rcond=1e-9)[0]
            least = float((y - z @ torch.from_numpy(best)).square().sum() / len(y))
            found = float(form.error(v, decoder(form, v))[g])
            assert found == pytest.approx(least, rel=1e-6, abs=1e-9 * float(form.total[g]))


def form_kernel(layer, fold):
    return layer.kernel.reshape(fold.groups, -1, layer.inputs.shape[-1])


@pytest.mark.parametrize("slices", [1, 2])
def test_with_white_inputs_the_channel_form_is_the_truncated_svd(generator, slices):
    kernel = generic(generator, 6, 4, 3, 2)
    fold = Fold(tuple(kernel.shape), 1, slices, "channel")
    form = OutputForm.of_inputs(fold, kernel, torch.eye(24, dtype=torch.float64)[None], 0.0)
    v = encoder_start(form)
    for rank in range(1, fold.full_rank + 1):
        left, right = low_rank_factors(fold.matrices(kernel), rank)
        h = torch.einsum("gsrf,gosf->gors", v[:, :, :rank], form.w[..., 0])[..., None]  # each slice on its own
        assert_close(built(form, v, rank, h), fold.kernel(left @ right), rtol=1e-8, atol=1e-8)
        if slices == 1:
            assert_close(built(form, v, rank), fold.kernel(left @ right), rtol=1e-8, atol=1e-8)


def test_the_channel_form_without_slices_is_the_principal_subspace_of_the_outputs(generator):
    layer = convolution(generator)
    fold = forms(layer, (1,))[0]
    form = OutputForm.of_inputs(fold, layer.kernel, layer.covariance, 0.0)
    matrices = fold.matrices(layer.kernel)
    a, b, energy = output_basis(matrices @ layer.covariance @ matrices.mT)
    errors = lost(form, encoder_start(form))
    for rank in range(1, fold.full_rank + 1):
        left, right = output_factors(matrices, a, b, rank)
        assert_close(built(form, encoder_start(form), rank), fold.kernel(left @ right), rtol=1e-7, atol=1e-7)
        assert float(errors[rank]) == pytest.approx(float(energy[:, rank:].sum()), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", ["channel", "spatial", "spatial-t", "input"])
def test_no_encoder_is_better_where_the_covariance_is_separable(generator, name):
    fold = Fold((6, 4, 3, 2), 1, 1, name)
    kernel = generic(generator, *fold.shape)
    template = OutputForm.of_inputs(fold, kernel, torch.eye(24, dtype=torch.float64)[None])
    f, t = template.w.shape[-2:]
    a, b = generic(generator, f, f), generic(generator, t, t)
    form = dataclasses.replace(
        template, covariance=torch.einsum("ab,tu->atbu", a @ a.mT, b @ b.mT)[None, None, :, :, None]
    )
    v = encoder_start(form)[:, :, :2]
    least = float(form.error(v, decoder(form, v)))
    for scale in (1e-3, 1e-1, 10.0):
        for _ in range(30):
            rival = v + scale * generic(generator, *v.shape)
            assert float(form.error(rival, decoder(form, rival))) >= least * (1 - 1e-12)


@pytest.mark.parametrize("slices", [1, 2, 4])
@pytest.mark.parametrize("groups", [1, 2])
def test_the_moments_of_what_the_slices_put_out_tell_as_much_as_those_of_the_inputs(generator, slices, groups):
    layer = convolution(generator, out=6, channels=8, groups=groups)
    fold = Fold(tuple(layer.kernel.shape), groups, slices, "channel")
    matrices = fold.matrices(layer.kernel).unflatten(0, (groups, slices))
    x = layer.inputs.unflatten(-1, (slices, -1)).movedim(2, 1)  # (g, s, samples, n / s)
    y = (x @ matrices.mT).movedim(1, 2).flatten(2)  # (g, samples, s f)
    y = y - y.mean(1, keepdim=True)
    small = OutputForm.of_outputs(fold, layer.kernel, y.mT @ y / y.shape[1], 1e-3)
    large = OutputForm.of_inputs(fold, layer.kernel, layer.covariance, 1e-3)
    a, b = encoder_start(small), encoder_start(large)
    assert_close(lost(small, a), lost(large, b), rtol=1e-8, atol=1e-10)
    for rank in (1, fold.full_rank - 1, fold.full_rank):
        assert_close(built(small, a, rank), built(large, b, rank), rtol=1e-6, atol=1e-6)
        by_weight = (built(form, weight_start(form), rank) for form in (small, large))
        assert_close(*by_weight, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["plain", "grouped", "narrow", "wide", "deficient"])
def test_tucker_errors_of_every_pair_of_ranks_are_those_of_the_built_factors(generator, name):
    layer = layer_of(name, generator)
    fold = Fold(tuple(layer.kernel.shape), layer.groups, 1, "input")
    form = OutputForm.of_inputs(fold, layer.kernel, layer.covariance, 0.0)
    v = encoder_start(form)
    inner_ranks = range(1, fold.full_rank + 1)
    table, total = tucker_lost(form, v, inner_ranks), float(form.total.sum())
    assert_close(table[:, 0], torch.full_like(table[:, 0], total))
    assert (table.diff(dim=0) <= 1e-9 * total).all()
    assert (table.diff(dim=1) <= 0).all()
    for r in inner_ranks:
        rows = v[:, :, :r]
        h = decoder(form, rows)
        for q in range(1, form.w.shape[1] + 1):
            core, outer, inner = tucker_factors(form, rows, h, outer_basis(form, rows, q))
            kernel = tucker_kernel(core, outer, inner, fold.groups)
            found = layer.error(kernel)
            assert found == pytest.approx(float(table[r - 1, q]), rel=1e-6, abs=1e-9 * total)
            for basis in (outer, inner):
                gram = stacked(basis, fold.groups).mT @ stacked(basis, fold.groups)
                assert_close(gram, torch.eye(basis.shape[1], dtype=basis.dtype).expand_as(gram), rtol=1e-9, atol=1e-9)
    assert float(table[-1, -1]) == 0


def tucker_kernel(core, outer, inner, groups):
    full = stacked(core, groups)
    for mode, basis in enumerate((outer, inner)):
        full = batch_product(full, stacked(basis, groups), mode)
    return full.flatten(0, 1)


def test_the_outer_basis_is_best_among_decoders_of_its_rank(generator):
    layer = convolution(generator)
    form = OutputForm.of_inputs(Fold((6, 4, 3, 2), 1, 1, "input"), layer.kernel, layer.covariance, 0.0)
    v = encoder_start(form)[:, :, :3]
    h = decoder(form, v)

    def error(u):
        return float(form.error(v, torch.einsum("fq,pq,gprst->gfrst", u, u, h)))

    least = error(outer_basis(form, v, 2)[0])
    for scale in (1e-3, 1e-1, 10.0):
        for _ in range(30):
            rival = torch.linalg.qr(outer_basis(form, v, 2)[0] + scale * generic(generator, 6, 2))[0]
            assert error(rival) >= least * (1 - 1e-12)


def test_two_convolutions_in_a_row_put_out_what_was_predicted(generator):
    """The whole way: images, torch's convolutions, and the prediction from the unfolded inputs."""
    x = generic(generator, 20, 4, 9, 8).cumsum(2)
    kernel = generic(generator, 6, 4, 3, 2)
    options = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}
    unfolded = F.unfold(x, (3, 2), **options).movedim(1, 2).reshape(1, -1, 24)
    layer = Layer(kernel, unfolded)
    y = F.conv2d(x, kernel, **options)
    for name, first, second in (("spatial", 0, 1), ("spatial-t", 1, 0)):
        fold = Fold(tuple(kernel.shape), 1, 1, name)
        form = OutputForm.of_inputs(fold, kernel, layer.covariance, 0.0)
        v = encoder_start(form)
        left, right = factors(form, v[:, :, :3], decoder(form, v[:, :, :3]))

        def on(axis, other, default):
            return {k: tuple(p if a == axis else default[k] for a, p in enumerate(o)) for k, o in other.items()}

        default = {"stride": 1, "padding": 0, "dilation": 1}
        z = F.conv2d(x, fold.encoder(right), **on(first, options, default))
        gap = y - F.conv2d(z, fold.decoder(left), **on(second, options, default))
        gap = gap - gap.mean((0, 2, 3), keepdim=True)
        found = float(gap.square().sum()) / (gap.numel() / gap.shape[1])
        assert found == pytest.approx(float(lost(form, v)[3]), rel=1e-8)


def test_damping_is_a_share_of_white_inputs(generator):
    layer = convolution(generator)
    w = layer.kernel.flatten(1)
    share = 0.3 * torch.trace(w @ layer.covariance[0] @ w.mT) / w.square().sum()
    white = layer.covariance + share * torch.eye(24, dtype=torch.float64)
    for fold in forms(layer):
        damped = OutputForm.of_inputs(fold, layer.kernel, layer.covariance, 0.3)
        explicit = OutputForm.of_inputs(fold, layer.kernel, white, 0.0)
        assert_close(damped.covariance, explicit.covariance, rtol=1e-10, atol=1e-10)


def test_a_layer_that_sees_nothing_is_cut_by_its_weight(generator):
    layer = convolution(generator)
    for fold in forms(layer, (1,)):
        form = OutputForm.of_inputs(fold, layer.kernel, torch.zeros_like(layer.covariance))
        left, right = low_rank_factors(fold.matrices(layer.kernel), 2)
        assert_close(built(form, encoder_start(form), 2), fold.kernel(left @ right), rtol=1e-6, atol=1e-6)
        without = OutputForm.of_inputs(fold, layer.kernel, torch.zeros_like(layer.covariance), 0.0)
        assert torch.isfinite(built(without, encoder_start(without), 2)).all()


def test_how_the_samples_are_split_does_not_matter(generator):
    layer = convolution(generator)
    one = layer.moments
    several = None
    for part in layer.inputs.split([1, 100, 17, layer.inputs.shape[1] - 118], dim=1):
        each = Layer(layer.kernel, part).moments
        several = each if several is None else several.merged(each)
    for fold in forms(layer):
        results = []
        for moments in (one, several):
            form = OutputForm.of_inputs(fold, layer.kernel, moments.xx / moments.count)
            results.append(built(form, encoder_start(form), 2))
        assert_close(*results, rtol=1e-9, atol=1e-9)


def test_balanced_factors_have_the_same_product_and_equal_shares(generator):
    left, right = generic(generator, 2, 7, 3), 1e4 * generic(generator, 2, 3, 5)
    a, b = balanced(left, right)
    assert_close(a @ b, left @ right, rtol=1e-9, atol=1e-9)
    assert_close(a.mT @ a, b @ b.mT, rtol=1e-9, atol=1e-9)
    for x in balanced(left * 0, right):
        assert torch.isfinite(x).all()


def test_what_does_not_fit_is_refused(generator):
    layer = convolution(generator)
    fold = Fold(tuple(layer.kernel.shape), 1, 1, "spatial")
    with pytest.raises(ArgumentError, match=r"`covariance` must be of shape \(1, 24, 24\)"):
        OutputForm.of_inputs(fold, layer.kernel, layer.covariance[:, :3, :3])
    with pytest.raises(ArgumentError, match="`fold` must be the channel fold"):
        OutputForm.of_outputs(fold, layer.kernel, layer.covariance)
    with pytest.raises(ArgumentError, match="`fold` must be one whose encoder serves all outputs; got 'decoupled'"):
        OutputForm.of_inputs(Fold(fold.shape, 1, 1, "decoupled"), layer.kernel, layer.covariance)
    with pytest.raises(ArgumentError, match="`damping` must be >= 0"):
        OutputForm.of_inputs(fold, layer.kernel, layer.covariance, -1.0)
    with pytest.raises(TenfoldError, match="`covariance` has NaN"):
        OutputForm.of_inputs(fold, layer.kernel, layer.covariance * torch.nan)
    form = OutputForm.of_inputs(Fold(fold.shape, 1, 1, "input"), layer.kernel, layer.covariance)
    with pytest.raises(ArgumentError, match=r"`ranks` must be in 1..4"):
        tucker_lost(form, encoder_start(form), [5])
