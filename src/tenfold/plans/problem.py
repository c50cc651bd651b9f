"""What may be compressed: the layers of one model, their costs, and the options each of them has.

A problem is made once per model and asked for any number of budgets: the spectra are computed at the first question
and kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tenfold.errors import ArgumentError, UnsupportedLayer, check, is_count
from tenfold.layers.cost import Call, Cost, call_arguments, count_params, layer_cost, trace
from tenfold.layers.find import FoundLayer, find
from tenfold.layers.open_recurrent import opened, why_closed
from tenfold.layers.select import Selection
from tenfold.layers.spec import spec_of
from tenfold.layers.swap import multiplied_back
from tenfold.layers.usable import refuse_quantized, refuse_unusable, refuse_without_numbers
from tenfold.linalg.fold import slice_counts
from tenfold.linalg.slices import slice_spectra
from tenfold.linalg.svd import require_finite
from tenfold.plans.budget import Budget
from tenfold.plans.loss_gradients import Loss
from tenfold.plans.output_moments import Moments, collect
from tenfold.plans.plan import Factors, LayerPlan, Plan, fingerprint, priced
from tenfold.ranks.aligned import ACCELERATORS, CONVOLUTIONS, at_aligned
from tenfold.ranks.candidates import Candidates, entries
from tenfold.runtimes import NAMES

if TYPE_CHECKING:
    from tenfold.plans.network_times import NetworkTimes

_AIM = 0.98
"""Of a limit on latency, what is aimed at: a measurement errs by that."""
_BATCHED = 1 << 17
"""Kernels up to this many numbers are factorised together with others of their shape; larger ones gain nothing."""


@dataclass(frozen=True)
class Problem:
    """The layers of one model that may be decomposed, with costs, spectra and moments cached. From `survey`.

    Args:
        model: the dense model; it must not change while the problem is used.
        given: the model as it was given, factorised where it was: what a method has trained stands here.
        selected: whether the user named the layers that may be decomposed.
        found: every weight matrix, those that stay dense included.
        sites: those that may be decomposed.
        dense: cost of the model as it is.
        calls: how each named layer is used in one forward pass; empty without example inputs.
        example_inputs: what MACs are counted for; None where nobody asked for them.
        tables: the cache of `tenfold.plans.candidates`.
        data: calibration batches, see `survey`; None without any.
        times: what layers and networks take, for a budget on latency; None where nobody asked.
        layers: then, of a plan whose whole network tells what a pass takes outside its sites; at first the dense one.
        runtime: that latency is measured in.
        threads: that it may use.
        align: ranks are multiples of it, and of half of it in linear layers; of a smaller one where a layer would have
            few left.
    """

    model: nn.Module
    found: tuple[FoundLayer, ...]
    sites: tuple[FoundLayer, ...]
    dense: Cost
    calls: dict[str, tuple[Call, ...]]
    example_inputs: Any = None
    data: Iterable[Any] | None = None
    given: nn.Module | None = None
    selected: bool = False
    times: NetworkTimes | None = None
    layers: Mapping[str, LayerPlan] = field(default_factory=dict)
    runtime: str = "eager"
    threads: int = 1
    align: int = 1
    _spectra: dict[tuple[str, str, int], Tensor] = field(default_factory=dict, repr=False)
    tables: dict[Any, Any] = field(default_factory=dict, repr=False)
    _moments: dict[Any, dict[str, Moments]] = field(default_factory=dict, repr=False)

    def limits(self, budget: Budget) -> dict[str, int]:
        """The budget of all sites together, by cost: the limits less the cost of everything that stays as it is.

        Raises:
            ArgumentError: a limit on MACs or latency without example inputs.
        """
        limits = {}
        for name in budget.costs:
            dense = self.dense_cost(name)
            if name == "latency":
                limits[name] = self.aim(budget) - self.rest
                continue
            sites = sum(getattr(site.cost.dense(), name) for site in self.sites)
            limits[name] = budget.allowed(name, dense) - (dense - sites)
        return limits

    @property
    def rest(self) -> int:
        """Nanoseconds of a pass that are not spent in the sites, as the network of ``layers`` tells."""
        assert self.times is not None
        names = [site.name for site in self.sites]
        return self.times.measured(self.layers) - self.times.predicted(names, self.layers)

    def aim(self, budget: Budget) -> int:
        """The nanoseconds that are aimed at: a little less than a budget allows."""
        assert self.times is not None
        return int(_AIM * budget.allowed("latency", self.times.dense))

    def dense_cost(self, name: str) -> int:
        """The cost of the dense model, by name.

        Args:
            name: "params", "macs" or "latency", in nanoseconds.

        Raises:
            ArgumentError: MACs or latency without example inputs.
        """
        dense = getattr(self.dense, name, None)
        if name == "latency" and self.times is not None:
            dense = self.times.dense
        if dense is None:
            raise ArgumentError(
                f"`example_inputs` must be given for a budget on {name}: a batch as the model takes it."
            )
        return dense

    def fast(self, site: FoundLayer, table: Candidates) -> Candidates:
        """The options of a site that are to compete: those at aligned ranks; with times, those of them that are faster.

        Args:
            site: the layer.
            table: all its options.
        """
        if self.times is not None:
            return self.times.timed(site, table)
        if self.align == 1 or table.rank.ndim > 1:  # pairs of ranks are aligned from the start
            return table
        kept = np.append(0, at_aligned(table, self.multiple(site)))
        return replace(entries(table, kept), place=table.rank[kept])

    def multiple(self, site: FoundLayer) -> int:
        """The number that the ranks of a site are to be multiples of; 1 for any."""
        return max(1, self.align // 2) if site.options.linear else self.align

    def modules_of(self, site: FoundLayer) -> list[str]:
        """The modules that hold a site's weight, each under its first name."""
        return list(_modules_of(self.model, [site]))

    def without_bias(self, site: FoundLayer) -> list[str]:
        """The modules that hold a site's weight and have no bias, each module under its first name."""
        return [n for n in _modules_of(self.model, [site]) if self.model.get_submodule(n).bias is None]

    def require_sites(self) -> None:
        """Raise `UnsupportedLayer`, with all reasons and some layers for each, where no layer can be decomposed."""
        if self.sites:
            return
        reasons: dict[str, list[str]] = {}
        for layer in self.found:
            reasons.setdefault(layer.reason or "", []).append(f"'{layer.name}'")
        why = "; ".join(f"{_some(names)}: {reason}" for reason, names in reasons.items())
        raise UnsupportedLayer(
            f"`model` has no layer that can be decomposed: {why or 'it has no weight matrix at all'}."
        )

    def require_data(self) -> Iterable[Any]:
        """The calibration batches.

        Raises:
            ArgumentError: there are none.
        """
        if self.data is None:
            raise ArgumentError("`data` must be given for this method: batches of inputs, or (inputs, target) pairs.")
        return self.data

    def leaving(self, reasons: Mapping[str, str]) -> Problem:
        """A copy of the problem with some sites left dense, ``{name: reason}``."""
        found = tuple(replace(layer, reason=layer.reason or reasons.get(layer.name)) for layer in self.found)
        return replace(self, found=found, sites=tuple(x for x in found if x.reason is None), tables={})

    def renewed(self) -> Problem:
        """A copy of the problem for changed weights: layers, costs and selection are kept, spectra and moments dropped.

        Raises:
            TenfoldError: a weight with NaN or infinite entries, by name.
        """
        for site in self.sites:
            require_finite(site.kernel, f"the weight of '{site.name}'")
        return replace(self, _spectra={}, tables={}, _moments={})

    def spectra(self, fold: str, slices: Sequence[int] | None = None) -> list[dict[int, Tensor]]:
        """Singular values of each site in a fold, ``{k: s (g, k, p)}`` for every number of slices ``k``; cached.

        Args:
            fold: a name from `tenfold.linalg.fold`.
            slices: numbers of slices; None: all that the fold can have. Those that it cannot are left out.
        """
        possible = [slice_counts(s.cost.shape, fold) for s in self.sites]
        wanted = [tuple(k for k in ks if slices is None or k in slices) for ks in possible]
        todo = {
            i: ks for i, ks in enumerate(wanted) if any((self.sites[i].name, fold, k) not in self._spectra for k in ks)
        }
        for indices in _same_shape([(i, self.sites[i]) for i in todo]):
            batch = [_rows_channels(self.sites[i], fold) for i in indices]
            found = slice_spectra(torch.stack(batch) if len(batch) > 1 else batch[0][None], todo[indices[0]])
            for position, i in enumerate(indices):
                for k, s in found.items():
                    self._spectra[self.sites[i].name, fold, k] = s[position].cpu()
        return [{k: self._spectra[s.name, fold, k] for k in ks} for s, ks in zip(self.sites, wanted, strict=True)]

    def moments(
        self, *, samples: int, gradients: bool = False, seed: int = 0, loss: Loss | None = None
    ) -> dict[str, Moments]:
        """Moments of the sites' outputs on the calibration data, by site; cached. Arguments as in `collect`.

        Raises:
            ArgumentError: no data.
            DataError: no example in the data, or gradients of a model that is no classifier.
        """
        data = self.require_data()
        key = (samples, gradients, seed, loss)
        if key not in self._moments:
            layers = {s.name: (s.options, list(_modules_of(self.model, [s]))) for s in self.sites}
            self._moments[key] = collect(
                self.model, layers, data, samples=samples, gradients=gradients, seed=seed, loss=loss
            )
        return self._moments[key]

    def plan(
        self,
        method: str,
        chosen: Sequence[LayerPlan | None],
        *,
        budget: Budget | None = None,
        measure: str | None = None,
        level: float | None = None,
        gap: float | None = None,
        factors: Mapping[str, Factors] | None = None,
        calibration_bytes: int = 0,
    ) -> Plan:
        """The plan of chosen layer plans, one per site (None: dense), with reasons, ties and costs filled in.

        Args:
            method: the name of the method.
            chosen: one per site, in order.
            budget: what it was chosen for.
            measure: what errors and level mean.
            level: the objective reached.
            gap: how far it may be from the best one, relatively; None where that is not known.
            factors: of a method that makes them from data, by site.
            calibration_bytes: the memory that it took for that.
        """
        choice = {site.name: c for site, c in zip(self.sites, chosen, strict=True) if c is not None}
        held: dict[str, list[FoundLayer]] = {}  # several where a module shares some of its matrices
        for found in self.found:
            for name in found.names:
                held.setdefault(name, []).append(found)
        bare = {name for site in self.sites for name in self.without_bias(site)}
        layers: dict[str, LayerPlan] = {}
        for name, _ in self.model.named_modules(remove_duplicate=False):  # the model's order, ties where they stand
            if name in held:
                one = choice.get(held[name][0].name)
                one = None if one is None else replace(one, bias=one.bias and name in bare)
                layers[name] = self._layer(name, held[name], one)
        weights = {name: cast("Tensor", self.model.get_submodule(name).weight) for name in factors or {}}
        return Plan(
            method,
            layers,
            self.dense.params,
            self.dense.macs,
            measure,
            level,
            {} if budget is None else budget.limits,
            from_data=factors is not None,
            calibration_bytes=calibration_bytes,
            gap=gap,
            factors=dict(factors or {}),
            fingerprints={name: fingerprint(weight) for name, weight in weights.items()},
        )

    def _layer(self, name: str, held: Sequence[FoundLayer], chosen: LayerPlan | None) -> LayerPlan:
        own = [layer for layer in held if layer.name == name]
        found = (own or held)[0]
        tied = None if own else found.name
        spec = spec_of(self.model.get_submodule(name))
        if found.spec is None or spec is None:
            return LayerPlan("dense", params=sum(layer.params for layer in own), reason=found.reason, tied_to=tied)
        cost_ = layer_cost(spec, self.calls.get(name, ()) if self.calls else None)
        base = chosen if chosen is not None else LayerPlan("dense", reason=found.reason or ALLOWED)
        return replace(priced(name, replace(base, layer=cost_, tied_to=tied)), error=base.error, reason=base.reason)


