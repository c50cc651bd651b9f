"""Least total loss under a budget, by one multiplier: the layers trade loss against cost at one common price.

::

    minimise  sum_l loss_l(option) + lambda sum_l cost_l(option),      the smallest lambda whose choice fits

For each layer only the corners of the lower convex hull of (cost, loss) are ever chosen. Going down the hulls of all
layers from their dense ends, the cheapest edge first, passes through the choices of every lambda in turn; the first
that fits is the answer. It is the optimum among the choices that a multiplier can reach; a budget between two corners
leaves a little unspent. The cost is the sum of the limited costs, each relative to what the dense layers cost.

Source: Everett 1963; as a rank rule Idelbayev & Carreira-Perpinan 2020 (L-Rank, the C step), and, with
``loss = -log(energy kept)``, the greedy rule of Zhang et al. 2015 (arXiv 1411.4229, section 3.3).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import SupportsIndex

import numpy as np
from numpy.typing import NDArray

from tenfold.ranks.options import Options


def allocate(
    tables: Sequence[Options], losses: Sequence[NDArray[np.float64]], limits: Mapping[str, int]
) -> tuple[list[int], float] | None:
    """The choice per layer and its multiplier; None where even the cheapest options do not fit.

    Args:
        tables: the options of each layer.
        losses: what each option loses, >= 0, comparable between layers; one array per layer, same length as its table.
        limits: what all layers together may cost.
    """
    names = list(limits)
    bound = np.array([limits[n] for n in names])
    costs = [np.stack([t.costs[n] for n in names], axis=1) for t in tables]
    whole = np.maximum(sum(c[0] for c in costs), 1)  # entry 0 is dense: a scale that no budget changes
    hulls = [_hull((c / whole).sum(1), loss) for c, loss in zip(costs, losses, strict=True)]
    choice = [int(hull[0]) for hull, _ in hulls]
    total = sum(c[i] for c, i in zip(costs, choice, strict=True))
    edges = [(price, layer, step) for layer, (_, prices) in enumerate(hulls) for step, price in enumerate(prices)]
    multiplier = 0.0
    for price, layer, step in sorted(edges):
        if np.all(total <= bound):
            break
        total = total - costs[layer][choice[layer]] + costs[layer][hulls[layer][0][step + 1]]
        choice[layer], multiplier = int(hulls[layer][0][step + 1]), price
    return (choice, float(multiplier)) if np.all(total <= bound) else None


def _hull(cost: NDArray[np.float64], loss: NDArray[np.float64]) -> tuple[NDArray[np.int64], list[float]]:
    """Corners of the lower hull from the lowest loss to the lowest cost, and the price (loss per cost) of each edge."""
    order = np.lexsort((loss, cost))
    corners: list[int] = []
    for i in order:
        if corners and loss[i] >= loss[corners[-1]]:
            continue  # dearer and no better
        while len(corners) > 1 and _price(cost, loss, corners[-2], corners[-1]) <= _price(cost, loss, corners[-1], i):
            corners.pop()
        corners.append(int(i))
    corners.reverse()
    prices = [_price(cost, loss, cheap, dear) for dear, cheap in itertools.pairwise(corners)]
    return np.array(corners), prices


def _price(cost: NDArray[np.float64], loss: NDArray[np.float64], cheap: SupportsIndex, dear: SupportsIndex) -> float:
    return float((loss[cheap] - loss[dear]) / (cost[dear] - cost[cheap]))
