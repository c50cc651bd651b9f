"""TDLRT: factors in Tucker format from the first step, with ranks that follow the training.

Zangrando, Schotthoefer, Ceruti, Kusch, Tudisco, "Geometry-aware training of factorized layers in tensor Tucker format",
NeurIPS 2024, arXiv 2305.19059.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from tenfold.errors import ArgumentError, UnsupportedLayer, check, is_count, is_share
from tenfold.layers.find import FoundLayer
from tenfold.layers.tucker_model import Converted, bounded_ranks, to_tucker
from tenfold.layers.tucker_protocol import Factorised, factorised
from tenfold.layers.tucker_training import TrainedTucker, reserve_
from tenfold.layers.usable import refuse_without_numbers
from tenfold.linalg.multilinear import feasible
from tenfold.methods.contract.method import Goal, Method
from tenfold.methods.contract.surveyed import surveyed
from tenfold.optim.tucker.integrator import Integrator
from tenfold.optim.tucker.resize import more
from tenfold.optim.tucker.settings import IntegratorSettings
from tenfold.plans.budget import Budget
from tenfold.plans.candidates import as_plan
from tenfold.plans.plan import LayerPlan, Plan
from tenfold.plans.problem import RANK_SAVES_NOTHING, Problem
from tenfold.plans.spared import smallest_layers
from tenfold.plans.tucker_candidates import tucker_candidates
from tenfold.ranks.candidates import Candidates, entries
from tenfold.ranks.minmax import allocate

INTEGRATORS = ("cycle", "two_pass", "one_pass", "fixed")


@dataclass(frozen=True)
class TDLRT(Method):
    """Rank-adaptive training in Tucker format ``W = C x_1 U_1 x_2 U_2`` by dynamical low-rank approximation.

    ::

        grow      U_i+ = orth [U_i | grad_{U_i}],  C~ = C x_i U_i+^T U_i        the weight is unchanged
        train     C~ <- C~ - lr grad, by any optimizer
        cut       C, U_i from the higher-order SVD of C~, with |W - W_hat| <= tau |W|

    Convolutions are trained in Tucker format over their channels, linear and pointwise ones as ``U S V^T``. Ranks grow
    where the gradient asks for it and fall to what tau needs; the bases stay orthonormal. Small singular values do no
    harm: nothing is divided by them.

    In the end each layer has the ranks that it was trained to; a budget lowers them further, to the least common
    relative error that it allows, which is the plan's level. A model that was not trained in this way is cut to tau.

    Args:
        tau: relative tolerance of each cut, in [0, 1).
        every: optimizer steps of a cycle, >= 1; for "cycle" and "fixed".
        integrator: "cycle": grow on the first of ``every`` steps, cut after the last. "two_pass", the paper's: grow,
            compute the gradient again, step and cut in every step; needs ``step(closure)``. "one_pass": a cycle of one
            step, whose part in the new directions follows from the gradients of the bases. "fixed": as "cycle", cut
            back to the ranks of before in place of tau; with ``every=1`` the fixed-rank parallel step as published,
            which factorises in every step.
        ranks: the first ranks by layer name, an int or one for each mode; layers that it does not name stay dense.
        first: the first rank of a mode in other cases, as a share of its size, in (0, 1]. Where a budget says how
            large the first ranks are ("fixed", or after a dense start), it does so in place of this.
        start: the share of the steps in which the network is dense, in [0, 1 - freeze); needs ``goal.steps``. Its
            weights are then brought into Tucker format, momentum too. 0: as published.
        cap: the largest rank, as a share of the size of the mode, in (0, 1].
        floor: the smallest rank, >= 1; goes before ``first`` and ``cap``, and a budget before it.
        multiple: ranks are rounded up to a multiple of it, >= 1; 8 suits many kernels of hardware.
        columns: directions by which a basis grows at most, as a share of its rank, in (0, 1].
        negligible: in [0, 1): the smallest layers that together hold at most this share of the parameters stay dense,
            where neither ``ranks`` nor a selection names them.
        freeze: the last share of the steps in which the ranks stay, in [0, 1); needs ``goal.steps``. Above 0 where
            there is a budget too: the ranks freeze at those that it allows, and are trained there.
        scratch: start from random orthonormal bases, in place of those of the given weights.
        spatial: cut the spatial modes of kernels of 5 or more too.
        static: store the factors at the largest size that they may take, that of the capped ranks grown once, padded
            with zeros. It computes the same in more time and memory, but no parameter changes its shape: torch.compile
            compiles once, and DistributedDataParallel stays around the model. Take a small ``cap`` or "fixed".

    Raises:
        ArgumentError: a value out of range.

    Source: the paper, algorithm 1, with the augmentation from gradients of the factors in place of its K step (the
    spans are the same); the parallel step is arXiv 2304.05660 for Tucker tensors (2412.00858). Deviations: one budget
    of tau for all modes, so that it bounds the error of the weight; cycles; see docs/methods/tdlrt.md.
    """

    tau: float = 0.1
    every: int = 10
    integrator: Literal["cycle", "two_pass", "one_pass", "fixed"] = "cycle"
    ranks: Mapping[str, Any] | None = None
    first: float = 0.25
    start: float = 0.0
    cap: float = 1.0
    floor: int = 4
    multiple: int = 1
    columns: float = 1.0
    freeze: float = 0.2
    negligible: float = 0.01
    scratch: bool = False
    spatial: bool = False
    static: bool = False

    name: ClassVar[str] = "tdlrt"
    needs_budget: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("tau", "freeze", "negligible"):
            value = getattr(self, name)
            check(is_share(value) and value < 1, name, "in [0, 1)", value)
        for name in ("first", "cap", "columns"):
            value = getattr(self, name)
            check(is_share(value) and 0 < value <= 1, name, "in (0, 1]", value)
        early = is_share(self.start) and (self.start < 1 - self.freeze or not self.start)
        check(early, "start", f"in [0, {1 - self.freeze:g}): then the ranks freeze", self.start)
        for name in ("every", "floor", "multiple"):
            check(is_count(getattr(self, name)), name, "an integer >= 1", getattr(self, name))
        for name in ("scratch", "spatial", "static"):
            check(isinstance(getattr(self, name), bool), name, "True or False", getattr(self, name))
        check(self.integrator in INTEGRATORS, "integrator", f"one of {', '.join(INTEGRATORS)}", self.integrator)
        apart = not (self.start and (self.scratch or self.static))
        check(
            apart, "start", "0 with scratch, which forgets it, and with static, whose shapes never change", self.start
        )
        fits = self.ranks is None or isinstance(self.ranks, Mapping)
        check(fits, "ranks", "a mapping from layer names, or None", self.ranks)

    @property
    def needs_closure(self) -> bool:
        """Whether ``step`` needs a closure: the two-pass integrator computes the gradient twice."""
        return self.integrator == "two_pass"

    def begin(self, model: nn.Module, *, goal: Goal | None = None) -> nn.Module:
        """Make a copy in Tucker format, or a dense one where that comes later.

        Layers that Tucker format would not make smaller, and frozen ones, stay dense.
        So do those that the selection of ``goal`` leaves out. With ``scratch`` torch's global generator is drawn from
        once. Where ``goal`` has a budget, and ranks do not move ("fixed") or nobody knows when they would freeze (no
        ``goal.steps``), the first ranks are those that the budget allows.

        Raises:
            UnsupportedLayer: no layer can be trained in Tucker format; the message says why.
            ArgumentError: ``ranks`` do not fit the model, or ``freeze`` of zero with a budget.
            BudgetError: the budget cannot be reached.
        """
        goal = goal or Goal()
        made = self._in_tucker_format(model, goal)  # what cannot be had is said now
        return super().begin(model, goal=goal) if self._later(model, goal) else made

    def _in_tucker_format(self, model: nn.Module, goal: Goal) -> nn.Module:
        """A copy with layers in Tucker format at their first ranks."""
        refuse_without_numbers(model)
        self._refuse_endless(goal)
        seed = int(torch.randint(2**62, ())) if self.scratch else None
        made = self._converted(model, self.ranks, goal, seed)
        if not factorised(made.model):
            reasons = "; ".join(f"'{name}': {why}" for name, why in made.left.items())
            raise UnsupportedLayer(f"`model` has no layer to train in Tucker format: {reasons or 'none has a weight'}.")
        if goal.budget is not None and (self._fixed_from_the_start(goal) or self._later(model, goal)):
            own = {name: layer.ranks for name, layer in factorised(made.model).items()}
            if self.ranks is None and not factorised(model):  # the budget says how large they are, in place of `first`
                ranks = self._aim(model, goal, own)
            else:
                ranks = own | self._aim(made.model, goal, own)
            made = self._converted(model, ranks, goal, seed) if ranks else made
        if self.static:
            reserve_(made.model, self._room)
        return made.model

    def optimizer(
        self,
        model: nn.Module,
        *,
        base: type[Optimizer] = torch.optim.SGD,
        goal: Goal | None = None,
        **hyper: Any,
    ) -> Integrator:
        """Make the integrator around ``base``, which holds all trained parameters but the bases.

        Args:
            model: from `begin`, not wrapped.
            base: the optimizer underneath.
            goal: ``steps`` of the whole run: the ranks freeze toward its end, and its last step ends a cycle. With a
                ``budget`` they freeze at ranks that it allows, and what is left of the run trains them there; without
                ``steps``, or "fixed", at the end of the first cycle, if `begin` has not been told.
            hyper: arguments of ``base``.

        Raises:
            ArgumentError: a model that is not from `begin`, or is sharded; ``freeze`` of zero with a budget.
            BudgetError: the budget cannot be reached.
        """
        bases = {id(basis) for layer in factorised(model).values() for basis in layer.bases}
        inner = base((p for p in model.parameters() if p.requires_grad and id(p) not in bases), **hyper)
        settings, later = self.settings(goal), 0 if goal is None else self._later(model, goal)
        if goal is not None and later:
            settings = replace(settings, begin=later, enter=partial(self._in_tucker_format, model, goal))
            if goal.budget is not None and not self._fixed_from_the_start(goal):
                settings = replace(settings, aim=partial(self._aim, model, goal))
        elif goal is not None and goal.budget is not None:
            self._refuse_endless(goal)
            aim = partial(self._aim, model, goal)
            wanted = aim()  # what cannot be reached is said now
            begun = all(factorised(model)[name].ranks == ranks for name, ranks in wanted.items())
            if not (begun and self._fixed_from_the_start(goal)):  # `begin` has been told, and chose these
                settings = replace(settings, aim=aim)
        return Integrator(inner, model, settings)

    def attach(self, model: nn.Module, optimizer: Optimizer, *, goal: Goal | None = None) -> Optimizer:
        """Refused: an existing optimizer holds the bases, or is saved without their cycle. See `Method.attach`.

        Raises:
            ArgumentError: always.
        """
        raise ArgumentError(
            f"`{self.name}` works around an optimizer that must not hold the bases: call "
            "method.optimizer(model, base=torch.optim.AdamW, lr=...) instead."
        )

    def settings(self, goal: Goal | None = None) -> IntegratorSettings:
        """The settings of the integrator."""
        goal = goal or Goal()
        freeze = None if goal.steps is None or not self.freeze else math.ceil((1 - self.freeze) * goal.steps)
        if goal.budget is not None:  # what is cut last is trained for a step at least
            freeze = 0 if goal.steps is None or freeze is None or self._fixed_from_the_start(goal) else freeze
            freeze = min(freeze, max(0, (goal.steps or 1) - 1))
        return IntegratorSettings(
            tau=self.tau,
            every=1 if self.integrator == "one_pass" else self.every,
            twice=self.integrator == "two_pass",
            pinned=self.integrator == "fixed",
            columns=self.columns,
            floor=self.floor,
            cap=self.cap,
            multiple=self.multiple,
            freeze=freeze,
            steps=goal.steps,
        )

    def choose(self, problem: Problem, budget: Budget | None) -> Plan:
        """Choose the trained ranks; where they exceed a budget, those of the least common error within it."""
        layers = {} if problem.given is None else factorised(problem.given)
        tables = list(tucker_candidates(problem))
        if layers:  # what was trained dense stays so: a cut of it would never have been trained
            tables = [
                _trained(problem, site, layers[site.name], table)
                if site.name in layers
                else _rows(table, np.arange(len(table.error)) == 0)
                for site, table in zip(problem.sites, tables, strict=True)
            ]
        if budget is None:
            choice, level = [self._own(table, layers) for table in tables], None
        else:
            found = allocate(tables, problem.limits(budget))
            choice, level = (None, None) if found is None else (found.choice, found.level)
        why = RANK_SAVES_NOTHING
        return as_plan(problem, self.name, tables, choice, budget, measure="fro", level=level, why=why)

    def _later(self, model: nn.Module, goal: Goal) -> int:
        """The step after which weights come into Tucker format; 0 where they are in it from the first."""
        return 0 if goal.steps is None or factorised(model) else round(self.start * goal.steps)

    def _fixed_from_the_start(self, goal: Goal) -> bool:
        """Whether a budget decides the first ranks already: nobody knows when they would freeze, or they never move."""
        return self.integrator == "fixed" or goal.steps is None

    def _refuse_endless(self, goal: Goal) -> None:
        """Raise `ArgumentError` where ranks that follow tau to the last step could keep no budget."""
        endless = goal.budget is not None and not self.freeze and not self._fixed_from_the_start(goal)
        rule, remedy = "above 0 with a budget", "What is cut to the budget has to be trained: 0.2 keeps a fifth for it."
        check(not endless, "freeze", rule, self.freeze, remedy)

    def _converted(self, model: nn.Module, ranks: Mapping[str, Any] | None, goal: Goal, seed: int | None) -> Converted:
        """The model in Tucker format, at these ranks or at those of the fields."""
        return to_tucker(
            model,
            ranks,
            first=min(self.first, self.cap),
            floor=self.floor,
            spatial=self.spatial,
            spared=None
            if ranks
            else smallest_layers(model, goal.target_modules, goal.exclude_modules, self.negligible),
            generator=None if seed is None else torch.Generator().manual_seed(seed),
            target_modules=goal.target_modules,
            exclude_modules=goal.exclude_modules,
        )

    def _room(self, layer: TrainedTucker) -> list[int]:
        """The largest ranks of a layer during a run: those of a cut, grown once."""
        bound = bounded_ranks(layer.spec, self.cap, floor=self.floor, spatial=self.spatial)
        most = layer.ranks if self.integrator == "fixed" else map(max, layer.ranks, bound)
        return [min(r + more(r, self.columns), n) for r, n in zip(most, layer.sizes, strict=False)]

    def _aim(
        self, model: nn.Module, goal: Goal, own: Mapping[str, tuple[int, ...]] | None = None
    ) -> dict[str, tuple[int, ...]]:
        """The ranks that the goal's budget allows, by layer name, where they are lower than full.

        Args:
            model: in Tucker format, whose ranks are not raised, or dense.
            goal: the goal.
            own: the present ranks of the layers that are trained in that format; None: those of ``model``.
        """
        if own is None:
            own = {name: layer.ranks for name, layer in factorised(model).items()}
        problem = surveyed(model, goal)
        problem = problem.leaving({site.name: "it is trained dense" for site in problem.sites if site.name not in own})
        plan, ranks = self.plan(problem, goal.budget), {}
        for name, before in own.items():
            rank = plan.layers[name].rank
            if rank is not None:
                pair = rank if isinstance(rank, tuple) else (rank, rank)
                ranks[name] = (*pair, *before[2:])
        return ranks

    def _own(self, table: Candidates, layers: Mapping[str, Factorised]) -> int:
        """The cheapest entry within the tolerance: none, where the cut has been made, or the layer was left dense."""
        if layers and table.name not in layers:
            return 0
        tau = 0.0 if layers and not bool(layers[table.name].augmented) else self.tau
        return int(np.argmin(np.where(table.error <= tau, table.costs["params"], np.iinfo(np.int64).max)))


def _trained(problem: Problem, site: FoundLayer, layer: Factorised, table: Candidates) -> Candidates:
    """The options of a layer that has been trained in Tucker format: its own ranks, without error, and smaller ones."""
    shape, groups = site.cost.shape, site.cost.groups
    sizes, rest = (shape[0] // groups, shape[1]), math.prod(shape[2:])
    pair = feasible(layer.ranks[:2], sizes, rest)
    tucker = table.rank.ndim > 1
    own = np.array(pair) if tucker else np.array(min(pair))
    below = np.all((table.rank <= own).reshape(len(table.rank), -1), axis=1)  # dense is entry 0, of rank 0
    same = np.all((table.rank == own).reshape(len(table.rank), -1), axis=1)
    cost = site.cost.tucker((pair[0], pair[1])) if tucker else site.cost.low_rank(min(pair))
    costs, dense = {"params": cost.params, "macs": cost.macs}, site.cost.dense()
    if problem.times is not None:
        made = LayerPlan("tucker", pair) if tucker else LayerPlan("low-rank", min(pair), fold="channel")
        costs["latency"] = problem.times.of(site, made)
    if cost.params >= dense.params or (cost.macs or 0) > (dense.macs or 0):
        return _rows(table, below)
    kept = _rows(table, below & ~same)

    def after(values: Any, last: Any) -> Any:
        return np.concatenate([values, np.asarray(last, dtype=values.dtype)[None]])

    return replace(
        kept,
        fold=after(kept.fold, 0),
        slices=after(kept.slices, 1),
        rank=after(kept.rank, own),
        error=after(kept.error, 0.0),
        costs={name: after(values, costs[name]) for name, values in kept.costs.items()},
        place=None if kept.place is None else after(kept.place, 0),
    )


def _rows(table: Candidates, keep: Any) -> Candidates:
    return entries(table, np.flatnonzero(keep))
