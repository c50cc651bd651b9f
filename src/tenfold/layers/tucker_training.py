"""A layer in Tucker format while it trains: core and orthonormal bases as parameters, whose ranks may change.

It is what `tenfold.layers.tucker_protocol.Factorised` asks for. The forward pass runs the *chain* of the three layers
that the deployed form runs, or *merges* the factors and runs the dense layer, whichever is expected to be faster:
grouped layers are merged, since narrow grouped convolutions are slow, and others from 0.8 of the dense MACs on, since
three layers are slower than one of as many. Both compute the same, and neither asks for the ranks where these are less
than what is stored: a static layer compiles once.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.optim.swa_utils import AveragedModel

from tenfold.errors import ArgumentError, check
from tenfold.layers.decomposed import Decomposed
from tenfold.layers.functional import compute, pointwise
from tenfold.layers.matrix import LowRank, low_rank_class
from tenfold.layers.spec import LayerSpec, to_weight
from tenfold.layers.tucker import TuckerConv, channel_sizes, grouped_full
from tenfold.layers.tucker_chain import Convolution, chain
from tenfold.layers.tucker_protocol import active, put_
from tenfold.linalg.change_of_basis import grow
from tenfold.linalg.multilinear import feasible

_WORTH = 0.8
_AGAIN = 0.2
_ALIVE: weakref.WeakSet[TrainedTucker] = weakref.WeakSet()


class TrainedTucker(Decomposed):
    """A layer in Tucker format for training: ``W = C x_1 U_out x_2 U_in``, more modes if asked; ``U C V^T`` if linear.

    Args:
        spec: the options of the layer this one stands for.
        ranks: of the first modes of the kernel, two at least, ``1 <= r_i <= n_i``; of each group.

    The factors are uninitialised. They are stored at their ranks, until `reserve_` is called.

    Raises:
        ArgumentError: a rank out of range, or more ranks than the kernel has modes.
    """

    decomposition = "tucker in training"
    augmented: Tensor
    present: Tensor | None
    """The ranks, where the factors are stored at larger ones; saved with the rest."""

    def __init__(self, spec: LayerSpec, ranks: Sequence[int]) -> None:
        super().__init__(spec)
        sizes, self.groups, self.modes = self.sizes, spec.groups, len(ranks)
        check(2 <= len(ranks) <= len(sizes), "ranks", f"2 to {len(sizes)} numbers for {spec.shape}", tuple(ranks))
        for i, (r, n) in enumerate(zip(ranks, sizes, strict=False)):
            check(1 <= r <= n, f"ranks[{i}]", f"in 1..{n}", r)
        self.core = nn.Parameter(torch.empty(self._core_shape(ranks)))
        for i, r in enumerate(ranks):
            self.register_parameter(f"basis_{i}", nn.Parameter(torch.empty(spec.groups * sizes[i], r)))
        self.bias = nn.Parameter(torch.empty(spec.out_channels)) if spec.bias else None
        self.register_buffer("augmented", torch.tensor(False))
        self.register_buffer("present", None)
        self.constant_bases, self.precision = False, self.core.dtype
        _ALIVE.add(self)

    @classmethod
    def like(cls, layer: nn.Module, spec: LayerSpec, ranks: Sequence[int]) -> Self:
        """A layer of this structure with uninitialised factors; bias, device, dtype and mode as in ``layer``.

        Raises:
            ArgumentError: see the class.
        """
        new = cls._made_like(layer, spec, lambda: cls(spec, ranks))
        new.augmented.fill_(False)
        return new

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of the modes of each group's kernel: ``(out / groups, in / groups, *k)``."""
        return (self.spec.shape[0] // self.spec.groups, *self.spec.shape[1:])

    @property
    def bases(self) -> tuple[nn.Parameter, ...]:
        """The bases ``U_i (g n_i, r_i)`` of the active modes: out, in, then spatial."""
        return tuple(cast("nn.Parameter", self.get_parameter(f"basis_{i}")) for i in range(self.modes))

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks ``r_i`` of the active modes."""
        return self.stored if self.present is None else tuple(self.present.tolist())

    @property
    def stored(self) -> tuple[int, ...]:
        """The ranks that core and bases have room for: those that they have, unless the layer is `static`."""
        return tuple(basis.shape[1] for basis in self.bases)

    @property
    def static(self) -> bool:
        """Whether the parameters keep their shapes: from `reserve_` on."""
        return self.present is not None

    @property
    def rank(self) -> tuple[int, ...]:
        """See `ranks`."""
        return self.ranks

    @property
    def factors(self) -> tuple[nn.Parameter, ...]:
        """Core and bases."""
        return (self.core, *self.bases)

    @property
    def kernel(self) -> Tensor:
        """See `Decomposed.kernel`."""
        core, *bases = self._seen
        return grouped_full(core, bases, self.groups)

    @property
    def merged(self) -> bool:
        """Whether the forward pass multiplies the factors and runs the dense layer."""
        return self.groups > 1 or self.chain_share >= _WORTH

    @property
    def chain_share(self) -> float:
        """MACs of the chain, as stored, relative to those of the dense layer, borders not counted."""
        (out, inner), rest = channel_sizes(self.spec.shape, self.groups)
        return sum(self._macs) / (out * inner * rest)

    @property
    def recomputes(self) -> bool:
        """Whether the backward pass of the chain computes its first map again, in place of keeping it.

        So it does where that adds at most a fifth to the MACs of a step with constant bases.
        """
        first, core, last = self._macs
        return first <= _AGAIN * (2 * first + 3 * core + 2 * last)

    @property
    def _macs(self) -> tuple[float, float, float]:
        """MACs of the three parts per position where the dense layer works: of its output; transposed: of its input."""
        (out, inner), rest = channel_sizes(self.spec.shape, self.groups)
        r_out, r_in = self.stored[:2]
        more = 1 if self._pointwise else math.prod(self.spec.stride)
        before, after = (1, more) if self.spec.transposed else (more, 1)
        return before * r_in * inner, r_out * r_in * rest, after * r_out * out

    @torch.no_grad()
    def set_factors(self, core: Tensor, *bases: Tensor) -> None:
        """Copy core and bases, and take their ranks; gradients of another shape are dropped.

        Raises:
            ArgumentError: ranks that a static layer has no room for.
        """
        ranks = [basis.shape[1] for basis in bases]
        if self.present is None:
            self._resize_(ranks)
        else:
            fits = all(r <= most for r, most in zip(ranks, self.stored, strict=True))
            check(fits, "bases", f"of ranks up to {self.stored}, which the layer has room for", ranks)
            self.present.copy_(torch.tensor(ranks))
        self.core.copy_(grow(core, self.stored, self.groups))
        for mine, given in zip(self.bases, bases, strict=True):
            mine.copy_(nn.functional.pad(given, (0, mine.shape[1] - given.shape[1])))

    def reserve_(self, capacity: Sequence[int]) -> None:
        """Make the layer static: store the factors at these ranks, padded with zeros, so that no shape changes again.

        Raises:
            ArgumentError: less than the ranks, or more than the sizes of the modes.
        """
        sizes, ranks = self.sizes[: self.modes], self.ranks
        fits = len(capacity) == self.modes
        fits = fits and all(r <= c <= n for r, c, n in zip(ranks, capacity, sizes, strict=True))
        check(fits, "capacity", f"{self.modes} numbers from {ranks} to {sizes}", tuple(capacity))
        factors = [factor.clone() for factor in active(self)]
        self._resize_(capacity)
        self.present = torch.tensor(ranks, device=self.core.device)
        self.set_factors(*factors)

    def share_(self, twin: Decomposed) -> None:
        """See `Decomposed.share_`."""
        super().share_(twin)
        assert isinstance(twin, TrainedTucker)
        self.augmented, self.present = twin.augmented, twin.present

    @property
    def held_bias(self) -> nn.Parameter | None:
        """See `Decomposed.held_bias`."""
        return self.bias

    def tie_bias_(self, bias: nn.Parameter) -> None:
        """See `Decomposed.tie_bias_`."""
        self.bias = bias

    def deployed(self) -> LowRank | TuckerConv:
        """The equivalent of plain layers: three convolutions, or two layers where the kernel is a matrix."""
        own, (core, outer, inner, *spatial) = self.ranks[:2], active(self)
        core = grouped_full(core, spatial, self.groups, first=2)
        if not self._pointwise:
            ranks = feasible(own, *channel_sizes(self.spec.shape, self.groups))
            if ranks != own:  # in the middle of a cycle: more than the kernel can use
                return TuckerConv.from_layer(self.to_layer(), self.spec, ranks)
            new = TuckerConv.like(self, self.spec, ranks)
            new.set_factors(core, outer, inner)
            return new
        pair = low_rank_class(self.spec).like(self, self.spec, min(own))
        middle, left, right = (f.detach().unflatten(0, (self.groups, -1)) for f in (core.flatten(1), outer, inner))
        smaller = own[0] <= own[1]
        pair.set_factors(*((left, middle @ right.mT) if smaller else (left @ middle, right.mT)))
        return pair

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """The outputs of the layer; ``output_size`` as in `torch.nn.ConvTranspose2d`."""
        kind = x.device.type
        self.precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.core.dtype
        return (self._merge if self.merged else self._chain)(x, output_size)

    def _merge(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        return compute(self.spec, x, self._product(), self.bias, output_size)

    def _chain(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        assert self.groups == 1
        core, outer, inner, *spatial = self._seen
        if self.spec.linear:
            return nn.functional.linear((x @ inner) @ core.mT, outer, self.bias)
        axes, core = len(self.spec.kernel_size), grouped_full(core, spatial, self.groups, first=2)
        options = Convolution.of(self.spec, x, output_size) if _keeps_maps(x, axes) else None
        if options is not None:
            encoder, plain = inner.mT.reshape(-1, len(inner), *[1] * axes), Convolution.pointwise(axes)
            pair = (options, plain) if self._pointwise else (plain, options)
            weights = (encoder, core if self._pointwise else to_weight(self.spec, core), outer)
            return chain(x, weights, self.bias, *pair, again=self.recomputes)
        if self._pointwise:  # a stride drops positions before they cost anything
            encoder = inner.mT.reshape(-1, len(inner), *self.spec.kernel_size)
            middle = pointwise(axes, compute(self.spec, x, encoder), core.flatten(1))
        else:
            middle = pointwise(axes, x, inner.mT)
            middle = compute(self.spec, middle, to_weight(self.spec, core), None, output_size)
        return pointwise(axes, middle, outer, self.bias)

    def extra_repr(self) -> str:
        """Ranks and execution, for ``print(model)``."""
        room = f" of {self.stored}" if self.static else ""
        return f"ranks={self.ranks}{room}, {'merged' if self.merged else 'chain'}"

    @property
    def _pointwise(self) -> bool:
        return math.prod(self.spec.kernel_size) == 1 and not self.spec.transposed

    def _resize_(self, ranks: Sequence[int]) -> None:
        """Make room for other ranks: numbers undefined, gradients dropped."""
        if tuple(ranks) == self.stored:
            return
        shapes = [self._core_shape(ranks), *((len(b), r) for b, r in zip(self.bases, ranks, strict=True))]
        for factor, shape in zip(self.factors, shapes, strict=True):
            put_(factor, factor.data.new_empty(shape))
            factor.grad = None

    def _core_shape(self, ranks: Sequence[int]) -> tuple[int, ...]:
        return (self.spec.groups * ranks[0], *ranks[1:], *self.sizes[len(ranks) :])

    @property
    def _seen(self) -> tuple[Tensor, ...]:
        """Core and bases as the forward pass uses them; constant bases stay in the graph, with a gradient of zero.

        So they are to their users what parameters are: `torch.autograd.grad` finds them in every step of a cycle.
        """
        if self.static or not self.constant_bases:
            return self.factors
        nothing = [basis[:0].sum() for basis in self.bases]
        return (self.core + sum(nothing), *(basis.detach() for basis in self.bases))

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        _ALIVE.add(self)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Take the ranks of what is loaded first, where neither is static."""
        saved = zip(self.bases, [state_dict.get(f"{prefix}basis_{i}") for i in range(self.modes)], strict=True)
        ranks = [b.shape[1] for mine, b in saved if isinstance(b, Tensor) and b.ndim == 2 and len(b) == len(mine)]
        core = state_dict.get(f"{prefix}core")
        whole = len(ranks) == self.modes and isinstance(core, Tensor) and core.shape == self._core_shape(ranks)
        if whole and self.present is None and f"{prefix}present" not in state_dict:
            self._resize_(ranks)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def basis_ids() -> set[int]:
    """The ids of the bases of all live `TrainedTucker` layers: no optimizer but an integrator may step them."""
    return {id(basis) for layer in _ALIVE for basis in layer.bases}


def _keeps_maps(x: Tensor, axes: int) -> bool:
    """Whether autograd would keep the maps of a chain. Compilers and tracers choose by themselves what is kept."""
    tracing = torch.compiler.is_compiling() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    return torch.is_grad_enabled() and not tracing and x.ndim == axes + 2


def _refuse_averages(owner: nn.Module, _: str, module: nn.Module | None) -> None:
    """Raise where torch's averages of weights are made of factors: their mean is not the mean of what they stand for.

    They would also end in a clash of shapes, as soon as a rank changes.
    """
    if isinstance(owner, AveragedModel) and module and any(isinstance(m, TrainedTucker) for m in module.modules()):
        raise ArgumentError(
            "`model` must not have layers in Tucker format, whose averaged factors are no average of weights. Average "
            "the dense equivalents: averaged = AveragedModel(tenfold.to_dense(model)), and "
            "averaged.update_parameters(tenfold.to_dense(model))."
        )


register_module_module_registration_hook(_refuse_averages)


def reserve_(model: nn.Module, capacity: Callable[[TrainedTucker], Sequence[int]]) -> None:
    """Make every `TrainedTucker` of a model static, with room for the ranks that ``capacity`` says; ties stay."""
    twins: dict[int, TrainedTucker] = {}
    for layer in model.modules():
        if isinstance(layer, TrainedTucker):
            twin = twins.setdefault(id(layer.core), layer)
            if twin is layer:
                layer.reserve_(capacity(layer))
            layer.share_(twin)
