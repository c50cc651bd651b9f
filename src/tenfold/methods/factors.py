"""Factors: low-rank layers of fixed rank, trained as plain layers by any optimizer. What TDLRT has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from tenfold.errors import check, is_share
from tenfold.layers.matrix import LowRank
from tenfold.layers.random_init import Fresh
from tenfold.layers.swap import planned, rebuild, structure_of
from tenfold.layers.tucker import TuckerConv
from tenfold.linalg.fold import NAMES
from tenfold.methods.contract.method import Goal, Method
from tenfold.methods.contract.surveyed import surveyed
from tenfold.optim.hooks import require_trained
from tenfold.plans.budget import Budget
from tenfold.plans.candidates import as_plan
from tenfold.plans.plan import Plan
from tenfold.plans.problem import RANK_SAVES_NOTHING, Problem
from tenfold.plans.tucker_candidates import pointwise
from tenfold.plans.uniform_plan import lines
from tenfold.ranks.uniform import allocate, at_share

FORMATS = ("matrix", "tucker")


@dataclass(frozen=True)
class Factors(Method):
    """Gradient descent on low-rank factors of fixed rank: ``W = L R``, or ``W = C x_1 U_1 x_2 U_2``.

    ::

        L <- L - lr G R^T         R <- R - lr L^T G                  G the gradient in W
        U_1 <- U_1 - lr Mat_1(G x_2 U_2^T) Mat_1(C)^T, ...           nothing keeps a basis orthonormal

    The ranks are fixed from the first step: ``r_l = max(1, round(a n_l))`` of the full ranks ``n_l`` (for Tucker of
    both modes), with one ``a`` for all layers, the largest that the budget of the goal given to `begin` allows, or
    else ``share``. A layer whose rank would save nothing stays dense, as does a frozen one. Any optimizer trains the
    factors: there is nothing to hook.

    In the end the trained ranks stay where they fit the budget. Where they do not, ``a`` is lowered until they do, and
    no rank is raised. A model that was not trained in this way is cut at ``a``, too. The plan's level is ``a``.

    Args:
        format: "matrix": each layer becomes two; "tucker": kernels with spatial axes become three convolutions, with a
            rank for their outputs and one for their inputs.
        fold: how "matrix" folds a kernel, see `tenfold.linalg.fold`; "channel" for "tucker".
        share: ``a``, the share of the full ranks that is kept, in (0, 1], where no budget is given.
        scratch: start from random factors of the norm that the weights have, in place of the best ones for the weights.

    Raises:
        ArgumentError: a value out of range, or a fold for "tucker".

    Source: the baselines of Schotthoefer et al. 2022 (arXiv 2205.13571) and of Zangrando et al. 2024 (arXiv
    2305.19059): the factors of a layer, trained by gradient descent. Spectral initialisation is Khodak et al. 2021's
    (arXiv 2105.01029).
    """

    format: Literal["matrix", "tucker"] = "matrix"
    fold: str = "channel"
    share: float = 0.25
    scratch: bool = False

    name: ClassVar[str] = "factors"
    needs_budget: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        check(self.format in FORMATS, "format", f"one of {', '.join(FORMATS)}", self.format)
        check(self.fold in NAMES, "fold", f"one of {', '.join(NAMES)}", self.fold)
        plain = self.format == "matrix" or self.fold == "channel"
        check(plain, "fold", "left out for format 'tucker', which folds nothing", self.fold)
        check(is_share(self.share) and 0 < self.share <= 1, "share", "in (0, 1]", self.share)
        check(isinstance(self.scratch, bool), "scratch", "True or False", self.scratch)

    def begin(self, model: nn.Module, *, goal: Goal | None = None) -> nn.Module:
        """Make a factorised copy, at the ranks that the budget of ``goal`` allows, or at ``share`` of the full ones.

        Layers that are factorised in this way already keep their ranks where they fit. With ``scratch`` torch's global
        generator is drawn from once.

        Raises:
            BudgetError: the budget cannot be reached; the message names what can.
            UnsupportedLayer: no layer can be decomposed and trained.
            ArgumentError: a selection that matches nothing, or no inputs for a budget on MACs.
        """
        goal = goal or Goal()
        problem = surveyed(model, goal, partial(self._uniform, measured=False))
        weights = {site.name: problem.model.get_submodule(site.name).weight for site in problem.sites}
        frozen = [name for name, weight in weights.items() if not weight.requires_grad]
        problem = problem.leaving(dict.fromkeys(frozen, "frozen: its weight requires no gradient"))
        problem.require_sites()
        plan = self._uniform(problem, goal.budget, measured=False)
        make = planned
        if self.scratch:
            make = Fresh(torch.Generator().manual_seed(int(torch.randint(2**62, ()))))
        return rebuild(problem.model, plan.layers, make)

    def attach(self, model: nn.Module, optimizer: Optimizer, *, goal: Goal | None = None) -> Optimizer:
        """Return ``optimizer`` as it is: factors are trained as any parameters are. Arguments as in `Method.attach`.

        Raises:
            ArgumentError: an optimizer that trains none of the model's parameters.
        """
        require_trained(optimizer, model.parameters(), self.name)
        return optimizer

    def choose(self, problem: Problem, budget: Budget | None) -> Plan:
        """Choose the trained ranks where they fit the budget, or else the largest common share of the full ones."""
        return self._uniform(problem, budget, measured=True)

    def _uniform(self, problem: Problem, budget: Budget | None, *, measured: bool) -> Plan:
        ends = self._trained(problem)
        each = lines(problem, self.fold, tucker=self.format == "tucker", ends=ends, measured=measured)
        tables, full, most = [x.table for x in each], [x.full for x in each], [x.end for x in each]
        if budget is None:
            share = 1.0 if ends else self.share
            choice, level = at_share(tables, full, most, share), None if ends else share
        else:
            choice, level = allocate(tables, full, most, problem.limits(budget)) or (None, None)
        why = RANK_SAVES_NOTHING
        return as_plan(problem, self.name, tables, choice, budget, measure="fro", level=level, why=why)

    def _trained(self, problem: Problem) -> dict[str, Any]:
        """The ranks of the layers that are factorised already, in the way in which this method does it."""
        given, found = {} if problem.given is None else structure_of(problem.given), {}
        for site in problem.sites:
            layer = given.get(site.name)
            if self.format == "tucker" and not pointwise(site):
                same = isinstance(layer, TuckerConv)
            else:
                same = isinstance(layer, LowRank) and (layer.slices, layer.fold) == (1, self.fold)
            if same and layer is not None:
                found[site.name] = layer.rank
        return found
