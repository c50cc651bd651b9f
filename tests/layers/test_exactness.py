"""At full rank a factorised layer is the layer it replaced, over the product of all options."""

import itertools
import math
import random
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from layer_stubs import TUCKER, factorised, sliced
from torch import Tensor, nn

from helpers import relative
from tenfold.linalg.fold import NAMES, Fold

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
SIZES = {1: (11,), 2: (8, 7), 3: (7, 6, 6)}
KERNELS = {1: (3,), 2: (3, 2), 3: (3, 2, 2)}
EVERY = (*NAMES, TUCKER)
MODES = ("zeros", "reflect", "replicate", "circular")

# Relative to the norm of the output. bfloat16 has 8 bits: either factor and what passes between them is rounded to
# 2^-9, so is the dense weight; what is left after the sum over two layers stays below three per cent.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 3e-2}

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


def options(axes: int, *, thin: bool) -> Iterator[dict[str, Any]]:
    """The product of all options of a convolution; fewer values of each if ``thin``."""
    mixed = (2, 1, 2)[:axes]
    strides = [1, mixed] if thin else [1, 2, mixed]
    paddings = [(0, 2, 1)[:axes], "same", 4] if thin else [0, (0, 2, 1)[:axes], 4, "same", "valid"]
    dilations = [1, (1, 2, 1)[-axes:]]
    for stride, padding, mode, dilation, groups, bias in itertools.product(
        strides, paddings, MODES, dilations, (1, 2), (True, False)
    ):
        if padding != "same" or stride == 1:
            yield {
                "stride": stride, "padding": padding, "padding_mode": mode,
                "dilation": dilation, "groups": groups, "bias": bias,
            }  # fmt: skip


def transposed_options(axes: int) -> Iterator[dict[str, Any]]:
    for stride, padding, dilation, groups, bias in itertools.product(
        (1, (3, 2, 2)[:axes]), (0, 1, (0, 2, 1)[:axes], 3), (1, (1, 2, 1)[:axes]), (1, 2), (True, False)
    ):
        extra = (0, 1) if stride != 1 else (0,)
        for output_padding in extra:
            yield {
                "stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "bias": bias,
                "output_padding": output_padding,
            }  # fmt: skip


def differences(layer: nn.Module, x: Tensor, folds: Any, slices: Any, **call: Any) -> Iterator[str]:
    """Where a full-rank factorisation of ``layer`` is not ``layer``; empty where it is.

    Numbers of slices that a fold does not take are left out.
    """
    try:
        expected = layer(x, **call)
    except RuntimeError:
        return  # torch itself refuses this combination
    for fold, s in [(name, s) for name in folds for s in sliced(layer, name, *slices)]:
        small = factorised(layer, slices=s, fold=fold)
        found = small(x, **call)
        if found.shape != expected.shape:
            yield f"{layer} {fold} {s}: {tuple(found.shape)} for {tuple(expected.shape)}"
        elif found.dtype != expected.dtype or relative(found, expected) > TOLERANCE[x.dtype]:
            yield f"{layer} {fold} {s}: off by {relative(found, expected):.1e}"


