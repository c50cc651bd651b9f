"""What the layers of a network take in every form, measured, and what the network takes that a plan makes of it.

The time of a network is a sum over its layers and a rest: activations, additions, what a runtime does between layers.
The rest is told by a whole network that was measured, and is good for those near it: first the dense one, then the one
of the last plan.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from tenfold.errors import ArgumentError
from tenfold.layers.cost import call_arguments
from tenfold.layers.find import FoundLayer
from tenfold.layers.layer_inputs import Uses, layer_inputs
from tenfold.layers.spec import spec_of
from tenfold.layers.swap import planned, skeleton, structure_of
from tenfold.plans.plan import LayerPlan
from tenfold.plans.problem import Problem
from tenfold.ranks.aligned import CONVOLUTIONS, MATRICES, at_aligned, knots
from tenfold.ranks.candidates import Candidates, entries
from tenfold.runtimes.optimize import without_norms
from tenfold.runtimes.runtime import torch_tensors

Make = Callable[[], nn.Module]
_UNITS = 100_000
"""Times are whole multiples of the dense network's over that: finer ones mean nothing, and are hard to add up."""
SLICES = (1, 2, 4)
"""Numbers of slices that compete: more of them, with few channels each, are slow in every runtime."""


class Measures(Protocol):
    """A stopwatch, see `tenfold.runtimes.stopwatch`."""

    @property
    def about(self) -> Mapping[str, Any]:
        """Under which conditions it measures."""
        ...

    def layer(
        self, key: str, options: Mapping[str, Make], shape: Sequence[int], dtype: torch.dtype
    ) -> Mapping[str, float]:
        """Nanoseconds of one call of each option of a layer; arguments as in `Stopwatch.layer`."""
        ...

    def network(self, key: str, make: Make, inputs: Any, beside: tuple[str, Make] | None = None) -> float:
        """Nanoseconds of a forward pass; arguments as in `Stopwatch.network`."""
        ...


