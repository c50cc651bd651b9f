"""Low-rank layers: two plain torch layers in place of one, given a fold.

``encoder`` maps the input to ``rank`` channels for each matrix of the fold and carries no bias; ``decoder`` maps them
to the output and carries it. Which of the two carries which part of the kernel, the stride, the padding and the
dilation, and in how many groups each of them works, is the fold's choice (`tenfold.linalg.fold`). At full rank the pair
equals the layer it replaced, for every option.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from tenfold.errors import check
from tenfold.layers.equivalent import Equivalent
from tenfold.layers.spec import CONVS, TRANSPOSED, LayerSpec, build_dense, swap_channels, to_kernel, to_weight
from tenfold.linalg.fold import Fold
from tenfold.linalg.svd import low_rank_factors


class LowRank(nn.Module, ABC):
    """What the two low-rank layers share: the factors' bookkeeping and the way back to dense. Abstract.

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
    encoder: nn.Module
    decoder: nn.Module

    def __init__(self, spec: LayerSpec, rank: int, slices: int, fold: str) -> None:
        super().__init__()
        self.spec = spec
        self.rank = rank
        self.slices = slices
        self.fold = fold
        self.added_bias = False
        """Whether the layer that this one stands for has no bias, though this one has."""
        full = self._fold.full_rank
        check(1 <= rank <= full, "rank", f"in 1..{full} for kernel {spec.shape}, {slices} slices, fold {fold!r}", rank)

    @classmethod
    def from_layer(cls, layer: nn.Module, spec: LayerSpec, rank: int, slices: int = 1, fold: str = "channel") -> Self:
        """Factorise ``layer`` at ``rank``: the Frobenius-best factors of each matrix of the fold.

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
        """Uninitialised factors in place of ``layer``'s weight, and all else as it is there.

        That is a copy of its bias, and its device, dtype, memory format, mode, and what requires a gradient. No
        random number is drawn.

        Raises:
            ArgumentError: rank, slices or fold do not fit the layer.
        """
        weight = cast("Tensor", layer.weight)
        with torch.device("meta"):
            new = cls(spec, rank, slices, fold)
        new = new.to(weight.dtype).to_empty(device=weight.device)
        if (form := _memory_format(weight)) is not torch.contiguous_format:
            new.to(memory_format=form)  # pyright: ignore[reportCallIssue] - stub lacks the overload
        new.requires_grad_(weight.requires_grad)
        new.added_bias = spec.bias and layer.bias is None
        if new.bias is not None:
            if layer.bias is None:
                new.bias.data.zero_()
            else:
                bias = cast("Tensor", layer.bias)
                cast("nn.Linear", new.decoder).bias = nn.Parameter(bias.detach().clone(), bias.requires_grad)
        return new.train(layer.training)

    @property
    def _fold(self) -> Fold:
        return Fold(self.spec.shape, self.spec.groups, self.slices, self.fold)

    @property
    def kernel(self) -> Tensor:
        """The dense equivalent ``(out, in / groups, *k)``, differentiable in the factors."""
        encoder, decoder = self.factor_kernels()
        return self._fold.product(encoder, decoder)

    @property
    def weight(self) -> Tensor:
        """The dense equivalent in the layout of the layer that was replaced.

        It is computed anew for each access, but only once its numbers are used: asking for its dtype costs nothing.
        """
        if torch.compiler.is_compiling():  # the compiler drops a product that nobody uses by itself
            return self._product()
        return Equivalent.of(self.spec.weight_shape, cast("Tensor", self.encoder.weight), self._product)

    def _product(self) -> Tensor:
        return to_weight(self.spec, self.kernel)

    @property
    def bias(self) -> nn.Parameter | None:
        """The bias, which the decoder carries."""
        return cast("nn.Linear", self.decoder).bias

    @abstractmethod
    def set_factors(self, left: Tensor, right: Tensor) -> None:
        """Copy factors ``left (b, rows, r)``, ``right (b, r, columns)`` of the fold's matrices into the two layers."""

    @abstractmethod
    def factor_kernels(self) -> tuple[Tensor, Tensor]:
        """Encoder and decoder weights as the kernels that `Fold.product` takes."""

    def to_layer(self) -> nn.Module:
        """A plain dense layer with the product of the factors as its weight, and the same bias parameter."""
        factors = [cast("Tensor", part.weight) for part in (self.encoder, self.decoder)]
        forms = {_memory_format(factor) for factor in factors} - {torch.contiguous_format}
        with torch.no_grad():
            weight = self._product().contiguous(memory_format=forms.pop() if forms else torch.contiguous_format)
        dense = build_dense(self.spec, weight.device, weight.dtype)
        dense.weight = nn.Parameter(weight, factors[0].requires_grad)
        if self.bias is not None:
            dense.bias = self.bias
        return dense.train(self.training)

    def extra_repr(self) -> str:
        """Rank, slices and fold, for ``print(model)``."""
        sliced = f", slices={self.slices}" if self.slices > 1 else ""
        return f"rank={self.rank}{sliced}, fold={self.fold}"


