"""Which output positions of a layer moments are taken from: all, or of large maps every second one along each axis."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from tenfold.layers.spec import LayerSpec

ENOUGH = 4
"""Vectors for each number in one, below which a covariance says little."""
_LARGE = 16
"""Positions along each axis from which on every second one will do: neighbours are much alike."""


def sampled(
    spec: LayerSpec, x: Tensor, y: Tensor, *, numbers: int, first: int, examples: int
) -> Iterator[tuple[Tensor, Tensor, tuple[slice, ...]]]:
    """Part a batch by which positions of an example are taken: inputs, outputs, and a slice for each spatial axis.

    All of them, unless maps have 16 positions and more along each axis and every second one along each leaves enough
    vectors; these then begin at an offset that varies from example to example.

    Args:
        spec: the options of the layer.
        x: its inputs.
        y: its outputs.
        numbers: in a vector; 4 vectors for each are enough.
        first: examples before this batch: offsets are the same however data are split.
        examples: in all batches together.
    """
    axes = len(spec.kernel_size)
    area = y.shape[-axes:] if axes else ()
    enough = examples * math.prod(area) >= ENOUGH * numbers << axes
    if not (axes and x.ndim == axes + 2 and min(area) >= _LARGE and enough):
        yield x, y, ()
        return
    number = torch.arange(first, first + len(x), device=x.device)
    offset = (number * 2654435761 % 2**32) >> (32 - axes)  # mixed well: Knuth's multiplicative hash
    for phase in range(2**axes):
        mine = offset == phase
        if bool(mine.any()):
            yield x[mine], y[mine], tuple(slice(phase >> axis & 1, None, 2) for axis in range(axes))
