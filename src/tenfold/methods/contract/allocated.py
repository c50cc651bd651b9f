"""Ranks and forms by allocation, from the weights alone: what training methods aim at in place of uniform shares."""

from __future__ import annotations

from collections.abc import Sequence

from tenfold.plans.budget import Budget
from tenfold.plans.candidates import candidates
from tenfold.plans.minmax_plan import minmax_plan
from tenfold.plans.plan import Plan
from tenfold.plans.problem import Problem
from tenfold.plans.spared import spared
from tenfold.plans.tucker_candidates import tucker_candidates
from tenfold.ranks.measures import MEASURES

SPATIAL = ("spatial", "spatial-t")
MEASURE = "rss"
NEGLIGIBLE = 0.01


def allocated(problem: Problem, method: str, budget: Budget, *, folds: Sequence[str], tucker: bool = False) -> Plan:
    """The unsliced plan of the least largest error in any layer within ``budget``, as `ALDS` has it.

    ``minimise max_l s_{r_l + 1} / s_1``: what is lost of a layer in the spectral norm, which for one slice is the
    measure "rss". The smallest layers that together hold at
    most one per cent of every limited cost stay dense.

    Args:
        problem: the layers.
        method: the name for the plan.
        budget: what may be kept.
        folds: that compete; see `tenfold.linalg.fold`.
        tucker: kernels with spatial axes become Tucker in place of low-rank; errors are then in the Frobenius norm.

    Raises:
        BudgetError: no choice fits.
    """
    if tucker:
        tables, measure = list(tucker_candidates(problem)), "fro"
    else:
        tables, measure = candidates(problem, MEASURES[MEASURE], folds=tuple(folds), slices=(1,)), MEASURE
    left = spared(problem, budget, tables, NEGLIGIBLE, ())
    return minmax_plan(problem, method, tables, budget, left, measure=measure)
