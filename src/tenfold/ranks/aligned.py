"""Ranks at which a layer is fast: multiples of the width of the processor's registers.

Time over rank is a staircase: kernels work in blocks of channels, and one rank above a block can take as long as the
whole next one; one rank below it, too.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tenfold.ranks.candidates import Candidates

CONVOLUTIONS, MATRICES, ACCELERATORS = 16, 8, 8
"""Of which ranks are best multiples: of convolutions and of linear layers on a CPU, and of all on a GPU."""
_CHOICES = 12
"""Ranks that a layer is to have to choose from: one with few has them closer together."""
_MOST = 12
"""Ranks of a layer that are measured, about; times in between are interpolated."""


def step_of(most: int, multiple: int) -> int:
    """The distance of aligned ranks: ``multiple``, halved until there are a dozen of them up to ``most``."""
    step = max(multiple, 1)
    while step > 1 and most // step < _CHOICES:
        step //= 2
    return step


def aligned_ranks(most: int, multiple: int) -> list[int]:
    """The multiples of `step_of` in ``1 ... most``.

    Args:
        most: the largest rank that is of use, >= 0.
        multiple: of which ranks are best, >= 1.
    """
    step = step_of(most, multiple)
    return list(range(step, most + 1, step))


def at_aligned(table: Candidates, multiple: int) -> NDArray[np.int64]:
    """The entries of a table at aligned ranks; dense is not among them.

    The form with the largest ranks tells whether a layer has enough of them; each slice has that form's multiples.

    Args:
        table: options of one rank each.
        multiple: see `aligned_ranks`.
    """
    return np.flatnonzero((table.rank > 0) & (table.rank % step_of(int(table.rank.max()), multiple) == 0))


def knots(ranks: list[int]) -> list[int]:
    """About a dozen of some aligned ranks, the first and the last among them, evenly spread."""
    if len(ranks) <= _MOST:
        return list(ranks)
    return [ranks[round(i * (len(ranks) - 1) / (_MOST - 1))] for i in range(_MOST)]
