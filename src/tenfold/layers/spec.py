"""What a linear or convolutional layer computes, apart from its numbers: read from a module, and built again.

The *kernel* of every layer has one layout here, ``(out, in / groups, *kernel_size)``: a `Linear` has no kernel size, a
transposed convolution and GPT-2's ``Conv1D`` are brought into it and put back exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class LayerSpec:
    """The options of one linear or convolutional layer.

    Args:
        kind: ``"linear"``, ``"conv"``, ``"conv_transpose"``, or ``"conv1d_gpt2"`` (a linear layer that stores its
            weight as ``(in, out)``).
        out_channels: output channels or features, all groups together.
        in_channels: input channels or features, all groups together.
        kernel_size: spatial sizes; empty for linear kinds.
        stride: per spatial axis.
        padding: per spatial axis, or ``"same"`` or ``"valid"``.
        output_padding: per spatial axis; transposed convolutions only.
        dilation: per spatial axis.
        groups: of the layer.
        padding_mode: as in `torch.nn.Conv2d`.
        bias: whether the layer has one.
    """

    kind: str
    out_channels: int
    in_channels: int
    kernel_size: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] | str = ()
    output_padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    padding_mode: str = "zeros"
    bias: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the kernel: ``(out, in / groups, *kernel_size)``."""
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The shape of the weight as the layer stores it; see `to_weight`."""
        if self.kind == "conv1d_gpt2":
            return (self.in_channels, self.out_channels)
        if self.transposed:
            return (self.in_channels, self.out_channels // self.groups, *self.kernel_size)
        return self.shape

    @property
    def linear(self) -> bool:
        """Whether the layer is a matrix product on the last axis."""
        return self.kind in ("linear", "conv1d_gpt2")

    @property
    def transposed(self) -> bool:
        """Whether the layer is a transposed convolution."""
        return self.kind == "conv_transpose"

    @property
    def params(self) -> int:
        """Number of weights of the dense kernel, bias not counted."""
        return math.prod(self.shape)


def spec_of(module: nn.Module) -> LayerSpec | None:
    """Read the options of a module; None where it is no layer that tenfold can replace exactly.

    A subclass counts as its torch base class only if it is no more than that: `forward` not overridden (by the class
    or on the instance), and no parameters, buffers or children beyond weight and bias, which a replacement would lose.
    """
    if _computes_like(module, nn.Linear):
        linear = cast("nn.Linear", module)
        return LayerSpec("linear", linear.out_features, linear.in_features, bias=linear.bias is not None)
    for n in range(3):
        if _computes_like(module, CONVS[n]) or _computes_like(module, TRANSPOSED[n]):
            conv = cast("nn.Conv2d", module)  # the attributes are the same for all six classes
            transposed = isinstance(module, TRANSPOSED[n])
            return LayerSpec(
                "conv_transpose" if transposed else "conv",
                conv.out_channels,
                conv.in_channels,
                tuple(conv.kernel_size),
                tuple(conv.stride),
                conv.padding if isinstance(conv.padding, str) else tuple(cast("tuple[int, ...]", conv.padding)),
                tuple(conv.output_padding) if transposed else (),
                tuple(conv.dilation),
                conv.groups,
                conv.padding_mode,
                conv.bias is not None,
            )
    if _is_gpt2_conv1d(module):
        n_in, n_out = cast("Tensor", module.weight).shape
        return LayerSpec("conv1d_gpt2", n_out, n_in, bias=module.bias is not None)
    return None


def to_kernel(spec: LayerSpec, weight: Shaped[Tensor, "..."]) -> Shaped[Tensor, "f c *k"]:
    """Convert a layer's own weight to a kernel ``(out, in / groups, *k)``."""
    if spec.kind == "conv1d_gpt2":
        return weight.mT
    return swap_channels(weight, spec.groups) if spec.transposed else weight


def to_weight(spec: LayerSpec, kernel: Shaped[Tensor, "f c *k"]) -> Shaped[Tensor, "..."]:
    """Convert a kernel to the layer's own weight: the exact inverse of `to_kernel`."""
    if spec.kind == "conv1d_gpt2":
        return kernel.mT
    return swap_channels(kernel, spec.groups) if spec.transposed else kernel


def swap_channels(weight: Shaped[Tensor, "a b *k"], groups: int) -> Shaped[Tensor, "gb ag *k"]:
    """Exchange the two channel axes group by group: ``(g a, b, *k) -> (g b, a, *k)``; its own inverse."""
    return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)


def build_dense(spec: LayerSpec, device: torch.device | str, dtype: torch.dtype) -> nn.Module:
    """A plain layer with these options and *uninitialised* weights; no random number is drawn."""
    where: Mapping[str, Any] = {"device": device, "dtype": dtype}
    if spec.kind == "linear":
        return nn.utils.skip_init(nn.Linear, spec.in_channels, spec.out_channels, bias=spec.bias, **where)
    if spec.kind == "conv1d_gpt2":
        from transformers.pytorch_utils import Conv1D

        with torch.device("meta"):
            layer = Conv1D(spec.out_channels, spec.in_channels)
        return layer.to(dtype).to_empty(device=device)
    n = len(spec.kernel_size) - 1
    extra = {"output_padding": spec.output_padding} if spec.transposed else {}
    return nn.utils.skip_init(
        (TRANSPOSED if spec.transposed else CONVS)[n],
        spec.in_channels,
        spec.out_channels,
        spec.kernel_size,
        stride=spec.stride,
        padding=spec.padding,
        dilation=spec.dilation,
        groups=spec.groups,
        padding_mode=spec.padding_mode,
        bias=spec.bias,
        **extra,
        **where,
    )


def _computes_like(module: nn.Module, base: type[nn.Module]) -> bool:
    if not isinstance(module, base):
        return False
    if set(module._parameters) - {"weight", "bias"} or module._buffers or module._modules:
        return False
    names = ("forward", "_conv_forward", "__call__")
    return not set(names) & set(vars(module)) and all(
        getattr(type(module), name, None) is getattr(base, name, None) for name in names
    )


def _is_gpt2_conv1d(module: nn.Module) -> bool:
    kind = type(module)
    return (kind.__module__, kind.__name__) == ("transformers.pytorch_utils", "Conv1D") and "forward" not in vars(
        module
    )
