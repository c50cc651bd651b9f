"""Functional forms of linear and convolutional layers, for weights that are products."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from tenfold.layers.spec import LayerSpec

_CONVS: Any = (F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSED: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


def compute(
    spec: LayerSpec, x: Tensor, weight: Tensor, bias: Tensor | None = None, output_size: list[int] | None = None
) -> Tensor:
    """Apply torch's linear or convolution function with the options of a layer.

    Args:
        spec: the options; its numbers of channels are not looked at.
        x: the input, as the layer takes it.
        weight: as the layer stores it, see `to_weight`.
        bias: ``(out,)``.
        output_size: of a transposed convolution, as in `torch.nn.ConvTranspose2d`.
    """
    if spec.linear:
        return F.linear(x, weight.mT if spec.kind == "conv1d_gpt2" else weight, bias)
    axes = len(spec.kernel_size)
    if spec.transposed:
        extra = spec.output_padding if output_size is None else missing_output(spec, x, output_size)
        run = _TRANSPOSED[axes - 1]
        return run(x, weight, bias, spec.stride, spec.padding, extra, spec.groups, spec.dilation)
    padding = spec.padding
    if spec.padding_mode != "zeros":
        x, padding = F.pad(x, padding_amounts(spec), spec.padding_mode), 0
    return _CONVS[axes - 1](x, weight, bias, spec.stride, padding, spec.dilation, spec.groups)


def pointwise(axes: int, x: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """Pointwise convolution.

    Args:
        axes: the number of spatial axes.
        x: the input ``(N, in, *spatial)``.
        matrix: the weight ``(out, in)``.
        bias: ``(out,)``; None for none.
    """
    return _CONVS[axes - 1](x, matrix.reshape(*matrix.shape, *[1] * axes), bias)


def padding_amounts(spec: LayerSpec) -> list[int]:
    """Padding before and after each axis, the last axis first, as `F.pad` takes it."""
    amounts = []
    for axis in reversed(range(len(spec.kernel_size))):
        total = spec.dilation[axis] * (spec.kernel_size[axis] - 1)
        if isinstance(spec.padding, str):
            before = total // 2 if spec.padding == "same" else 0
            amounts += [before, total - before if spec.padding == "same" else 0]
        else:
            amounts += [spec.padding[axis]] * 2
    return amounts


def missing_output(spec: LayerSpec, x: Tensor, output_size: list[int]) -> list[int]:
    """The output padding of a transposed convolution for ``output_size``; torch refuses one that is out of range."""
    axes = len(spec.kernel_size)
    least = [
        (x.shape[a - axes] - 1) * spec.stride[a] - 2 * int(spec.padding[a]) + spec.dilation[a] * (k - 1) + 1
        for a, k in enumerate(spec.kernel_size)
    ]
    return [wanted - low for wanted, low in zip(list(output_size)[-axes:], least, strict=True)]
