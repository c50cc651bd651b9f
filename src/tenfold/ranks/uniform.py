"""Uniform ranks: the same fraction of its full rank for every layer, ``j = round(a r)``, ``a`` from the budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tenfold.ranks.options import Options


def allocate(
    tables: Sequence[Options], full: Sequence[int], limits: Mapping[str, int]
) -> tuple[list[int], float] | None:
    """Choices ``j_l = max(1, round(a r_l))`` with the largest ``a`` in (0, 1] that the limits allow.

    A layer whose rank would not save anything stays dense, at its dense cost. The total only rises with ``a``, so
    the largest one is found by bisection over the values at which some rank changes.

    Args:
        tables: options with one fold and one slice each, ranks ascending.
        full: the full rank of each layer's matrix.
        limits: what all layers together may cost.

    Returns:
        the choice per layer and ``a``; None where even rank 1 everywhere does not fit.
    """
    # round(a r) = j from a = (j - 1/2) / r on
    steps = np.unique(np.concatenate([(np.arange(1, r + 1) - 0.5) / r for r in full] + [[1.0]]))

    def choose(a: float) -> list[int]:
        ranks = [max(1, int(np.floor(a * r + 0.5 + 1e-12))) for r in full]
        return [j if j < len(t.rank) else 0 for t, j in zip(tables, ranks, strict=True)]

    def fits(choice: list[int]) -> bool:
        return all(sum(int(t.costs[n][c]) for t, c in zip(tables, choice, strict=True)) <= limits[n] for n in limits)

    low, high = -1, len(steps) - 1
    if fits(choose(steps[high])):
        return choose(steps[high]), float(steps[high])
    if not fits(choose(steps[0])):
        return None
    low = 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(choose(steps[middle])) else (low, middle)
    return choose(steps[low]), float(steps[low])
