"""Exact min-max allocation: the smallest largest error that a budget allows.

::

    minimise  max_l err_l   over one option per layer   subject to  sum_l cost_l <= B   for every limited cost

For a level ``t`` let ``C_l(t)`` be the cheapest option of layer ``l`` with error <= t. Then ``t`` can be attained iff
``sum_l C_l(t) <= B``: if a feasible choice reaches ``t``, each of its options competes in ``C_l(t)``; and if the sum
fits, the minimisers are feasible. The sum only falls as ``t`` rises, so the optimum is the smallest candidate error at
which it fits: one sort of all options gives it, and the whole budget -> level curve with it. The certificate is the
next lower level, which does not fit. No random numbers, no restarts.

With several limits "cheapest" is unambiguous where one cost is a multiple of the other in each layer (parameters and
MACs, channel fold, stride or not). Elsewhere (transposed convolutions, other folds) feasibility of a level is a small
integer programme, see `tenfold.ranks.knapsack`.

The objective says nothing about layers below the level, so a second, lexicographic pass spends what is left: the layer
with the largest error that can still be lowered is lowered, until nothing fits or 99.8 % of a limit is used.

Source: the problem is equation 2 of Liebenwein et al. 2021 (arXiv 2107.11442), who solve it by alternating from 15
random starts; the exact solution and the second pass are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tenfold.ranks.candidates import Candidates
from tenfold.ranks.knapsack import cheapest

_USED = 0.998


@dataclass(frozen=True)
class Allocation:
    """An optimal min-max allocation and its certificate.

    Args:
        choice: index into the options of each layer.
        level: the smallest attainable largest error.
        lower: the next lower level at which the cheapest choice differs, which no choice within the limits attains;
            None if ``level`` is the smallest there is.
    """

    choice: tuple[int, ...]
    level: float
    lower: float | None


@dataclass(frozen=True)
class Staircase:
    """The Pareto-optimal options of one layer: error falls and cost rises along them.

    Args:
        index: into the layer's options.
        error: falling.
        cost: rising, one row per option and one column per limit.
    """

    index: NDArray[np.int64]
    error: NDArray[np.float64]
    cost: NDArray[np.int64]


def allocate(tables: Sequence[Candidates], limits: Mapping[str, int], *, spend: bool = True) -> Allocation | None:
    """Min-max rank allocation: the choice with the smallest largest error within ``limits``; None if none fits.

    Ties in cost go to the lower error, then to fewer slices.

    Args:
        tables: the options of each layer.
        limits: what all layers together may cost, by name of the cost.
        spend: whether a second pass spends what is left on the largest errors.
    """
    names, bound = list(limits), np.array(list(limits.values()), dtype=np.int64)
    problem = _Levels(tables, names, bound)
    levels = problem.levels
    low, high = 0, len(levels) - 1  # smallest feasible index by bisection: feasibility is monotone in the level
    if problem.choose(levels[high]) is None:
        return None
    while low < high:
        middle = (low + high) // 2
        if problem.choose(levels[middle]) is None:
            low = middle + 1
        else:
            high = middle
    choice = problem.choose(levels[high])
    assert choice is not None
    if spend:
        choice = _spend(problem.stairs, tables, names, bound, choice)
    return Allocation(tuple(choice), float(levels[high]), float(levels[high - 1]) if high else None)


def curve(tables: Sequence[Candidates], cost: str) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The whole budget -> level curve for one cost, from one sort: ``(levels, least cost at each)``.

    Levels rise, costs fall. The best level for a budget is the first whose cost fits it.
    """
    stairs = [staircase(table, [cost]) for table in tables]
    first = sum(int(s.cost[-1, 0]) for s in stairs)  # the lowest error of each layer
    error = np.concatenate([s.error[:-1] for s in stairs])
    saving = np.concatenate([np.diff(s.cost[:, 0]) for s in stairs])  # paid to go from one stair to the one below it
    order = np.argsort(error, kind="stable")
    level = np.concatenate([[max(s.error[-1] for s in stairs)], error[order]])
    total = first - np.concatenate([[0], np.cumsum(saving[order])])
    level = np.maximum.accumulate(level)
    last = np.append(level[1:] != level[:-1], True)  # of equal levels, the one at which all of them are taken
    return level[last], total[last]


