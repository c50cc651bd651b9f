"""The layers of a model in training, and what its budget allows them."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from tenfold.methods.contract.method import Goal
from tenfold.plans.problem import Problem, survey
from tenfold.plans.within_latency import Choose, with_times, within_latency


def surveyed(model: nn.Module, goal: Goal, choose: Choose | None = None) -> Problem:
    """Find the layers of a model that trains towards a goal; see `tenfold.survey`.

    With a limit on latency their options have times, and what a pass takes outside of them is that of the network that
    the rule would make now: so ranks that are chosen while it trains are those that the end allows.

    Args:
        model: any module.
        goal: its budget, inputs and selection.
        choose: the rule by which ranks are chosen; None where none are chosen within the budget.

    Raises:
        BudgetError: a limit on latency that the rule cannot keep.
    """
    problem = survey(
        model,
        example_inputs=goal.example_inputs,
        target_modules=goal.target_modules,
        exclude_modules=goal.exclude_modules,
        runtime=goal.runtime,
        threads=goal.threads,
        align=1,
        training=True,
    )
    if choose is None or goal.budget is None or "latency" not in goal.budget.costs:
        return problem
    problem = with_times(problem)
    return replace(problem, layers=within_latency(problem, goal.budget, choose).layers)
