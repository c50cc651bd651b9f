"""Filters that stand or fall together, in units, and their scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from tenfold.layers.channel_graph import Affected, ChannelGraph
from tenfold.layers.spec import spec_of, to_kernel
from tenfold.linalg.svd import require_finite, working


@dataclass(frozen=True, eq=False)
class Bundle:
    """Filters that can only be removed together, unit by unit.

    Args:
        root: the layer whose channels they are numbered by.
        channels: by layer, all layers that have them, the channels of each unit. A unit is one channel of the root, or
            several that a gate ties.
        scores: the norm of each unit's weights in all of these layers, ``(units,)``, float64.
    """

    root: str
    channels: Mapping[str, tuple[tuple[int, ...], ...]]
    scores: Tensor

    def __len__(self) -> int:
        """The number of units."""
        return len(self.scores)

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of all layers that have filters of the bundle."""
        return tuple(self.channels)

    @property
    def width(self) -> int:
        """The number of channels of the root."""
        return sum(map(len, self.channels[self.root]))

    @property
    def sizes(self) -> list[int]:
        """The number of filters in each unit, of all layers together."""
        return [sum(len(units[i]) for units in self.channels.values()) for i in range(len(self))]

    def of(self, name: str, units: Iterable[int]) -> tuple[int, ...]:
        """The channels of one layer that belong to these units, ascending."""
        return tuple(sorted(channel for unit in units for channel in self.channels[name][unit]))


def make_bundle(graph: ChannelGraph, root: str, names: Sequence[str], whole: Sequence[Affected], norm: float) -> Bundle:
    """Collect the filters that are removed together with those of ``root``, and score each unit.

    Args:
        graph: of the model.
        root: a layer.
        names: the layers that have channels in common with it, itself first.
        whole: what is affected if all its channels go.
        norm: 1 or 2, of the scores.

    Raises:
        UnsupportedLayer: torch-pruning fails on some channels.
        TenfoldError: a weight that is not finite.
    """
    units = _units(graph, root, whole)
    if all(len(unit) == 1 for unit in units):
        parts = [(i, whole) for i in range(len(units))][:1]  # one answer has all: each channel with its root's
    else:
        parts = [(i, graph.affected(root, unit)) for i, unit in enumerate(units)]
    channels: dict[str, list[list[int]]] = {name: [[] for _ in units] for name in names}
    unit_of = {channel: i for i, unit in enumerate(units) for channel in unit}
    for _, affected in parts:
        for one in affected:
            if one.puts_out and one.name in channels:
                for channel, source in zip(one.channels, one.roots, strict=True):
                    channels[one.name][unit_of[source]].append(channel)
    total = torch.zeros(len(units), dtype=torch.float64)
    for name, of_units in channels.items():
        layer = graph.model.get_submodule(name)
        spec = spec_of(layer)
        assert spec is not None
        weight = cast("Tensor", layer.weight)
        require_finite(weight, f"the weight of '{name}'")
        filters = working(to_kernel(spec, weight)).flatten(1).abs().pow(norm).sum(1).cpu().double()
        owner = torch.tensor([i for i, members in enumerate(of_units) for _ in members], dtype=torch.int64)
        total.index_add_(0, owner, filters[[channel for members in of_units for channel in members]].detach())
    fixed = {name: tuple(tuple(sorted(members)) for members in of_units) for name, of_units in channels.items()}
    return Bundle(root, fixed, total.pow(1 / norm))


def _units(graph: ChannelGraph, root: str, whole: Sequence[Affected]) -> list[tuple[int, ...]]:
    """The channels of the root that go together: usually each for itself; in a gate, those that are multiplied."""
    n = len(whole[0].channels)
    if not any(one.moved and one.puts_out for one in whole[1:]):
        return [(i,) for i in range(n)]

    def closure(channels: list[int]) -> set[int]:
        return {c for one in graph.affected(root, channels) if one.puts_out and one.name == root for c in one.channels}

    # Two channels differ in some bit of their numbers: if no half by a bit drags others along, no channel does.
    halves = [[i for i in range(n) if (i >> bit) & 1 == side] for bit in range((n - 1).bit_length()) for side in (0, 1)]
    if all(closure(half) == set(half) for half in halves):
        return [(i,) for i in range(n)]
    units: list[set[int]] = []
    for i in range(n):
        joined = closure([i]) | {i}
        apart = [unit for unit in units if not unit & joined]
        units = [*apart, joined.union(*(unit for unit in units if unit & joined))]
    return sorted(tuple(sorted(unit)) for unit in units)
