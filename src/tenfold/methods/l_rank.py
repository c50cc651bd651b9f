"""L-Rank: ranks by one price of cost, and weights that learn to be low-rank.

Idelbayev, Carreira-Perpinan, "Low-rank Compression of Neural Nets: Learning the Rank of Each Layer", CVPR 2020.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tenfold.errors import check, is_count, is_share
from tenfold.layers.spec import to_weight
from tenfold.linalg.fold import NAMES, Fold
from tenfold.linalg.svd import low_rank_factors
from tenfold.methods.contract.method import Goal, Method
from tenfold.plans.budget import Budget
from tenfold.plans.candidates import candidates, settle
from tenfold.plans.plan import Plan
from tenfold.plans.problem import Problem, survey
from tenfold.ranks.lagrange import allocate
from tenfold.ranks.measures import MEASURES

_STEPS, _TARGETS = "l_rank_steps", "l_rank_targets"


@dataclass(frozen=True)
class LRank(Method):
    """``min loss(W) + lambda sum_l cost_l(rank W_l)`` by learning and compression in turns.

    After training, `plan` is the C step alone: ``argmin_r lambda cost(r) + sum_{m>r} s_m^2`` in every layer, absolute
    energies, one lambda (the plan's level) from the budget. While training, every step adds ``mu (W - Theta)`` to the
    gradient (the L step with its quadratic penalty), and every ``every`` steps the C step makes Theta anew, the best
    low-rank weights for the budget ``keep``, and mu grows. ``W`` and ``Theta`` meet, and the final cut costs little.

    Args:
        fold: see `tenfold.linalg.fold`.
        keep: while training, the share of the model's parameters to aim at, in (0, 1].
        mu: the first penalty, >= 0.
        growth: factor of mu at each C step, >= 0; above 1 in use.
        every: optimizer steps between C steps, >= 1.

    Raises:
        ArgumentError: a value out of range.

    Source: the paper, equations 2 (problem), 5 (L step) and theorem 1 (C step). The penalty starts and grows from the
    optimizer's first step; the multipliers of the augmented Lagrangian variant are not used.
    """

    fold: str = "channel"
    keep: float = 0.5
    mu: float = 1e-3
    growth: float = 1.2
    every: int = 500

    name: ClassVar[str] = "l-rank"

    def __post_init__(self) -> None:
        """Check the ranges."""
        check(self.fold in NAMES, "fold", f"one of {', '.join(NAMES)}", self.fold)
        check(is_share(self.keep) and 0 < self.keep <= 1, "keep", "in (0, 1]", self.keep)
        check(is_share(self.mu), "mu", "a number >= 0", self.mu)
        check(is_share(self.growth), "growth", "a number >= 0", self.growth)
        check(is_count(self.every), "every", "an integer >= 1", self.every)

    def choose(self, problem: Problem, budget: Budget | None) -> Plan:
        """The C step: the ranks of one multiplier within ``budget``."""
        assert budget is not None
        tables = candidates(problem, MEASURES["fro"], folds=(self.fold,), slices=(1,))
        energy = [float(site.kernel.double().square().sum()) for site in problem.sites]
        losses = [np.square(table.error) * e for table, e in zip(tables, energy, strict=True)]
        choice, price = allocate(tables, losses, problem.limits(budget)) or (None, None)
        return settle(problem, self.name, tables, choice, budget, measure="fro", level=price)

    def attach(self, model: nn.Module, optimizer: Optimizer, *, goal: Goal | None = None) -> Optimizer:
        """Hook both steps onto ``optimizer``. Its state holds Theta and the step count: checkpoints carry them."""
        group = optimizer.param_groups[0]
        group.setdefault(_STEPS, 0)
        group.setdefault(_TARGETS, {})

        def pull(*_: Any) -> None:
            group = optimizer.param_groups[0]  # loading a state puts new groups in place of the old ones
            if not group[_TARGETS]:
                group[_TARGETS] = self._c_step(model)
            mu = self.mu * self.growth ** (group[_STEPS] // self.every)
            for name, target in group[_TARGETS].items():
                weight = cast("nn.Parameter", model.get_submodule(name).weight)
                if weight.grad is not None:
                    weight.grad.add_(weight.detach() - target.to(weight), alpha=mu)

        def count(*_: Any) -> None:
            group = optimizer.param_groups[0]
            group[_STEPS] += 1
            if group[_STEPS] % self.every == 0:
                group[_TARGETS] = self._c_step(model)

        optimizer.register_step_pre_hook(pull)
        optimizer.register_step_post_hook(count)
        return optimizer

    @torch.no_grad()
    def _c_step(self, model: nn.Module) -> dict[str, Tensor]:
        """Theta by layer: each weight at the rank that the C step gives it; layers that stay dense are absent."""
        problem = survey(model)
        plan = self.plan(problem, Budget(params=float(self.keep)))
        targets = {}
        for site in problem.sites:
            rank, spec = plan.layers[site.name].rank, site.options
            if isinstance(rank, int) and spec is not None:
                fold = Fold(site.cost.shape, site.cost.groups, 1, self.fold)
                left, right = low_rank_factors(fold.matrices(site.kernel), rank)
                targets[site.name] = to_weight(spec, fold.kernel(left @ right)).contiguous()
        return targets
