"""Laws of the sliced spectra, against one `svdvals` per slice."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from tenfold.errors import ArgumentError, TenfoldError
from tenfold.linalg import Fold, slice_spectra
from tenfold.linalg.fold import divisors

SHAPES = ((5, 12, 1), (5, 12, 9), (40, 12, 1), (40, 12, 9), (64, 6, 4), (1, 8, 3), (8, 1, 3), (7, 1, 1), (12, 16, 2))


def spectra_one_by_one(w: torch.Tensor, k: int) -> torch.Tensor:
    f, c, kappa = w.shape
    slices = [w[:, i * c // k : (i + 1) * c // k].reshape(f, c // k * kappa) for i in range(k)]
    return torch.stack([torch.linalg.svdvals(x) for x in slices])


@pytest.mark.parametrize("shape", SHAPES)
def test_spectra_equal_those_of_each_slice_for_all_divisors(shape):
    w = torch.randn(shape, dtype=torch.float64)
    atol = 1e-7 * float(torch.linalg.matrix_norm(w.flatten(1), ord=2))
    spectra = slice_spectra(w, divisors(shape[1]))
    assert tuple(spectra) == divisors(shape[1])
    for k, s in spectra.items():
        assert s.dtype == torch.float64
        assert_close(s, spectra_one_by_one(w, k), rtol=0, atol=atol)


@given(st.integers(1, 20), st.integers(1, 24), st.integers(1, 9), st.integers(0, 2**31), st.data())
def test_any_subset_of_the_divisors_gives_the_same_spectra(f, c, kappa, seed, data):
    w = torch.randn(f, c, kappa, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    wanted = data.draw(st.lists(st.sampled_from(divisors(c)), unique=True))
    spectra = slice_spectra(w, wanted)
    assert sorted(spectra) == sorted(wanted)
    for k, s in spectra.items():
        assert s.shape == (k, min(f, c // k * kappa))
        assert_close(s, spectra_one_by_one(w, k), rtol=0, atol=1e-7 * float(w.norm()))


@pytest.mark.parametrize("batch", [(3,), (2, 3)])
@pytest.mark.parametrize("shape", [(5, 12, 3), (40, 12, 1), (10, 4, 4)])
def test_a_batch_is_the_kernels_one_by_one(batch, shape):
    w = torch.randn(*batch, *shape, dtype=torch.float64)
    spectra = slice_spectra(w, divisors(shape[1]))
    flat = w.flatten(0, -4)
    for k, s in spectra.items():
        assert s.shape[: len(batch) + 1] == (*batch, k)
        expected = torch.stack([slice_spectra(x, [k])[k] for x in flat]).reshape(s.shape)
        assert_close(s, expected, rtol=0, atol=1e-7 * float(flat.norm()))


@pytest.mark.parametrize("shape", SHAPES)
def test_finer_slices_interlace(shape):
    """A slice is some columns of the coarser one: ``s_{i+d} <= s'_i <= s_i`` with d the number of columns left out."""
    _, c, kappa = shape
    w = torch.randn(shape, dtype=torch.float64)
    spectra = slice_spectra(w, divisors(c))
    slack = 1e-7 * float(spectra[1].max())
    for k, coarse in spectra.items():
        for fine_k, fine in spectra.items():
            if fine_k % k:
                continue
            left_out = (c // k - c // fine_k) * kappa
            for i in range(fine_k):
                parent, child = coarse[i * k // fine_k], fine[i]
                assert (child <= parent[: len(child)] + slack).all()
                below = parent[left_out:][: len(child)]
                assert (child[: len(below)] >= below - slack).all()


@pytest.mark.parametrize("shape", [(5, 12, 9), (40, 12, 2)])
@pytest.mark.parametrize("k", [1, 2, 3, 4, 6])
def test_permuting_channels_inside_a_slice_or_whole_slices_changes_nothing(shape, k):
    w = torch.randn(shape, dtype=torch.float64)
    expected = slice_spectra(w, [k])[k]
    within = w.unflatten(1, (k, -1))
    shuffled = torch.stack([within[:, i, torch.randperm(within.shape[2])] for i in range(k)], 1)
    assert_close(slice_spectra(shuffled.flatten(1, 2), [k])[k], expected, rtol=0, atol=1e-10)
    order = torch.randperm(k)
    assert_close(slice_spectra(within[:, order].flatten(1, 2), [k])[k], expected[order], rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", [(10, 12, 3, 3), (40, 12, 3), (9, 8)])
def test_spectra_equal_those_of_the_channel_fold(shape):
    w = torch.randn(shape, dtype=torch.float64)
    flat = w.reshape(*shape[:2], -1)
    for k, s in slice_spectra(flat, divisors(shape[1])).items():
        folded = Fold(shape, slices=k).matrices(w)
        assert_close(s, torch.linalg.svdvals(folded), rtol=0, atol=1e-7 * float(w.norm()))


def test_energy_is_that_of_the_kernel_for_every_number_of_slices():
    w = torch.randn(10, 12, 3, dtype=torch.float64)
    for s in slice_spectra(w, divisors(12)).values():
        assert_close(s.square().sum(), w.square().sum(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_coarse_types_are_worked_on_in_float64(dtype):
    w = torch.randn(6, 8, 3).to(dtype)
    for k, s in slice_spectra(w, divisors(8)).items():
        assert s.dtype == torch.float64
        assert_close(s, spectra_one_by_one(w.double(), k), rtol=0, atol=1e-7 * float(s.max()))


def test_zero_and_rank_deficient_kernels():
    zero = slice_spectra(torch.zeros(5, 6, 2), divisors(6))
    assert all(math.isclose(float(s.abs().max()), 0) for s in zero.values())
    outer = torch.einsum("i,jk->ijk", torch.randn(5).double(), torch.randn(6, 2).double())
    for k, s in slice_spectra(outer, divisors(6)).items():
        assert_close(s, spectra_one_by_one(outer, k), rtol=0, atol=1e-7 * float(outer.norm()))


def test_argument_is_not_modified_and_gradients_not_tracked():
    w = torch.randn(2, 6, 8, 3, dtype=torch.float64).requires_grad_()
    before = w.detach().clone()
    assert not any(s.requires_grad for s in slice_spectra(w, divisors(8)).values())
    assert torch.equal(w, before)


def test_memory_layout_does_not_matter():
    w = torch.randn(6, 8, 3, 3).to(memory_format=torch.channels_last).flatten(2).double()
    strided = torch.randn(12, 8, 6, dtype=torch.float64)[::2, :, ::2]
    for view in (w, strided, strided.transpose(0, 1)):
        ks = divisors(view.shape[1])
        for a, b in zip(slice_spectra(view, ks).values(), slice_spectra(view.contiguous(), ks).values(), strict=True):
            assert_close(a, b, rtol=0, atol=1e-7 * float(view.norm()))


@pytest.mark.parametrize("k", [0, 5, 16, -2])
def test_slices_that_leave_a_remainder_raise(k):
    with pytest.raises(ArgumentError, match="`slices`"):
        slice_spectra(torch.randn(4, 8, 1), [1, k])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_infinity_raise(bad):
    w = torch.randn(4, 8, 1)
    w[1, 2, 0] = bad
    with pytest.raises(TenfoldError, match="NaN or infinite"):
        slice_spectra(w, [1, 2])
