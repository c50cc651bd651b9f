"""The candidate decompositions of each layer, with cost and error, as arrays.

Dense is always an option, with error 0. A decomposition is one only if it saves parameters, and also MACs where they
are known: with example inputs, no plan makes a layer slower to make it smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tenfold.errors import BudgetError
from tenfold.layers.cost import Cost
from tenfold.layers.find import FoundLayer
from tenfold.linalg.fold import Fold
from tenfold.linalg.svd import singular_values
from tenfold.plans.budget import Budget
from tenfold.plans.plan import LayerPlan, Plan
from tenfold.plans.problem import ALLOWED, NO_SAVING, NOT_FASTER, Problem
from tenfold.ranks.candidates import Candidates, entries
from tenfold.ranks.measures import Measure


class MakesFactors(Protocol):
    """Judged options that can make the factors of those that are chosen."""

    def made(self, choice: Sequence[int] | None) -> dict[str, Any]:
        """The factors of a choice, one entry for each site, and what else data bring to a `Plan`, as its fields."""
        ...


Errors = Callable[[str, int, int], Tensor]
"""``(fold, slices, n) -> (n,)``: the errors of one site at rank 1, 2, ..., n."""
NOTHING_FASTER = (
    "No network that it can make was measured to be faster than the dense one: take a larger batch or another runtime."
)
_NAMED = 3
"""How many of the layers that stay dense an error names."""


def candidates(
    problem: Problem, measure: Measure, *, folds: Sequence[str] = ("channel",), slices: Sequence[int] | None = None
) -> list[Candidates]:
    """The candidate decompositions of every site, with their errors and costs.

    Args:
        problem: the layers.
        measure: from `tenfold.ranks.measures`.
        folds: which folds compete.
        slices: which numbers of slices compete; None: every divisor of a layer's input channels. The decoupled fold
            competes only with 1.
    """
    key = (measure, tuple(folds), None if slices is None else tuple(slices))
    if key not in problem.tables:
        spectra = {fold: problem.spectra(fold, slices) for fold in folds}
        each = [{fold: spectra[fold][i] for fold in folds} for i in range(len(problem.sites))]
        problem.tables[key] = [
            problem.fast(site, judged(site, {f: tuple(ks) for f, ks in s.items()}, _by_weight(site, measure, s)))
            for site, s in zip(problem.sites, each, strict=True)
        ]
    return list(problem.tables[key])


def shapes(problem: Problem, fold: str) -> list[Candidates]:
    """The unsliced candidates of every site in one fold, by their shapes alone: costs are known, errors are NaN."""
    return [problem.fast(site, judged(site, {fold: (1,)}, unknown)) for site in problem.sites]


def unknown(fold: str, slices: int, n: int) -> Tensor:
    """The `Errors` of options that are known by their shapes alone: NaN."""
    return torch.full((n,), torch.nan, dtype=torch.float64)


def judged(site: FoundLayer, competing: Mapping[str, Sequence[int]], errors: Errors) -> Candidates:
    """The low-rank options of one site that save something, with given errors.

    Args:
        site: the layer.
        competing: numbers of slices by fold.
        errors: asked for once in each fold and number of slices, for the ranks that save something.
    """
    dense = site.cost.dense()
    rows = [(0, 1, np.zeros(1, dtype=np.int64), np.zeros(1), dense)]  # dense is entry 0
    for index, (fold, slices) in enumerate(competing.items()):
        for k in slices:
            per_rank = site.cost.low_rank(1, k, fold)
            most = _break_even(Fold(site.cost.shape, site.cost.groups, k, fold).full_rank, per_rank, dense)
            if most:
                ranks = np.arange(1, most + 1)
                rows.append((index, k, ranks, errors(fold, k, most).numpy(), per_rank))
    ranks = np.concatenate([row[2] for row in rows])
    times = np.maximum(ranks, 1)  # the dense entry costs what it costs, once

    def spread(values: Sequence[int]) -> NDArray[np.int64]:
        return np.repeat(np.array(values, dtype=np.int64), [len(row[2]) for row in rows])

    costs = {"params": spread([row[4].params for row in rows]) * times}
    if dense.macs is not None:
        costs["macs"] = spread([row[4].macs or 0 for row in rows]) * times
    return Candidates(
        site.name,
        tuple(competing),
        spread([row[0] for row in rows]),
        spread([row[1] for row in rows]),
        ranks,
        np.concatenate([row[3] for row in rows]),
        costs,
    )


def with_bias(problem: Problem, site: FoundLayer, table: Candidates) -> Candidates:
    """The options that save something although they add the biases that the site's modules lack, at that price."""
    numbers = len(problem.without_bias(site)) * site.cost.shape[0]
    if not numbers:
        return table
    params = table.costs["params"].copy()
    params[1:] += numbers
    worth = params < params[0]
    worth[0] = True
    return entries(replace(table, costs=table.costs | {"params": params}, bias=True), np.flatnonzero(worth))


def as_plan(
    problem: Problem,
    method: str,
    tables: Sequence[Candidates],
    choice: Sequence[int] | None,
    budget: Budget | None,
    *,
    why: str = ALLOWED,
    left: Mapping[str, str] | None = None,
    **about: Any,
) -> Plan:
    """The plan that a choice of candidates makes, one index into each table.

    Args:
        problem: the layers.
        method: the name of the method.
        tables: the options of each layer.
        choice: None where none fits.
        budget: what it was chosen for.
        why: the reason for layers that are dense and could be something else. Where all of them are, within a budget,
            it is the budget that allows it.
        left: the reasons of layers that were to stay dense, by name.
        about: what `Problem.plan` takes besides.

    Raises:
        BudgetError: the choice is None: no choice fits the budget.
    """
    if choice is None:
        assert budget is not None
        raise refuse(problem, budget, smallest(tables, budget.costs))
    if budget is not None and not any(choice):
        why = ALLOWED
    reasons = left or {}
    chosen = [
        LayerPlan("dense", reason=reasons[table.name]) if table.name in reasons else layer_plan(table, i, why)
        for table, i in zip(tables, choice, strict=True)
    ]
    return problem.plan(method, chosen, budget=budget, **about)


