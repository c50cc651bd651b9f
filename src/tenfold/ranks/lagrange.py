"""Least total loss under a budget, by multipliers: the layers trade loss against cost at common prices.

::

    minimise  sum_l loss_l(option) + lambda sum_l cost_l(option),      the smallest lambda whose choice fits

For each layer only the corners of the lower convex hull of (cost, loss) are ever chosen. Going down the hulls of all
layers from their dense ends, the cheapest edge first, passes through the choices of every lambda in turn; the first
that fits is the answer. It is the optimum among the choices that a multiplier can reach; a budget between two corners
leaves a little unspent, which an integer programme spends where that is asked for. Costs are relative to what the dense
layers cost.

Several limits have a multiplier each, the dual optimum,

::

    argmax_{lambda >= 0}  min_choice  sum_l loss_l + sum_n lambda_n (sum_l cost_ln - B_n),

found by cutting planes, one for every choice met on the way. A choice there seldom fits: an integer programme chooses
among the options of each layer that come nearest to the minimum, within 0.1 % of the best of them. The walk down the
hulls of the mean of the costs is the other candidate. Where neither fits, the programme over all options decides
whether anything does.

Source: Everett 1963; as a rank rule Idelbayev & Carreira-Perpinan 2020 (L-Rank, the C step), and, with
``loss = -log(energy kept)``, the greedy rule of Zhang et al. 2015 (arXiv 1411.4229, section 3.3). Several limits: ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy
from numpy.typing import NDArray

from tenfold.ranks.candidates import Candidates
from tenfold.ranks.knapsack import cheapest

Hull = tuple[NDArray[np.int64], list[float]]
_DUAL = 1e-5
"""How near the dual optimum is reached, relative to the loss of a choice that fits."""
_DEAR = 1e6
"""The highest price: a millionth of the whole cost is worth all of the loss."""
_NEAR = 8
"""Candidates of each layer, at least, that the integer programme chooses among."""
_COLUMNS = 512
"""Candidates of all layers together, if there are so many. More make it slower, and the loss hardly smaller."""
_GAP, _FINE_GAP = 1e-3, 1e-4
_FEW = 4000
"""Candidates of all layers together up to which the programme takes all of them."""


class Allocated(NamedTuple):
    """A choice of one option per layer.

    Args:
        choice: index into the options of each layer.
        price: the multiplier.
        gap: how far the loss is from the least one at most, relative to it; None where that is not proven.
    """

    choice: list[int]
    price: float
    gap: float | None


def allocate(
    tables: Sequence[Candidates],
    losses: Sequence[NDArray[np.float64]],
    limits: Mapping[str, int],
    *,
    spend: bool = False,
) -> Allocated | None:
    """Lagrangian rank allocation: the choice per layer and its multiplier; None where no choice fits.

    With several limits the multiplier is the sum of theirs. Where the integer programme decides among all options, what
    it proves is the gap.

    Args:
        tables: the options of each layer.
        losses: what each option loses, >= 0, comparable between layers; one array per layer, same length as its table.
        limits: what all layers together may cost.
        spend: whether what one limit leaves unspent is spent, by an integer programme within 0.1 % of the best choice
            near the multiplier's, or, where there are few options, within 0.01 % of the best of all; several limits
            are always spent so.
    """
    names = list(limits)
    bound = np.array([limits[n] for n in names])
    costs = [np.stack([t.costs[n] for n in names], axis=1) for t in tables]
    if np.any(sum(c.min(0) for c in costs) > bound):
        return None
    whole = np.maximum(sum(c[0] for c in costs), 1)  # entry 0 is dense: a scale that no budget changes
    relative = [c / whole for c in costs]
    walked = _walk([_hull(c.mean(1), loss) for c, loss in zip(relative, losses, strict=True)], costs, bound)
    if (len(names) == 1 and not spend) or (walked is not None and walked[1] == 0):
        return None if walked is None else Allocated(*walked, 0.0 if walked[1] == 0 else None)

    def lost(choice: list[int]) -> float:
        return sum(float(loss[i]) for loss, i in zip(losses, choice, strict=True))

    scale = (sum(float(loss.max()) for loss in losses) if walked is None else lost(walked[0])) or 1.0
    units = [loss / scale for loss in losses]
    if len(names) == 1 and walked is not None:
        multipliers = np.array([walked[1] / scale])
    else:
        multipliers = _dual(units, relative, bound / whole)
    values = [loss + c @ multipliers for loss, c in zip(units, relative, strict=True)]
    few = sum(map(len, losses)) <= _FEW
    most = _FEW if few else max(_NEAR, _COLUMNS // len(tables))
    near = [np.argsort(value, kind="stable")[:most] for value in values]
    gap = _FINE_GAP if few else _GAP
    among = cheapest([u[i] for u, i in zip(units, near, strict=True)], _rows(costs, near), bound, gap)
    choices = [] if walked is None else [walked[0]]
    if among is not None:
        choices.append([int(i[k]) for i, k in zip(near, among[0], strict=True)])
    elif walked is None:
        every = cheapest(units, costs, bound, _GAP)
        choices += [] if every is None else [every[0]]
    if not choices:
        return None
    best = min(choices, key=lost)
    proven = None
    if few and among is not None:  # scaled as the programme was
        reached = lost(best) / scale
        proven = max(0.0, (reached - among[1]) / max(reached, 1e-12))
    return Allocated(best, float(multipliers.sum() * scale), proven)


def _walk(
    hulls: Sequence[Hull], costs: Sequence[NDArray[np.int64]], bound: NDArray[np.int64]
) -> tuple[list[int], float] | None:
    """The first choice that fits on the way down the hulls, the cheapest edge first; None where the last does not."""
    edges = [(price, layer, step) for layer, (_, prices) in enumerate(hulls) for step, price in enumerate(prices)]
    edges.sort()
    changes = [np.diff(cost[corners], axis=0) for cost, (corners, _) in zip(costs, hulls, strict=True)]
    first = np.sum([cost[corners[0]] for cost, (corners, _) in zip(costs, hulls, strict=True)], axis=0)
    totals = np.cumsum([first, *(changes[layer][step] for _, layer, step in edges)], axis=0)
    fits = np.all(totals <= bound, axis=1)
    if not fits.any():
        return None
    taken = edges[: int(np.argmax(fits))]
    steps = np.bincount([layer for _, layer, _ in taken], minlength=len(hulls))
    choice = [int(corners[step]) for (corners, _), step in zip(hulls, steps, strict=True)]
    return choice, float(taken[-1][0]) if taken else 0.0


def _dual(
    losses: Sequence[NDArray[np.float64]], costs: Sequence[NDArray[np.float64]], bound: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The multipliers ``(limits,)`` of the dual optimum.

    Args:
        losses: scaled: where a choice fits, the best one loses at most 1.
        costs: relative, ``(n, limits)`` per layer.
        bound: relative, ``(limits,)``.
    """
    prices = best_prices = np.zeros(len(bound))
    best, heights, slopes = -np.inf, [], []
    while True:
        choice = [int(np.argmin(loss + cost @ prices)) for loss, cost in zip(losses, costs, strict=True)]
        heights.append(sum(loss[i] for loss, i in zip(losses, choice, strict=True)))
        slopes.append(sum(cost[i] for cost, i in zip(costs, choice, strict=True)) - bound)
        value = heights[-1] + slopes[-1] @ prices
        if value > best:
            best, best_prices = value, prices
        top = scipy.optimize.linprog(  # the highest point (height, prices) below all planes
            np.append(-1.0, np.zeros(len(bound))),
            A_ub=np.column_stack([np.ones(len(slopes)), -np.array(slopes)]),
            b_ub=heights,
            bounds=[(None, None), *[(0, _DEAR)] * len(bound)],
        )
        assert top.x is not None, top.message
        # a dual value above every loss there is: nothing fits, and the prices do not matter
        if -top.fun - best <= _DUAL or best > 1 + _DUAL or np.array_equal(top.x[1:], prices):
            return best_prices
        prices = top.x[1:]


def _rows(costs: Sequence[NDArray[np.int64]], indices: Sequence[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
    return [cost[i] for cost, i in zip(costs, indices, strict=True)]


def _hull(cost: NDArray[np.float64], loss: NDArray[np.float64]) -> Hull:
    """Corners of the lower hull from the lowest loss to the lowest cost, and the price (loss per cost) of each edge."""
    c, f = cost.tolist(), loss.tolist()  # single numbers are faster in lists
    order: list[int] = np.lexsort((loss, cost)).tolist()
    corners, prices = order[:1], []  # from the cheap end
    for i in order[1:]:
        if f[i] >= f[corners[-1]]:
            continue  # dearer and no better
        price = (f[corners[-1]] - f[i]) / (c[i] - c[corners[-1]])
        while prices and prices[-1] <= price:
            corners.pop()
            prices.pop()
            price = (f[corners[-1]] - f[i]) / (c[i] - c[corners[-1]])
        corners.append(i)
        prices.append(price)
    return np.array(corners[::-1]), prices[::-1]
