"""One option per layer within several limits, as an integer programme: a multiple-choice knapsack.

::

    minimise  sum_l value_l(option)   subject to  sum_l cost_l <= B   for every limited cost

Limits are kept exactly. Whether they can be kept is decided to one part in a million of a limit, the solver's own
precision; exactly up to 400 thousand.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator, Sequence

import numpy as np
import scipy
from numpy.typing import NDArray

_EXACT = 400_000
"""Up to this limit half a unit is more than the integer programme's relative tolerance of a millionth."""


def cheapest(
    values: Sequence[NDArray[np.float64]], costs: Sequence[NDArray[np.int64]], bound: NDArray[np.int64], gap: float
) -> tuple[list[int], float] | None:
    """Multiple-choice knapsack: one option per layer with the least total value within the limits; None if none fits.

    Returns:
        the choice, and what no choice within the limits can be below.

    Args:
        values: per layer, ``(n,)``, >= 0 and best near 1 or below.
        costs: per layer, ``(n, limits)``.
        bound: the limits, ``(limits,)``.
        gap: what the total may be above the least one, relatively, >= 0.
    """
    sizes = [len(v) for v in values]
    layer = np.repeat(np.arange(len(sizes)), sizes)
    cost = np.concatenate(costs)
    common = np.maximum(np.gcd.reduce(cost, axis=0), 1)  # numbers as small as can be: the solver is no exact one
    cost, bound = cost // common, bound // common
    scale = np.maximum(bound, 1)
    one_each = scipy.sparse.csr_array((layer[None, :] == np.arange(len(sizes))[:, None]).astype(float))
    # Half a unit of room excludes no integer solution and admits none in excess, unless it is less than the
    # solver's tolerance: then what is found may exceed the limit, and a limit tightened by as much decides.
    for room in (np.full(len(scale), 0.5), np.where(scale < _EXACT, 0.5, -2e-6 * scale)):
        with _unheard():
            found = scipy.optimize.milp(
                np.concatenate(values),
                constraints=[
                    scipy.optimize.LinearConstraint(one_each, 1, 1),
                    scipy.optimize.LinearConstraint((cost / scale).T, ub=(bound + room) / scale),
                ],
                integrality=np.ones(len(layer)),
                bounds=scipy.optimize.Bounds(0, 1),
                options={"mip_rel_gap": gap},
            )
        if found.x is None:
            assert found.status == 2, found.message  # infeasible
            return None
        taken = np.flatnonzero(found.x > 0.5)
        if np.all(cost[taken].sum(0) <= bound):
            return [int(i) for i in taken - np.cumsum([0, *sizes[:-1]])], float(found.mip_dual_bound)
    return None


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Keep the process's standard output clean: HiGHS prints lines to it past every option, and past Python."""
    try:
        heard = os.dup(1)
    except OSError:  # there is none
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        with contextlib.suppress(OSError, TypeError, AttributeError):  # Windows has another library
            ctypes.CDLL(None).fflush(None)
        os.dup2(heard, 1)
        os.close(nowhere)
        os.close(heard)
