"""Times of several functions beside one yardstick, in rounds.

A core changes its speed by some per cent over seconds. So every round calls each function once and a fixed yardstick,
too, and what counts is the time over the yardstick's of the same round; its median over the rounds. Each call is a
cold one: what the function reads has left the nearest caches, as in a network, where all other layers ran before.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

import torch

K = TypeVar("K", bound=Hashable)
Call = Callable[[], Any]
Clock = Callable[[], float]


def relative_times(
    calls: Mapping[K, Call], yardstick: Call, *, rounds: int, clock: Clock, before: Call = lambda: None
) -> dict[K, float]:
    """The time of each function in units of the yardstick's: the median over rounds of the ratio within the round.

    Args:
        calls: the functions.
        yardstick: one more, of about the same length.
        rounds: >= 1; one more, before them, does not count.
        clock: seconds.
        before: called before each call, outside the time: empties the caches.
    """

    def seconds(call: Call) -> float:
        before()
        start = clock()
        call()
        return clock() - start

    ratios: dict[K, list[float]] = {key: [] for key in calls}
    for number in range(rounds + 1):
        each = {key: seconds(call) for key, call in calls.items()}
        unit = seconds(yardstick)
        if number:
            for key, value in each.items():
                ratios[key].append(value / max(unit, 1e-9))
    return {key: statistics.median(values) for key, values in ratios.items()}


class ColdCaches:
    """Empties the nearest caches: a function that goes through a few times as many bytes as the second level has.

    Args:
        size: of the second-level cache, in bytes.
    """

    def __init__(self, size: int) -> None:
        self.numbers = torch.zeros(_TIMES * size // 4)

    def __call__(self) -> None:
        """Go through them."""
        self.numbers.add_(1.0)


_TIMES = 3
"""Times its second-level cache that are touched."""
