"""A convolution in Tucker format: three plain convolutions in place of one.

::

    W = C x_1 U_out x_2 U_in          y = U_out (C * (U_in^T x)) + b

``encoder`` is pointwise and maps the input to ``r_in`` channels, ``core`` carries the kernel, the stride, the padding
and the dilation and maps them to ``r_out``, ``decoder`` is pointwise and carries the bias. A grouped layer has one
Tucker tensor per group, all of the same ranks, and each of the three works in as many groups. Spatial modes stay in the
core. At full rank the three equal the layer they replaced, for every option.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self, cast

import torch
from torch import Tensor, nn

from tenfold.errors import check
from tenfold.layers.decomposed import PlainParts, own_layout, part_of
from tenfold.layers.spec import LayerSpec, swap_channels, to_kernel
from tenfold.linalg.multilinear import feasible
from tenfold.linalg.tucker import batch_product, hooi, stacked

_SWEEPS = 1
"""Of orthogonal iteration: most of the little that it gains, it gains in the first; each costs as much as the start."""


def channel_sizes(shape: tuple[int, ...], groups: int) -> tuple[tuple[int, int], int]:
    """The sizes of each group's Tucker tensor: ``(out / groups, in / groups)`` and the number of kernel entries."""
    return (shape[0] // groups, shape[1]), math.prod(shape[2:])


def full_ranks(shape: tuple[int, ...], groups: int = 1) -> tuple[int, int]:
    """The full Tucker ranks ``(r_out, r_in)`` of a generic kernel ``(out, in / groups, *k)``, which lose nothing."""
    sizes, rest = channel_sizes(shape, groups)
    first, second = feasible(sizes, sizes, rest)
    return first, second


def why_impossible(rank: Sequence[int], shape: tuple[int, ...], groups: int = 1) -> str | None:
    """Why a kernel of this shape cannot have these Tucker ranks; None where it can."""
    sizes, rest = channel_sizes(shape, groups)
    possible = len(rank) == 2 and min(rank) >= 1 and feasible(rank, sizes, rest) == tuple(rank)
    rule = f"1 <= r_out <= min({sizes[0]}, {rest} r_in) and 1 <= r_in <= min({sizes[1]}, {rest} r_out)"
    return None if possible else f"a pair (r_out, r_in) with {rule}, for kernel {shape} in {groups} groups"


class TuckerConv(PlainParts):
    """Convolution in Tucker-2 format: three convolutions in place of one, for 1 to 3 spatial axes, plain or transposed.

    Args:
        spec: the options of the convolution this one stands for.
        rank: ``(r_out, r_in)`` of each group, ``r_i <= min(n_i, r_j prod(k))``.

    The weights are initialised as torch initialises plain layers; `from_layer` factorises given ones.

    Raises:
        ArgumentError: a linear layer, whose weight is a matrix, or ranks that its kernel cannot have.
    """

    decomposition = "tucker"

    def __init__(self, spec: LayerSpec, rank: Sequence[int]) -> None:
        super().__init__(spec)
        check(not spec.linear, "spec", "of a convolution: the weight of a linear layer is a matrix", spec.kind)
        impossible = why_impossible(rank, spec.shape, spec.groups)
        check(impossible is None, "rank", str(impossible), tuple(rank))
        self.rank = (int(rank[0]), int(rank[1]))
        g, (outer, inner) = spec.groups, self.rank
        axes = tuple(range(len(spec.kernel_size)))
        self.encoder = part_of(spec, spec.in_channels, g * inner, g, (), bias=False)
        self.core = part_of(spec, g * inner, g * outer, g, axes, bias=False)
        self.decoder = part_of(spec, g * outer, spec.out_channels, g, (), bias=spec.bias)

    @classmethod
    def from_layer(cls, layer: nn.Module, spec: LayerSpec, rank: Sequence[int]) -> Self:
        """Factorise ``layer`` at ``rank``: higher-order SVD, improved by a sweep of higher-order orthogonal iteration.

        The bases are orthonormal, the scale of the weight is in the core.

        Args:
            layer: the dense layer; untouched.
            spec: its options.
            rank: see the class.

        Raises:
            ArgumentError: a rank that the kernel cannot have.
            TenfoldError: the weight has NaN or infinite entries.
        """
        new = cls.like(layer, spec, rank)
        new.set_factors(*tucker_factors(to_kernel(spec, cast("Tensor", layer.weight).detach()), spec.groups, new.rank))
        return new

    @classmethod
    def like(cls, layer: nn.Module, spec: LayerSpec, rank: Sequence[int]) -> Self:
        """A layer of this structure with uninitialised factors; bias, device, dtype and mode as in ``layer``.

        Args:
            layer: the dense layer; untouched.
            spec: its options.
            rank: see the class.

        Raises:
            ArgumentError: a rank that the kernel cannot have.
        """
        return cls._made_like(layer, spec, lambda: cls(spec, rank))

    @torch.no_grad()
    def set_factors(self, core: Tensor, outer: Tensor, inner: Tensor) -> None:
        """Copy factors into the three layers, group after group.

        Args:
            core: ``(g r_out, r_in, *k)``.
            outer: output basis ``(out, r_out)``.
            inner: input basis ``(in, r_in)``.
        """
        pointwise = [1] * len(self.spec.kernel_size)
        encoder, middle, decoder = self.factors
        encoder.copy_(swap_channels(inner, self.spec.groups).reshape(*encoder.shape[:2], *pointwise))
        middle.copy_(own_layout(self.core, core))
        decoder.copy_(outer.reshape(*outer.shape, *pointwise))

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Core, output and input basis, as `set_factors` takes them."""
        encoder, middle, decoder = self.factors
        return own_layout(self.core, middle), decoder.flatten(1), swap_channels(encoder.flatten(1), self.spec.groups)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """``(N, in, *spatial) -> (N, out, *spatial')``; ``output_size`` as in `torch.nn.ConvTranspose2d`."""
        if torch.jit.is_scripting():  # pyright: ignore[reportPrivateImportUsage]
            assert output_size is None, "a scripted factorised layer takes no output_size"
            return self.decoder(self.core(self.encoder(x)))
        else:  # noqa: RET505 - the one form that torch.jit.script leaves out
            return self._sized(x, output_size)

    @torch.jit.unused
    def _sized(self, x: Tensor, output_size: list[int] | None) -> Tensor:
        inner = self.encoder(x)
        if output_size is None:
            return self.decoder(self.core(inner))
        return self.decoder(self.core(inner, list(output_size)[-len(self.kernel_size) :]))

    @property
    def factors(self) -> tuple[nn.Parameter, ...]:
        """The weights of encoder, core and decoder."""
        return tuple(cast("nn.Parameter", part.weight) for part in (self.encoder, self.core, self.decoder))

    @property
    def kernel(self) -> Tensor:
        """See `Decomposed.kernel`."""
        core, *bases = self.tensors()
        return grouped_full(core, bases, self.spec.groups)

    def extra_repr(self) -> str:
        """The ranks, for ``print(model)``."""
        return f"rank={self.rank}"


def grouped_full(core: Tensor, bases: Sequence[Tensor], groups: int = 1, *, first: int = 0) -> Tensor:
    """The kernel ``(out, in / groups, *k)`` of a grouped Tucker tensor; differentiable in core and bases.

    Args:
        core: ``(g r_1, r_2, *rest)``.
        bases: ``U_i (g n_i, r_i)`` of consecutive modes.
        groups: ``g``.
        first: the mode of the first basis.
    """
    full = stacked(core, groups)
    for mode, basis in enumerate(bases, first):
        full = batch_product(full, stacked(basis, groups), mode)
    return full.flatten(0, 1)


def tucker_factors(kernel: Tensor, groups: int, rank: Sequence[int]) -> tuple[Tensor, ...]:
    """Tucker decomposition of a kernel ``(out, in / groups, *k)``.

    The core is ``(g r_1, r_2, *rest)``, the bases are ``(g n_i, r_i)``. Each group is decomposed by
    higher-order SVD, improved by a sweep of higher-order orthogonal iteration.
    """
    each = []
    for part in kernel.chunk(groups):
        core, bases = hooi(part, rank, sweeps=_SWEEPS)
        each.append((core, *bases))
    return tuple(torch.cat(parts) for parts in zip(*each, strict=True))
