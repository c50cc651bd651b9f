"""What one layer can become, as arrays: what every rule chooses from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Candidates:
    """The candidate decompositions of one site, as arrays. Entry 0 is dense; the rest all low-rank, or all Tucker.

    Args:
        name: of the site.
        folds: the names that ``fold`` points into.
        fold: index of the fold, ``(n,)``.
        slices: number of slices, ``(n,)``.
        rank: ``(n,)``, or for Tucker ``(n, modes)``; 0 for dense.
        error: in the measure asked for, ``(n,)``.
        costs: by name of the cost (``params``; ``macs`` where known; ``latency``, in nanoseconds, where measured), each
            ``(n,)`` int64.
        bias: whether a low-rank entry adds a bias where a layer lacks one.
        place: where ranks have been left out, the ones that are there, ``(n,)``, of Tucker the number of the pair;
            None: entry j is the one at place j.
    """

    name: str
    folds: tuple[str, ...]
    fold: NDArray[np.int64]
    slices: NDArray[np.int64]
    rank: NDArray[np.int64]
    error: NDArray[np.float64]
    costs: dict[str, NDArray[np.int64]]
    bias: bool = False
    place: NDArray[np.int64] | None = None


def entries(table: Candidates, which: NDArray[np.int64]) -> Candidates:
    """The table of these entries alone."""
    costs = {name: cost[which] for name, cost in table.costs.items()}
    place = None if table.place is None else table.place[which]
    about = {name: getattr(table, name)[which] for name in ("fold", "slices", "rank", "error")}
    return replace(table, **about, costs=costs, place=place)
