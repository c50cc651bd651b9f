"""Sliced layers without their groups: one convolution whose kernel is block diagonal, in place of a grouped one.

An encoder in ``g s`` groups computes what one in ``g`` groups computes whose kernel has the ``s`` slices of each group
on its diagonal and zeros elsewhere: ``s`` times the multiply-adds, in a form that processors often do faster.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import cast

from jaxtyping import Shaped
from torch import Tensor, nn

from tenfold.layers.decomposed import memory_format, own_layout
from tenfold.layers.matrix import LowRank
from tenfold.layers.spec import build_dense, spec_of


def block_diagonal(kernel: Shaped[Tensor, "gsr c *k"], groups: int, slices: int) -> Shaped[Tensor, "gsr sc *k"]:
    """The kernel of a convolution in ``g`` groups that computes what one in ``g s`` groups does.

    Args:
        kernel: ``(g s r, c, *k)``, group after group.
        groups: ``g``.
        slices: ``s``.
    """
    split = kernel.unflatten(0, (groups, slices, -1))
    full = kernel.new_zeros(*split.shape[:3], slices, *split.shape[3:])  # (g, s, r, s, c, *k)
    full.diagonal(dim1=1, dim2=3).copy_(split.movedim(1, -1))
    return full.flatten(3, 4).flatten(0, 2)


def without_slices(layer: LowRank) -> nn.Sequential:
    """Plain layers that compute what a sliced factor pair does, its encoder in one piece per group. For inference.

    Args:
        layer: any factor pair with slices; untouched, its decoder is shared.
    """
    encoder = layer.encoder
    spec, weight = spec_of(encoder), cast("Tensor", encoder.weight)
    assert spec is not None
    groups = layer.spec.groups
    kernel = block_diagonal(own_layout(encoder, weight.detach()), groups, layer.slices)
    if layer.spec.linear:
        spec, kernel = replace(spec, kind="linear", kernel_size=(), groups=1), kernel[..., 0]
    else:
        spec = replace(spec, groups=groups)
    made = build_dense(spec, weight.device, weight.dtype)
    full = own_layout(made, kernel).contiguous(memory_format=memory_format(weight))
    made.weight = nn.Parameter(full, weight.requires_grad)
    parts = OrderedDict(encoder=made.train(layer.training), decoder=layer.decoder)
    return nn.Sequential(parts).train(layer.training)


def sliced(module: nn.Module) -> bool:
    """Whether a module is a factor pair of more than one slice."""
    return isinstance(module, LowRank) and module.slices > 1
