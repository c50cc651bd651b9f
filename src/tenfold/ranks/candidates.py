"""What one layer can become, as arrays: what every rule chooses from."""

from __future__ import annotations

from dataclasses import dataclass

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
        costs: by name of the cost (``params``, and ``macs`` where known), each ``(n,)`` int64.
        bias: whether a low-rank entry adds a bias where a layer lacks one.
    """

    name: str
    folds: tuple[str, ...]
    fold: NDArray[np.int64]
    slices: NDArray[np.int64]
    rank: NDArray[np.int64]
    error: NDArray[np.float64]
    costs: dict[str, NDArray[np.int64]]
    bias: bool = False