ALLOWED = "the budget allows it"
READ = (
    "its weight is read outside its own forward, where factors would be multiplied back each time; "
    "name it in target_modules to decompose it all the same"
)
READ_AS_TENSORS = "the model reads its matrices as tensors, which they would be no more"
NO_SAVING = "no decomposition of it saves anything"
NOT_FASTER = "no form of it was measured to be faster here"
RANK_SAVES_NOTHING = "at the rank that the method gives it nothing would be saved"


def survey(
    model: nn.Module,
    *,
    example_inputs: Any = None,
    data: Iterable[Any] | None = None,
    target_modules: Selection = None,
    exclude_modules: Selection = None,
    runtime: str = "eager",
    threads: int = 1,
    align: int | None = 1,
    training: bool = False,
) -> Problem:
    """Find the layers that may be decomposed and count what they cost. The model is untouched.

    A model that is factorised already is multiplied back to dense first: ranks are always chosen on whole kernels. Each
    matrix of a recurrent layer is a layer of its own, by its name: ``rnn.weight_ih_l0``.

    Args:
        model: any module with finite weights.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments; for MACs only.
        data: calibration batches, for methods that need them: each what ``example_inputs`` may be, or a pair ``(inputs,
            target)``; see `tenfold.layers.calibration_batches`.
        target_modules: only these layers: a regular expression for the whole name, or a list of names or endings.
        exclude_modules: never these.
        runtime: that a budget on latency is measured in: "eager", "compile" or "onnxruntime".
        threads: that it may use there, >= 1.
        align: see `tenfold.plan`; 1: any rank, as a method's source has them.
        training: the model is to be trained as it is: its recurrent layers stay whole, and dense.

    Raises:
        ArgumentError: a selection that matches nothing; inputs that the model does not take; an unknown runtime; a
            number out of its range.
        TenfoldError: a weight with NaN or infinite entries, by name.
        UnsupportedLayer: there is no layer to decompose, or one named in full cannot be.
    """
    given, align = model, _alignment(align, example_inputs)
    check(runtime in NAMES, "runtime", f"one of {', '.join(NAMES)}", runtime)
    check(is_count(threads), "threads", "an integer >= 1", threads)
    refuse_unusable(model)
    refuse_quantized(model)
    refuse_without_numbers(model)
    whole = multiplied_back(model)
    model = whole if training else _opened(whole, example_inputs)
    found = find(model, target_modules, exclude_modules)
    if model is whole and not training:
        found = [replace(x, reason=READ_AS_TENSORS) if x.reason and _openable(x.module) else x for x in found]
    for layer in found:
        if layer.spec is not None:
            require_finite(layer.kernel, f"the weight of '{layer.name}'")
    traced = None if example_inputs is None else trace(model, example_inputs, list(_modules_of(model, found)))
    dense = Cost(count_params(model), traced.macs if traced else None)
    used = dict(traced.calls) if traced else {}
    named = set() if target_modules is None or isinstance(target_modules, str) else set(target_modules)
    if traced:
        found = [replace(x, reason=x.reason or READ) if traced.read.intersection(x.names) - named else x for x in found]
    if used:
        found = [replace(x, calls=tuple(c for name in x.names for c in used.get(name, ()))) for x in found]
    sites = tuple(layer for layer in found if layer.reason is None)
    return Problem(
        model,
        tuple(found),
        sites,
        dense,
        used,
        example_inputs,
        data,
        given,
        selected=target_modules is not None,
        runtime=runtime,
        threads=threads,
        align=align,
    )


