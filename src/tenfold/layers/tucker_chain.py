"""Three convolutions in a row that keep less for the backward pass than torch does for each of them.

::

    z = A x,   w = K z,   y = B w + b        A and B pointwise, K with the kernel of the layer, or A with its stride

Torch keeps x, z and w, also where A and B ask for no gradient. Here w is kept only for the gradient of B, and z, if the
caller says so, is computed again from x. What is kept then is x, as by the dense layer, and no map more::

    gw = B^T gy          gB = gy w^T,  gb = sum gy
    (gz, gK) = the gradients of K at z
    (gx, gA) = the gradients of A at x
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from tenfold.layers.functional import missing_output, pointwise
from tenfold.layers.spec import LayerSpec

_MAP = 64


@dataclasses.dataclass(frozen=True)
class Convolution:
    """The options of one convolution, as `torch.ops.aten.convolution` takes them; of one group.

    Args:
        stride: per spatial axis.
        padding: of zeros, per spatial axis.
        dilation: per spatial axis.
        transposed: whether it is a transposed convolution.
        output_padding: per spatial axis.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]

    @classmethod
    def pointwise(cls, axes: int) -> Convolution:
        """A pointwise convolution over this number of spatial axes."""
        return cls((1,) * axes, (0,) * axes, (1,) * axes, False, (0,) * axes)

    @classmethod
    def of(cls, spec: LayerSpec, x: Tensor, output_size: list[int] | None = None) -> Convolution | None:
        """The options of a layer for inputs of the shape of ``x``; None where torch pads before the convolution."""
        none = (0,) * len(spec.kernel_size)
        padding = none if spec.padding == "valid" else spec.padding
        if isinstance(padding, str) or (spec.padding_mode != "zeros" and any(padding)):
            return None
        extra = spec.output_padding or none
        if spec.transposed and output_size is not None:
            extra = tuple(missing_output(spec, x, output_size))
        return cls(spec.stride, padding, spec.dilation, spec.transposed, extra)

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        """The convolution of ``x (N, in, *spatial)``."""
        if weight.shape[2:].numel() == 1 and self == Convolution.pointwise(x.ndim - 2):
            return mixed(x, weight.flatten(1))
        options = (self.stride, self.padding, self.dilation, self.transposed, self.output_padding)
        return torch.ops.aten.convolution(x, weight, None, *options, 1)

    def gradients(self, g: Tensor, x: Tensor, weight: Tensor, wanted: list[bool]) -> tuple[Tensor | None, ...]:
        """The gradients in ``x`` and ``weight``; None for what is not wanted.

        Args:
            g: the gradient of the output.
            x: the input ``(N, in, *spatial)``.
            weight: as torch stores it.
            wanted: that of ``x``, that of ``weight``.
        """
        options = (self.stride, self.padding, self.dilation, self.transposed, self.output_padding)
        return torch.ops.aten.convolution_backward(g, x, weight, None, *options, 1, [*wanted, False])[:2]


def mixed(x: Tensor, matrix: Tensor) -> Tensor:
    """The pointwise convolution of ``x (N, in, *spatial)`` by ``matrix (out, in)``.

    In the default format a processor does it faster as a product of matrices, unless the maps are tiny.
    """
    if x.device.type == "cpu" and x.is_contiguous() and x.shape[2:].numel() >= _MAP:
        return torch.bmm(matrix.expand(len(x), *matrix.shape), x.flatten(2)).reshape(len(x), -1, *x.shape[2:])
    return pointwise(x.ndim - 2, x, matrix)


def chain(
    x: Tensor,
    weights: tuple[Tensor, Tensor, Tensor],
    bias: Tensor | None,
    encoder: Convolution,
    core: Convolution,
    *,
    again: bool,
) -> Tensor:
    """Compute ``B K A x + b``, all in the type that autocast asks for.

    Gradients of any order, forward mode and `torch.func` work as on the plain convolutions.

    Args:
        x: the input ``(N, in, *spatial)``.
        weights: of A and K, as torch stores them, and B ``(out, r_out)``.
        bias: ``(out,)``; None for none.
        encoder: the options of A.
        core: the options of K.
        again: z is computed again in the backward pass.
    """
    kind, given = x.device.type, (x, *weights, bias)
    if torch.is_autocast_enabled(kind):
        low = torch.get_autocast_dtype(kind)
        given = tuple(t if t is None or t.dtype == torch.float64 else t.to(low) for t in given)
    with torch.autocast(kind, enabled=False):
        return _Chain.apply(*given, encoder, core, again)[0]  # pyright: ignore[reportOptionalSubscript]


class _Chain(torch.autograd.Function):
    """The chain, with z and w as further outputs, so that gradients of gradients see them."""

    generate_vmap_rule = True

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        x: Tensor,
        a: Tensor,
        k: Tensor,
        b: Tensor,
        bias: Tensor | None,
        encoder: Convolution,
        core: Convolution,
        again: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        z = encoder(x, a)
        w = core(z, k)
        return pointwise(x.ndim - 2, w, b, bias), z, w

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, a, k, b, _, ctx.encoder, ctx.core, again = inputs
        _, z, w = output
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, a, k, b, None if again else z, w if ctx.needs_input_grad[3] else None)
        ctx.save_for_forward(x, a, k, b, z, w)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gy: Tensor | None, gz: Tensor | None, gw: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        x, a, k, b, z, w = ctx.saved_tensors
        axes, (wants_x, wants_a, wants_k, wants_b, wants_bias, *_) = x.ndim - 2, ctx.needs_input_grad
        gx = ga = gk = gb = gbias = None
        with torch.autocast(x.device.type, enabled=False):
            if gy is not None:
                if wants_b:
                    wide = b.reshape(*b.shape, *[1] * axes)
                    gb = Convolution.pointwise(axes).gradients(gy, w, wide, [False, True])[1]
                    gb = None if gb is None else gb.reshape(b.shape)
                gbias = gy.sum([0, *range(2, gy.ndim)]) if wants_bias else None
                gw = _sum(gw, mixed(gy, b.mT))
            del w
            if gw is not None:
                z = ctx.encoder(x, a) if z is None else z
                gz_, gk = ctx.core.gradients(gw, z, k, [wants_x or wants_a, wants_k])
                gz = _sum(gz, gz_)
            del z
            if gz is not None:
                gx, ga = ctx.encoder.gradients(gz, x, a, [wants_x, wants_a])
        return gx, ga, gk, gb, gbias, None, None, None

    @staticmethod
    def jvp(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        tx: Tensor | None,
        ta: Tensor | None,
        tk: Tensor | None,
        tb: Tensor | None,
        tbias: Tensor | None,
        *_: Any,
    ) -> tuple[Tensor | None, ...]:
        x, a, k, b, z, w = ctx.saved_tensors
        axes = x.ndim - 2
        tz = _sum(None if tx is None else ctx.encoder(tx, a), None if ta is None else ctx.encoder(x, ta))
        tw = _sum(None if tz is None else ctx.core(tz, k), None if tk is None else ctx.core(z, tk))
        ty = _sum(None if tw is None else pointwise(axes, tw, b), None if tb is None else pointwise(axes, w, tb))
        return _sum(ty, None if tbias is None else tbias.reshape(-1, *[1] * axes)), tz, tw


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b
