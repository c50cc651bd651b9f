"""Latency of forward passes: two models measured in turns.

Machines change their speed from one second to the next. So the two are measured in turns, A B A B, each turn long
enough for the clock, and what counts is the median, of the times and of the ratios of neighbouring turns.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tenfold.errors import check
from tenfold.layers.cost import call_arguments

_WARMUP = 3
_TURN = 0.005
"""Seconds that a turn should take at least: far above the clock's resolution, far below a change of frequency."""


@dataclass(frozen=True)
class Comparison:
    """The latency of a dense and a compressed model, for one batch size.

    Args:
        batch: inputs in the batch.
        threads: that torch might use.
        rounds: pairs of turns.
        dense_ms: median milliseconds of a forward pass.
        small_ms: the same of the compressed model.
        speedup: median of the rounds' ratios dense / compressed.
        speedup_quartiles: of the same ratios.
    """

    batch: int
    threads: int
    rounds: int
    dense_ms: float
    small_ms: float
    speedup: float
    speedup_quartiles: tuple[float, float]


def compare(
    dense: nn.Module,
    small: nn.Module,
    x: Any,
    *,
    threads: int = 1,
    rounds: int = 30,
    clock: Callable[[], float] = time.perf_counter,
) -> Comparison:
    """Time the forward passes of two models on the same input, in turns.

    Args:
        dense: on the device of ``x``; its mode is put back after.
        small: the same.
        x: a batch: a tensor, a tuple of positional or a dict of keyword arguments.
        threads: that torch may use on the CPU, >= 1.
        rounds: pairs of turns, >= 3.
        clock: seconds. ``time.thread_time``, for one thread on a CPU, leaves out what other programs take from it.

    Raises:
        ArgumentError: a number out of its range.
    """
    check(rounds >= 3, "rounds", ">= 3", rounds)
    a, b = zip(*_turns((dense, small), x, threads, rounds, clock), strict=True)
    ratios = [first / second for first, second in zip(a, b, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    before, after = statistics.median(a) * 1e3, statistics.median(b) * 1e3
    return Comparison(batch_size(x), threads, rounds, before, after, middle, (low, high))


def milliseconds(
    models: Mapping[str, nn.Module],
    x: Any,
    *,
    threads: int = 1,
    rounds: int = 30,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median milliseconds of a forward pass of each model, all measured in turns; arguments as in `compare`."""
    turns = zip(*_turns(tuple(models.values()), x, threads, rounds, clock), strict=True)
    return {name: statistics.median(times) * 1e3 for name, times in zip(models, turns, strict=True)}


def undisturbed_clock(x: Any, threads: int) -> Callable[[], float]:
    """Seconds that leave out what other programs take: of this thread, where it alone computes; else of the wall."""
    alone = threads == 1 and all(leaf.device.type == "cpu" for leaf in tree_leaves(x) if isinstance(leaf, Tensor))
    return time.thread_time if alone else time.perf_counter


def _turns(
    models: tuple[nn.Module, ...], x: Any, threads: int, rounds: int, clock: Callable[[], float]
) -> list[tuple[float, ...]]:
    """Seconds of a forward pass of each model, round by round."""
    check(threads >= 1, "threads", ">= 1", threads)
    with _quiet(models, threads), torch.inference_mode():
        for model in models:
            _turn(model, x, _WARMUP, clock)
        calls = [max(1, round(_TURN / max(_turn(model, x, _WARMUP, clock), 1e-7))) for model in models]
        pairs = list(zip(models, calls, strict=True))
        return [tuple(_turn(model, x, n, clock) for model, n in pairs) for _ in range(rounds)]


def batch_size(inputs: Any) -> int:
    """The batch size of inputs: the first axis of the first tensor; 1 where there is none."""
    first = next((leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)), None)
    return len(first) if first is not None and first.ndim else 1


def _turn(model: nn.Module, x: Any, calls: int, clock: Callable[[], float]) -> float:
    """Seconds of one forward pass, averaged over ``calls`` in a row."""
    args, kwargs = call_arguments(x)
    device = next((leaf.device for leaf in tree_leaves(x) if isinstance(leaf, Tensor)), torch.device("cpu"))
    _wait(device)
    start = clock()
    for _ in range(calls):
        model(*args, **kwargs)
    _wait(device)
    return (clock() - start) / calls


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextlib.contextmanager
def _quiet(models: tuple[nn.Module, ...], threads: int) -> Iterator[None]:
    """Evaluation mode and the number of threads, for the length of a measurement."""
    modes = {module: module.training for model in models for module in model.modules()}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    for model in models:
        model.eval()
    try:
        yield
    finally:
        torch.set_num_threads(before)
        for module, mode in modes.items():
            module.training = mode
