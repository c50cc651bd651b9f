"""Factors: dense training for a part of the run, then low-rank layers, trained as plain layers by any optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from tenfold.errors import ArgumentError, check, is_share
from tenfold.layers.matrix import LowRank
from tenfold.layers.random_init import Fresh
from tenfold.layers.swap import planned, rebuild, structure_of
from tenfold.layers.tucker import TuckerConv
from tenfold.linalg.fold import NAMES
from tenfold.linalg.svd import stable_rank
from tenfold.methods.contract.allocated import SPATIAL, allocated
from tenfold.methods.contract.method import Goal, Method, epoch_steps
from tenfold.methods.contract.surveyed import surveyed
from tenfold.optim.distributed import process
from tenfold.optim.factorise import factorise_, forms_in
from tenfold.optim.hooks import State, hook_steps, require_trained
from tenfold.optim.product_decay import decay_products_
from tenfold.optim.saved_form import follow_checkpoints
from tenfold.plans.budget import Budget
from tenfold.plans.candidates import as_plan
from tenfold.plans.plan import Plan
from tenfold.plans.problem import RANK_SAVES_NOTHING, Problem
from tenfold.plans.tucker_candidates import pointwise
from tenfold.plans.uniform_plan import lines
from tenfold.ranks.uniform import allocate, at_share

FORMATS = ("matrix", "tucker")
STATE = "factors"
"""Where the state of a run is: ``optimizer.param_groups[0][STATE]``."""
_START = 0.4
_LATEST = 0.6
"""The share of the steps after which weights that never settle are cut all the same."""
_SETTLED = 0.05
"""The relative change of a stable rank from one epoch to the next up to which it has settled."""


@dataclass(frozen=True)
class Factors(Method):
    """Dense training, then gradient descent on low-rank factors of fixed rank: ``W = L R`` or ``C x_1 U_1 x_2 U_2``.

    ::

        step < start      W <- W - lr G                              G the gradient in W
        then  W ~ L R     L <- L - lr (G R^T + lambda L R R^T)       R <- R - lr (L^T G + lambda L^T L R)

    After the share ``start`` of the steps the weights are cut, within the budget of the goal given to `begin`, at the
    ranks and in the forms that lose least in any layer, and their factors are trained from there. Momentum goes
    through the cut by the chain rule. Where nobody says how long the run is (no ``goal.steps``), or the model is
    factorised in this way already, the factors are trained from the first step.

    In the end the trained ranks stay where they fit the budget. Where they do not, all are lowered by one factor until
    they do, and no rank is raised. A model that was not trained in this way is cut as the training would have cut it.

    Args:
        format: "matrix": each layer becomes two; "tucker": kernels with spatial axes become three convolutions, with a
            rank for their outputs and one for their inputs.
        fold: how "matrix" folds a kernel, see `tenfold.linalg.fold`. None: both spatial folds compete for each layer,
            or with uniform ranks "channel"; always None for "tucker".
        ranks: "allocated": within a budget, those of the least largest error over all layers, see
            `tenfold.methods.contract.allocated`; "uniform": ``r_l = max(1, round(a n_l))`` of the full ranks ``n_l``
            (for Tucker of both modes), with one ``a`` for all layers, the largest that the budget allows, which is the
            plan's level: the baselines as published.
        share: ``a``, the share of the full ranks that is kept, in (0, 1], where no budget is given.
        start: the share of the steps that is dense, in [0, 1); None: 0.4, or 0 with ``scratch``; 0: as published.
            "settled": until the stable rank ``|W|_F^2 / |W|_2^2`` of no layer has changed by more than 5 % over an
            epoch, 0.6 of the steps at most; needs the length of an epoch.
        decay: the optimizer's weight decay is that of the "product" or, as published, of the "factors".
        scratch: start from random factors of the norm that the weights have, in place of the best ones for the weights.

    Raises:
        ArgumentError: a value out of range, or a fold for "tucker"; ``scratch`` after a dense start.

    Source: the factors of a layer, trained by gradient descent, are the baselines of Schotthoefer et al. 2022 (arXiv
    2205.13571) and of Zangrando et al. 2024 (arXiv 2305.19059); the dense start is Wang et al. 2021's (arXiv
    2103.03936). "settled" follows Wang et al. 2023 (arXiv 2305.02538), who bound the change by an absolute number and
    take ranks from the stable ranks, which knows no budget. Spectral initialisation and decay of the product are Khodak
    et al. 2021's (arXiv 2105.01029).
    """

    format: Literal["matrix", "tucker"] = "matrix"
    fold: str | None = None
    ranks: Literal["allocated", "uniform"] = "allocated"
    share: float = 0.25
    start: float | Literal["settled"] | None = None
    decay: Literal["product", "factors"] = "product"
    scratch: bool = False

    name: ClassVar[str] = "factors"
    needs_budget: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        check(self.format in FORMATS, "format", f"one of {', '.join(FORMATS)}", self.format)
        check(self.fold is None or self.fold in NAMES, "fold", f"one of {', '.join(NAMES)}, or None", self.fold)
        plain = self.format == "matrix" or self.fold is None
        check(plain, "fold", "left out for format 'tucker', which folds nothing", self.fold)
        check(self.ranks in ("allocated", "uniform"), "ranks", "'allocated' or 'uniform'", self.ranks)
        check(is_share(self.share) and 0 < self.share <= 1, "share", "in (0, 1]", self.share)
        shared = self.start in (None, "settled") or (is_share(self.start) and self.start < 1)
        check(shared, "start", "in [0, 1), 'settled', or None", self.start)
        check(self.decay in ("product", "factors"), "decay", "'product' or 'factors'", self.decay)
        check(isinstance(self.scratch, bool), "scratch", "True or False", self.scratch)
        check(not (self.scratch and self.start), "start", "0 with scratch: random factors forget it", self.start)

    def begin(self, model: nn.Module, *, goal: Goal | None = None) -> nn.Module:
        """Make a copy: dense where factors come later, else factorised as the budget of ``goal`` allows.

        Layers that are factorised in this way already keep their ranks where they fit. With ``scratch`` torch's global
        generator is drawn from once.

        Raises:
            BudgetError: the budget cannot be reached; the message names what can.
            UnsupportedLayer: no layer can be decomposed and trained.
            ArgumentError: a selection that matches nothing, or no inputs for a budget on MACs.
        """
        goal = goal or Goal()
        problem, plan = self._aim(model, goal)
        if self._later(model, goal):
            return super().begin(model, goal=goal)
        make = planned
        if self.scratch:
            make = Fresh(torch.Generator().manual_seed(int(torch.randint(2**62, ()))))
        return rebuild(problem.model, plan.layers, make)

    def attach(self, model: nn.Module, optimizer: Optimizer, *, goal: Goal | None = None) -> Optimizer:
        """Hook the cut and the decay onto ``optimizer``; its state holds the count and the forms: checkpoints do.

        Args:
            model: from `begin`, not wrapped.
            optimizer: any of torch's, whose groups hold the factors after the cut.
            goal: as `begin` was given it.

        Raises:
            ArgumentError: an optimizer that trains none of the model's parameters; a cut to come in several processes,
                whose wrapper would not follow it; "settled" where nobody says how long an epoch is.
        """
        goal = goal or Goal()
        require_trained(optimizer, model.parameters(), self.name)
        due = self._later(model, goal)
        if not due and self.decay == "factors":
            return optimizer

        def before(state: State) -> None:
            if self.decay == "product":
                decay_products_(structure_of(model).values(), optimizer)

        epoch = epoch_steps(goal, "start") if due and self.start == "settled" else 0
        sites = surveyed(model, goal).sites if epoch else ()

        def settled(state: State) -> bool:
            if not epoch or state["steps"] % epoch:
                return False
            before, now = state["stable"], [float(stable_rank(site.kernel.flatten(1))) for site in sites]
            state["stable"] = now
            return before is not None and all(abs(n - b) <= _SETTLED * b for n, b in zip(now, before, strict=True))

        def after(state: State) -> None:
            if due and state["forms"] is None and (settled(state) or state["steps"] >= due):
                factorise_(model, self._aim(model, goal)[1].layers, optimizer)
                state["forms"] = {name: list(form) for name, form in forms_in(model).items()}

        if due:
            _refuse_processes(self.name)
            follow_checkpoints(model, optimizer, STATE)
        hook_steps(optimizer, STATE, {"forms": None, "stable": None}, before=before, after=after)
        return optimizer

    @property
    def _start(self) -> float:
        if isinstance(self.start, str):
            return _LATEST
        return (0.0 if self.scratch else _START) if self.start is None else self.start

    def _later(self, model: nn.Module, goal: Goal) -> int:
        """The step after which the weights are cut at the latest; 0 where factors are trained from the first."""
        known = goal.steps is not None and not structure_of(model)
        return round(self._start * (goal.steps or 0)) if known else 0

    def _aim(self, model: nn.Module, goal: Goal) -> tuple[Problem, Plan]:
        """The layers that are trained, and what they become."""
        problem = surveyed(model, goal, self._chosen_by_shape if self.ranks == "uniform" else self.choose)
        weights = {site.name: problem.model.get_submodule(site.name).weight for site in problem.sites}
        frozen = [name for name, weight in weights.items() if not weight.requires_grad]
        problem = problem.leaving(dict.fromkeys(frozen, "frozen: its weight requires no gradient"))
        problem.require_sites()
        make = self._chosen_by_shape if self.ranks == "uniform" else self.choose
        return problem, make(problem, goal.budget)

    def _chosen_by_shape(self, problem: Problem, budget: Budget | None) -> Plan:
        return self._uniform(problem, budget, measured=False)

    def choose(self, problem: Problem, budget: Budget | None) -> Plan:
        """Choose the trained ranks where they fit the budget, or else the largest share of them that does.

        Of a dense model: the allocated ranks, or the largest common share of the full ones.
        """
        trained = self._trained(problem)
        if self.ranks == "uniform" or budget is None or trained:
            return self._uniform(problem, budget, measured=True)
        folds = SPATIAL if self.fold is None else (self.fold,)
        return allocated(problem, self.name, budget, folds=folds, tucker=self.format == "tucker")

    def _uniform(self, problem: Problem, budget: Budget | None, *, measured: bool) -> Plan:
        trained = self._trained(problem)
        ends = {name: layer.rank for name, layer in trained.items()}
        folds: Any = "channel" if self.fold is None else self.fold
        if trained and self.ranks == "allocated":  # what was trained dense stays so: its cut would be untrained
            folds = {name: layer.fold or "channel" for name, layer in trained.items()}
            dense = [site.name for site in problem.sites if site.name not in trained]
            problem = problem.leaving(dict.fromkeys(dense, "it was trained dense"))
        each = lines(problem, folds, tucker=self.format == "tucker", ends=ends, measured=measured)
        tables, full, most = [x.table for x in each], [x.full for x in each], [x.end for x in each]
        if budget is None:
            share = 1.0 if ends else self.share
            choice, level = at_share(tables, full, most, share), None if ends else share
        else:
            choice, level = allocate(tables, full, most, problem.limits(budget)) or (None, None)
        why = RANK_SAVES_NOTHING
        return as_plan(problem, self.name, tables, choice, budget, measure="fro", level=level, why=why)

    def _trained(self, problem: Problem) -> dict[str, LowRank | TuckerConv]:
        """The layers that are factorised already, in the way in which this method does it, by name."""
        given = {} if problem.given is None else structure_of(problem.given)
        found: dict[str, LowRank | TuckerConv] = {}
        wanted = "channel" if self.fold is None and self.ranks == "uniform" else self.fold
        for site in problem.sites:
            layer = given.get(site.name)
            if self.format == "tucker" and not pointwise(site):
                if isinstance(layer, TuckerConv):
                    found[site.name] = layer
            elif isinstance(layer, LowRank) and layer.slices == 1 and wanted in (None, layer.fold):
                found[site.name] = layer
        return found


def _refuse_processes(name: str) -> None:
    """Raise `ArgumentError` where several processes train: their wrapper holds the parameters of the dense layers."""
    if process()[1] > 1:
        raise ArgumentError(
            f"`start` must be 0 in several processes: {name} changes the parameters on its way, and "
            "DistributedDataParallel keeps the old ones. Train the dense part, then begin a run with start=0 on it."
        )