def layer_plan(table: Candidates, i: int, why: str = ALLOWED) -> LayerPlan:
    """The layer plan of entry ``i`` of a table; ``why`` is the reason of a dense layer that has other candidates."""
    if i > 0 and table.rank.ndim > 1:
        return LayerPlan("tucker", tuple(table.rank[i].tolist()), error=float(table.error[i]), bias=table.bias)
    if i > 0:
        fold = table.folds[table.fold[i]]
        rank, slices, error = int(table.rank[i]), int(table.slices[i]), float(table.error[i])
        return LayerPlan("low-rank", rank, slices, fold, error, bias=table.bias)
    nothing = NO_SAVING if table.place is None else NOT_FASTER
    return LayerPlan("dense", reason=nothing if len(table.rank) == 1 else why)


def smallest(tables: Sequence[Candidates], names: Sequence[str]) -> dict[str, int]:
    """The smallest cost of all sites together, for each cost on its own."""
    return {name: int(sum(t.costs[name].min() for t in tables)) for name in names}


def require_reachable(problem: Problem, budget: Budget, tables: Sequence[Candidates]) -> None:
    """Raise the `BudgetError` of `refuse` where a limit is below what the options cost at least, each on its own."""
    limits = problem.limits(budget)
    least = smallest(tables, list(limits))
    if (
        problem.times is not None and "latency" in limits
    ):  # of the fastest network as a whole: sums are some per cent off
        limits["latency"] += budget.allowed("latency", problem.times.dense) - problem.aim(budget)
        least["latency"] = problem.times.measured(problem.times.fastest()) - problem.rest
    if any(least[name] > limit for name, limit in limits.items()):
        raise refuse(problem, budget, least)


def refuse(
    problem: Problem,
    budget: Budget,
    least: dict[str, int],
    advice: str = "Raise it, or let more layers be decomposed.",
) -> BudgetError:
    """The `BudgetError` for a budget that cannot be reached, with the smallest reachable one.

    Args:
        problem: the layers.
        budget: what was asked for.
        least: what all sites together cost at least, by limit.
        advice: what to do.
    """
    parts, reachable = [], {}
    limits = problem.limits(budget)
    for asked, value in budget.limits.items():
        name = "latency" if asked == "latency_ms" else asked
        dense = problem.dense_cost(name)
        allowed = budget.allowed(name, dense)
        total = least[name] + allowed - limits[name]
        if name == "latency":  # the smallest budget whose aim, a little below it, can be kept
            aim = problem.aim(budget)
            total = round((least[name] + aim - limits[name]) * allowed / max(aim, 1))
        if asked == "latency_ms":
            reachable[asked] = _round_up(total / 1e6, None)
        else:
            reachable[asked] = _round_up(total / dense) if isinstance(value, float) else total
        of = f"{total / 1e6:.3g} of {dense / 1e6:.3g} ms" if name == "latency" else f"{total:,} of {dense:,}"
        parts.append(f"{asked}={value} asked, {reachable[asked]} reachable ({of})")
    if reachable.get("latency") == 1.0:
        advice = NOTHING_FASTER
    joint = "" if len(parts) == 1 else " Each alone; together they may demand more."
    return BudgetError(
        f"`budget` is below what this method can reach on this model: {'; '.join(parts)}.{joint} "
        f"{advice}{_largest_dense(problem)}",
        reachable,
    )


def _largest_dense(problem: Problem) -> str:
    """A sentence on the largest layers that have to stay dense: their share of the parameters, and why."""
    dense = sorted((x for x in problem.found if x.reason is not None), key=lambda x: -x.params)[:_NAMED]
    whole = max(problem.dense.params, 1)
    words = [f"'{x.name}' ({x.params / whole:.1%} of the parameters: {x.reason})" for x in dense if x.params]
    return f" Largest of those that stay dense: {'; '.join(words)}." if words else ""


def _round_up(number: float, most: float | None = 1.0) -> float:
    """To five digits, upwards: what the message names must itself be reachable."""
    rounded = float(np.ceil(number * 1e5 + 1e-6) / 1e5)
    return rounded if most is None else min(most, rounded)


def _by_weight(site: FoundLayer, measure: Measure, spectra: Mapping[str, Mapping[int, Tensor]]) -> Errors:
    """The errors in a measure, from spectra by fold and number of slices."""

    @cache
    def norm(fold: str) -> Tensor:
        return _norm(site, fold, spectra[fold])

    def errors(fold: str, k: int, n: int) -> Tensor:
        return measure(spectra[fold][k], norm(fold), lambda: site.matrices(fold, k))[:n]

    return errors


def _break_even(full: int, per_rank: Cost, dense: Cost) -> int:
    """The largest rank that saves parameters, and MACs where they are known and the layer is used at all."""
    best = min(full, (dense.params - 1) // per_rank.params)
    if dense.macs and per_rank.macs:
        best = min(best, (dense.macs - 1) // per_rank.macs)
    return max(best, 0)


def _norm(site: FoundLayer, fold: str, by_slices: Mapping[int, Tensor]) -> Tensor:
    """``||W||_2`` of the fold's matrix: the first value of the unsliced spectrum, which is at hand for most folds."""
    if 1 in by_slices:
        return by_slices[1].max()
    return singular_values(site.matrices(fold)[:, 0]).max().cpu()
