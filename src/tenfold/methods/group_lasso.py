"""Group lasso: a penalty on the norms of filters, so that whole filters die while a network trains.

Wen, Wu, Wang, Chen, Li, "Learning Structured Sparsity in Deep Neural Networks", NeurIPS 2016, arXiv 1608.03665.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn
from torch.optim import Optimizer

from tenfold.errors import check, is_count, is_share
from tenfold.linalg.shrink import row_subgradient, shrink_rows
from tenfold.methods.base import Goal, Method
from tenfold.optim.penalty import Penalty, hook_penalty, slots_of
from tenfold.ranks.plan import Budget, Plan
from tenfold.ranks.problem import Problem
from tenfold.ranks.uniform import uniform_plan


@dataclass(frozen=True)
class GroupLasso(Method):
    """``min loss(W) + lambda sum_l sum_f ||w_{l,f}||_2`` over the filters f of the layers l.

    What it trains is meant for `tenfold.prune_filters`. `plan` gives low ranks, the same fraction in every layer, as
    `SVD` does, so that it can be compared; without a budget every layer stays dense.

    Args:
        strength: lambda, >= 0.
        update: "subgradient" adds ``lambda w / ||w||`` to the gradient, as published; "proximal" shortens each
            filter by ``lambda lr`` after the step, which makes filters exactly zero.
        every: optimizer steps between proximal maps, or for which a sub-gradient is held, >= 1.
        linear: whether the rows of linear layers are groups too.

    Raises:
        ArgumentError: a value out of range.

    Source: the paper, equation 3, filter-wise groups alone: its channel-wise and shape-wise groups are not used. The
    proximal update is Parikh & Boyd 2014, section 6.5.4, with the learning rate as the step.
    """

    strength: float = 1e-3
    update: Literal["subgradient", "proximal"] = "subgradient"
    every: int = 1
    linear: bool = False

    name: ClassVar[str] = "group-lasso"
    needs_budget: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        check(is_share(self.strength), "strength", "a number >= 0", self.strength)
        check(self.update in ("subgradient", "proximal"), "update", '"subgradient" or "proximal"', self.update)
        check(is_count(self.every), "every", "an integer >= 1", self.every)
        check(isinstance(self.linear, bool), "linear", "True or False", self.linear)

    def attach(self, model: nn.Module, optimizer: Optimizer, *, goal: Goal | None = None) -> Optimizer:
        """Hook the penalty onto ``optimizer``."""
        goal = goal or Goal()
        slots = slots_of(
            model,
            linear=self.linear,
            target_modules=goal.target_modules,
            exclude_modules=goal.exclude_modules,
        )
        penalty = Penalty(self.strength, row_subgradient, shrink_rows)
        hook_penalty(optimizer, "group_lasso", slots, penalty, proximal=self.update == "proximal", every=self.every)
        return optimizer

    def choose(self, problem: Problem, budget: Budget | None) -> Plan:
        """The largest common fraction of the rank within ``budget``."""
        return uniform_plan(problem, self.name, budget)
