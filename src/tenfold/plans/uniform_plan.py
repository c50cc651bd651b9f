"""Uniform plans: the same share of the full rank in every layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tenfold.layers.tucker import full_ranks as pair_full_ranks
from tenfold.linalg.fold import Fold
from tenfold.plans.budget import Budget
from tenfold.plans.candidates import as_plan, candidates, shapes
from tenfold.plans.judged_forms import JudgedForms
from tenfold.plans.plan import LayerPlan, Plan
from tenfold.plans.problem import RANK_SAVES_NOTHING, Problem
from tenfold.plans.spared import Spared, allotted
from tenfold.plans.tucker_candidates import pointwise, tucker_line
from tenfold.ranks.candidates import Candidates
from tenfold.ranks.measures import MEASURES
from tenfold.ranks.uniform import allocate, at_share

Spare = Callable[[Problem, Budget, Sequence[Candidates]], Spared]
NO_BUDGET = "no budget was given; `finish`, `tenfold.compress` and `tenfold.sweep` take any, again and again"


@dataclass(frozen=True)
class Line:
    """The candidates of one site along a single line of ranks.

    Args:
        table: its options, from rank 1 on; entry j has rank j, or for Tucker j in the larger mode.
        full: the rank at which nothing is lost.
        end: the largest rank that is allowed, at most ``full``.
    """

    table: Candidates
    full: int
    end: int


def lines(
    problem: Problem, fold: str | Mapping[str, str], *, tucker: bool, ends: Mapping[str, Any], measured: bool = True
) -> list[Line]:
    """The line of every site, for `tenfold.ranks.uniform.allocate`.

    Args:
        problem: the layers.
        fold: of those that become low-rank; by name where they differ, the channel fold for those not named.
        tucker: whether kernels with spatial axes become Tucker, with the same share of both full ranks.
        ends: by name, the rank (or pair) where a line ends; others go up to the full rank.
        measured: whether to look at the weights for errors (in the measure "fro"), which are NaN otherwise.
    """
    flat = [site for site in problem.sites if pointwise(site) or not tucker]
    own = {site.name: fold if isinstance(fold, str) else fold.get(site.name, "channel") for site in problem.sites}
    tables: dict[str, Candidates] = {}
    for each in sorted({own[site.name] for site in flat}):
        part = replace(problem, sites=tuple(site for site in flat if own[site.name] == each), tables={})
        made = candidates(part, MEASURES["fro"], folds=(each,), slices=(1,)) if measured else shapes(part, each)
        tables |= {table.name: table for table in made}
    found = []
    for site in problem.sites:
        matrix = Fold(site.cost.shape, site.cost.groups, 1, own[site.name]).full_rank
        end = ends.get(site.name)
        if site.name in tables:
            found.append(Line(tables[site.name], matrix, matrix if end is None else end))
            continue
        full = pair_full_ranks(site.cost.shape, site.cost.groups)
        table = tucker_line(problem, site, end or full, measured=measured)
        found.append(Line(table, max(full), max(end or full)))
    return found


def uniform_plan(
    problem: Problem,
    method: str,
    budget: Budget | None,
    fold: str = "channel",
    left: Spare | None = None,
    outputs: JudgedForms | None = None,
) -> Plan:
    """Uniform ranks ``j_l = max(1, round(a r_l))`` within a budget: the largest ``a``, the plan's level, that fits.

    ``r_l`` are the full ranks.

    Args:
        problem: the layers.
        method: the name for the plan.
        budget: what may be kept; None leaves every layer dense.
        fold: see `tenfold.linalg.fold`.
        left: tells which layers to leave dense; None: none.
        outputs: the unsliced options in this fold, where errors and factors are from data.

    Raises:
        BudgetError: even rank 1 everywhere does not fit.
    """
    if budget is None:
        return problem.plan(method, [LayerPlan("dense", reason=NO_BUDGET) for _ in problem.sites])
    if outputs is None:
        tables, measure = candidates(problem, MEASURES["max"], folds=(fold,), slices=(1,)), "max"
    else:
        tables, measure = outputs.tables, "output"
    full, limits = full_ranks(problem, fold), problem.limits(budget)
    spared = Spared() if left is None else left(problem, budget, tables)
    found, kept, reasons = allotted(method, spared, tables, lambda each: allocate(each, full, full, limits))
    choice, level = found or (None, None)
    about = {"why": RANK_SAVES_NOTHING, "left": reasons, "measure": measure, "level": level}
    made = {} if outputs is None else outputs.made(choice)
    return as_plan(problem, method, kept, choice, budget, **about, **made)


def fraction_plan(problem: Problem, method: str, fraction: float, fold: str = "channel") -> Plan:
    """Uniform ranks ``j_l = max(1, round(a r_l))`` for a given ``a``; layers that this makes no smaller stay dense.

    Args:
        problem: the layers.
        method: the name for the plan.
        fraction: ``a`` in (0, 1].
        fold: see `tenfold.linalg.fold`.
    """
    tables = candidates(problem, MEASURES["max"], folds=(fold,), slices=(1,))
    full = full_ranks(problem, fold)
    choice = at_share(tables, full, full, fraction)
    return as_plan(problem, method, tables, choice, None, why=RANK_SAVES_NOTHING, measure="max", level=fraction)


def full_ranks(problem: Problem, fold: str) -> list[int]:
    """The full rank of each site's matrices in a fold."""
    return [Fold(s.cost.shape, s.cost.groups, 1, fold).full_rank for s in problem.sites]
