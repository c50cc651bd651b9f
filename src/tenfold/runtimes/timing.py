"""Prepared calls timed in turns.

Machines change their speed from one second to the next. So calls are timed in turns, A B A B, each turn long enough for
the clock, and medians count, of the times and of the ratios of neighbouring turns.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from tenfold.errors import check, is_count
from tenfold.runtimes.runtime import Call, running, torch_tensors, wait

WORTH = 1.03
"""How much faster something has to be to be called faster: below is noise."""
_WARMUP = 3
_TURN = 0.005
"""Seconds that a turn should take at least: far above the clock's resolution, far below a change of frequency."""


def undisturbed_clock(inputs: Any, threads: int) -> Callable[[], float]:
    """Seconds that leave out what other programs take: of this thread, where it alone computes; else of the wall."""
    alone = threads == 1 and all(t.device.type == "cpu" for t in torch_tensors(inputs))
    return time.thread_time if alone else time.perf_counter


def turns(
    calls: Sequence[Call], inputs: Any, *, threads: int, rounds: int, clock: Callable[[], float]
) -> list[tuple[float, ...]]:
    """Seconds of each call, round by round.

    Args:
        calls: from `Runtime.prepare`, for as many threads.
        inputs: that they were prepared for: says which devices are waited for.
        threads: that they may use on the CPU, >= 1.
        rounds: turns of each call.
        clock: seconds.

    Raises:
        ArgumentError: a number out of its range.
    """
    check(is_count(threads), "threads", "an integer >= 1", threads)
    with running(threads):
        for call in calls:
            _turn(call, inputs, _WARMUP, clock)
        counts = [max(1, round(_TURN / max(_turn(call, inputs, _WARMUP, clock), 1e-7))) for call in calls]
        pairs = list(zip(calls, counts, strict=True))
        return [tuple(_turn(call, inputs, n, clock) for call, n in pairs) for _ in range(rounds)]


def fastest(calls: Sequence[Call], inputs: Any, *, threads: int, rounds: int) -> int:
    """The index of the fastest call; the first where no other is `WORTH` times as fast.

    Args:
        calls: what there is to choose from, the one to keep in doubt first.
        inputs: as in `turns`.
        threads: as in `turns`.
        rounds: as in `turns`.
    """
    if len(calls) == 1:
        return 0
    found = turns(calls, inputs, threads=threads, rounds=rounds, clock=undisturbed_clock(inputs, threads))
    gains = [statistics.median(row[0] / row[i] for row in found) for i in range(len(calls))]
    best = max(range(len(calls)), key=gains.__getitem__)
    return best if gains[best] >= WORTH else 0


def _turn(call: Call, inputs: Any, calls: int, clock: Callable[[], float]) -> float:
    """Seconds of one call, averaged over ``calls`` in a row."""
    wait(inputs)
    start = clock()
    for _ in range(calls):
        call()
    wait(inputs)
    return (clock() - start) / calls
