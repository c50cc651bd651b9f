"""Latency of forward passes: a dense and a compressed model measured in turns, in one runtime or in several."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from tenfold.errors import check
from tenfold.runtimes import get_runtime
from tenfold.runtimes.optimize import Optimized, optimized
from tenfold.runtimes.runtime import Call, torch_tensors
from tenfold.runtimes.timing import turns, undisturbed_clock


@dataclass(frozen=True)
class Form:
    """The form in which a model was measured.

    Args:
        runtime: "eager", "compile" or "onnxruntime".
        version: of its package, and settings.
        memory_format: of the weights of convolutions.
        folded: number of batch norms folded into layers.
        joined: number of sliced layers with a block-diagonal kernel in place of groups.
    """

    runtime: str
    version: str
    memory_format: str | None = None
    folded: int = 0
    joined: int = 0


@dataclass(frozen=True)
class Comparison:
    """The latency of a dense and a compressed model, for one batch size.

    Args:
        batch: inputs in the batch.
        threads: that may be used.
        rounds: pairs of turns.
        dense_ms: median milliseconds of a forward pass.
        small_ms: the same of the compressed model.
        speedup: median of the rounds' ratios dense / compressed.
        speedup_quartiles: of the same ratios.
        dense_form: what the dense model ran as.
        small_form: what the compressed model ran as.
    """

    batch: int
    threads: int
    rounds: int
    dense_ms: float
    small_ms: float
    speedup: float
    speedup_quartiles: tuple[float, float]
    dense_form: Form
    small_form: Form


@dataclass(frozen=True)
class Benchmark:
    """Comparisons in several runtimes, measured in the same turns, for one batch size.

    Args:
        each: dense and compressed in the same runtime, one for each runtime.
        best: the dense model in the runtime that is fastest for it, the compressed one in the one that is for it.
    """

    each: tuple[Comparison, ...]
    best: Comparison


def compare(
    dense: nn.Module,
    small: nn.Module,
    x: Any,
    *,
    threads: int = 1,
    rounds: int = 30,
    clock: Callable[[], float] = time.perf_counter,
    runtime: str = "eager",
) -> Comparison:
    """Time the forward passes of two models, as they are, on the same input, in turns.

    Args:
        dense: on the device of ``x``; untouched.
        small: the same.
        x: a batch: a tensor, a tuple of positional or a dict of keyword arguments.
        threads: that may be used on the CPU, >= 1.
        rounds: pairs of turns, >= 3.
        clock: seconds. ``time.thread_time``, for one thread on a CPU, leaves out what other programs take from it.
        runtime: "eager", "compile" or "onnxruntime".

    Raises:
        ArgumentError: a number out of its range, an unknown runtime, inputs that a model does not take.
        TenfoldError: the runtime cannot run a model, or lacks a package.
    """
    check(rounds >= 3, "rounds", ">= 3", rounds)
    runs = get_runtime(runtime)
    calls = [runs.prepare(model, x, threads=threads) for model in (dense, small)]
    form = Form(runs.name, runs.version)
    measured = _Measured(x, threads, turns(calls, x, threads=threads, rounds=rounds, clock=clock), (form, form))
    return measured.pair(0, 1)


def benchmark(
    dense: nn.Module,
    small: nn.Module,
    x: Any,
    *,
    runtimes: Sequence[str] = ("eager",),
    threads: int = 1,
    rounds: int = 30,
) -> Benchmark:
    """Time two models as `tenfold.optimize_for_inference` makes them, both alike, in each runtime; all in turns.

    With one thread on a CPU its own time counts, which other programs do not lengthen; else that of the wall.

    Args:
        dense: on the device of ``x``; untouched.
        small: the same.
        x: as in `compare`.
        runtimes: at least one name.
        threads: as in `compare`.
        rounds: as in `compare`.

    Raises:
        ArgumentError: as in `compare`, or no runtime.
        TenfoldError: as in `compare`.
    """
    check(rounds >= 3, "rounds", ">= 3", rounds)
    check(len(runtimes) > 0, "runtimes", "at least one name", list(runtimes))
    found = [get_runtime(name) for name in dict.fromkeys(runtimes)]
    calls: list[Call] = []
    forms: list[Form] = []
    for runs in found:
        for model in (dense, small):
            made = optimized(model, x, runtime=runs.name, threads=threads)
            calls.append(runs.prepare(made.model, x, threads=threads))
            forms.append(_form(made, runs.version))
    clock = undisturbed_clock(x, threads)
    measured = _Measured(x, threads, turns(calls, x, threads=threads, rounds=rounds, clock=clock), tuple(forms))
    each = tuple(measured.pair(i, i + 1) for i in range(0, len(calls), 2))
    first, second = (min(range(at, len(calls), 2), key=measured.ms) for at in (0, 1))
    return Benchmark(each, measured.pair(first, second))


def milliseconds(
    models: Mapping[str, nn.Module],
    x: Any,
    *,
    threads: int = 1,
    rounds: int = 30,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median milliseconds of a forward pass of each model in eager mode, all in turns; arguments as in `compare`."""
    eager = get_runtime("eager")
    calls = [eager.prepare(model, x, threads=threads) for model in models.values()]
    seconds = zip(*turns(calls, x, threads=threads, rounds=rounds, clock=clock), strict=True)
    return {name: statistics.median(times) * 1e3 for name, times in zip(models, seconds, strict=True)}


def batch_size(inputs: Any) -> int:
    """The batch size of inputs: the first axis of the first tensor; 1 where there is none."""
    first = next(iter(torch_tensors(inputs)), None)
    return len(first) if first is not None and first.ndim else 1


@dataclass(frozen=True)
class _Measured:
    """Seconds of several calls on the same inputs, round by round."""

    x: Any
    threads: int
    rows: list[tuple[float, ...]]
    forms: tuple[Form, ...]

    def ms(self, i: int) -> float:
        return statistics.median(row[i] for row in self.rows) * 1e3

    def pair(self, dense: int, small: int) -> Comparison:
        low, middle, high = statistics.quantiles([r[dense] / r[small] for r in self.rows], n=4, method="inclusive")
        forms = self.forms[dense], self.forms[small]
        times = self.ms(dense), self.ms(small)
        return Comparison(batch_size(self.x), self.threads, len(self.rows), *times, middle, (low, high), *forms)


def _form(made: Optimized, version: str) -> Form:
    return Form(made.runtime, version, made.memory_format, len(made.folded), len(made.joined))
