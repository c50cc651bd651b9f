"""Filters removed for good: convolutions get fewer output channels, and all that depends on them shrinks along.

Which layers depend on which, through residual sums, concatenations and norms, is `torch-pruning`'s dependency graph; it
is found by running the model once, and every answer of it is checked against the model with those channels silenced
(see `channel_graph`). A filter's score is the L1 or L2 norm of its weights. Filters that are tied to each other, by a
residual sum, say, or the two halves of a gate, stand or fall together: their score is the norm of all of them as one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from tenfold.errors import ArgumentError, UnsupportedLayer, check, is_share
from tenfold.layers.channel_graph import Affected, ChannelGraph, fault, generic, removed, require_same
from tenfold.layers.copy_model import duplicate
from tenfold.layers.filter_bundles import Bundle, make_bundle
from tenfold.layers.matrix import LowRank
from tenfold.layers.select import Selection, select
from tenfold.layers.spec import CONVS, TRANSPOSED, spec_of
from tenfold.layers.usable import refuse_unusable

_FILTERS = (*CONVS, *TRANSPOSED)
_NARROWED = (*_FILTERS, nn.Linear, _BatchNorm, _InstanceNorm, nn.PReLU)
"""What can lose channels without the others noticing; norms over several channels cannot."""


@dataclass(frozen=True)
class Filters:
    """The filters of one model that can be removed.

    Args:
        model: as it was given; it must not change while this is used.
        bundles: of filters, in the order of their roots.
        left: layers whose filters all stay, with the reason.
        example: inputs that the model runs on.
    """

    model: nn.Module
    bundles: tuple[Bundle, ...]
    left: Mapping[str, str]
    example: Any = field(repr=False)

    def steps(self, *, together: bool) -> list[float]:
        """The removed shares at which one more unit is removed, ascending, from 0; as `weakest` takes them."""
        if together:
            sizes = [_root_size(b, i) for b, i in self._ranked()]
            return _shares(sizes, sum(b.width for b in self.bundles))
        parts = [_shares([_root_size(b, i) for i in _order(b.scores)[:-1]], b.width) for b in self.bundles]
        return sorted({share for part in parts for share in part} | {0.0})

    def weakest(self, remove: float, *, together: bool) -> dict[str, list[int]]:
        """The channels to remove from each root, lowest scores first, by bundle or over all of them; one always stays.

        As many go as fit into ``remove`` of the channels of each root, or of all roots together. Ties go by index.
        Scores of different bundles are compared relative to the root mean square of their own.

        Args:
            remove: the share of the channels to remove, in [0, 1).
            together: choose over all bundles; otherwise the same share of each.

        Returns:
            the channels of each root that go, ascending.

        Raises:
            ArgumentError: a share out of range.
        """
        check(is_share(remove) and remove < 1, "remove", "in [0, 1)", remove)
        gone: dict[str, list[int]] = {b.root: [] for b in self.bundles}
        if together:
            room = _count(remove, sum(b.width for b in self.bundles))
            for b, i in _fitting(self._ranked(), room):
                gone[b.root] += b.channels[b.root][i]
        else:
            for b in self.bundles:
                ranked = [(b, i) for i in _order(b.scores)[:-1]]
                for _, i in _fitting(ranked, _count(remove, b.width)):
                    gone[b.root] += b.channels[b.root][i]
        return {root: sorted(channels) for root, channels in gone.items()}

    def names(self, gone: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
        """All removed channels by layer name, for every layer that loses some with these channels of the roots."""
        found = {}
        for b in self.bundles:
            lost = set(gone.get(b.root, ()))
            units = [i for i in range(len(b)) if lost.intersection(b.channels[b.root][i])]
            found |= {name: b.of(name, units) for name in b.layers if units}
        return found

    def share_removed(self, gone: Mapping[str, Sequence[int]]) -> float:
        """The share of the removable filters that is removed with these channels of the roots, in [0, 1)."""
        whole = sum(sum(b.sizes) for b in self.bundles)
        return sum(map(len, self.names(gone).values())) / whole if whole else 0.0

    def without(self, gone: Mapping[str, Sequence[int]]) -> nn.Module:
        """A copy of the model without these channels of the roots, not verified; see `checked`.

        Raises:
            UnsupportedLayer: torch-pruning fails on these.
            TenfoldError: `torch-pruning` is missing.
        """
        return removed(self.model, self.example, gone)

    def checked(self, gone: Mapping[str, Sequence[int]]) -> nn.Module:
        """A copy of the model without these channels of the roots, verified against the model with them silenced.

        Raises:
            UnsupportedLayer: the two differ on the example.
        """
        small = self.without(gone)
        require_same(self.model, small, self.example, gone)
        return small

    def _ranked(self) -> list[tuple[Bundle, int]]:
        """The units of all bundles by their scores, ascending, without the strongest of each."""
        scaled = [b.scores / b.scores.square().mean().sqrt().clamp(min=1e-300) for b in self.bundles]
        strongest = [int(b.scores.argmax()) for b in self.bundles]
        units = [(b, i) for b, top in zip(self.bundles, strongest, strict=True) for i in range(len(b)) if i != top]
        if not units:
            return []
        scores = torch.cat([s[torch.arange(len(s)) != top] for s, top in zip(scaled, strongest, strict=True)])
        return [units[i] for i in _order(scores)]


def find_filters(
    model: nn.Module,
    example_inputs: Any,
    *,
    norm: float = 2,
    target_modules: Selection = None,
    exclude_modules: Selection = None,
) -> Filters:
    """Find the filters of ``model`` that can be removed, with their scores. The model is untouched.

    Layers whose channels are the model's output stay as they are, and so do grouped convolutions that are not
    depthwise, what is normalised over several channels, and what is tied to either. What is left is tried: without one
    unit of each bundle, and without half of them, the model must compute on the example what it does with these
    channels silenced, to 1e-8 of its largest output in float64 (1e-3 where it only runs in float32). Bundles that do
    not stay, with the reason. That takes two more copies of the model in float64.

    Args:
        model: any module that runs on ``example_inputs``.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments.
        norm: 1 or 2, of a filter's weights.
        target_modules: only the filters of these layers; see `tenfold.plan`.
        exclude_modules: never those of these.

    Raises:
        ArgumentError: another norm, a wrapped model, or inputs that it does not run on.
        UnsupportedLayer: `torch-pruning` cannot follow the channels of this model at all.
        TenfoldError: `torch-pruning` is missing; a weight that is not finite.
    """
    check(norm in (1, 2), "norm", "1 or 2", norm)
    refuse_unusable(model)
    if any(isinstance(m, LowRank) for m in model.modules()):
        raise ArgumentError("`model` must be dense to lose filters; this one is factorised. See tenfold.to_dense.")
    copy = duplicate(model)
    graph = ChannelGraph(copy, example_inputs)
    layers = {name: None for m, name in graph.names.items() if isinstance(m, _FILTERS)}
    modules = dict(copy.named_modules(remove_duplicate=False))
    chosen = select(target_modules, "target_modules", layers, modules)
    excluded = select(exclude_modules, "exclude_modules", layers, modules) or set()
    bundles: list[Bundle] = []
    left: dict[str, str] = {}
    seen: set[str] = set()
    for root in layers:
        if root in seen:
            continue
        try:
            whole = graph.affected(root, range(_outputs(modules[root])))
            found = tuple(a.name for a in whole if a.puts_out and a.name in layers and a.name is not None)
            reason = _why_not(found, whole, graph, chosen, excluded)
            if reason is None:
                bundles.append(make_bundle(graph, root, found, whole, norm))
        except UnsupportedLayer as error:
            found, reason = (root,), str(error)
        seen.update(found)
        if reason is not None:
            left |= dict.fromkeys(found, reason)
    wrong = _wrong(model, graph, example_inputs, bundles)
    left |= {name: wrong[b.root] for b in bundles if b.root in wrong for name in b.layers}
    return Filters(model, tuple(b for b in bundles if b.root not in wrong), left, example_inputs)


def _why_not(
    found: tuple[str, ...],
    touched: Sequence[Affected],
    graph: ChannelGraph,
    chosen: set[str] | None,
    excluded: set[str],
) -> str | None:
    """Why filters stay: nobody asked for them, or a module that they pass cannot shrink."""
    if chosen is not None and not chosen.intersection(found):
        return "not in target_modules"
    if excluded.intersection(found):
        return "in exclude_modules" + ("" if len(found) == 1 else f", or tied to one that is: {', '.join(found)}")
    for one in touched:
        if one.name is None:
            continue
        module, kind = graph.model.get_submodule(one.name), type(one.module).__name__
        if isinstance(module, (nn.GroupNorm, nn.LayerNorm)):
            return f"'{one.name}' is a {kind}: it normalises several channels as one: without some the others change"
        if not isinstance(module, _NARROWED):
            return f"'{one.name}' is a {kind}, which takes or puts out these channels and cannot lose some"
        spec = spec_of(module)
        if isinstance(module, (*_FILTERS, nn.Linear)) and spec is None:
            return f"'{one.name}' is a {kind} with more than a plain layer has"
        if spec is not None and spec.groups > 1 and spec.groups != spec.in_channels:
            return f"'{one.name}' has groups of channels, which have to stay of one size"
    return None


def _wrong(model: nn.Module, graph: ChannelGraph, inputs: Any, bundles: Sequence[Bundle]) -> dict[str, str]:
    """The roots of bundles that are not removed rightly, with the reason."""
    probe, wide = generic(model, inputs)
    draw = torch.Generator().manual_seed(0)
    some = {}
    for b in bundles:
        order = torch.randperm(len(b), generator=draw).tolist()
        some[b.root] = [b.of(b.root, order[: min(count, len(b) - 1)]) for count in (1, max(1, len(b) // 2))]

    def why(those: Sequence[Bundle], trial: int) -> str | None:
        gone = {b.root: some[b.root][trial] for b in those}
        return fault(probe, graph, wide, gone) if any(gone.values()) else None

    def apart(those: Sequence[Bundle], trial: int) -> dict[str, str]:
        reason = why(those, trial)
        if reason is None:
            return {}
        if len(those) == 1:
            return {those[0].root: reason}
        half = len(those) // 2
        return apart(those[:half], trial) | apart(those[half:], trial)

    wrong = apart(bundles, 0)
    wrong |= apart([b for b in bundles if b.root not in wrong], 1)
    good = [b for b in bundles if b.root not in wrong]
    if wrong and any(why(good, trial) for trial in (0, 1)):  # the parts were right, the whole is not: one after another
        kept: list[Bundle] = []
        for b in good:
            reasons = [why([*kept, b], trial) for trial in (0, 1)]
            reason = reasons[0] or reasons[1]
            if reason is None:
                kept.append(b)
            else:
                wrong[b.root] = reason
    return wrong


def _outputs(layer: nn.Module) -> int:
    return cast("int", layer.out_channels)


def _root_size(bundle: Bundle, unit: int) -> int:
    return len(bundle.channels[bundle.root][unit])


def _shares(sizes: Sequence[int], whole: int) -> list[float]:
    return [count / whole for count in accumulate(sizes, initial=0)] if whole else [0.0]


def _fitting(ranked: Sequence[tuple[Bundle, int]], room: int) -> list[tuple[Bundle, int]]:
    """The first of these units, as many as have room for their channels."""
    used = accumulate(_root_size(b, i) for b, i in ranked)
    return [unit for unit, count in zip(ranked, used, strict=True) if count <= room]


def _order(scores: Tensor) -> list[int]:
    return torch.argsort(scores, stable=True).tolist()


def _count(share: float, whole: int) -> int:
    return math.floor(share * whole + 1e-9)
