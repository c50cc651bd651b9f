"""Three small methods of unlike kinds, each the text of one file: what the contract must carry.

`CLIP` projects dense weights in the step of any optimizer, `PULL` is an optimizer of its own, `PAIR` trains factors.
"""

CLIP = '''
"""Clip: cut every kernel to rank r after every m optimizer steps that happened."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from tenfold.errors import check
from tenfold.layers.cost import layer_cost
from tenfold.layers.find import find
from tenfold.linalg import Fold, truncated_svd
from tenfold.methods.contract.method import Method
from tenfold.ranks.measures import MEASURES
from tenfold.plans.candidates import layer_plan, candidates


@dataclass(frozen=True)
class Clip(Method):
    """``W <- U_r S_r V_r^T`` for every kernel that rank r makes smaller.

    Args:
        rank: r, at least 1.
        every: m, at least 1.
    """

    rank: int = 2
    every: int = 3

    name: ClassVar[str] = "clip"
    needs_budget: ClassVar[bool] = False

    def __post_init__(self):
        check(self.rank >= 1, "rank", ">= 1", self.rank)
        check(self.every >= 1, "every", ">= 1", self.every)

    def attach(self, model, optimizer, *, goal=None):
        # The count is run state: in the optimizer's groups it is saved and loaded with the rest.
        optimizer.param_groups[0].setdefault("clip_steps", 0)
        optimizer.register_step_post_hook(lambda opt, args, kwargs: self._stepped(model, opt))
        return optimizer

    def _stepped(self, model, optimizer):
        # Fused optimizers are stepped by the scaler even where it found an overflow, and skip by themselves.
        overflow = getattr(optimizer, "found_inf", None)
        if overflow is not None and bool(overflow):
            return
        group = optimizer.param_groups[0]
        group["clip_steps"] += 1
        if group["clip_steps"] % self.every == 0:
            self._project_(model)

    @torch.no_grad()
    def _project_(self, model):
        for target in find(model):
            if target.reason is None:
                cost = layer_cost(target.spec)
                if cost.low_rank(self.rank).params < cost.dense().params:
                    kernel = target.kernel
                    fold = Fold(tuple(kernel.shape), target.spec.groups)
                    u, s, v = truncated_svd(fold.matrices(kernel), self.rank)
                    kernel.copy_(fold.kernel((u * s[:, None]) @ v.mT))

    def choose(self, problem, budget):
        chosen = []
        for table in candidates(problem, MEASURES["max"], slices=(1,)):
            at = (table.rank == self.rank).nonzero()[0]
            chosen.append(layer_plan(table, int(at[0]) if len(at) else 0))
        return problem.plan(self.name, chosen, budget=budget, measure="max")
'''

PULL = '''
"""Pull: an optimizer of its own, a step toward the origin along the gradient."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from tenfold.errors import ArgumentError
from tenfold.methods.contract.method import Method


class Puller(torch.optim.Optimizer):
    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p -= group["lr"] * p.grad
                    p *= 1 - group["lr"] * 1e-3
        return loss


@dataclass(frozen=True)
class Pull(Method):
    """A method that replaces the optimizer."""

    name: ClassVar[str] = "pull"
    needs_budget: ClassVar[bool] = False

    def optimizer(self, model, *, base=None, goal=None, **hyper):
        return Puller(model.parameters(), **hyper)

    def attach(self, model, optimizer, *, goal=None):
        raise ArgumentError("`pull` is an optimizer of its own: call method.optimizer(model, lr=...) instead.")

    def choose(self, problem, budget):
        return problem.plan(self.name, [None for _ in problem.sites], budget=budget)
'''

PAIR = '''
"""Pair: train the factors, the encoders as they are found and the rest by any optimizer."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from tenfold.layers.matrix import LowRank
from tenfold.methods.contract.method import Method
from tenfold.plans.apply import apply
from tenfold.ranks.measures import MEASURES
from tenfold.plans.candidates import candidates, layer_plan
from tenfold.plans.problem import survey


@dataclass(frozen=True)
class Pair(Method):
    """Factors from the start.

    Args:
        rank: of every layer that it makes smaller.
    """

    rank: int = 2

    name: ClassVar[str] = "pair"
    needs_budget: ClassVar[bool] = False

    def begin(self, model, *, goal=None):
        problem = survey(model)
        return apply(model, self._at(problem, lambda table, site: self.rank))

    def optimizer(self, model, *, base=torch.optim.SGD, goal=None, **hyper):
        fixed = {id(m.encoder.weight) for m in model.modules() if isinstance(m, LowRank)}
        return base([p for p in model.parameters() if id(p) not in fixed], **hyper)

    def choose(self, problem, budget):
        # What was trained is a product by now: its rank is where the spectrum ends.
        def rank_of(table, site):
            s = problem.spectra("channel", (1,))[site][1]
            return int((s > 1e-5 * s.max()).sum(-1).max())

        return self._at(problem, rank_of, budget)

    def _at(self, problem, rank, budget=None):
        chosen = []
        for site, table in enumerate(candidates(problem, MEASURES["max"], slices=(1,))):
            at = (table.rank == rank(table, site)).nonzero()[0]
            chosen.append(layer_plan(table, int(at[0]) if len(at) else 0))
        return problem.plan(self.name, chosen, budget=budget, measure="max")
'''
