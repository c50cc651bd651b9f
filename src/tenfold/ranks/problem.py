"""What may be compressed: the layers of one model, their costs, and the options each of them has.

A problem is made once per model and asked for any number of budgets: the spectra are computed at the first question
and kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tenfold.errors import ArgumentError, UnsupportedLayer
from tenfold.layers.cost import Call, Cost, LayerCost, count_params, layer_cost, trace
from tenfold.layers.matrix import LowRank
from tenfold.layers.swap import Selection, Target, find, kernel_of, to_dense
from tenfold.linalg.fold import Fold, divisors
from tenfold.linalg.slices import slice_spectra
from tenfold.linalg.svd import require_finite
from tenfold.ranks.plan import Budget, LayerPlan, Plan, priced

_BATCHED = 1 << 17
"""Kernels up to this many numbers are factorised together with others of their shape; larger ones gain nothing."""


@dataclass(frozen=True)
class Site:
    """One weight that may be decomposed.

    Args:
        target: where it is.
        cost: its cost model, over all layers that use the weight.
        kernel: ``(out, in / groups, *k)``, a view of the model's own weight.
    """

    target: Target
    cost: LayerCost
    kernel: Tensor

    @property
    def name(self) -> str:
        """Of the first module that holds the weight."""
        return self.target.name

    def matrices(self, fold: str = "channel", slices: int = 1) -> Tensor:
        """The kernel's slices ``(g, k, rows, columns)`` in a fold."""
        f = Fold(self.cost.shape, self.cost.groups, slices, fold)
        return f.matrices(self.kernel).unflatten(0, (f.groups, slices))


@dataclass(frozen=True)
class Problem:
    """The layers of ``model`` that may be decomposed, and what the whole of it costs.

    Args:
        model: the dense model; it must not change while the problem is used.
        targets: every layer with a weight matrix, those that stay dense included.
        sites: those that may be decomposed.
        dense: cost of the model as it is.
        calls: how each named layer is used in one forward pass; empty without example inputs.
    """

    model: nn.Module
    targets: tuple[Target, ...]
    sites: tuple[Site, ...]
    dense: Cost
    calls: dict[str, tuple[Call, ...]]
    _spectra: dict[tuple[str, str, int], Tensor] = field(default_factory=dict, repr=False)

    def limits(self, budget: Budget) -> dict[str, int]:
        """What the sites together may cost: the budget less everything that stays as it is.

        Raises:
            ArgumentError: a limit on MACs without example inputs.
        """
        limits = {}
        for name in budget.limits:
            dense = getattr(self.dense, name)
            if dense is None:
                raise ArgumentError(
                    f"`example_inputs` must be given for a budget on {name}: a batch as the model takes it."
                )
            sites = sum(getattr(site.cost.dense(), name) for site in self.sites)
            limits[name] = budget.allowed(name, dense) - (dense - sites)
        return limits

    def spectra(self, fold: str, slices: Sequence[int] | None = None) -> list[dict[int, Tensor]]:
        """Per site ``{k: s (g, k, p)}``: singular values of the slices in a fold, for every ``k``; cached.

        Args:
            fold: a name from `tenfold.linalg.fold`.
            slices: numbers of slices; None: all divisors of the layer's input channels.
        """
        wanted = [tuple(k for k in divisors(s.cost.shape[1]) if slices is None or k in slices) for s in self.sites]
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

    def plan(
        self,
        method: str,
        chosen: Sequence[LayerPlan | None],
        *,
        budget: Budget | None = None,
        measure: str | None = None,
        level: float | None = None,
    ) -> Plan:
        """A plan from what was chosen for each site (None: dense), with reasons, ties and costs filled in."""
        choice = {site.name: c for site, c in zip(self.sites, chosen, strict=True) if c is not None}
        layers: dict[str, LayerPlan] = {}
        for target in self.targets:
            for name in (target.name, *target.aliases):
                tied = None if name == target.name else target.name
                layers[name] = self._layer(target, name, tied, choice.get(target.name))
        limits = {} if budget is None else budget.limits
        return Plan(method, layers, self.dense.params, self.dense.macs, measure, level, limits)

    def _layer(self, target: Target, name: str, tied: str | None, chosen: LayerPlan | None) -> LayerPlan:
        if target.spec is None:
            return LayerPlan("dense", params=0 if tied else target.params, reason=target.reason, tied_to=tied)
        cost_ = layer_cost(target.spec, self.calls.get(name, ()) if self.calls else None)
        base = chosen if chosen is not None else LayerPlan("dense", reason=target.reason or _DENSE)
        bare = priced(name, LayerPlan(base.decomposition, base.rank, base.groups, base.fold, layer=cost_, tied_to=tied))
        return LayerPlan(
            bare.decomposition, bare.rank, bare.groups, bare.fold, base.error, bare.params, bare.macs,
            base.reason, tied, cost_,
        )  # fmt: skip


