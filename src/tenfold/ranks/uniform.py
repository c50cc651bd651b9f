"""One factor for all ranks: ``j_l = round(a r_l)`` for given ``r_l``, ``a`` from the budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tenfold.ranks.candidates import Candidates


def allocate(
    tables: Sequence[Candidates],
    ranks: Sequence[int],
    full: Sequence[int],
    limits: Mapping[str, int],
    *,
    half: float = 0.5,
    least: int = 1,
) -> tuple[list[int], float] | None:
    """Uniform rank allocation ``j_l = min(full_l, max(least, floor(a r_l + half)))``, the largest ``a`` that fits.

    A layer whose rank would not save anything stays dense, at its dense cost. The total only rises with ``a``, so
    the largest one is found by bisection over the values at which some rank changes.

    Args:
        tables: options with one fold and one slice each, ranks ascending.
        ranks: ``r_l``, what is scaled, each >= 1.
        full: the largest rank of each layer: that of its matrix, or a smaller one.
        limits: what all layers together may cost.
        half: 0.5 to round, 0 to round down.
        least: the smallest rank that a layer may be given, >= 1; full ranks below it are not raised.

    Returns:
        the choice per layer and the smallest ``a`` that gives it; None where even the least ranks do not fit.
    """
    # floor(a r + half) = j from a = (j - half) / r on
    steps = [(np.arange(min(least, n), n + 1) - half) / r for r, n in zip(ranks, full, strict=True)]
    steps = np.unique(np.concatenate(steps))

    def choose(a: float) -> list[int]:
        return at_share(tables, ranks, full, a, half=half, least=least)

    def fits(choice: list[int]) -> bool:
        return all(sum(int(t.costs[n][c]) for t, c in zip(tables, choice, strict=True)) <= limits[n] for n in limits)

    if any(t.place is not None for t in tables):  # measured times need not rise with the rank
        best = next((a for a in steps[::-1] if fits(choose(a))), None)
        return None if best is None else (choose(best), float(best))
    if not fits(choose(steps[0])):
        return None
    low, high = 0, len(steps)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(choose(steps[middle])) else (low, middle)
    return choose(steps[low]), float(steps[low])


def at_share(
    tables: Sequence[Candidates],
    ranks: Sequence[int],
    full: Sequence[int],
    a: float,
    *,
    half: float = 0.5,
    least: int = 1,
) -> list[int]:
    """The choices of `allocate` at a given factor ``a``.

    Args:
        tables: as in `allocate`, like the others.
        ranks: ``r_l``.
        full: ``full_l``.
        a: the factor, > 0.
        half: 0.5 to round, 0 to round down.
        least: the smallest rank of a layer.
    """
    scaled = [min(n, max(least, int(np.floor(a * r + half + 1e-12)))) for r, n in zip(ranks, full, strict=True)]
    return [entry_at(t, j) for t, j in zip(tables, scaled, strict=True)]


def ranks_of(tables: Sequence[Candidates], choice: Sequence[int]) -> list[int]:
    """The ranks that a choice of entries has; 0 for dense."""
    return [int(t.rank[i]) for t, i in zip(tables, choice, strict=True)]


def entry_at(table: Candidates, place: int) -> int:
    """The entry of a table at a rank (of Tucker, a place on its line), or at the next smaller one that it has.

    A rank above all of them saves nothing: dense, entry 0. One below all of them gets the smallest.
    """
    if table.place is None:
        return place if place < len(table.rank) else 0
    if not 0 < place <= table.place[-1]:
        return 0
    return max(1, int(np.searchsorted(table.place[1:], place, side="right")))
