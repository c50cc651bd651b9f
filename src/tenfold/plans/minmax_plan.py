"""Min-max plans: the least common error in all layers."""

from __future__ import annotations

from collections.abc import Sequence

from tenfold.plans.budget import Budget
from tenfold.plans.candidates import MakesFactors, as_plan
from tenfold.plans.plan import Plan
from tenfold.plans.problem import Problem
from tenfold.plans.spared import Spared, allotted
from tenfold.ranks.candidates import Candidates
from tenfold.ranks.minmax import allocate


def minmax_plan(
    problem: Problem,
    method: str,
    tables: Sequence[Candidates],
    budget: Budget,
    left: Spared,
    *,
    measure: str,
    spend: bool = True,
    outputs: MakesFactors | None = None,
) -> Plan:
    """The choice with the least largest error within ``budget``, which is the plan's level.

    Args:
        problem: the layers.
        method: the name for the plan.
        tables: what each site can become, with its errors.
        budget: what may be kept.
        left: the layers to leave dense.
        measure: what the errors are.
        spend: see `tenfold.ranks.minmax.allocate`.
        outputs: makes the factors, where the method does so from data.

    Raises:
        BudgetError: no choice fits.
    """
    limits = problem.limits(budget)
    found, kept, reasons = allotted(method, left, tables, lambda each: allocate(each, limits, spend=spend))
    choice, level = (None, None) if found is None else (found.choice, found.level)
    made = {} if outputs is None else outputs.made(choice)
    return as_plan(problem, method, kept, choice, budget, left=reasons, measure=measure, level=level, gap=0.0, **made)
