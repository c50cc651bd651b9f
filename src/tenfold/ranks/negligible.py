"""The smallest layers: those that together cost so little that nothing is gained by cutting them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def smallest_within(shares: NDArray[np.float64], most: float) -> list[int]:
    """The smallest layers, as many as together hold at most ``most`` of every cost; indices, the smallest first.

    Args:
        shares: what each layer holds of each cost, ``(layers, costs)``, >= 0. The larger of its shares is its size.
        most: in [0, 1); at 0 there is none.
    """
    if most <= 0 or not shares.size:
        return []
    order = np.argsort(shares.max(1), kind="stable")
    fits = np.all(np.cumsum(shares[order], axis=0) <= most, axis=1)
    return [int(i) for i in order[: int(np.argmin(np.append(fits, False)))]]