def staircase(table: Candidates, names: Sequence[str], scale: NDArray[np.float64] | None = None) -> Staircase:
    """The Pareto-optimal options of a layer, from its cheapest to its most exact.

    Args:
        table: the options.
        names: the limited costs; with several, their sum relative to ``scale`` decides what is cheaper.
        scale: one number per name.
    """
    cost = np.stack([table.costs[name] for name in names], axis=1)
    single = cost[:, 0] if len(names) == 1 else (cost / (np.ones(len(names)) if scale is None else scale)).sum(1)
    order = np.lexsort((table.slices, single, table.error))
    best = np.minimum.accumulate(single[order])
    keep = order[np.append(True, best[1:] < best[:-1])][::-1]
    return Staircase(keep, table.error[keep], cost[keep])


class _Levels:
    """Feasibility of a level: the staircases for one limit, an integer programme where several limits conflict."""

    def __init__(self, tables: Sequence[Candidates], names: list[str], bound: NDArray[np.int64]) -> None:
        self.tables, self.names, self.bound = tables, names, bound
        scale = np.maximum(bound, 1).astype(np.float64)
        self.stairs = [staircase(table, names, scale) for table in tables]
        self.front = [_one_order(table, names) for table in tables]
        self.levels = np.unique(
            np.concatenate([t.error for t in tables] if not all(self.front) else [s.error for s in self.stairs])
        )

    def choose(self, level: float) -> list[int] | None:
        """A choice with all errors at most ``level`` within the limits, or None."""
        steps = [int(np.searchsorted(-s.error, -level)) for s in self.stairs]
        if any(i == len(s.error) for i, s in zip(steps, self.stairs, strict=True)):
            return None
        total = sum(s.cost[i] for i, s in zip(steps, self.stairs, strict=True))
        if np.all(total <= self.bound):
            return [int(s.index[i]) for i, s in zip(steps, self.stairs, strict=True)]
        return None if all(self.front) else self._programme(level)

    def _programme(self, level: float) -> list[int] | None:
        """A choice within the limits, near the least total."""
        fronts = [_pareto(table, self.names, level) for table in self.tables]
        costs = [
            np.stack([t.costs[n][f] for n in self.names], axis=1) for t, f in zip(self.tables, fronts, strict=True)
        ]
        scale = np.maximum(self.bound, 1)
        # any choice within the limits will do; a cheap one leaves more to spend
        found = cheapest([(cost / scale).sum(1) for cost in costs], costs, self.bound, gap=1e-3)
        return None if found is None else [int(front[i]) for front, i in zip(fronts, found[0], strict=True)]


def _one_order(table: Candidates, names: list[str]) -> bool:
    """Whether no two options disagree on which is cheaper: then what is cheapest is cheapest under every limit."""
    cost = np.stack([table.costs[name] for name in names], axis=1)
    return bool(np.all(np.diff(cost[np.lexsort(cost.T[::-1])], axis=0) >= 0))


def _pareto(table: Candidates, names: list[str], level: float) -> NDArray[np.int64]:
    """Candidates with error at most ``level`` that no other such option beats in every cost."""
    cost = np.stack([table.costs[name] for name in names], axis=1)
    index = np.flatnonzero(table.error <= level)
    index = index[np.lexsort((table.slices[index], table.error[index], *cost[index].T[::-1]))]
    kept: list[int] = []
    while len(index):  # the first is beaten by none; what it beats goes with it
        kept.append(int(index[0]))
        index = index[np.any(cost[index] < cost[index[0]], axis=1)]
    return np.array(kept, dtype=np.int64)


def _spend(
    stairs: Sequence[Staircase],
    tables: Sequence[Candidates],
    names: list[str],
    bound: NDArray[np.int64],
    choice: list[int],
) -> list[int]:
    """Lower the layers that still can be, the largest error first; each step goes to the next stair that fits."""
    now = [np.array([t.costs[n][c] for n in names]) for t, c in zip(tables, choice, strict=True)]
    error = np.array([t.error[c] for t, c in zip(tables, choice, strict=True)])
    left = bound - sum(now)
    open_ = np.ones(len(choice), dtype=bool)
    while open_.any() and np.all(left > (1 - _USED) * bound):
        layer = int(np.argmax(np.where(open_, error, -1.0)))
        below = int(np.searchsorted(-stairs[layer].error, -error[layer], side="right"))
        fits = np.all(stairs[layer].cost[below:] - now[layer] <= left, axis=1)
        if not fits.any():
            open_[layer] = False
            continue
        step = below + int(np.argmax(fits))
        left = left + now[layer] - stairs[layer].cost[step]
        now[layer], error[layer] = stairs[layer].cost[step], stairs[layer].error[step]
        choice[layer] = int(stairs[layer].index[step])
    return choice
