"""The guard: the smallest budget at which a model still is as good as it has to be.

Bisection over the share of the parameters that is kept. Each probe plans, builds and measures a model; the spectra are
computed once for all. A score need not fall with the budget everywhere, so bisection finds *a* border between enough
and too little, and what is returned is the smallest probe that was found to be enough, not a proven optimum.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from tenfold.errors import BudgetError, TenfoldError, check
from tenfold.methods.contract.method import Method
from tenfold.plans.apply import build
from tenfold.plans.budget import Budget
from tenfold.plans.plan import Plan
from tenfold.plans.problem import Problem


@dataclass(frozen=True)
class Probe:
    """One budget that was tried, and the score of the model built to it.

    Args:
        budget: share of the parameters that might be kept, in (0, 1).
        kept: share of the parameters that was kept.
        score: of the built model.
        enough: whether the score is at least the one asked for.
    """

    budget: float
    kept: float
    score: float
    enough: bool


@dataclass(frozen=True)
class Guarded:
    """The result of `smallest_budget`.

    Args:
        probe: the smallest that is enough.
        plan: what it was built from.
        model: the built model, as `score` left it.
        probes: all of them, in the order that they were tried in.
    """

    probe: Probe
    plan: Plan
    model: nn.Module
    probes: tuple[Probe, ...]


def smallest_budget(
    problem: Problem,
    method: Method,
    score: Callable[[nn.Module], float],
    least: float,
    *,
    resolution: float = 0.01,
    report: Callable[[Probe], None] = lambda _: None,
) -> Guarded:
    """Search the smallest budget, as a share of the parameters, at which the score is at least ``least``; bisection.

    The search begins at the smallest budget that the method can reach, and ends when the border is known to within
    ``resolution``: about ``log2(1 / resolution)`` probes. A border above ``1 - resolution`` counts as none.

    Args:
        problem: from `tenfold.survey`; the spectra are computed at the first probe and kept.
        method: one that takes a budget.
        score: of a model, higher is better: e.g. its accuracy on held-out data that is not the test set; it may change
            the model, and re-estimate its batch norm first.
        least: the lowest score allowed, a finite number.
        resolution: of the share, in [0.0001, 0.5].
        report: called after each probe.

    Raises:
        ArgumentError: a number out of its range.
        TenfoldError: no budget was enough; the message says what the best did.
    """
    check(math.isfinite(least), "least", "a finite number", least)
    check(0.0001 <= resolution <= 0.5, "resolution", "in [0.0001, 0.5]", resolution)
    probes: list[Probe] = []
    best: tuple[Probe, Plan, nn.Module] | None = None

    dense = problem.dense.params

    def enough(limit: int) -> bool:
        nonlocal best
        plan = method.plan(problem, Budget(params=limit))
        small = build(problem, plan, Budget(params=limit)).model
        reached = score(small)
        probe = Probe(limit / dense, plan.params / dense, reached, reached >= least)
        probes.append(probe)
        report(probe)
        if probe.enough:  # each one that is enough is below those before it
            best = probe, plan, small
        return probe.enough

    low, high = _reachable(problem, method), dense
    if low < high and not enough(low):
        while high - low > max(resolution * dense, 1):
            middle = (low + high) // 2
            low, high = (low, middle) if enough(middle) else (middle, high)
    if best is None:
        tried = max(probes, key=lambda probe: probe.score, default=None)
        shown = "" if tried is None else f" The best, at {tried.budget:.1%} of the parameters, has {tried.score:.4g}."
        raise TenfoldError(
            f"no budget below 100 % keeps the score at {least:.4g} or above with {method.name}.{shown} "
            f"Let it fall further, or take another method or fewer layers."
        )
    return Guarded(*best, tuple(probes))


def _reachable(problem: Problem, method: Method) -> int:
    """The fewest parameters that the method can reach; a method that keeps to no budget reaches all of them."""
    try:
        return method.plan(problem, Budget(params=2)).params  # fewer than any network has
    except BudgetError as error:
        return int(error.smallest.get("params", problem.dense.params))
