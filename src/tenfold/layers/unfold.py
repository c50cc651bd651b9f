"""Unfolding (im2col): the inputs of a linear or convolutional layer as one row for each output position.

For every layer and its options ``outputs = unfolded @ kernel^T + bias`` holds group by group: stride, padding, dilation
and transposition are all in how the input is unfolded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tenfold.layers.functional import missing_output, padding_amounts
from tenfold.layers.spec import LayerSpec


def unfold(spec: LayerSpec, x: Tensor, output_size: list[int] | None = None, *, every: Sequence[slice] = ()) -> Tensor:
    """Unfold (im2col) the inputs of a layer to ``(g, positions, c prod(k))``, ordered as ``(c, *k)`` of the kernel.

    Args:
        spec: the layer's options.
        x: its input, as the layer takes it, with or without an axis of examples.
        output_size: of a transposed convolution, as in `torch.nn.ConvTranspose2d`.
        every: which output positions, a slice for each spatial axis; all by default. Linear layers have none.

    Returns:
        one row for each output position, example after example, in the dtype of ``x``.
    """
    if spec.linear:
        return x.reshape(1, -1, spec.in_channels)
    axes = len(spec.kernel_size)
    x = x if x.ndim == axes + 2 else x[None]
    x = _stuffed(spec, x, output_size) if spec.transposed else _padded(spec, x)
    for axis, (k, d, s) in enumerate(zip(spec.kernel_size, spec.dilation, spec.stride, strict=True)):
        x = x.unfold(2 + axis, d * (k - 1) + 1, 1 if spec.transposed else s)[..., ::d]
    x = x[(slice(None), slice(None), *every)]
    if spec.transposed:
        x = x.flip(tuple(range(-axes, 0)))
    x = x.unflatten(1, (spec.groups, -1)).movedim(1, 0).movedim(2, -1 - axes)  # (g, N, *positions, c, *k)
    return x.reshape(spec.groups, -1, spec.in_channels // spec.groups * math.prod(spec.kernel_size))


def output_rows(spec: LayerSpec, y: Tensor) -> Tensor:
    """The outputs of a layer as ``(g, positions, out / groups)``, the positions in the order of `unfold`."""
    axis = -1 if spec.linear else y.ndim - 1 - len(spec.kernel_size)
    return y.movedim(axis, -1).reshape(-1, spec.groups, spec.out_channels // spec.groups).movedim(1, 0)


def _padded(spec: LayerSpec, x: Tensor) -> Tensor:
    amounts = padding_amounts(spec)
    return F.pad(x, amounts, "constant" if spec.padding_mode == "zeros" else spec.padding_mode) if any(amounts) else x


def _stuffed(spec: LayerSpec, x: Tensor, output_size: list[int] | None) -> Tensor:
    """Zeros between the inputs and around them: with its kernel reversed, a transposed convolution is a plain one."""
    extra = spec.output_padding if output_size is None else missing_output(spec, x, output_size)
    sizes = [(length - 1) * s + 1 for length, s in zip(x.shape[2:], spec.stride, strict=True)]
    wide = x.new_zeros(*x.shape[:2], *sizes)
    wide[(..., *(slice(None, None, s) for s in spec.stride))] = x
    amounts = []
    for axis in reversed(range(len(sizes))):
        around = spec.dilation[axis] * (spec.kernel_size[axis] - 1) - int(spec.padding[axis])
        amounts += [around, around + extra[axis]]
    return F.pad(wide, amounts)


def chunks(spec: LayerSpec, x: Tensor, y: Tensor, numbers: int) -> list[tuple[Tensor, Tensor]]:
    """Split inputs and outputs of a layer along the examples, to bound the size of the unfolded inputs.

    Args:
        spec: the options of the layer.
        x: its inputs.
        y: its outputs.
        numbers: about how many a part may unfold to.
    """
    if spec.linear:
        x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    elif x.ndim == len(spec.kernel_size) + 1:
        return [(x, y)]
    unfolded = y.numel() // spec.out_channels * spec.in_channels * math.prod(spec.kernel_size)
    count = max(1, min(len(x), -(-unfolded // numbers)))
    return list(zip(torch.tensor_split(x, count), torch.tensor_split(y, count), strict=True))
