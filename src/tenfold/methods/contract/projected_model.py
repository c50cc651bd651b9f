"""One model in training under a projection method: its weights as matrices, and what is done to them when."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from tenfold.errors import ArgumentError, TenfoldError, TenfoldWarning, check
from tenfold.layers.folded_weight import FoldedWeight
from tenfold.linalg.fold import NAMES, Fold
from tenfold.methods.contract.surveyed import surveyed
from tenfold.optim.distributed import shared
from tenfold.optim.hooks import State, trained_by
from tenfold.optim.projection.projector import RENEW, ProjectionResult, project_
from tenfold.plans.candidates import shapes

if TYPE_CHECKING:
    from tenfold.methods.contract.method import Goal
    from tenfold.methods.contract.projection import Projection, Ranks, Sites


def _in_fold(weight: FoldedWeight, name: str) -> FoldedWeight:
    """The same weight in another fold, whose every rank is projected at."""
    fold = replace(weight.fold, name=name)
    return replace(weight, fold=fold, most=fold.full_rank)


def _found(ranks: Ranks) -> list[int]:
    """The ranks alone; that there are some was checked before the first step."""
    assert ranks is not None
    return ranks[0]


def fresh() -> State:
    """The state that a run begins with."""
    return {"steps": 0, "projections": 0, "ranks": {}, "pull": {}, "bases": {}, "folds": None}


@dataclass
class ProjectedModel:
    """One model in training under a projection method.

    Args:
        method: that projects it.
        model: dense.
        goal: that it is trained towards.
        weights: that are projected, in the method's fold; allocated ones get folds of their own.
        sites: the inputs of the rank rule.
        fixed: the ranks where the weights do not decide them; None where they do.
        frozen_after: the step from which on ranks stay.
    """

    method: Projection
    model: nn.Module
    goal: Goal
    weights: list[FoldedWeight]
    sites: Sites
    fixed: list[int] | None
    frozen_after: int | None

    @classmethod
    def of(cls, method: Projection, model: nn.Module, goal: Goal, frozen_after: int | None) -> ProjectedModel:
        """The weights of ``model`` that the method takes.

        Args:
            method: see the class.
            model: see the class.
            goal: see the class.
            frozen_after: see the class.

        Raises:
            ArgumentError: a factorised model; a batch norm with another number of channels than its layer.
        """
        problem = surveyed(model, goal, method.choose)
        if problem.model is not model:
            raise ArgumentError("`model` must be dense to be projected; this one is factorised. See tenfold.to_dense.")
        problem = method.narrowed(problem, goal.budget)
        problem.require_sites()
        tables = shapes(problem, method.fold)
        sites = method.sites(problem, tables, goal.budget, None)
        fixed = None
        if not method.allocates and (not method.by_spectra or method.ranks is not None):
            fixed = _found(method.chosen(problem, sites))
        norms, modules = method.metrics(model), dict(model.named_modules())
        weights = []
        for site, table in zip(problem.sites, tables, strict=True):
            behind = {norms.get(name, "") for name in site.names}
            norm = modules.get(behind.pop()) if len(behind) == 1 else None  # one metric for all uses, or none
            fold = Fold(site.cost.shape, site.cost.groups, 1, method.fold)
            norm = norm if isinstance(norm, _BatchNorm) else None
            if norm is not None:
                rule = f"batch norms of as many channels as their layers ('{site.name}': {fold.shape[0]})"
                check(norm.num_features == fold.shape[0], "norms", rule, norm.num_features)
            most = fold.full_rank if method.sheds else int(table.rank[-1])
            weights.append(FoldedWeight(site.name, modules[site.name], site.options, fold, most, norm))
        return cls(method, model, goal, weights, sites, fixed, frozen_after)

    def project_(self, state: State, optimizer: Optimizer | None = None) -> ProjectionResult:
        """One projection of all weights; ``state`` is brought up to date."""
        if self.method.allocates:
            return self._project_allocated_(state, optimizer)
        # Ranks that were never chosen cannot stay as they are.
        frozen = self.frozen_after is not None and state["steps"] > self.frozen_after and state["projections"] > 0
        fixed = [state["ranks"].get(s.name, 0) for s in self.weights] if frozen else self.fixed
        trained = {id(s.weight) for s in self.weights} if optimizer is None else trained_by(optimizer)
        if fixed is not None:
            due = [i for i, s in enumerate(self.weights) if 0 < fixed[i] <= s.most and id(s.weight) in trained]
            weights = [self.weights[i] for i in due]
            return self._projected_(state, optimizer, weights, [fixed[i] for i in due])
        return self._projected_(state, optimizer, self.weights, partial(self._by_spectra, trained))

    def _project_allocated_(self, state: State, optimizer: Optimizer | None) -> ProjectionResult:
        """A projection at the ranks and in the folds that the weights were allocated when the first one was due."""
        if state["folds"] is None:
            ((chosen,),) = shared(
                [self._allocation], [1.0]
            )  # by one process: others might differ in what is nearly tied
            pairs = {w.name: (int(r), NAMES[int(f)]) for w, (r, f) in zip(self.weights, chosen.tolist(), strict=True)}
            state["folds"] = {name: fold for name, (rank, fold) in pairs.items() if rank}
            state["ranks"] = {name: rank for name, (rank, _) in pairs.items() if rank}
        trained = None if optimizer is None else trained_by(optimizer)
        ranks: dict[str, int] = state["ranks"]
        folds: dict[str, str] = state["folds"]
        weights = [
            _in_fold(w, folds[w.name])
            for w in self.weights
            if w.name in folds and (trained is None or id(w.weight) in trained)
        ]
        return self._projected_(state, optimizer, weights, [ranks[w.name] for w in weights])

    def _allocation(self) -> list[Tensor]:
        """For each weight its rank, 0 where it stays dense, and its fold by number, from the weights as they are."""
        plan = self.method.choose(surveyed(self.model, self.goal, self.method.choose), self.goal.budget)
        layers = [plan.layers[w.name] for w in self.weights]
        rows = [(x.rank if isinstance(x.rank, int) else 0, NAMES.index(x.fold or "channel")) for x in layers]
        return [torch.tensor(rows, dtype=torch.float64)]

    def _projected_(
        self,
        state: State,
        optimizer: Optimizer | None,
        weights: list[FoldedWeight],
        ranks: list[int] | Callable[[list[Tensor]], list[int]],
    ) -> ProjectionResult:
        """Project these weights, to given ranks or to what is made of their spectra."""
        fixed = isinstance(ranks, list)
        if state["projections"] % RENEW == 0:
            state["bases"] = {}
        bases = state["bases"] if self.method.solver == "warm" and fixed else None
        outcome = project_(weights, ranks, self.method.settings, optimizer, bases)
        state["projections"] += 1
        state["ranks"] = state["ranks"] | outcome.ranks if fixed else outcome.ranks
        state["pull"] = outcome.pull
        self._report(outcome)
        return outcome

    def _by_spectra(self, trained: set[int], spectra: list[Tensor]) -> list[int]:
        """What the rule makes of the spectra; 0 for weights that are not trained."""
        ranks = _found(self.method.rule(replace(self.sites, spectra=spectra)))
        return [rank * (id(folded.weight) in trained) for folded, rank in zip(self.weights, ranks, strict=True)]

    def _report(self, outcome: ProjectionResult) -> None:
        if not outcome.broken:
            return
        names = ", ".join(f"'{name}'" for name in outcome.broken)
        text = f"{self.method.name} did not project {names}: NaN or infinite entries. Lower the learning rate."
        if self.method.nonfinite == "raise":
            raise TenfoldError(text)
        warnings.warn(text, TenfoldWarning, stacklevel=2)
