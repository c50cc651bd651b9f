"""Alternation against dense least squares, and against the truncated SVD."""

import pytest
import torch
from torch.testing import assert_close

from linalg.unfolded import convolution, forms, generic, linear
from tenfold.errors import ArgumentError
from tenfold.linalg.alternation import alternate, best_encoder, encoder_steps
from tenfold.linalg.fold import Fold
from tenfold.linalg.output_decoders import decoder, factors, outer_basis, tucker_lost
from tenfold.linalg.output_forms import OutputForm, encoder_start
from tenfold.linalg.svd import low_rank_factors


def problems(generator, layer=None, damping=1e-6):
    layer = layer or convolution(generator, out=6, channels=4, k=(3, 2))
    for fold in forms(layer):
        yield layer, OutputForm.of_inputs(fold, layer.kernel, layer.covariance, damping)


def test_as_many_steps_as_unknowns_reach_the_exact_least_squares_encoder(generator):
    layer = convolution(generator, out=4, channels=4, k=(2, 2))
    for _, form in problems(generator, layer):
        h = decoder(form, encoder_start(form)[:, :, :2])
        v = torch.zeros_like(encoder_start(form)[:, :, :2])
        # Each entry of V moves the outputs along one vector: the columns of a dense least-squares problem.
        root = torch.linalg.cholesky(form.matrix[0])
        columns = []
        for i in range(v.numel()):
            unit = torch.zeros_like(v).flatten()
            unit[i] = 1
            columns.append((form.product(unit.reshape(v.shape), h)[0].flatten(1) @ root).flatten())
        wanted = (form.w[0].flatten(1) @ root).flatten()
        exact = torch.linalg.lstsq(torch.stack(columns, 1), wanted[:, None], driver="gelsd").solution[:, 0]
        least = form.error(exact.reshape(v.shape), h)
        found = encoder_steps(form, v, h, steps=v.numel())
        assert_close(form.error(found, h), least, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("groups", [1, 2])
def test_no_step_makes_the_error_grow(generator, groups):
    layer = convolution(generator, channels=8, groups=groups)
    for _, form in problems(generator, layer):
        v = encoder_start(form)[:, :, :1]
        h = decoder(form, v) + 0.3 * generic(generator, *decoder(form, v).shape)
        each = [v, *(encoder_steps(form, v, h, steps=n) for n in range(1, 7))]
        errors = torch.stack([form.error(x, h) for x in each])
        assert (errors.diff(dim=0) <= 1e-9 * errors[0]).all()
        assert (errors[-1] < errors[0]).all()


def test_one_step_is_exact_where_the_covariance_is_separable(generator):
    kernel = generic(generator, 6, 4, 3, 2)
    form = OutputForm.of_inputs(Fold((6, 4, 3, 2), 1, 1, "spatial"), kernel, torch.eye(24, dtype=torch.float64)[None])
    v = generic(generator, 1, 1, 2, 12)
    h = generic(generator, 1, 6, 2, 1, 2)
    assert_close(encoder_steps(form, v, h, steps=1), encoder_steps(form, v, h, steps=30), rtol=1e-8, atol=1e-8)


def test_no_round_makes_the_error_grow_and_some_make_it_less(generator):
    for _, form in problems(generator):
        start = encoder_start(form)[:, :, :1]
        errors = []
        for rounds in (0, 1, 2, 10):
            v, h = alternate(form, start, rounds=rounds)
            errors.append(float(form.error(v, h)))
            assert_close(form.error(v, h), form.error(v, decoder(form, v)), rtol=1e-9, atol=1e-12)
        assert errors == sorted(errors, reverse=True)
        if form.rank_rows > 1:
            assert errors[2] < (1 - 1e-4) * errors[0]
        else:  # the start is the optimum
            assert errors[-1] == pytest.approx(errors[0], rel=1e-9)


def test_in_tucker_format_the_decoder_keeps_its_rank_and_the_error_falls(generator):
    layer = convolution(generator, groups=2, channels=8)
    form = OutputForm.of_inputs(Fold(tuple(layer.kernel.shape), 2, 1, "input"), layer.kernel, layer.covariance)
    start = encoder_start(form)[:, :, :2]
    before = float(tucker_lost(form, start, [2])[0, 2])
    errors = []
    for rounds in (0, 1, 5):
        v, h = alternate(form, start, rounds=rounds, outer_rank=2)
        assert (torch.linalg.matrix_rank(h.flatten(2), rtol=1e-8) == 2).all()
        u = outer_basis(form, v, 2)
        assert_close(torch.einsum("gfq,gpq,gprst->gfrst", u, u, h), h, rtol=1e-7, atol=1e-7)
        errors.append(float(form.error(v, h).sum()))
    assert errors[0] == pytest.approx(before, rel=1e-9)
    assert errors[2] < errors[1] < errors[0]


@pytest.mark.parametrize(("rounds", "damping"), [(0, 0.0), (0, 1e-6), (1, 0.0)])
@pytest.mark.parametrize("seed", range(2))
def test_outputs_are_never_worse_than_by_the_truncated_svd(rounds, damping, seed):
    generator = torch.Generator().manual_seed(seed)
    for layer in (
        convolution(generator),
        convolution(generator, out=4, groups=2, channels=4, k=(2, 2)),
        linear(generator),
    ):
        for _, form in problems(generator, layer, damping):
            matrices = form.fold.matrices(layer.kernel)
            for rank in {1, 2, form.fold.full_rank - 1} & set(range(1, form.fold.full_rank)):
                left, right = low_rank_factors(matrices, rank)
                plain = layer.error(form.fold.kernel(left @ right))
                left, right = factors(form, *best_encoder(form, rank, rounds=rounds))
                assert layer.error(form.fold.kernel(left @ right)) <= plain * (1 + 1e-5)


def test_the_better_start_is_taken(generator):
    """Uncorrelated noise in one entry alone: what a separable fit makes of it misleads."""
    found = set()
    for seed in range(15):
        g = torch.Generator().manual_seed(seed)
        kernel, a = generic(g, 6, 4, 3, 2), generic(g, 24, 40) * torch.logspace(0, -2, 24, dtype=torch.float64)[:, None]
        mix = generic(g, 24, 24)
        s = mix @ a @ a.mT @ mix.mT
        form = OutputForm.of_inputs(Fold((6, 4, 3, 2), 1, 1, "spatial"), kernel, s[None])
        for rank in (1, 8):
            by_data = encoder_start(form)[:, :, :rank]
            v, h = best_encoder(form, rank, rounds=0)
            error, other = float(form.error(v, h)), float(form.error(by_data, decoder(form, by_data)))
            assert error <= other * (1 + 1e-9)
            found.add(error < other * (1 - 1e-6))
    assert False in found


def test_groups_are_solved_one_by_one(generator):
    layer = convolution(generator, channels=8, groups=2)
    fold = Fold(tuple(layer.kernel.shape), 2, 1, "spatial")
    form = OutputForm.of_inputs(fold, layer.kernel, layer.covariance)
    v, h = alternate(form, encoder_start(form)[:, :, :2], rounds=2)
    for i, kernel in enumerate(layer.kernel.chunk(2)):
        one = OutputForm.of_inputs(Fold(tuple(kernel.shape), 1, 1, "spatial"), kernel, layer.covariance[i : i + 1])
        alone = one.product(*alternate(one, encoder_start(one)[:, :, :2], rounds=2))
        assert_close(form.product(v, h)[i : i + 1], alone, rtol=1e-7, atol=1e-7)


def test_numbers_out_of_range_are_refused(generator):
    _, form = next(iter(problems(generator)))
    v = encoder_start(form)
    with pytest.raises(ArgumentError, match="`rounds` must be >= 0; got -1"):
        alternate(form, v, rounds=-1)
    with pytest.raises(ArgumentError, match="`steps` must be >= 1; got 0"):
        alternate(form, v, steps=0)
    with pytest.raises(ArgumentError, match=r"`rank` must be in 1..6; got 7"):
        best_encoder(form, 7)