_DENSE = "the budget allows it"
NO_SAVING = "no decomposition of it saves anything"


def survey(
    model: nn.Module,
    *,
    example_inputs: Any = None,
    target_modules: Selection = None,
    exclude_modules: Selection = None,
) -> Problem:
    """Find the layers that may be decomposed and count what they cost. The model is untouched.

    A model that is factorised already is multiplied back to dense first: ranks are always chosen on whole kernels.

    Args:
        model: any module with finite weights.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments; for MACs only.
        target_modules: only these layers: a regular expression for the whole name, or a list of names or endings.
        exclude_modules: never these.

    Raises:
        ArgumentError: a selection that matches nothing; inputs that the model does not take.
        TenfoldError: a weight with NaN or infinite entries, by name.
        UnsupportedLayer: there is no layer to decompose, or one named in full cannot be.
    """
    if any(isinstance(m, LowRank) for m in model.modules()):
        model = to_dense(model)
    targets = tuple(find(model, target_modules, exclude_modules))
    free = [t for t in targets if t.reason is None]
    if not free:
        found = "; ".join(f"'{t.name}': {t.reason}" for t in targets) or "it has no weight matrix at all"
        raise UnsupportedLayer(f"`model` has no layer that can be decomposed: {found}.")
    for target in targets:
        if target.spec is not None:
            require_finite(kernel_of(model, target), f"the weight of '{target.name}'")
    names = list(_distinct(model, targets))
    traced = None if example_inputs is None else trace(model, example_inputs, names)
    dense = Cost(count_params(model), traced.macs if traced else None)
    used = dict(traced.calls) if traced else {}
    sites = tuple(_site(model, t, used) for t in free)
    return Problem(model, targets, sites, dense, used)


def _site(model: nn.Module, target: Target, used: dict[str, tuple[Call, ...]]) -> Site:
    assert target.spec is not None
    calls = tuple(c for name in (target.name, *target.aliases) for c in used.get(name, ())) if used else None
    return Site(target, layer_cost(target.spec, calls), kernel_of(model, target))


def _distinct(model: nn.Module, targets: Iterable[Target]) -> Iterable[str]:
    """The names of all modules among the targets, each module once."""
    seen = set()
    for target in targets:
        for name in (target.name, *target.aliases):
            module = model.get_submodule(name)
            if target.spec is not None and id(module) not in seen:
                seen.add(id(module))
                yield name


def _rows_channels(site: Site, fold: str) -> Tensor:
    """The kernel as ``(g, rows, c, columns / c)``, as `slice_spectra` takes it."""
    return site.matrices(fold)[:, 0].unflatten(-1, (site.cost.shape[1], -1))


def _same_shape(sites: Sequence[tuple[int, Site]]) -> list[list[int]]:
    groups: dict[Any, list[int]] = {}
    for i, site in sites:
        small = site.kernel.numel() <= _BATCHED
        key = (site.cost.shape, site.cost.groups, site.kernel.dtype, site.kernel.device) if small else i
        groups.setdefault(key, []).append(i)
    return list(groups.values())
