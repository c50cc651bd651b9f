"""What TRP and LRPET share: dense weights that are trained, and projected onto low rank from time to time.

Both are settings of one operator, `tenfold.linalg.project`; they differ in when, in the rank rule, in metric and scale.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from tenfold.errors import ArgumentError, TenfoldWarning, check, is_count, is_share
from tenfold.layers.select import near
from tenfold.layers.spec import LayerSpec
from tenfold.linalg.fold import NAMES
from tenfold.methods.contract.allocated import SPATIAL, allocated
from tenfold.methods.contract.method import Goal, Method
from tenfold.methods.contract.projected_model import ProjectedModel, fresh
from tenfold.methods.contract.surveyed import surveyed
from tenfold.optim.hooks import State, gradient_scale, hook_steps, require_trained
from tenfold.optim.projection.projector import ProjectionSettings
from tenfold.plans.budget import Budget
from tenfold.plans.candidates import as_plan, candidates, refuse, shapes
from tenfold.plans.plan import Plan
from tenfold.plans.problem import Problem
from tenfold.plans.spared import spared, warn_of_small
from tenfold.plans.uniform_plan import full_ranks
from tenfold.ranks.candidates import Candidates
from tenfold.ranks.measures import MEASURES
from tenfold.ranks.uniform import entry_at

INTERVAL = 250
"""Steps between projections by epoch where nobody says how long an epoch is: Guo et al.'s on ImageNet."""
STATE = "projection"
"""Where the state of a run is: ``optimizer.param_groups[0][STATE]``."""


@dataclass(frozen=True)
class Sites:
    """The inputs of a rank rule: the layers that the method takes, in order.

    Args:
        tables: the options of each layer: costs by rank.
        full: the largest rank of each.
        limits: what all of them together may cost; None without a budget.
        spectra: singular values of each, ``(matrices, p)``, descending; None for a rule that needs none.
    """

    tables: Sequence[Candidates]
    full: Sequence[int]
    limits: Mapping[str, int] | None
    spectra: Sequence[Tensor] | None = None


Ranks = tuple[list[int], float | None] | None
"""One rank per layer, 0 for one that stays dense, and the level reached; None where the budget cannot be met."""


