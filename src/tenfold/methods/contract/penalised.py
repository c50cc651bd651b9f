"""What GroupLasso and NuclearNorm share: a norm of the weights that is added to the loss while a network trains.

They differ in the norm alone; `tenfold.optim.projection.penalty` is how it is added.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn
from torch.optim import Optimizer

from tenfold.errors import check, is_count, is_share
from tenfold.methods.contract.method import Goal, Method
from tenfold.optim.projection.penalty import Penalty, hook_penalty, slots_of
from tenfold.plans.budget import Budget
from tenfold.plans.plan import Plan
from tenfold.plans.problem import Problem
from tenfold.plans.uniform_plan import uniform_plan


@dataclass(frozen=True)
class Penalised(Method):
    """A method that minimises ``loss + lambda f(weights)``. Abstract; these fields are common to all.

    Args:
        strength: lambda, >= 0.
        update: "subgradient" adds ``lambda`` times that of f to the gradient; "proximal" applies the proximal map of
            ``lambda lr f`` after the step.
        every: optimizer steps between proximal maps, or for which a sub-gradient is held, >= 1.
        linear: whether linear layers are penalised too.
    """

    strength: float = 1e-3
    update: Literal["subgradient", "proximal"] = "subgradient"
    every: int = 1
    linear: bool = False

    needs_budget: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        check(is_share(self.strength), "strength", "a number >= 0", self.strength)
        check(self.update in ("subgradient", "proximal"), "update", '"subgradient" or "proximal"', self.update)
        check(is_count(self.every), "every", "an integer >= 1", self.every)
        check(isinstance(self.linear, bool), "linear", "True or False", self.linear)

    @property
    @abstractmethod
    def penalty(self) -> Penalty:
        """``lambda f`` of one weight."""

    def attach(self, model: nn.Module, optimizer: Optimizer, *, goal: Goal | None = None) -> Optimizer:
        """Hook the penalty onto ``optimizer``."""
        goal = goal or Goal()
        slots = slots_of(
            model,
            linear=self.linear,
            target_modules=goal.target_modules,
            exclude_modules=goal.exclude_modules,
        )
        state = self.name.replace("-", "_")
        hook_penalty(optimizer, state, slots, self.penalty, proximal=self.update == "proximal", every=self.every)
        return optimizer

    def choose(self, problem: Problem, budget: Budget | None) -> Plan:
        """The largest common fraction of the rank within ``budget``."""
        return uniform_plan(problem, self.name, budget)
