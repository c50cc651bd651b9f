"""Tucker: convolutions become three, with a rank for their outputs and one for their inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tenfold.methods.contract.sparing import Sparing
from tenfold.plans.budget import Budget
from tenfold.plans.minmax_plan import minmax_plan
from tenfold.plans.plan import Plan
from tenfold.plans.problem import Problem
from tenfold.plans.tucker_candidates import tucker_candidates


@dataclass(frozen=True)
class Tucker(Sparing):
    """Tucker-2 decomposition ``W ~ C x_1 U_out x_2 U_in`` with the least common relative error within the budget.

    A kernel with spatial axes becomes a pointwise convolution to ``r_in`` channels, one with the kernel to ``r_out``,
    and a pointwise one; a linear or pointwise layer, whose kernel is a matrix, becomes two. Of all pairs of ranks (on
    a grid where a mode is larger than 64) each layer takes the cheapest whose error

        ||W - W_hat||_F / ||W||_F

    is below the level; what is left of the budget then lowers the largest errors. No data is needed. The factors are a
    higher-order SVD improved by a sweep of orthogonal iteration; errors in the plan are those of the former.

    Args:
        negligible: in [0, 1): the smallest layers that together hold at most this share of every limited cost stay
            dense; 0: as published. See `Sparing`.
        ends: any of "first" and "last": these layers stay dense. See `Sparing`.

    Raises:
        ArgumentError: a value out of range.

    Source: the format for convolutions is Kim et al. 2016 (arXiv 1511.06530), "Tucker-2". Deviations: ranks by min-max
    allocation in place of VBMF on each unfolding, which no budget moves; the sweep is always run.
    """

    name: ClassVar[str] = "tucker"

    def choose(self, problem: Problem, budget: Budget | None) -> Plan:
        """Choose the rank pairs of the least common relative error within ``budget``."""
        assert budget is not None
        tables = tucker_candidates(problem)
        return minmax_plan(problem, self.name, tables, budget, self.spared(problem, budget, tables), measure="fro")
