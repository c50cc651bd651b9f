"""Low-rank layers: two plain torch layers in place of one, given a fold.

``encoder`` maps the input to ``rank`` channels for each matrix of the fold and carries no bias; ``decoder`` maps them
to the output and carries it. Which of the two carries which part of the kernel, the stride, the padding and the
dilation, and in how many groups each of them works, is the fold's choice (`tenfold.linalg.fold`). At full rank the pair
equals the layer it replaced, for every option.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Self, cast

import torch
from torch import Tensor, nn

from tenfold.errors import check
from tenfold.layers.decomposed import PlainParts, own_layout, part_of
from tenfold.layers.spec import LayerSpec, to_kernel
from tenfold.linalg.fold import Fold
from tenfold.linalg.svd import low_rank_factors


class LowRank(PlainParts):
    """Base class of low-rank layers: a pair of factors for each matrix of a fold. Abstract.

    Args:
        spec: the options of the layer this one stands for.
        rank: of each matrix of the fold, ``1 <= rank <= Fold.full_rank``.
        slices: runs of consecutive input channels with a factor pair each.
        fold: a name from `tenfold.linalg.fold`.

    The weights are initialised as torch initialises plain layers; `from_layer` factorises given ones.

    Raises:
        ArgumentError: rank, slices or fold do not fit the layer.
    """

    decomposition = "low-rank"
    if TYPE_CHECKING:
        encoder: nn.Module

    def __init__(self, spec: LayerSpec, rank: int, slices: int, fold: str) -> None:
        super().__init__(spec)
        self.rank = rank
        self.slices = slices
        self.fold = fold
        full = self._fold.full_rank
        check(1 <= rank <= full, "rank", f"in 1..{full} for kernel {spec.shape}, {slices} slices, fold {fold!r}", rank)

    @classmethod
    def from_layer(cls, layer: nn.Module, spec: LayerSpec, rank: int, slices: int = 1, fold: str = "channel") -> Self:
        """Factorise ``layer`` at ``rank`` by truncated SVD of each matrix of the fold.

        Args:
            layer: the dense layer; untouched.
            spec: its options.
            rank: see the class.
            slices: see the class.
            fold: see the class.

        Raises:
            ArgumentError: rank, slices or fold do not fit the layer.
            TenfoldError: the weight has NaN or infinite entries.
        """
        new = cls.like(layer, spec, rank, slices, fold)
        weight = cast("Tensor", layer.weight)
        new.set_factors(*low_rank_factors(new._fold.matrices(to_kernel(spec, weight.detach())), rank))
        return new

    @classmethod
    def like(cls, layer: nn.Module, spec: LayerSpec, rank: int, slices: int = 1, fold: str = "channel") -> Self:
        """A layer of this structure with uninitialised factors; bias, device, dtype and mode as in ``layer``.

        Args:
            layer: the dense layer; untouched.
            spec: its options.
            rank: see the class.
            slices: see the class.
            fold: see the class.

        Raises:
            ArgumentError: rank, slices or fold do not fit the layer.
        """
        return cls._made_like(layer, spec, lambda: cls(spec, rank, slices, fold))

    @property
    def _fold(self) -> Fold:
        assert self.fold is not None
        return Fold(self.spec.shape, self.spec.groups, self.slices, self.fold)

    @property
    def factors(self) -> tuple[nn.Parameter, ...]:
        """The weights of encoder and decoder."""
        return tuple(cast("nn.Parameter", part.weight) for part in (self.encoder, self.decoder))

    @property
    def kernel(self) -> Tensor:
        """The dense equivalent ``(out, in / groups, *k)``, differentiable in the factors."""
        encoder, decoder = self.factor_kernels()
        return self._fold.product(encoder, decoder)

    @abstractmethod
    def set_factors(self, left: Tensor, right: Tensor) -> None:
        """Copy factors ``left (b, rows, r)``, ``right (b, r, columns)`` of the fold's matrices into the two layers."""

    @abstractmethod
    def factor_kernels(self) -> tuple[Tensor, Tensor]:
        """Encoder and decoder weights as the kernels that `Fold.product` takes."""

    def extra_repr(self) -> str:
        """Rank, slices and fold, for ``print(model)``."""
        sliced = f", slices={self.slices}" if self.slices > 1 else ""
        return f"rank={self.rank}{sliced}, fold={self.fold}"


