"""One option per layer within several limits, as an integer programme: a multiple-choice knapsack.

::

    minimise  sum_l value_l(option)   subject to  sum_l cost_l <= B   for every limited cost

Limits are kept exactly. Whether they can be kept is decided to one part in a million of a limit, the solver's own
precision; exactly up to 400 thousand.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy
from numpy.typing import NDArray

_EXACT = 400_000
"""Up to this limit half a unit is more than the integer programme's relative tolerance of a millionth."""


def cheapest(
    values: Sequence[NDArray[np.float64]], costs: Sequence[NDArray[np.int64]], bound: NDArray[np.int64], gap: float
) -> list[int] | None:
    """Multiple-choice knapsack: one option per layer with the least total value within the limits; None if none fits.

    Args:
        values: per layer, ``(n,)``, >= 0 and best near 1 or below.
        costs: per layer, ``(n, limits)``.
        bound: the limits, ``(limits,)``.
        gap: what the total may be above the least one, relatively, >= 0.
    """
    sizes = [len(v) for v in values]
    layer = np.repeat(np.arange(len(sizes)), sizes)
    cost, scale = np.concatenate(costs), np.maximum(bound, 1)
    one_each = scipy.sparse.csr_array((layer[None, :] == np.arange(len(sizes))[:, None]).astype(float))
    # Half a unit of room excludes no integer solution and admits none in excess, unless it is less than the
    # solver's tolerance: then what is found may exceed the limit, and a limit tightened by as much decides.
    for room in (np.full(len(scale), 0.5), np.where(scale < _EXACT, 0.5, -2e-6 * scale)):
        found = scipy.optimize.milp(
            np.concatenate(values),
            constraints=[
                scipy.optimize.LinearConstraint(one_each, 1, 1),
                scipy.optimize.LinearConstraint((cost / scale).T, ub=(bound + room) / scale),
            ],
            integrality=np.ones(len(layer)),
            bounds=scipy.optimize.Bounds(0, 1),
            options={"mip_rel_gap": gap, "presolve": False},  # undoing presolve, HiGHS may print to standard output
        )
        if found.x is None:
            assert found.status == 2, found.message  # infeasible
            return None
        taken = np.flatnonzero(found.x > 0.5)
        if np.all(cost[taken].sum(0) <= bound):
            return [int(i) for i in taken - np.cumsum([0, *sizes[:-1]])]
    return None
