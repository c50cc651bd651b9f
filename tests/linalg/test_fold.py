"""Laws of the folds: exact inverses, and two convolutions in a row that equal the dense one."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from tenfold.errors import ArgumentError
from tenfold.linalg import Fold, low_rank_factors
from tenfold.linalg.fold import NAMES, divisors, folds_for, slice_counts

KERNELS = ((), (3,), (3, 2), (2, 3, 4))
GRID = [
    (name, groups, slices, k)
    for name, groups, slices, k in itertools.product(NAMES, (1, 2, 3), (1, 2, 4), KERNELS)
    if slices == 1 or name != "decoupled" or not k
]
CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def kernel_of(k: tuple[int, ...], f: int = 6, c: int = 4) -> torch.Tensor:
    return torch.randn(f, c, *k, dtype=torch.float64)


def matrices_by_loop(w: torch.Tensor, fold: Fold) -> torch.Tensor:
    """The fold, entry by entry, from the table: rows (f', k_D), columns (c', k_E), matrices (g, s)."""
    groups = fold.shape[0] if fold.name == "decoupled" and w.ndim > 2 else fold.groups
    f, c = fold.shape[0] // groups, fold.shape[1] // fold.slices
    encoder = {"channel": [0, 1, 2], "spatial": [0], "spatial-t": [1, 2]}.get(fold.name, [])
    on_e = [a for a in range(w.ndim - 2) if a in encoder]
    on_d = [a for a in range(w.ndim - 2) if a not in encoder]
    rows = list(itertools.product(range(f), *(range(w.shape[2 + a]) for a in on_d)))
    columns = list(itertools.product(range(c), *(range(w.shape[2 + a]) for a in on_e)))
    out = w.new_empty(groups * fold.slices, len(rows), len(columns))
    for g, s in itertools.product(range(groups), range(fold.slices)):
        for (i, (fi, *kd)), (j, (ci, *ke)) in itertools.product(enumerate(rows), enumerate(columns)):
            place = [0] * (w.ndim - 2)
            for a, x in [*zip(on_d, kd, strict=True), *zip(on_e, ke, strict=True)]:
                place[a] = x
            out[g * fold.slices + s, i, j] = w[(g * f + fi, s * c + ci, *place)]
    return out


@pytest.mark.parametrize(("name", "groups", "slices", "k"), GRID)
def test_matrices_are_those_of_the_definition(name, groups, slices, k):
    w = kernel_of(k)
    fold = Fold(tuple(w.shape), groups, slices, name)
    assert torch.equal(fold.matrices(w), matrices_by_loop(w, fold))


@pytest.mark.parametrize(("name", "groups", "slices", "k"), GRID)
def test_folding_and_unfolding_are_bitwise_inverses(name, groups, slices, k):
    w = kernel_of(k)
    fold = Fold(tuple(w.shape), groups, slices, name)
    matrices = fold.matrices(w)
    assert matrices.shape == (fold.batch, fold.rows, fold.columns)
    assert fold.full_rank == min(matrices.shape[1:])
    assert torch.equal(fold.kernel(matrices), w)
    other = torch.randn_like(matrices)
    assert torch.equal(fold.matrices(fold.kernel(other)), other)


@given(
    st.sampled_from(NAMES),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 4),
    st.lists(st.integers(1, 4), max_size=3),
)
def test_folding_is_bijective_for_any_shape(name, groups, slices, f, c, k):
    slices = 1 if name == "decoupled" and k else slices
    shape = (groups * f, slices * c, *k)
    w = torch.arange(math.prod(shape), dtype=torch.float64).reshape(shape)
    fold = Fold(shape, groups, slices, name)
    assert torch.equal(fold.kernel(fold.matrices(w)), w)


@pytest.mark.parametrize(("name", "groups", "slices", "k"), GRID)
@pytest.mark.parametrize("rank", [1, 2])
def test_product_of_the_two_kernels_is_the_kernel_of_the_product(name, groups, slices, k, rank):
    fold = Fold((6, 4, *k), groups, slices, name)
    left = torch.randn(fold.batch, fold.rows, rank, dtype=torch.float64)
    right = torch.randn(fold.batch, rank, fold.columns, dtype=torch.float64)
    encoder, decoder = fold.encoder(right), fold.decoder(left)
    assert_close(fold.product(encoder, decoder), fold.kernel(left @ right), rtol=0, atol=1e-12)
    assert encoder.numel() == fold.encoder_params(rank)
    assert decoder.numel() == fold.decoder_params(rank)
    on = {*fold.encoder_axes}
    assert on | {*fold.decoder_axes} == {*range(len(k))}
    inner = (6 if name == "decoupled" and k else groups * slices) * rank
    assert encoder.shape == (inner, 4 // slices, *(n if a in on else 1 for a, n in enumerate(k)))
    assert decoder.shape == (6, slices * rank, *(1 if a in on else n for a, n in enumerate(k)))


def two_convs(fold, x, encoder, decoder, bias, stride, padding, dilation):
    """Stride, padding and dilation of each axis go with the kernel that spans it."""

    def on(axes, values, default):
        return tuple(v if a in axes else default for a, v in enumerate(values))

    conv, e, d = CONV[len(fold.kernel_size)], fold.encoder_axes, fold.decoder_axes
    z = conv(x, encoder, None, on(e, stride, 1), on(e, padding, 0), on(e, dilation, 1), groups=fold.encoder_groups)
    return conv(z, decoder, bias, on(d, stride, 1), on(d, padding, 0), on(d, dilation, 1), groups=fold.decoder_groups)


@pytest.mark.parametrize(("name", "groups", "slices", "k"), [g for g in GRID if g[3]])
def test_two_convolutions_at_full_rank_equal_the_dense_one(name, groups, slices, k):
    w, bias = kernel_of(k), torch.randn(6, dtype=torch.float64)
    fold = Fold(tuple(w.shape), groups, slices, name)
    left, right = low_rank_factors(fold.matrices(w), fold.full_rank)
    encoder, decoder = fold.encoder(right), fold.decoder(left)
    x = torch.randn(2, 4 * groups, *(9, 8, 10)[: len(k)], dtype=torch.float64)
    d = len(k)
    for stride, padding, dilation in [((1, 1, 1), (0, 0, 0), (1, 1, 1)), ((2, 1, 3), (1, 2, 0), (1, 2, 1))]:
        options = stride[:d], padding[:d], dilation[:d]
        dense = CONV[d](x, w, bias, *options, groups=groups)
        assert_close(two_convs(fold, x, encoder, decoder, bias, *options), dense, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("name", "groups", "slices", "k"), [g for g in GRID if g[3]])
def test_two_convolutions_at_any_rank_equal_the_one_with_their_product(name, groups, slices, k):
    fold = Fold((6, 4, *k), groups, slices, name)
    encoder = fold.encoder(torch.randn(fold.batch, 2, fold.columns, dtype=torch.float64))
    decoder = fold.decoder(torch.randn(fold.batch, fold.rows, 2, dtype=torch.float64))
    d = len(k)
    x = torch.randn(2, 4 * groups, *(9, 8, 10)[:d], dtype=torch.float64)
    options = (2, 3, 1)[:d], (1, 0, 2)[:d], (2, 1, 1)[:d]
    dense = CONV[d](x, fold.product(encoder, decoder), None, *options, groups=groups)
    assert_close(two_convs(fold, x, encoder, decoder, None, *options), dense, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("groups", "slices"), list(itertools.product((1, 2, 3), (1, 2, 4))))
def test_two_linear_maps_at_full_rank_equal_the_dense_one(groups, slices):
    w = kernel_of(())
    fold = Fold(tuple(w.shape), groups, slices)
    left, right = low_rank_factors(fold.matrices(w), fold.full_rank)
    x = torch.randn(5, 4 * groups, dtype=torch.float64)
    dense = F.conv1d(x[..., None], w[..., None], groups=groups)
    z = F.conv1d(x[..., None], fold.encoder(right)[..., None], groups=groups * slices)
    assert_close(F.conv1d(z, fold.decoder(left)[..., None], groups=groups), dense, rtol=0, atol=1e-10)


@given(st.integers(1, 30), st.integers(1, 5), st.integers(1, 5), st.lists(st.integers(1, 4), max_size=3), st.data())
def test_parameters_of_the_channel_fold_are_j_times_kf_plus_n(f, c, slices, k, data):
    c *= slices
    fold = Fold((f, c, *k), slices=slices)
    n = c * math.prod(k)
    j = data.draw(st.integers(1, fold.full_rank))
    assert fold.encoder_params(j) + fold.decoder_params(j) == j * (slices * f + n)
    assert fold.full_rank == min(f, n // slices)


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 3), st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_parameters_of_the_decoupled_fold_are_r_times_f_times_c_plus_k(f, c, groups, k):
    fold = Fold((groups * f, c, *k), groups, name="decoupled")
    assert fold.full_rank == min(c, math.prod(k))
    for r in range(1, fold.full_rank + 1):
        assert fold.encoder_params(r) == r * groups * f * c
        assert fold.decoder_params(r) == r * groups * f * math.prod(k)
    dense = math.prod(fold.shape)
    assert c > 1 or fold.encoder_params(1) + fold.decoder_params(1) > dense  # depthwise: nothing to save


@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("k", [k for k in KERNELS if k])
def test_the_decoupled_fold_is_a_sum_of_parallel_depthwise_separable_paths(groups, k):
    w = kernel_of(k)
    fold = Fold(tuple(w.shape), groups, name="decoupled")
    left, right = low_rank_factors(fold.matrices(w), fold.full_rank)
    encoder, decoder = fold.encoder(right), fold.decoder(left)
    conv, r = CONV[len(k)], fold.full_rank
    x = torch.randn(2, 4 * groups, *(9, 8, 10)[: len(k)], dtype=torch.float64)
    paths = [conv(conv(x, encoder[i::r], groups=groups), decoder[:, i : i + 1], groups=6) for i in range(r)]
    assert_close(sum(paths), conv(x, w, groups=groups), rtol=0, atol=1e-10)
    for n in range(6):  # channels n r .. (n + 1) r are the n-th output's own
        own = conv(x, encoder, groups=groups)[:, n * r : (n + 1) * r]
        assert_close(conv(own, decoder[n : n + 1]), conv(x, w, groups=groups)[:, n : n + 1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("k", [k for k in KERNELS if k])
def test_the_decoupled_fold_cut_to_a_rank_is_the_best_kernel_of_that_rank_per_output_channel(k):
    w = kernel_of(k)
    fold = Fold(tuple(w.shape), name="decoupled")
    left, right = low_rank_factors(fold.matrices(w), 2)
    cut = fold.product(fold.encoder(right), fold.decoder(left))
    for n in range(6):
        u, s, vh = torch.linalg.svd(w[n].flatten(1), full_matrices=False)
        assert_close(cut[n].flatten(1), (u[:, :2] * s[:2]) @ vh[:2], rtol=0, atol=1e-10)


def test_the_decoupled_fold_of_a_linear_layer_is_the_channel_fold():
    w = kernel_of(())
    for groups, slices in itertools.product((1, 2, 3), (1, 2, 4)):
        a, b = (Fold((6, 4), groups, slices, name) for name in ("decoupled", "channel"))
        assert torch.equal(a.matrices(w), b.matrices(w))
        assert (a.encoder_groups, a.decoder_groups) == (b.encoder_groups, b.decoder_groups)


@pytest.mark.parametrize("k", KERNELS)
@pytest.mark.parametrize("name", NAMES)
def test_the_numbers_of_slices_are_those_that_the_fold_takes(name, k):
    for slices in range(1, 9):
        if slices in slice_counts((6, 4, *k), name):
            Fold((6, 4, *k), 1, slices, name)
        else:
            with pytest.raises(ArgumentError, match="`slices`"):
                Fold((6, 4, *k), 1, slices, name)


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "strided"])
@pytest.mark.parametrize("name", NAMES)
def test_memory_layout_does_not_matter_and_the_kernel_is_not_modified(name, layout):
    w = {
        "channels_last": lambda: kernel_of((3, 3)).to(memory_format=torch.channels_last),
        "transposed": lambda: kernel_of((3, 3), 4, 6).transpose(0, 1),
        "strided": lambda: kernel_of((3, 6), 12, 8)[::2, ::2, :, ::2],
    }[layout]()
    before = w.clone()
    fold = Fold((6, 4, 3, 3), 2, 1 if name == "decoupled" else 2, name)
    assert torch.equal(fold.matrices(w), fold.matrices(w.contiguous()))
    assert torch.equal(fold.kernel(fold.matrices(w)), before)
    assert torch.equal(w, before)


@pytest.mark.parametrize(("name", "slices"), [("spatial", 2), ("decoupled", 1)])
def test_gradients_flow_through_the_product(name, slices):
    fold = Fold((6, 4, 3, 2), 2, slices, name)
    encoder = fold.encoder(torch.randn(fold.batch, 2, fold.columns, dtype=torch.float64)).requires_grad_()
    decoder = fold.decoder(torch.randn(fold.batch, fold.rows, 2, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(fold.product, (encoder, decoder))


@pytest.mark.parametrize("spatial", [0, 1, 2, 3])
def test_the_folds_offered_differ_and_cover_all_that_do(spatial):
    w = kernel_of((2, 3, 4)[:spatial])
    folds = {name: Fold(tuple(w.shape), name=name) for name in NAMES}
    seen = {name: (fold.encoder_axes, fold.decoder_groups) for name, fold in folds.items()}
    offered = [seen[name] for name in folds_for(spatial)]
    assert len(set(offered)) == len(offered)
    assert set(offered) == set(seen.values())


@given(st.integers(1, 3000))
def test_divisors_are_all_divisors_in_order(c):
    assert divisors(c) == tuple(d for d in range(1, c + 1) if c % d == 0)


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"groups": 4}, "groups"),
        ({"groups": 0}, "groups"),
        ({"slices": 3}, "slices"),
        ({"slices": 0}, "slices"),
        ({"slices": 2, "name": "decoupled"}, "slices"),
        ({"name": "diagonal"}, "fold"),
    ],
)
def test_numbers_that_do_not_divide_and_unknown_names_raise(changes, argument):
    with pytest.raises(ArgumentError, match=f"`{argument}`"):
        Fold((6, 4, 3, 3), **changes)


def test_a_kernel_of_another_shape_raises():
    with pytest.raises(ArgumentError, match="`kernel`"):
        Fold((6, 4, 3, 3)).matrices(torch.randn(4, 6, 3, 3))  # as many entries: a reshape would not notice
