"""L-Rank: ranks by one price of cost, and weights that learn to be low-rank.

Idelbayev, Carreira-Perpinan, "Low-rank Compression of Neural Nets: Learning the Rank of Each Layer", CVPR 2020.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tenfold.errors import ArgumentError, TenfoldWarning, check, is_count, is_share
from tenfold.layers.spec import to_weight
from tenfold.linalg.fold import NAMES, Fold
from tenfold.linalg.svd import low_rank_factors
from tenfold.methods.contract.method import Goal, Method
from tenfold.methods.contract.surveyed import surveyed
from tenfold.optim.hooks import State, gradient_scale, hook_steps, require_trained, trained_by
from tenfold.plans.budget import Budget
from tenfold.plans.candidates import as_plan, candidates
from tenfold.plans.plan import Plan
from tenfold.plans.problem import Problem
from tenfold.ranks.lagrange import allocate
from tenfold.ranks.measures import MEASURES

STATE = "l_rank"
"""Where the state of a run is: ``optimizer.param_groups[0][STATE]``; ``targets`` is Theta, by layer."""
INTERVAL = 250
"""Steps between C steps by epoch where nobody says how long an epoch is."""


@dataclass(frozen=True)
class LRank(Method):
    """Learned ranks, ``min loss(W) + lambda sum_l cost_l(rank W_l)``: learning and compression steps in turns.

    After training, `plan` is the C step alone: ``argmin_r lambda cost(r) + sum_{m>r} s_m^2`` in every layer, absolute
    energies, one lambda (the plan's level) from the budget. While training, every step adds ``mu (W - Theta)`` to the
    gradient (the L step with its quadratic penalty), and every ``every`` steps the C step makes Theta anew, the best
    low-rank weights for the budget of the goal, or else for ``keep``, and mu grows. ``W`` and ``Theta`` meet, and the
    final cut costs little. A run needs ten C steps or more for that.

    Args:
        fold: see `tenfold.linalg.fold`.
        keep: while training, the share of the parameters to keep where no budget is given, in (0, 1].
        mu: the first penalty, >= 0.
        growth: factor of mu at each C step, >= 0; above 1 in use.
        every: optimizer steps from one C step to the next, >= 1, or "epoch".
        spend: what one lambda leaves of the budget is spent, by an integer programme; False: as published.

    Raises:
        ArgumentError: a value out of range.

    Source: the paper, equations 2 (problem), 5 (L step) and theorem 1 (C step). Deviations: `spend`; the penalty starts
    and grows from the optimizer's first step; the multipliers of the augmented Lagrangian variant are not used.
    """

    fold: str = "channel"
    keep: float = 0.5
    mu: float = 1e-3
    growth: float = 1.2
    every: int | str = "epoch"
    spend: bool = True

    name: ClassVar[str] = "l-rank"

    def __post_init__(self) -> None:
        """Check the ranges."""
        check(self.fold in NAMES, "fold", f"one of {', '.join(NAMES)}", self.fold)
        check(is_share(self.keep) and 0 < self.keep <= 1, "keep", "in (0, 1]", self.keep)
        check(is_share(self.mu), "mu", "a number >= 0", self.mu)
        check(is_share(self.growth), "growth", "a number >= 0", self.growth)
        check(self.every == "epoch" or is_count(self.every), "every", 'an integer >= 1, or "epoch"', self.every)
        check(isinstance(self.spend, bool), "spend", "True or False", self.spend)

    def choose(self, problem: Problem, budget: Budget | None) -> Plan:
        """Choose ranks by the C step: those of one multiplier within ``budget``."""
        assert budget is not None
        tables = candidates(problem, MEASURES["fro"], folds=(self.fold,), slices=(1,))
        energy = [float(site.kernel.double().square().sum()) for site in problem.sites]
        losses = [np.square(table.error) * e for table, e in zip(tables, energy, strict=True)]
        found = allocate(tables, losses, problem.limits(budget), spend=self.spend)
        choice, price, gap = found or (None, None, None)
        return as_plan(problem, self.name, tables, choice, budget, measure="fro", level=price, gap=gap)

    def attach(self, model: nn.Module, optimizer: Optimizer, *, goal: Goal | None = None) -> Optimizer:
        """Hook both steps onto ``optimizer``. Its state holds Theta and the step count: checkpoints carry them.

        Args:
            model: what the optimizer trains: dense, not wrapped.
            optimizer: any of torch's.
            goal: the selection; the budget, in place of ``keep``; how long an epoch is, and the run.

        Raises:
            ArgumentError: a wrapped or factorised model, an optimizer that trains none of its layers, a budget on MACs
                without inputs.
            UnsupportedLayer: no layer can be decomposed.
            BudgetError: the budget cannot be reached.
        """
        goal = goal or Goal()
        every = self._interval(goal)
        problem = surveyed(model, goal, self.choose)
        if problem.model is not model:
            raise ArgumentError("`model` must be dense for l-rank; this one is factorised. See tenfold.to_dense.")
        require_trained(optimizer, [site.weight for site in problem.sites], self.name)
        budget = goal.budget or Budget(params=float(self.keep))
        self.plan(problem, budget)  # what cannot be reached is said now

        def pull(state: State) -> None:
            if state["targets"] is None:
                state["targets"] = self._c_step(problem, budget)
            alpha = self.mu * self.growth ** (state["steps"] // every) * gradient_scale(optimizer)
            mine = trained_by(optimizer)
            for site in problem.sites:
                target, weight = state["targets"].get(site.name), site.weight
                if target is not None and weight.grad is not None and id(weight) in mine:
                    weight.grad.add_(weight.detach() - target.to(weight), alpha=alpha)

        def count(state: State) -> None:
            if state["steps"] % every == 0:
                state["targets"] = self._c_step(problem, budget)

        hook_steps(optimizer, STATE, {"targets": None}, before=pull, after=count)
        return optimizer

    def _interval(self, goal: Goal) -> int:
        """Steps from one C step to the next."""
        every = goal.steps_per_epoch if self.every == "epoch" else int(self.every)
        if every is None:
            every = INTERVAL
            warnings.warn(
                f"`goal` does not say how many steps an epoch has: l-rank takes a C step every {INTERVAL} steps. "
                "Pass goal=tenfold.Goal(steps_per_epoch=len(loader)), or a number of steps as `every`.",
                TenfoldWarning,
                stacklevel=3,
            )
        if goal.steps is not None and goal.steps <= every:
            warnings.warn(
                f"`every` is as long as the run ({every} of {goal.steps} steps): l-rank takes its C step once, before "
                "the first step, and mu does not grow. Give `every` a tenth of the steps or so.",
                TenfoldWarning,
                stacklevel=3,
            )
        return every

    @torch.no_grad()
    def _c_step(self, problem: Problem, budget: Budget) -> dict[str, Tensor]:
        """Theta by layer: each weight at the rank that the C step gives it; layers that stay dense are absent."""
        now = problem.renewed()
        plan, targets = self.plan(now, budget), {}
        for site in now.sites:
            rank = plan.layers[site.name].rank
            if isinstance(rank, int):
                fold = Fold(site.cost.shape, site.cost.groups, 1, self.fold)
                left, right = low_rank_factors(fold.matrices(site.kernel), rank)
                targets[site.name] = to_weight(site.options, fold.kernel(left @ right)).contiguous()
        return targets
