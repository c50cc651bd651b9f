"""One factor for all ranks: ``j_l = round(a r_l)`` for given ``r_l``, ``a`` from the budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tenfold.layers.tucker import full_ranks as pair_full_ranks
from tenfold.linalg.fold import Fold
from tenfold.ranks.measures import MEASURES
from tenfold.ranks.options import Options, options, settle, shapes
from tenfold.ranks.pairs import pair_line, pointwise
from tenfold.ranks.plan import Budget, LayerPlan, Plan
from tenfold.ranks.problem import RANK_SAVES_NOTHING, Problem

NO_BUDGET = "no budget was given; `finish`, `tenfold.compress` and `tenfold.sweep` take any, again and again"


def allocate(
    tables: Sequence[Options],
    ranks: Sequence[int],
    full: Sequence[int],
    limits: Mapping[str, int],
    *,
    half: float = 0.5,
) -> tuple[list[int], float] | None:
    """Choices ``j_l = min(full_l, max(1, floor(a r_l + half)))`` with the largest ``a`` that the limits allow.

    A layer whose rank would not save anything stays dense, at its dense cost. The total only rises with ``a``, so
    the largest one is found by bisection over the values at which some rank changes.

    Args:
        tables: options with one fold and one slice each, ranks ascending.
        ranks: ``r_l``, what is scaled, each >= 1.
        full: the largest rank of each layer: that of its matrix, or a smaller one.
        limits: what all layers together may cost.
        half: 0.5 to round, 0 to round down.

    Returns:
        the choice per layer and the smallest ``a`` that gives it; None where even rank 1 everywhere does not fit.
    """
    # floor(a r + half) = j from a = (j - half) / r on
    steps = np.unique(np.concatenate([(np.arange(1, n + 1) - half) / r for r, n in zip(ranks, full, strict=True)]))

    def choose(a: float) -> list[int]:
        return at_share(tables, ranks, full, a, half=half)

    def fits(choice: list[int]) -> bool:
        return all(sum(int(t.costs[n][c]) for t, c in zip(tables, choice, strict=True)) <= limits[n] for n in limits)

    if not fits(choose(steps[0])):
        return None
    low, high = 0, len(steps)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(choose(steps[middle])) else (low, middle)
    return choose(steps[low]), float(steps[low])


def at_share(
    tables: Sequence[Options], ranks: Sequence[int], full: Sequence[int], a: float, *, half: float = 0.5
) -> list[int]:
    """The choices of `allocate` at a given ``a``."""
    scaled = [min(n, max(1, int(np.floor(a * r + half + 1e-12)))) for r, n in zip(ranks, full, strict=True)]
    return [j if j < len(t.rank) else 0 for t, j in zip(tables, scaled, strict=True)]


@dataclass(frozen=True)
class Line:
    """What one site can become along a single line of ranks.

    Args:
        table: its options, from rank 1 on; entry j has rank j, or for Tucker j in the larger mode.
        full: the rank at which nothing is lost.
        end: the largest rank that is allowed, at most ``full``.
    """

    table: Options
    full: int
    end: int


def lines(problem: Problem, fold: str, *, tucker: bool, ends: Mapping[str, Any], measured: bool = True) -> list[Line]:
    """The line of every site, for `allocate`.

    Args:
        problem: the layers.
        fold: of those that become low-rank.
        tucker: whether kernels with spatial axes become Tucker, with the same share of both full ranks.
        ends: by name, the rank (or pair) where a line ends; others go up to the full rank.
        measured: whether to look at the weights for errors (in the measure "fro"), which are NaN otherwise.
    """
    flat = [site for site in problem.sites if pointwise(site) or not tucker]
    part = replace(problem, sites=tuple(flat), tables={})
    made = options(part, MEASURES["fro"], folds=(fold,), slices=(1,)) if measured else shapes(part, fold)
    tables, found = {table.name: table for table in made}, []
    for site, matrix in zip(problem.sites, full_ranks(problem, fold), strict=True):
        end = ends.get(site.name)
        if site.name in tables:
            found.append(Line(tables[site.name], matrix, matrix if end is None else end))
            continue
        full = pair_full_ranks(site.cost.shape, site.cost.groups)
        table = pair_line(problem, site, end or full, measured=measured)
        found.append(Line(table, max(full), max(end or full)))
    return found


def uniform_plan(problem: Problem, method: str, budget: Budget | None, fold: str = "channel") -> Plan:
    """``j_l = max(1, round(a r_l))`` of the full ranks ``r_l``, with the largest ``a`` (the plan's level) that fits.

    Args:
        problem: the layers.
        method: the name for the plan.
        budget: what may be kept; None leaves every layer dense.
        fold: see `tenfold.linalg.fold`.

    Raises:
        BudgetError: even rank 1 everywhere does not fit.
    """
    if budget is None:
        return problem.plan(method, [LayerPlan("dense", reason=NO_BUDGET) for _ in problem.sites])
    tables = options(problem, MEASURES["max"], folds=(fold,), slices=(1,))
    full = full_ranks(problem, fold)
    choice, fraction = allocate(tables, full, full, problem.limits(budget)) or (None, None)
    return settle(problem, method, tables, choice, budget, why=RANK_SAVES_NOTHING, measure="max", level=fraction)


def fraction_plan(problem: Problem, method: str, fraction: float, fold: str = "channel") -> Plan:
    """``j_l = max(1, round(a r_l))`` for a given ``a``; layers that their rank would not make smaller stay dense.

    Args:
        problem: the layers.
        method: the name for the plan.
        fraction: ``a`` in (0, 1].
        fold: see `tenfold.linalg.fold`.
    """
    tables = options(problem, MEASURES["max"], folds=(fold,), slices=(1,))
    full = full_ranks(problem, fold)
    choice = at_share(tables, full, full, fraction)
    return settle(problem, method, tables, choice, None, why=RANK_SAVES_NOTHING, measure="max", level=fraction)


def full_ranks(problem: Problem, fold: str) -> list[int]:
    """The full rank of each site's matrices in a fold."""
    return [Fold(s.cost.shape, s.cost.groups, 1, fold).full_rank for s in problem.sites]
