"""Nuclear norm: a penalty on the sum of the singular values, the convex stand-in for the rank, while a network trains.

Tai, Xiao, Zhang, Wang, E, "Convolutional neural networks with low-rank regularization", ICLR 2016, arXiv 1511.06067;
as the baseline of Zimmer, Spiegel, Pokutta, arXiv 2205.11921.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from tenfold.errors import check, is_count, is_share
from tenfold.linalg.project import nuclear_subgradient
from tenfold.linalg.shrink import shrink_spectrum
from tenfold.methods.base import Goal, Method
from tenfold.optim.penalty import Penalty, hook_penalty, slots_of
from tenfold.ranks.plan import Budget, Plan
from tenfold.ranks.problem import Problem
from tenfold.ranks.uniform import uniform_plan


@dataclass(frozen=True)
class NuclearNorm(Method):
    """``min loss(W) + lambda sum_l sum_i s_i(W_l)``, each kernel as the matrix ``c_out x (c_in kh kw)``.

    The groups of a grouped convolution are matrices of their own. `plan` takes the same fraction of the rank in every
    layer, the largest that the budget allows; without a budget every layer stays dense.

    Args:
        strength: lambda, >= 0.
        update: "subgradient" adds ``lambda U V^T`` to the gradient; "proximal" lowers each singular value by
            ``lambda lr`` after the step, which makes ranks fall exactly.
        every: optimizer steps between proximal maps (their thresholds add up), or for which a sub-gradient is held,
            >= 1. Each costs a factorisation of every layer.
        linear: whether linear layers are penalised too.

    Raises:
        ArgumentError: a value out of range.
        TenfoldError: while training, a weight with NaN or infinite entries.

    Source: Watson 1992 (sub-gradient, of least norm where singular values are zero); Cai, Candes, Shen 2010
    (arXiv 0810.3286), theorem 2.1 (proximal map), with the learning rate as the step.
    """

    strength: float = 1e-3
    update: Literal["subgradient", "proximal"] = "subgradient"
    every: int = 1
    linear: bool = False

    name: ClassVar[str] = "nuclear-norm"
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
        penalty = Penalty(self.strength, _polar, shrink_spectrum)
        hook_penalty(optimizer, "nuclear_norm", slots, penalty, proximal=self.update == "proximal", every=self.every)
        return optimizer

    def choose(self, problem: Problem, budget: Budget | None) -> Plan:
        """The largest common fraction of the rank within ``budget``."""
        return uniform_plan(problem, self.name, budget)


def _polar(matrices: Tensor) -> Tensor:
    return nuclear_subgradient(matrices, min(matrices.shape[-2:]))