class LowRankLinear(LowRank):
    """``y = L (R x) + b`` with ``R (s r, in)`` and ``L (out, s r)``; ``R`` is block diagonal for ``s > 1`` slices.

    Accepts any leading dimensions, as `torch.nn.Linear` does. With slices the encoder is a grouped 1x1 `Conv1d`.
    """

    def __init__(self, spec: LayerSpec, rank: int, slices: int = 1, fold: str = "channel") -> None:
        super().__init__(spec, rank, slices, fold)
        self.in_features, self.out_features = spec.in_channels, spec.out_channels
        inner = slices * rank
        if slices == 1:
            self.encoder = nn.Linear(spec.in_channels, inner, bias=False)
        else:
            self.encoder = nn.Conv1d(spec.in_channels, inner, 1, groups=slices, bias=False)
        self.decoder = nn.Linear(inner, spec.out_channels, bias=spec.bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(*, in) -> (*, out)``."""
        if self.slices == 1:
            return self.decoder(self.encoder(x))
        inner = self.encoder(x.reshape(-1, self.in_features, 1))
        return self.decoder(inner.reshape(*x.shape[:-1], self.slices * self.rank))

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
    """Two convolutions in place of one, for 1 to 3 spatial axes, plain or transposed."""

    def __init__(self, spec: LayerSpec, rank: int, slices: int = 1, fold: str = "channel") -> None:
        super().__init__(spec, rank, slices, fold)
        self.in_channels, self.out_channels = spec.in_channels, spec.out_channels
        self.kernel_size, self.stride, self.padding = spec.kernel_size, spec.stride, spec.padding
        self.dilation, self.groups, self.padding_mode = spec.dilation, spec.groups, spec.padding_mode
        self.transposed, self.output_padding = spec.transposed, spec.output_padding
        shape = self._fold
        inner = shape.batch * rank
        self.encoder = _part(spec, spec.in_channels, inner, shape.encoder_groups, shape.encoder_axes, bias=False)
        self.decoder = _part(spec, inner, spec.out_channels, shape.decoder_groups, shape.decoder_axes, bias=spec.bias)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """``(N, in, *spatial) -> (N, out, *spatial')``; ``output_size`` as in `torch.nn.ConvTranspose2d`."""
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
            cast("Tensor", part.weight).copy_(_layout(part, kernel))

    def factor_kernels(self) -> tuple[Tensor, Tensor]:
        """See `LowRank.factor_kernels`."""
        first, second = self.encoder, self.decoder
        return _layout(first, cast("Tensor", first.weight)), _layout(second, cast("Tensor", second.weight))


def _part(
    spec: LayerSpec, channels_in: int, channels_out: int, groups: int, axes: tuple[int, ...], *, bias: bool
) -> nn.Module:
    """One of the two convolutions: the layer's options on ``axes``, a pointwise one elsewhere."""

    def pick(values: tuple[int, ...], default: int) -> tuple[int, ...]:
        return tuple(v if a in axes else default for a, v in enumerate(values))

    transposed = spec.transposed and len(axes) > 0  # a pointwise part needs no transposition
    options: dict[str, Any] = {
        "stride": pick(spec.stride, 1),
        "padding": spec.padding if isinstance(spec.padding, str) else pick(spec.padding, 0),
        "dilation": pick(spec.dilation, 1),
        "groups": groups,
        "padding_mode": spec.padding_mode,
        "bias": bias,
    }
    if not axes:
        options |= {"padding": 0, "padding_mode": "zeros"}
    if transposed:
        options["output_padding"] = pick(spec.output_padding, 0)
    kind: Any = (TRANSPOSED if transposed else CONVS)[len(spec.kernel_size) - 1]
    return kind(channels_in, channels_out, pick(spec.kernel_size, 1), **options)


def _layout(part: nn.Module, kernel: Tensor) -> Tensor:
    """Between a convolution's own weight layout and ``(out, in / groups, *k)``; its own inverse."""
    return swap_channels(kernel, cast("nn.Conv2d", part).groups) if isinstance(part, TRANSPOSED) else kernel


def _memory_format(weight: Tensor) -> torch.memory_format:
    """Channels last where the weight is so and not (as a 1x1 kernel is) contiguous as well."""
    for axes, form in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if weight.ndim == axes and weight.is_contiguous(memory_format=form) and not weight.is_contiguous():
            return form
    return torch.contiguous_format


def low_rank_class(spec: LayerSpec) -> type[LowRankLinear] | type[LowRankConv]:
    """The class that stands for a layer of this kind."""
    return LowRankLinear if spec.linear else LowRankConv
