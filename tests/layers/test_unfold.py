"""Unfolded inputs times the kernel are what torch's own layers put out, for every option."""

import itertools
import warnings

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from tenfold.layers.spec import spec_of, to_kernel
from tenfold.layers.unfold import chunks, output_rows, unfold

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
SIZES = {1: (11,), 2: (8, 7), 3: (7, 6, 6)}
KERNELS = {1: (3,), 2: (3, 2), 3: (3, 2, 2)}


def assert_unfolds(layer, x, **call):
    layer, x = layer.double(), x.double()
    with torch.no_grad():
        y = layer(x, **call)
    spec = spec_of(layer)
    kernel = to_kernel(spec, layer.weight.detach()).reshape(spec.groups, spec.out_channels // spec.groups, -1)
    bias = 0 if layer.bias is None else layer.bias.detach().reshape(spec.groups, 1, -1)
    assert_close(unfold(spec, x, call.get("output_size")) @ kernel.mT + bias, output_rows(spec, y))


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_convolutions(axes):
    for stride, padding, mode, dilation, groups in itertools.product(
        (1, (2, 1, 2)[:axes]),
        (0, (0, 2, 1)[:axes], "same"),
        ("zeros", "circular", "reflect"),
        (1, (1, 2, 1)[-axes:]),
        (1, 2),
    ):
        if padding == "same" and stride != 1:
            continue
        options = {"stride": stride, "padding": padding, "padding_mode": mode, "dilation": dilation, "groups": groups}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Using padding='same' with even kernel")
            assert_unfolds(CONVS[axes](4, 6, KERNELS[axes], **options), torch.randn(2, 4, *SIZES[axes]))


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_transposed_convolutions(axes):
    for stride, padding, dilation, groups in itertools.product(
        (1, (3, 2, 2)[:axes]), (0, (0, 2, 1)[:axes], 3), (1, (1, 2, 1)[:axes]), (1, 2)
    ):
        options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        layer = TRANSPOSED[axes](4, 6, KERNELS[axes], output_padding=int(stride != 1), **options)
        assert_unfolds(layer, torch.randn(2, 4, *SIZES[axes]))


def test_the_output_size_of_transposed_convolutions():
    layer = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1)
    x = torch.randn(2, 4, 5, 4)
    for size in ([9, 7], [10, 8], [2, 6, 10, 7]):
        assert_unfolds(layer, x, output_size=size)


def test_linear_layers_and_single_images():
    assert_unfolds(nn.Linear(4, 6), torch.randn(2, 3, 5, 4))
    assert_unfolds(nn.Linear(4, 6), torch.randn(4))
    assert_unfolds(nn.Conv2d(4, 6, 3, padding=1), torch.randn(4, 5, 6))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.Conv2d(4, 6, 3, stride=2), (7, 4, 9, 8)), (nn.Linear(4, 6), (3, 7, 4)), (nn.Conv2d(4, 6, 3), (4, 9, 8))],
)
def test_chunks_are_all_of_it_in_order_and_none_is_large(layer, shape):
    x = torch.randn(shape)
    y, spec = layer(x), spec_of(layer)
    for numbers in (1, 600, 10**9):
        parts = chunks(spec, x, y, numbers)
        assert_close(torch.cat([unfold(spec, a) for a, _ in parts], 1), unfold(spec, x))
        assert_close(torch.cat([output_rows(spec, b) for _, b in parts], 1), output_rows(spec, y))
        if numbers == 600 and x.ndim == 4:
            assert len(parts) > 1