class NetworkTimes:
    """Times of the layers of one network and of whole networks made of it. Batch norm is folded, as for inference.

    Args:
        problem: the layers, with example inputs.
        watch: measures.

    Raises:
        ArgumentError: no example inputs.
    """

    def __init__(self, problem: Problem, watch: Measures) -> None:
        if problem.example_inputs is None:
            raise ArgumentError(
                "`example_inputs` must be given for a budget on latency: a batch as the model takes it."
            )
        self.watch, self.inputs = watch, problem.example_inputs
        self.model, _ = without_norms(problem.model, self.inputs)
        sites = {site.name: problem.modules_of(site) for site in problem.sites}
        self.uses = layer_inputs(self.model, sites, self.inputs)
        self._sites = {site.name: site for site in problem.sites}
        self._times: dict[str, dict[str, int]] = {}
        self._options: dict[str, dict[str, LayerPlan]] = {}
        self.dense = self.measured({})
        self._unit = max(1, self.dense // _UNITS)

    @property
    def conditions(self) -> dict[str, Any]:
        """The conditions that times depend on: those of the stopwatch, and the shapes of the inputs."""
        return {**self.watch.about, "inputs": [list(shape) for shape, _ in self._shapes]}

    @property
    def _shapes(self) -> list[tuple[tuple[int, ...], str]]:
        return [(tuple(t.shape), str(t.dtype)) for t in torch_tensors(call_arguments(self.inputs))]

    @property
    def words(self) -> str:
        """The conditions in words."""
        about = self.conditions
        shapes = ", ".join("x".join(map(str, shape)) for shape in about["inputs"])
        return f"{about['runtime']}, {about['threads']} thread{'s' * (about['threads'] > 1)}, inputs {shapes}"

    def timed(self, site: FoundLayer, table: Candidates) -> Candidates:
        """The options of a site at aligned ranks that are measured faster than dense, with ``costs["latency"]``.

        Args:
            site: the layer.
            table: its options, of all ranks.
        """
        pairs = table.rank.ndim > 1
        if pairs:
            measured = list(range(1, len(table.rank)))
            wanted = [(measured, measured)]
        else:
            wanted, measured = self._wanted(table)
        options = {i: layer_option(table, i) for i in (0, *measured)}
        times = self._of(site, dict(options.values()))
        dense = times[options[0][0]]
        found = {0: dense}
        for line, at in wanted:
            known = [times[options[i][0]] for i in at]
            each = known if pairs else np.interp(table.rank[line], table.rank[at], known)
            found |= {int(i): round(t / self._unit) * self._unit for i, t in zip(line, each, strict=True)}
        kept = np.array(sorted(i for i, t in found.items() if i == 0 or t < dense), dtype=np.int64)
        made = entries(table, kept)
        latency = np.array([found[int(i)] for i in kept], dtype=np.int64)
        return replace(made, costs=made.costs | {"latency": latency}, place=kept if pairs else made.rank)

    def predicted(self, sites: Sequence[str], layers: Mapping[str, LayerPlan]) -> int:
        """The sum of what some sites take as a plan makes them, in nanoseconds; those that it does not name are dense.

        Args:
            sites: by name.
            layers: of the plan.
        """
        return sum(self.of_layer(name, layers.get(name)) for name in sites)

    def of_layer(self, name: str, layer: LayerPlan | None) -> int:
        """The time of one site in some form, in nanoseconds; between ranks that were measured, interpolated.

        Args:
            name: of the site.
            layer: the form; None: dense.
        """
        times = self._times.get(name) or self._of(self._sites[name], {"dense": LayerPlan("dense")})
        if layer is None or layer.decomposition == "dense":
            return times["dense"]
        key = option_name(layer)
        if key in times:
            return times[key]
        if isinstance(layer.rank, int):
            prefix = key.rpartition("/")[0] + "/"
            known = sorted((int(k.rpartition("/")[2]), t) for k, t in times.items() if k.startswith(prefix))
            if known:
                return round(float(np.interp(layer.rank, [r for r, _ in known], [t for _, t in known])))
        return times["dense"]

    def of(self, site: FoundLayer, layer: LayerPlan) -> int:
        """Nanoseconds of a site in a form, measured if need be."""
        name = option_name(layer)
        return self._of(site, {name: layer})[name]

    def fastest(self) -> dict[str, LayerPlan]:
        """The fastest option of each site, of all that have been measured."""
        made: dict[str, LayerPlan] = {}
        for name, times in self._times.items():
            best = min(times, key=lambda key: times[key])
            made |= dict.fromkeys(self._sites[name].names, self._options[name][best])
        return made

    def measured(self, layers: Mapping[str, LayerPlan]) -> int:
        """Nanoseconds of a forward pass of the network that a plan makes."""
        changed = {n: x for n, x in layers.items() if x.decomposition != "dense"}
        structure = {name: option_name(layer) for name, layer in changed.items()}
        key, dense = (self._key(each) for each in (structure, {}))
        beside = None if key == dense else (dense, lambda: self.model)
        with self._random_numbers_kept():
            return round(self.watch.network(key, lambda: sketch(self.model, changed), self.inputs, beside))

    def _random_numbers_kept(self) -> AbstractContextManager[None]:
        """Layers and inputs that are timed hold random numbers, which nobody else's are to depend on."""
        return torch.random.fork_rng([t.device for t in torch_tensors(call_arguments(self.inputs)) if t.is_cuda])

    def _key(self, structure: Mapping[str, str]) -> str:
        text = json.dumps([repr(self.model), self._shapes, structure], sort_keys=True)
        return f"network {hashlib.sha256(text.encode()).hexdigest()}"

    def _of(self, site: FoundLayer, options: Mapping[str, LayerPlan]) -> dict[str, int]:
        """Nanoseconds of the options of a site, over all its uses in one forward pass; by name."""
        known = self._times.setdefault(site.name, {})
        if not set(options) <= set(known):
            layer = self.model.get_submodule(site.name)
            spec = spec_of(layer)
            assert spec is not None
            total = dict.fromkeys(options, 0.0)
            for (shape, dtype), times in self.uses.get(site.name, Uses()).items():
                makes = {name: partial(layer_in_form, layer, plan) for name, plan in options.items()}
                with self._random_numbers_kept():
                    found = self.watch.layer(repr(spec), makes, shape, dtype)
                total = {name: total[name] + times * found[name] for name in options}
            known |= {name: round(value / self._unit) * self._unit for name, value in total.items()}
            self._options.setdefault(site.name, {}).update(options)
        return known

    def _wanted(self, table: Candidates) -> tuple[list[tuple[Any, Any]], list[int]]:
        """The entries at aligned ranks, and those of them that are measured, for each fold and number of slices."""
        lines, aligned = [], at_aligned(table, self._multiple(table))
        for fold in range(len(table.folds)):
            for k in SLICES:
                line = aligned[(table.fold[aligned] == fold) & (table.slices[aligned] == k)].tolist()
                if line:
                    lines.append((line, knots(line)))
        return lines, [i for _, at in lines for i in at]

    def _multiple(self, table: Candidates) -> int:
        spec = spec_of(self.model.get_submodule(table.name))
        return MATRICES if spec is not None and spec.linear else CONVOLUTIONS


def sketch(model: nn.Module, layers: Mapping[str, LayerPlan]) -> nn.Module:
    """A network of a plan's structure, with random factors: what numbers they are does not change its time."""
    made = skeleton(model, layers)
    for layer in structure_of(made).values():
        _fill_(layer)
    return made


def layer_option(table: Candidates, i: int) -> tuple[str, LayerPlan]:
    """The name and the structure of an entry of a table."""
    if i == 0:
        return "dense", LayerPlan("dense")
    if table.rank.ndim > 1:
        made = LayerPlan("tucker", tuple(table.rank[i].tolist()))
    else:
        made = LayerPlan("low-rank", int(table.rank[i]), int(table.slices[i]), table.folds[table.fold[i]])
    return option_name(made), made


def option_name(layer: LayerPlan) -> str:
    """A structure as text."""
    if layer.decomposition == "dense":
        return "dense"
    if isinstance(layer.rank, tuple):
        return "tucker/" + "x".join(map(str, layer.rank))
    return f"{layer.fold}/{layer.slices}/{layer.rank}"


def layer_in_form(layer: nn.Module, plan: LayerPlan) -> nn.Module:
    """A layer as a plan makes it, in eval mode, with random factors: what numbers they are does not change its time."""
    spec = spec_of(layer)
    if plan.decomposition == "dense" or spec is None:
        return layer
    return _fill_(planned(layer, replace(spec, bias=spec.bias or plan.bias), plan, empty=True)).eval()


@torch.no_grad()
def _fill_(layer: Any) -> nn.Module:
    for factor in layer.factors:
        factor.normal_(0, max(factor.numel() // max(len(factor), 1), 1) ** -0.5)
    return layer