@dataclass(frozen=True, kw_only=True)
class Projection(Method):
    """Base class of methods that project dense weights onto low rank in training. Abstract.

    Args:
        every: optimizer steps from one projection to the next, >= 1, or "epoch".
        fold: see `tenfold.linalg.fold`.
        ranks: ranks by layer name, in place of the method's own rule, with a budget too, which they must keep to;
            layers that it does not name stay dense. "allocated": those that lose least in any layer within the budget,
            both spatial folds competing for each layer (or ``fold``, if it is not the channel fold), chosen from the
            weights at the first projection and kept; see `tenfold.methods.contract.allocated`. None: as published.
        start: the share of the steps before the first projection, in [0, 1); needs to know how many steps there will
            be, and counts as 0 where nobody says. 0: as published.
        momentum: what becomes of the optimizer's first moments at a projection: "keep" (as published), "project" by
            the same ``V_r V_r^T``, or "reset" to zero.
        solver: "exact", or "warm": where the ranks are fixed, by one subspace step from the last basis; exactly again
            where its residual is large, and every 50 projections.
        nonfinite: a weight with NaN or infinite entries is left alone with a warning that names it ("skip"), or
            raises ("raise"); the others are projected first.
        negligible: in [0, 1): of the layers that the method takes, the smallest that together hold at most this share
            of every limited cost of the model (without a budget: of the parameters) stay dense and are not projected:
            to cut them saves nothing to speak of and can cost everything. Layers that the user names (`target_modules`,
            ``ranks``) are cut all the same, and so are all where the budget cannot be kept otherwise, with a warning.
            0 cuts every layer alike, as published.

    Raises:
        ArgumentError: a value out of range.
    """

    every: int | str = "epoch"
    fold: str = "channel"
    ranks: Mapping[str, int] | Literal["allocated"] | None = None
    start: float = 0.0
    momentum: Literal["keep", "project", "reset"] = "keep"
    solver: Literal["exact", "warm"] = "exact"
    nonfinite: Literal["skip", "raise"] = "skip"
    negligible: float = 0.01

    needs_budget: ClassVar[bool] = False
    by_spectra: ClassVar[bool]
    """Whether the rule looks at the weights; otherwise shapes and budget fix the ranks from the first step."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check(self.every == "epoch" or is_count(self.every), "every", 'an integer >= 1, or "epoch"', self.every)
        check(self.fold in NAMES, "fold", f"one of {', '.join(NAMES)}", self.fold)
        check(is_share(self.negligible) and self.negligible < 1, "negligible", "a share in [0, 1)", self.negligible)
        check(is_share(self.start) and self.start < 1, "start", "a share in [0, 1)", self.start)
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(one.default, bool):
                check(isinstance(value, bool), one.name, "True or False", value)
            if one.name == "norms":
                check(value is None or isinstance(value, Mapping), one.name, "a mapping by layer name, or None", value)
        fits = self.ranks in (None, "allocated") or isinstance(self.ranks, Mapping)
        check(fits, "ranks", "a mapping by layer name, 'allocated', or None", self.ranks)
        for name, rank in (self.given or {}).items():
            check(is_count(rank), "ranks", f"integers >= 1 by layer name ('{name}')", rank)
        for name, allowed in _WORDS.items():
            check(getattr(self, name) in allowed, name, f"one of {', '.join(allowed)}", getattr(self, name))

    @property
    @abstractmethod
    def settings(self) -> ProjectionSettings:
        """The settings of the projection: energy transfer, tail, pull, and what becomes of the momentum."""

    @abstractmethod
    def leaves(self, spec: LayerSpec, first: bool) -> str | None:
        """The reason for which the method leaves a layer dense that the user has not named; None where it takes it.

        Args:
            spec: of the layer.
            first: whether it is the first convolution of the model.
        """

    @abstractmethod
    def rule(self, sites: Sites) -> Ranks:
        """Choose the ranks of all sites. Those that save nothing leave their layer dense."""

    def metrics(self, model: nn.Module) -> Mapping[str, str]:
        """The batch norm in whose metric each layer is projected; layers without are absent."""
        return {}

    @property
    def sheds(self) -> bool:
        """Whether weights are projected at ranks that save nothing, too."""
        return False

    @property
    def least(self) -> int:
        """The smallest rank that the rule gives a layer, where its full rank is not smaller still."""
        return 1

    @property
    def given(self) -> Mapping[str, int] | None:
        """Ranks that the user gives, by layer name; None where there are none."""
        return self.ranks if isinstance(self.ranks, Mapping) else None

    @property
    def allocates(self) -> bool:
        """Whether ranks and folds are allocated from the weights."""
        return self.ranks == "allocated"

    def frozen_after(self, goal: Goal) -> int | None:
        """The number of steps after which the ranks stay as they are; None for never."""
        return None

    def begin(self, model: nn.Module, *, goal: Goal | None = None) -> nn.Module:
        """Make a copy, dense as it is trained; a budget of ``goal`` that is out of reach is refused at once.

        Raises:
            BudgetError: the budget cannot be reached; the message names what can.
            UnsupportedLayer: there is a budget, and the method leaves every layer dense.
        """
        if goal is not None and goal.budget is not None:
            problem = surveyed(model, goal, self.choose)
            if self.allocates:
                self.choose(problem, goal.budget)
            else:
                self._refuse_unreachable(self._taken(problem), goal.budget)
        return super().begin(model, goal=goal)

    def attach(self, model: nn.Module, optimizer: Optimizer, *, goal: Goal | None = None) -> Optimizer:
        """Hook the projections onto ``optimizer``; its state holds the count, ranks and bases, so checkpoints do.

        Args:
            model: what the optimizer trains, not wrapped.
            optimizer: any of torch's.
            goal: the selection and the budget that the training leads to; ``steps_per_epoch`` for ``every="epoch"``.
                Where nobody says how long an epoch is, that means every 250 steps, with a warning.

        Weights that the optimizer does not train, or that require no gradient, are left alone, and count in a budget as
        what they would be cut to.

        Raises:
            ArgumentError: a wrapped model, one with factorised layers, one whose layers the optimizer does not train,
                or a norm in ``norms`` with another number of channels than its layer.
            UnsupportedLayer: the method leaves every layer dense.
            BudgetError: the budget cannot be reached; the message names what can.
        """
        goal = goal or Goal()
        every = self.every if isinstance(self.every, int) else goal.steps_per_epoch
        if every is None:
            every = INTERVAL
            warnings.warn(
                f"`goal` does not say how many steps an epoch has: {self.name} projects every {INTERVAL} steps. "
                "Pass goal=tenfold.Goal(steps_per_epoch=len(loader)), or a number of steps as `every`.",
                TenfoldWarning,
                stacklevel=2,
            )
        if self.allocates and goal.budget is None:
            raise ArgumentError("`budget` must be given for ranks='allocated': e.g. tenfold.Budget(params=0.25).")
        begin = round(self.start * (goal.steps or 0))
        projected = ProjectedModel.of(self, model, goal, self.frozen_after(goal))
        require_trained(optimizer, [folded.weight for folded in projected.weights], self.name)

        def before(state: State) -> None:
            for folded in projected.weights:
                pull = state["pull"].get(folded.name)
                if pull is not None and folded.weight.grad is not None:
                    folded.weight.grad.add_(pull.to(folded.weight), alpha=gradient_scale(optimizer))

        def after(state: State) -> None:
            state["pull"] = {}
            if state["steps"] % every == 0 and state["steps"] >= begin:
                projected.project_(state, optimizer)

        hook_steps(optimizer, STATE, fresh(), before=before if self.settings.pull else None, after=after)
        return optimizer

    def project_(self, model: nn.Module, goal: Goal | None = None) -> dict[str, int]:
        """Project ``model`` in place, once: averaged weights, say, before they are evaluated.

        All layers are projected, frozen ones too, and by this process alone.

        Returns:
            the rank of each layer that was projected.
        """
        return ProjectedModel.of(self, model, goal or Goal(), None).project_(fresh()).ranks

    def choose(self, problem: Problem, budget: Budget | None) -> Plan:
        """Choose the ranks that the rule gives the weights as they are."""
        problem = self.narrowed(problem, budget)
        if self.allocates and budget is not None:
            folds = SPATIAL if self.fold == "channel" else (self.fold,)
            return allocated(problem, self.name, budget, folds=folds)
        tables = candidates(problem, MEASURES["fro"], folds=(self.fold,), slices=(1,))
        spectra = [s[1][:, 0] for s in problem.spectra(self.fold, (1,))]
        ranks, level = self.chosen(problem, self.sites(problem, tables, budget, spectra)) or (None, None)
        choice = None if ranks is None else _entries(tables, ranks)
        why = f"the rank that {self.name} gives it saves nothing"
        return as_plan(problem, self.name, tables, choice, budget, measure="fro", level=level, why=why)

    def narrowed(self, problem: Problem, budget: Budget | None = None) -> Problem:
        """A copy of the problem without the layers that the method leaves dense; those that the user named stay in it.

        Shapes, selection and budget decide, so training and the end agree.

        Args:
            problem: all layers.
            budget: what may be kept; None without one.

        Raises:
            ArgumentError: ``ranks`` names no layer that can be decomposed.
            UnsupportedLayer: the method leaves every layer dense.
            BudgetError: the budget cannot be reached.

        Warns:
            TenfoldWarning: the budget can only be kept by cutting the smallest layers too.
        """
        taken = self._taken(problem)
        if self.allocates:  # which leaves the smallest dense by itself
            return taken
        self._refuse_unreachable(taken, budget)
        small = {}
        if self.given is None:
            small = spared(taken, budget, shapes(taken, self.fold), self.negligible).small
        left = taken.leaving(small)
        if self._excess(left, budget) is not None:
            warn_of_small(self.name, list(small), stacklevel=5)
            return taken
        left.require_sites()
        return left

    def _refuse_unreachable(self, taken: Problem, budget: Budget | None) -> None:
        """Raise `BudgetError` where the least ranks of all layers that the method takes do not fit ``budget``."""
        least = self._excess(taken, budget)
        if least is not None and budget is not None:
            advice = "Raise it, or let more layers be decomposed."
            if self.least > 1:
                advice = f"Raise it, let more layers be decomposed, or allow ranks below {self.least}."
            raise refuse(taken, budget, least, advice if self.given is None else "Raise it, or lower `ranks`.")

    def _excess(self, problem: Problem, budget: Budget | None) -> dict[str, int] | None:
        """The least that all sites together can cost, where that is more than ``budget`` allows them; else None."""
        if budget is None:
            return None
        limits, tables = problem.limits(budget), shapes(problem, self.fold)
        ranks = [min(self.least, full) for full in full_ranks(problem, self.fold)]
        if self.given is not None:
            ranks = [self.given[site.name] for site in problem.sites]
        choice = _entries(tables, ranks)
        least = {name: sum(int(t.costs[name][c]) for t, c in zip(tables, choice, strict=True)) for name in limits}
        return least if any(least[name] > limits[name] for name in limits) else None

    def _taken(self, problem: Problem) -> Problem:
        """A copy of the problem without the layers that the method leaves dense whatever their size."""
        names = {site.name for site in problem.sites}
        unknown = next((name for name in self.given or () if name not in names), None)
        if unknown is not None:
            hint = near(unknown, names)
            raise ArgumentError(f"`ranks` must name layers that can be decomposed; got '{unknown}'.{hint}")
        if self.given is not None:
            return problem.leaving({name: "not in `ranks`" for name in names if name not in self.given})
        if problem.selected:
            return problem
        specs = {t.name: t.spec for t in problem.found if t.spec is not None}
        first = next((name for name, spec in specs.items() if not spec.linear), None)
        reasons = {name: self.leaves(specs[name], name == first) for name in names}
        left = problem.leaving({name: why for name, why in reasons.items() if why is not None})
        left.require_sites()
        return left

    def sites(
        self, problem: Problem, tables: Sequence[Candidates], budget: Budget | None, spectra: Sequence[Tensor] | None
    ) -> Sites:
        """The inputs of the rule.

        Args:
            problem: the layers that the method takes.
            tables: their candidates.
            budget: what may be kept; None without one.
            spectra: their singular values; None for a rule that needs none.
        """
        limits = None if budget is None else problem.limits(budget)
        return Sites(tables, full_ranks(problem, self.fold), limits, spectra)

    def chosen(self, problem: Problem, sites: Sites) -> Ranks:
        """The given ranks, or else the rule's."""
        return self.rule(sites) if self.given is None else ([self.given[site.name] for site in problem.sites], None)


_WORDS = {
    "momentum": ("keep", "project", "reset"),
    "solver": ("exact", "warm"),
    "nonfinite": ("skip", "raise"),
}


def _entries(tables: Sequence[Candidates], ranks: Sequence[int]) -> list[int]:
    """The entries of the tables at these ranks; dense where a rank saves nothing."""
    return [entry_at(table, rank) for rank, table in zip(ranks, tables, strict=True)]


def without(reason: str, name: str) -> str:
    """The reason in a plan for a layer that the method called ``name`` leaves dense by itself."""
    return f"{reason}, which {name} leaves dense; name it in target_modules"
