"""What GroupLasso and NuclearNorm share: a norm of the weights that is added to the loss while a network trains.

They differ in the norm alone; `tenfold.optim.projection.penalty` is how it is added.
"""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn
from torch.optim import Optimizer

from tenfold.errors import TenfoldWarning, UnsupportedLayer, check, is_count, is_share
from tenfold.layers.folded_weight import FoldedWeight
from tenfold.methods.contract.method import Goal, Method
from tenfold.optim.hooks import require_trained
from tenfold.optim.projection.penalty import Penalty, folded_weights, hook_penalty
from tenfold.plans.budget import Budget
from tenfold.plans.plan import Plan
from tenfold.plans.problem import Problem
from tenfold.plans.uniform_plan import uniform_plan

_FAINT = 0.05
"""What a penalty that shows takes off a norm at least, as a share of it."""
_LOOKED_AT = 40
"""The least number of steps of a run that is to show anything."""


@dataclass(frozen=True)
class Penalised(Method):
    """Base class of methods that train on ``loss + lambda f(weights)``. Abstract.

    Args:
        strength: lambda, >= 0.
        update: "subgradient" adds ``lambda`` times that of f to the gradient; "proximal" applies the proximal map of
            ``lambda lr f`` after the step.
        every: optimizer steps between proximal maps, or for which a sub-gradient is held, >= 1.
        linear: whether linear layers are penalised too.

    Raises:
        ArgumentError: a value out of range.
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
        """The penalty ``lambda f`` of one weight."""

    def attach(self, model: nn.Module, optimizer: Optimizer, *, goal: Goal | None = None) -> Optimizer:
        """Hook the penalty onto ``optimizer``, on the layers that the selection of ``goal`` leaves.

        Args:
            model: what the optimizer trains: dense, not wrapped.
            optimizer: any of torch's.
            goal: its selection; its ``steps``, to warn of a penalty that is too weak.

        Raises:
            ArgumentError: a wrapped model, or an optimizer that trains none of the layers.
            UnsupportedLayer: there is no layer to put it on, or a weight is no plain tensor.
        """
        goal = goal or Goal()
        weights = folded_weights(
            model,
            linear=self.linear,
            target_modules=goal.target_modules,
            exclude_modules=goal.exclude_modules,
        )
        if not weights:
            raise UnsupportedLayer(
                f"`model` has no layer that {self.name} works on: convolutions, and linear layers with linear=True or "
                "where `target_modules` names them."
            )
        require_trained(optimizer, [folded.weight for folded in weights], self.name)
        if goal.steps is not None and goal.steps >= _LOOKED_AT:
            self._say_faint(optimizer, weights, goal.steps)
        state = self.name.replace("-", "_")
        hook_penalty(optimizer, state, weights, self.penalty, proximal=self.update == "proximal", every=self.every)
        return optimizer

    def _say_faint(self, optimizer: Optimizer, weights: Sequence[FoldedWeight], steps: int) -> None:
        """Warn where plain gradient descent cannot show the penalty: each norm falls by lambda lr at most in a step."""
        pulls = [(folded, self.penalty.subgradient(folded.matrices)) for folded in weights]
        # <W, G> is the sum of the norms, ||G||^2 their number.
        sizes = [float((s.matrices * g).sum() / g.square().sum().clamp(min=1)) for s, g in pulls]
        reach = max(
            (
                float(group["lr"]) * steps / (1 - group.get("momentum", 0.0))
                for group in optimizer.param_groups
                if "betas" not in group
            ),
            default=math.inf,
        )
        size = sum(sizes) / len(sizes)
        if self.strength * reach < _FAINT * size:
            enough = f"{size / 2 / reach:.1g}" if reach else "any size, and a learning rate,"
            warnings.warn(
                f"`strength` of {self.name} is too small to show: in {steps} steps at these learning rates it takes at "
                f"most {self.strength * reach / size if size else 0:.1%} off a norm that it penalises. Take one of "
                f"{enough} or more.",
                TenfoldWarning,
                stacklevel=3,
            )

    def choose(self, problem: Problem, budget: Budget | None) -> Plan:
        """Choose the largest common fraction of the full rank within ``budget``."""
        return uniform_plan(problem, self.name, budget)
