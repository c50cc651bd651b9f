"""A whole model into Tucker format for training, and into plain layers afterwards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from tenfold.errors import ArgumentError, UnsupportedLayer, check, is_count, is_share
from tenfold.layers.copy_model import duplicate
from tenfold.layers.cost import layer_cost
from tenfold.layers.find import find
from tenfold.layers.select import Selection, near
from tenfold.layers.spec import LayerSpec, to_kernel
from tenfold.layers.swap import ready_, rebuild
from tenfold.layers.tucker_training import TrainedTucker
from tenfold.layers.usable import refuse_unusable
from tenfold.linalg.multilinear import feasible, random_tucker
from tenfold.linalg.tucker import Limits, tensor_cut

_SPATIAL = 5
"""Kernels from this size on have spatial modes worth cutting."""


def active_modes(spec: LayerSpec, spatial: bool) -> int:
    """Number of kernel modes with a basis, from the first on: out, in, and spatial ones of a large kernel if asked."""
    return len(spec.shape) if spatial and spec.kernel_size and min(spec.kernel_size) >= _SPATIAL else 2


def bounded_ranks(spec: LayerSpec, share: float, *, floor: int, spatial: bool) -> tuple[int, ...]:
    """The ranks ``max(floor, share n)`` of the active modes of size n, at most what a kernel of this shape can have.

    Args:
        spec: the options of the layer.
        share: of each mode's size, in (0, 1].
        floor: the smallest rank, >= 1.
        spatial: see `active_modes`.
    """
    return _possible(spec, [max(floor, int(share * n)) for n in _sizes(spec)[: active_modes(spec, spatial)]])


@dataclass(frozen=True)
class Converted:
    """The result of `to_tucker`: a model in Tucker format for training.

    Args:
        model: a new one.
        left: layers left dense, with the reason.
    """

    model: nn.Module
    left: dict[str, str]


@dataclass(frozen=True)
class _Start:
    """The structure of a layer in training."""

    rank: tuple[int, ...]
    decomposition: str = TrainedTucker.decomposition
    slices: int = 1
    fold: str | None = None
    bias: bool = False


def to_be_loaded(old: nn.Module, spec: LayerSpec, modes: int) -> TrainedTucker:
    """The layer in Tucker format for training of which only the number of modes with a basis is known: of ranks one.

    It takes the ranks of the state that is loaded into it.
    """
    return TrainedTucker.like(old, spec, [1] * modes)


@dataclass(frozen=True)
class _FromWeight:
    """Sequential HOSVD of the weight, to the ranks of the structure or to a tolerance below them."""

    floor: int
    tau: float | None

    def __call__(self, old: nn.Module, spec: LayerSpec, structure: Any, /, *, empty: bool) -> TrainedTucker:
        new = TrainedTucker.like(old, spec, structure.rank)
        if not empty:
            kernel = to_kernel(spec, cast("Tensor", old.weight).detach())
            least = structure.rank if self.tau is None else self.floor
            limits = Limits(least, structure.rank)
            cut = tensor_cut(kernel, len(structure.rank), self.tau or 0.0, limits=limits, groups=spec.groups)
            new.set_factors(cut.core, *cut.bases)
        return new


@dataclass(frozen=True)
class _FromScratch:
    """Random orthonormal bases, and a core with the energy of the weight that it replaces, in expectation."""

    generator: torch.Generator

    def __call__(self, old: nn.Module, spec: LayerSpec, structure: Any, /, *, empty: bool) -> TrainedTucker:
        new = TrainedTucker.like(old, spec, structure.rank)
        if not empty:
            norm = float(cast("Tensor", old.weight).detach().double().norm())
            core, bases = random_tucker(new.sizes, structure.rank, norm, self.generator, groups=spec.groups)
            new.set_factors(core, *bases)
        return new


def to_tucker(
    model: nn.Module,
    ranks: Mapping[str, int | Sequence[int]] | None = None,
    *,
    first: float = 0.25,
    floor: int = 4,
    spatial: bool = False,
    spared: Mapping[str, str] | None = None,
    tau: float | None = None,
    generator: torch.Generator | None = None,
    target_modules: Selection = None,
    exclude_modules: Selection = None,
) -> Converted:
    """Convert a model to Tucker format for training: a new model; ``model`` is untouched, tied weights stay tied.

    From the weights as they are, by sequential HOSVD; or, with a generator, from scratch: random orthonormal bases and
    a normal core of variance ``||W||^2 / numel(C)``, so that ``E ||C||^2 = ||W||^2``, which for a weight as it was
    initialised is what its initialisation expects.

    Args:
        model: a dense model.
        ranks: the first ranks by layer name: an int for all modes or one for each; layers that it does not name stay
            dense. None: those of ``first`` and ``floor``, in the layers that become smaller at them.
        first: the first rank of a mode, as a share of its size n, in (0, 1].
        floor: the lowest, >= 1; it goes before ``first``.
        spatial: whether the spatial modes of kernels of 5 or more get a basis too.
        spared: layers to leave dense, by name, with the reason.
        tau: from weights: lower the first ranks as far as a relative error of tau allows, in [0, 1), but not below
            ``floor``; None: do not.
        generator: from scratch, with its random numbers; None: from the weights.
        target_modules: see `tenfold.plan`.
        exclude_modules: see `tenfold.plan`.

    Raises:
        ArgumentError: a value out of range; tau given with a generator; a name in ``ranks`` that is no such layer.
        UnsupportedLayer: a layer in ``ranks`` that has to stay dense.
        TenfoldError: a weight with NaN or infinite entries, by name.
    """
    check(is_share(first) and 0 < first <= 1, "first", "in (0, 1]", first)
    check(is_count(floor), "floor", "an integer >= 1", floor)
    check(tau is None or (is_share(tau) and tau < 1), "tau", "in [0, 1), or None", tau)
    check(tau is None or generator is None, "tau", "None from scratch: random bases have no error", tau)
    targets = find(model, target_modules, exclude_modules)
    names = [t.name for t in targets]
    for name in ranks or ():
        if name not in names:
            raise ArgumentError(
                f"`ranks` must name layers with a weight of their own; got '{name}'.{near(name, names)}"
            )
    left: dict[str, str] = {}
    structures: dict[str, _Start] = {}
    for target in targets:
        reason, ranked = target.reason or (spared or {}).get(target.name), None
        if reason is None and target.spec is not None:
            weight = cast("Tensor", model.get_submodule(target.name).weight)
            reason = _why_dense(target.name, target.spec, weight, ranks)
        if reason is None and target.spec is not None:
            if ranks is not None:
                ranked = _given_ranks(target.name, target.spec, ranks[target.name], spatial)
            else:
                ranked = bounded_ranks(target.spec, first, floor=floor, spatial=spatial)
                if _weights(target.spec, ranked) >= target.spec.params:
                    reason = f"at its first ranks {ranked} nothing would be saved"
        if reason is None and ranked is not None:
            structures |= dict.fromkeys((target.name, *target.aliases), _Start(ranked))
        elif ranks is not None and target.name in ranks:
            raise UnsupportedLayer(f"`ranks` names '{target.name}', which stays dense: {reason}.")
        else:
            left[target.name] = str(reason)
    make = _FromWeight(floor, tau) if generator is None else _FromScratch(generator)
    return Converted(rebuild(model, structures, make), left)


def deploy(model: nn.Module) -> nn.Module:
    """Convert a model in Tucker training form to plain layers with the same factors: a new model.

    A kernel with spatial axes becomes a `TuckerConv`, a matrix a pair of layers. Ties stay.

    Raises:
        ArgumentError: a wrapped model.
    """
    refuse_unusable(model)
    memo: dict[int, Any] = {}
    twins: dict[int, Any] = {}
    for layer in model.modules():
        if isinstance(layer, TrainedTucker):
            new = layer.deployed()
            new.share_(twins.setdefault(id(layer.core), new))
            if layer.held_bias is not None and new.held_bias is not None:
                new.tie_bias_(memo.setdefault(id(layer.held_bias), new.held_bias))
            memo[id(layer)] = new
    return ready_(duplicate(model, memo))


def _why_dense(name: str, spec: LayerSpec, weight: Tensor, ranks: Mapping[str, Any] | None) -> str | None:
    """Why a layer stays dense whatever its ranks; None where it can be trained in Tucker format."""
    if ranks is not None and name not in ranks:
        return "not in `ranks`"
    if not weight.requires_grad:
        return "frozen: its weight requires no gradient"
    if min(_sizes(spec)[:2]) == 1:
        return "depthwise, or of one channel: there is no rank to cut"
    return None


def _given_ranks(name: str, spec: LayerSpec, given: int | Sequence[int], spatial: bool) -> tuple[int, ...]:
    """What ``ranks`` says of a layer, one for each active mode.

    Raises:
        ArgumentError: no ranks of such a layer.
    """
    modes = active_modes(spec, spatial)
    ranks = [given] * modes if isinstance(given, int) else list(given)
    fits = len(ranks) == modes and all(map(is_count, ranks))
    check(fits, "ranks", f"{modes} integers >= 1, or one, for '{name}' {spec.shape}", given)
    return _possible(spec, ranks)


def _possible(spec: LayerSpec, ranks: Sequence[int]) -> tuple[int, ...]:
    sizes, modes = _sizes(spec), len(ranks)
    return feasible(ranks, sizes[:modes], math.prod(sizes[modes:]))


def _sizes(spec: LayerSpec) -> tuple[int, ...]:
    return (spec.shape[0] // spec.groups, *spec.shape[1:])


def _weights(spec: LayerSpec, ranks: tuple[int, ...]) -> int:
    """Of the deployed form."""
    if math.prod(spec.shape[2:]) == 1:
        return min(ranks[:2]) * (spec.out_channels + spec.in_channels)
    return layer_cost(spec).tucker(ranks[:2]).params