def two(i: int) -> tuple[str, str]:
    """Two of the folds, by turns."""
    n = len(NAMES)
    return NAMES[i % n], NAMES[(i // n + 1) % n]


def make(kind: Any, *args: Any, dtype: torch.dtype, **kwargs: Any) -> nn.Module:
    return kind(*args, **kwargs).to(dtype)


@pytest.mark.parametrize("axes", [1, 2, 3])
@torch.no_grad()
def test_convolution_is_exact_over_the_product_of_options(axes: int) -> None:
    x = torch.randn(2, 4, *SIZES[axes], dtype=torch.float64)
    wrong, turn = [], random.Random(0)
    for i, option in enumerate(options(axes, thin=axes > 1)):
        layer = make(CONVS[axes], 4, 6, KERNELS[axes], dtype=x.dtype, **option)
        for fold in {*two(i), "decoupled", TUCKER}:
            wrong += differences(layer, x, (fold,), sliced(layer, fold, turn.choice((1, 2))) or (1,))
    assert wrong == []


@pytest.mark.parametrize("axes", [1, 2, 3])
@torch.no_grad()
def test_transposed_convolution_is_exact_over_the_product_of_options(axes: int) -> None:
    x = torch.randn(2, 4, *SIZES[axes], dtype=torch.float64)
    wrong, turn = [], random.Random(0)
    for i, option in enumerate(transposed_options(axes)):
        layer = make(TRANSPOSED[axes], 4, 6, KERNELS[axes], dtype=x.dtype, **option)
        for fold in {*two(i), "decoupled", TUCKER}:
            wrong += differences(layer, x, (fold,), sliced(layer, fold, turn.choice((1, 2))) or (1,))
    assert wrong == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("transposed", [False, True])
@torch.no_grad()
def test_lower_precision_is_exact_to_its_rounding(dtype: torch.dtype, transposed: bool) -> None:
    x = torch.randn(2, 4, *SIZES[2]).to(dtype)
    kind = TRANSPOSED[2] if transposed else CONVS[2]
    wrong, turn = [], random.Random(0)
    for i, option in enumerate(transposed_options(2) if transposed else options(2, thin=True)):
        layer = make(kind, 4, 6, KERNELS[2], dtype=dtype, **option)
        for fold in ({*two(i)}.pop(), TUCKER):
            wrong += differences(layer, x, (fold,), sliced(layer, fold, turn.choice((1, 2))) or (1,))
    assert wrong == []


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("transposed", [False, True])
@torch.no_grad()
def test_channels_last_weights_and_inputs_are_exact_and_stay_channels_last(axes: int, transposed: bool) -> None:
    form = torch.channels_last if axes == 2 else torch.channels_last_3d
    kind = (TRANSPOSED if transposed else CONVS)[axes]
    layer = make(kind, 4, 6, KERNELS[axes], dtype=torch.float64, padding=1, stride=2, groups=2)
    layer = layer.to(memory_format=form)  # pyright: ignore[reportCallIssue]
    x = torch.randn(2, 4, *SIZES[axes], dtype=torch.float64)
    for inputs in (x, x.to(memory_format=form)):
        assert list(differences(layer, inputs, EVERY, (1, 2))) == []
        small = factorised(layer)
        assert small.encoder.weight.is_contiguous(memory_format=form)
        assert small.to_layer().weight.stride() == layer.weight.stride()
        assert small(inputs).is_contiguous(memory_format=form) == layer(inputs).is_contiguous(memory_format=form)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_unbatched_and_empty_inputs_are_taken_as_the_dense_layer_takes_them(axes: int, mode: str) -> None:
    layer = make(CONVS[axes], 4, 6, KERNELS[axes], dtype=torch.float64, padding=1, padding_mode=mode)
    x = torch.randn(4, *SIZES[axes], dtype=torch.float64)
    assert list(differences(layer, x, EVERY, (1, 2))) == []
    none = x.new_zeros(0, *x.shape)
    assert list(differences(layer, none, EVERY, (1, 2))) == []


@pytest.mark.parametrize("axes", [1, 2, 3])
@torch.no_grad()
def test_output_size_of_transposed_convolutions_is_honoured(axes: int) -> None:
    x = torch.randn(2, 4, *SIZES[axes], dtype=torch.float64)
    for groups, stride in itertools.product((1, 2), (2, (3, 2, 2)[:axes])):
        layer = make(TRANSPOSED[axes], 4, 6, KERNELS[axes], dtype=x.dtype, padding=1, stride=stride, groups=groups)
        least = layer(x).shape[2:]
        for added in itertools.product((0, 1), repeat=axes):
            size = [a + b for a, b in zip(least, added, strict=True)]
            assert layer(x, output_size=size).shape[2:] == tuple(size)
            for given_size in (size, [2, 6, *size]):
                assert list(differences(layer, x, EVERY, (1, 2), output_size=given_size)) == []
            assert list(differences(layer, x[0], EVERY, (1,), output_size=size)) == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_linear_is_exact_for_any_leading_dimensions(dtype: torch.dtype, bias: bool) -> None:
    for inner, outer in ((12, 8), (8, 12), (6, 1), (1, 5)):
        layer = make(nn.Linear, inner, outer, bias=bias, dtype=dtype)
        slices = [s for s in (1, 2, 3, inner) if inner % s == 0]
        for leading in ((), (1,), (5,), (0,), (2, 3), (2, 0, 3), (2, 1, 3, 2)):
            x = torch.randn(*leading, inner).to(dtype)
            assert list(differences(layer, x, ("channel", "decoupled"), slices)) == []
        strided = torch.randn(inner, 4).to(dtype).mT
        assert list(differences(layer, strided, ("channel",), slices)) == []


@given(
    axes=st.integers(1, 3),
    transposed=st.booleans(),
    kernel=st.tuples(*[st.integers(1, 4)] * 3),
    stride=st.tuples(*[st.integers(1, 3)] * 3),
    padding=st.tuples(*[st.integers(0, 4)] * 3),
    dilation=st.tuples(*[st.integers(1, 2)] * 3),
    channels=st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)),
    mode=st.sampled_from(MODES),
    fold=st.sampled_from(EVERY),
    data=st.data(),
)
@settings(max_examples=120)
@torch.no_grad()
def test_any_convolution_is_exact(
    axes: int, transposed: bool, kernel: Any, stride: Any, padding: Any, dilation: Any, channels: Any,
    mode: str, fold: str, data: st.DataObject,
) -> None:  # fmt: skip
    inner, outer, groups = channels  # the first two of each group
    layer = (TRANSPOSED if transposed else CONVS)[axes](
        inner * groups, outer * groups, kernel[:axes], stride=stride[:axes], padding=padding[:axes],
        dilation=dilation[:axes], groups=groups, padding_mode="zeros" if transposed else mode,
    ).double()  # fmt: skip
    x = torch.randn(2, inner * groups, *SIZES[axes], dtype=torch.float64)
    slices = data.draw(st.sampled_from(sliced(layer, fold, *range(1, inner + 1))))
    try:
        layer(x)
    except RuntimeError:
        assume(False)
    assert list(differences(layer, x, (fold,), (slices,))) == []


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("transposed", [False, True])
def test_weights_are_exactly_as_many_as_the_formula_says(groups: int, transposed: bool) -> None:
    """Per rank: the encoder has every input channel once, the decoder every output channel once per slice."""
    f, c, k1, k2 = 6, 8, 3, 2
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    layer = kind(c, f, (k1, k2), groups=groups, bias=False)
    parts = {"channel": (k1 * k2, 1), "spatial": (k1, k2), "spatial-t": (k2, k1), "input": (1, k1 * k2)}
    for (fold, (encoder, decoder)), slices in itertools.product(parts.items(), (1, 2, 4)):
        full = Fold((f, c // groups, k1, k2), groups, slices, fold).full_rank
        for j in range(1, full + 1):
            small = factorised(layer, j, slices, fold)
            assert sum(p.numel() for p in small.parameters()) == j * (slices * f * decoder + c * encoder)
    for j in range(1, min(c // groups, k1 * k2) + 1):
        small = factorised(layer, j, 1, "decoupled")
        assert sum(p.numel() for p in small.parameters()) == j * f * (c // groups + k1 * k2)
    for outer, inner in itertools.product((1, 2, 3), (1, 2, 4)):
        small = factorised(layer, (outer, inner), 1, TUCKER)
        assert sum(p.numel() for p in small.parameters()) == inner * c + groups * outer * inner * k1 * k2 + outer * f
    linear = nn.Linear(c, f, bias=False)
    for j, slices in itertools.product((1, 2), (1, 2, 4)):
        assert sum(p.numel() for p in factorised(linear, j, slices).parameters()) == j * (slices * f + c)


def test_the_product_is_not_vacuous() -> None:
    """Torch refuses none of the options above, so nothing was skipped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for axes in (1, 2, 3):
            x = torch.randn(1, 4, *SIZES[axes])
            for option in options(axes, thin=axes > 1):
                CONVS[axes](4, 6, KERNELS[axes], **option)(x)
            for option in transposed_options(axes):
                assert math.prod(TRANSPOSED[axes](4, 6, KERNELS[axes], **option)(x).shape) > 0