def _opened(model: nn.Module, example_inputs: Any) -> nn.Module:
    """The model with the matrices of its recurrent layers as layers, unless its own code then fails on them."""
    made = opened(model)
    if made is not model and example_inputs is not None:
        try:
            trace(made, example_inputs)
        except ArgumentError:  # of inputs that no form of the model takes, it is raised again
            return model
    return made


def _openable(module: nn.Module) -> bool:
    return isinstance(module, nn.RNNBase) and why_closed(module) is None


def _alignment(align: int | None, example_inputs: Any) -> int:
    """The number that ranks are to be multiples of; see `tenfold.plan`."""
    check(align is None or is_count(align), "align", "an integer >= 1, or None", align)
    if align is not None:
        return align
    tensors = [leaf for leaf in tree_leaves(call_arguments(example_inputs)) if isinstance(leaf, Tensor)]
    if example_inputs is None or not tensors:
        return 1
    return CONVOLUTIONS if tensors[0].device.type == "cpu" else ACCELERATORS


def _some(names: Sequence[str]) -> str:
    """The first of many names."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _modules_of(model: nn.Module, found: Iterable[FoundLayer]) -> Iterable[str]:
    """The names of all modules among the layers found, each module once."""
    seen = set()
    for layer in found:
        for name in layer.names:
            module = model.get_submodule(name)
            if layer.spec is not None and id(module) not in seen and spec_of(module) is not None:
                seen.add(id(module))
                yield name


def _rows_channels(site: FoundLayer, fold: str) -> Tensor:
    """The kernel as ``(g, rows, c, columns / c)``, as `slice_spectra` takes it."""
    return site.matrices(fold)[:, 0].unflatten(-1, (site.cost.shape[1], -1))


def _same_shape(sites: Sequence[tuple[int, FoundLayer]]) -> list[list[int]]:
    groups: dict[Any, list[int]] = {}
    for i, site in sites:
        small = site.kernel.numel() <= _BATCHED
        key = (site.cost.shape, site.cost.groups, site.kernel.dtype, site.kernel.device) if small else i
        groups.setdefault(key, []).append(i)
    return list(groups.values())