class LowRankLinear(LowRank):
    """Low-rank linear layer: ``y = L (R x) + b`` with ``R (s r, in)`` and ``L (out, s r)``.

    ``R`` is block diagonal for ``s > 1`` slices; the encoder is then a grouped 1x1 `Conv1d`. Accepts any leading
    dimensions, as `torch.nn.Linear` does. For the arguments see `LowRank`.
    """

    def __init__(self, spec: LayerSpec, rank: int, slices: int = 1, fold: str = "channel") -> None:
        super().__init__(spec, rank, slices, fold)
        inner = slices * rank
        if slices == 1:
            self.encoder = nn.Linear(spec.in_channels, inner, bias=False)
        else:
            self.encoder = nn.Conv1d(spec.in_channels, inner, 1, groups=slices, bias=False)
        self.decoder = nn.Linear(inner, spec.out_channels, bias=spec.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(*, in) -> (*, out)``."""
        return self.decoder(self.encoded(x))

    def encoded(self, x: Tensor) -> Tensor:
        """``(*, in) -> (*, s r)``: what the decoder is given."""
        if self.slices == 1:
            return self.encoder(x)
        inner = self.encoder(x.reshape(-1, self.in_features, 1)).flatten(1)
        return inner.reshape(x.shape[:-1] + inner.shape[-1:])

    @torch.no_grad()
    def set_factors(self, left: Tensor, right: Tensor) -> None:
        """See `LowRank.set_factors`."""
        encoder = self._fold.encoder(right)
        cast("Tensor", self.encoder.weight).copy_(encoder if self.slices == 1 else encoder[..., None])
        cast("Tensor", self.decoder.weight).copy_(self._fold.decoder(left))

    def factor_kernels(self) -> tuple[Tensor, Tensor]:
        """See `LowRank.factor_kernels`."""
        encoder = cast("Tensor", self.encoder.weight)
        return (encoder if self.slices == 1 else encoder[..., 0]), cast("Tensor", self.decoder.weight)


class LowRankConv(LowRank):
    """Low-rank convolution: two convolutions in place of one, for 1 to 3 spatial axes, plain or transposed.

    For the arguments see `LowRank`.
    """

    def __init__(self, spec: LayerSpec, rank: int, slices: int = 1, fold: str = "channel") -> None:
        super().__init__(spec, rank, slices, fold)
        shape = self._fold
        inner = shape.batch * rank
        self.encoder = part_of(spec, spec.in_channels, inner, shape.encoder_groups, shape.encoder_axes, bias=False)
        self.decoder = part_of(spec, inner, spec.out_channels, shape.decoder_groups, shape.decoder_axes, bias=spec.bias)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """``(N, in, *spatial) -> (N, out, *spatial')``; ``output_size`` as in `torch.nn.ConvTranspose2d`."""
        if torch.jit.is_scripting():  # pyright: ignore[reportPrivateImportUsage]
            assert output_size is None, "a scripted factorised layer takes no output_size"
            return self.decoder(self.encoder(x))
        else:  # noqa: RET505 - the one form that torch.jit.script leaves out
            return self._sized(x, output_size)

    @torch.jit.unused
    def _sized(self, x: Tensor, output_size: list[int] | None) -> Tensor:
        if output_size is None:
            return self.decoder(self.encoder(x))
        if not self._fold.decoder_axes:
            return self.decoder(self.encoder(x, output_size))
        axes = len(self.kernel_size)
        final = list(output_size)[-axes:]
        middle = [final[a] if a in self._fold.encoder_axes else x.shape[a - axes] for a in range(axes)]
        inner = self.encoder(x, middle) if self._fold.encoder_axes else self.encoder(x)
        return self.decoder(inner, final)

    @torch.no_grad()
    def set_factors(self, left: Tensor, right: Tensor) -> None:
        """See `LowRank.set_factors`."""
        for part, kernel in ((self.encoder, self._fold.encoder(right)), (self.decoder, self._fold.decoder(left))):
            cast("Tensor", part.weight).copy_(own_layout(part, kernel))

    def factor_kernels(self) -> tuple[Tensor, Tensor]:
        """See `LowRank.factor_kernels`."""
        first, second = self.encoder, self.decoder
        return own_layout(first, cast("Tensor", first.weight)), own_layout(second, cast("Tensor", second.weight))


def low_rank_class(spec: LayerSpec) -> type[LowRankLinear] | type[LowRankConv]:
    """The low-rank class for a layer of this kind."""
    return LowRankLinear if spec.linear else LowRankConv
