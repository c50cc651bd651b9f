"""A sliced layer without its groups computes the same, for every fold and option."""

import pytest
import torch
from layer_stubs import factorised
from torch import nn

from helpers import normal
from tenfold.layers.unsliced import block_diagonal, sliced, without_slices
from tenfold.linalg.fold import NAMES


@pytest.mark.parametrize(("groups", "slices"), [(1, 1), (1, 3), (2, 3), (3, 1)])
def test_the_kernel_computes_what_the_grouped_one_does(groups, slices):
    kernel, x = normal(groups * slices * 4, 2, 3, 2), normal(2, groups * slices * 2, 6, 5, seed=1)
    full = block_diagonal(kernel, groups, slices)
    assert full.shape == (groups * slices * 4, slices * 2, 3, 2)
    wanted = torch.conv2d(x, kernel, groups=groups * slices)
    torch.testing.assert_close(torch.conv2d(x, full, groups=groups), wanted)


def layers():
    for fold in NAMES[:-1]:
        yield fold, nn.Conv2d(8, 6, (3, 2), stride=(2, 1), padding=(0, 1), dilation=(1, 2)), (2, 8, 9, 8)
        yield f"{fold}, transposed", nn.ConvTranspose2d(8, 6, 3, stride=2, output_padding=1), (2, 8, 4, 5)
    yield "groups", nn.Conv2d(8, 6, 3, groups=2, padding=1, padding_mode="circular", bias=False), (2, 8, 6, 6)
    yield "one axis", nn.Conv1d(8, 6, 3, padding="same"), (2, 8, 7)
    yield "three axes", nn.Conv3d(8, 6, 2).to(memory_format=torch.channels_last_3d), (1, 8, 4, 4, 4)
    yield "linear", nn.Linear(8, 6), (2, 3, 8)


@pytest.mark.parametrize("case", list(layers()), ids=lambda case: case[0])
def test_a_layer_without_slices_computes_the_same(case):
    name, layer, shape = case
    fold = name.split(",")[0] if name.split(",")[0] in NAMES else "channel"
    small, x = factorised(layer.double().eval(), rank=2, slices=2, fold=fold), normal(*shape)
    whole = without_slices(small)
    assert sliced(small)
    assert not any(map(sliced, whole.modules()))
    assert not whole.training
    assert {type(m) for m in whole} <= {type(layer), nn.Linear, *(type(m) for m in small.children())}
    torch.testing.assert_close(whole(x), small(x))
