"""A comparison boiled down: the runs of a method at a budget as one entry, with intervals over the seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import t as student

from tenfold.bench.compare.experiment import Experiment, Row
from tenfold.bench.compare.findings import Latency
from tenfold.bench.compare.results import Results, RunResult
from tenfold.errors import TenfoldError

CONFIDENCE = 0.95
"""Of every interval."""


@dataclass(frozen=True)
class Mean:
    """A mean over seeds, with its confidence interval.

    Args:
        value: the mean.
        half: half the width of the confidence interval of the mean, by Student's t; None for a single value.
        count: how many values.
    """

    value: float
    half: float | None
    count: int

    @property
    def low(self) -> float:
        """The lower end of the interval."""
        return self.value - (self.half or 0.0)

    @property
    def high(self) -> float:
        """The upper end."""
        return self.value + (self.half or 0.0)


def mean(values: Iterable[float | None]) -> Mean | None:
    """The mean of the values that are known, with the interval ``t_{0.975, n-1} s / sqrt(n)``; None where none is."""
    known = [float(value) for value in values if value is not None]
    if not known:
        return None
    count = len(known)
    half = None
    if count > 1:
        half = float(student.ppf((1 + CONFIDENCE) / 2, count - 1)) * statistics.stdev(known) / math.sqrt(count)
    return Mean(statistics.fmean(known), half, count)


@dataclass(frozen=True)
class ReportEntry:
    """A method at a budget: its runs, one per seed.

    Args:
        label: of the method.
        kind: "dense", "post-training" or "training".
        budget: limits by name; empty for the dense network, and for methods that choose for themselves.
        runs: those that there are, the failed ones too.
        planned: how many there are to be.
    """

    label: str
    kind: str
    budget: dict[str, Any]
    runs: tuple[RunResult, ...]
    planned: int = 0

    @property
    def done(self) -> tuple[RunResult, ...]:
        """The runs that did not fail."""
        return tuple(run for run in self.runs if run.failure is None)

    @property
    def seeds(self) -> str:
        """The number of runs that came through: "3" where all did, else "1 of 3"."""
        count, done = max(self.planned, len(self.runs)), len(self.done)
        return str(count) if done == count else f"{done} of {count}"

    @property
    def lack(self) -> str:
        """The state of the other runs: "1 failed, 1 not run"; "" where there are none."""
        failed, missing = len(self.runs) - len(self.done), max(0, self.planned - len(self.runs))
        return ", ".join(f"{n} {what}" for n, what in ((failed, "failed"), (missing, "not run")) if n)

    @property
    def absent(self) -> str:
        """The text in place of its figures where no run came through."""
        return "failed" if self.runs else "not run"

    @property
    def dense(self) -> bool:
        """Whether it is the baseline."""
        return self.kind == "dense"

    @property
    def where(self) -> str:
        """The budget in words."""
        return "dense" if self.dense else budget_words(self.budget)

    @property
    def name(self) -> str:
        """Method and budget."""
        return self.label if self.dense else f"{self.label}, {self.where}"

    def over(self, figure: Callable[[RunResult], float | None]) -> Mean | None:
        """The mean of a figure over the runs that did not fail."""
        return mean(figure(run) for run in self.done)

    @property
    def accuracy(self) -> Mean | None:
        """Accuracy on the test set, in [0, 1]."""
        return self.over(lambda run: run.test and run.test.accuracy)

    @property
    def params(self) -> Mean | None:
        """Parameters of the final model."""
        return self.over(lambda run: run.price and run.price.params)

    @property
    def macs(self) -> Mean | None:
        """MACs of the final model for one example."""
        return self.over(lambda run: run.price and run.price.macs)

    @property
    def time(self) -> Mean | None:
        """Latency of a forward pass relative to the dense network measured in turns with it; 1 for the dense one."""
        return self.over(lambda run: 1.0 if self.dense else run.latency and 1 / run.latency.speedup)

    @property
    def cost(self) -> Mean | None:
        """Wall time of all stages, in seconds."""
        return self.over(lambda run: sum(run.seconds.values()) if run.seconds else None)

    @property
    def memory(self) -> int | None:
        """The largest peak memory of its runs, in bytes."""
        return max((run.peak_memory for run in self.done if run.peak_memory is not None), default=None)


def budget_words(budget: dict[str, Any]) -> str:
    """``{"params": 0.25}`` as "25 % of the parameters"; several limits joined by "and"."""
    known = {"params": "parameters", "macs": "MACs"}
    parts = [
        f"{value:,} {known.get(name, name)}"
        if isinstance(value, int)
        else f"{100 * value:.4g} % of the {known.get(name, name)}"
        for name, value in budget.items()
        if value is not None
    ]
    return " and ".join(parts) or "own choice"


def entries(results: Results) -> list[ReportEntry]:
    """Group runs by method and budget, in the order of the experiment; also where there is no run yet."""
    planned = [(row.entry.label, row.entry.kind, row.budget.limits if row.budget else {}) for row in _rows(results)]
    there = [(run.label, run.kind, run.budget) for run in results.runs]
    found = []
    for key in {repr(key): key for key in [*planned, *there]}.values():
        runs = tuple(run for run, its in zip(results.runs, there, strict=True) if its == key)
        found.append(ReportEntry(*key, runs=runs, planned=planned.count(key)))
    return found


def _rows(results: Results) -> list[Row]:
    """The runs that there are to be; none where another version lists them otherwise than the results name them."""
    try:
        rows = Experiment.from_dict(results.experiment).rows
    except TenfoldError:
        return []
    return rows if {run.id for run in results.runs} <= {row.id for row in rows} else []


def by_budget(found: Sequence[ReportEntry]) -> dict[str, list[ReportEntry]]:
    """Compressed entries under the name of their budget, the largest first, as far as they can be compared."""
    groups: dict[str, list[ReportEntry]] = {}
    for entry in found:
        if not entry.dense:
            groups.setdefault(entry.where, []).append(entry)
    return dict(sorted(groups.items(), key=lambda group: _size(group[1][0].budget), reverse=True))


def _size(budget: dict[str, Any]) -> tuple[float, ...]:
    return tuple(float(budget.get(name) or 0) for name in ("params", "macs"))


def best(
    found: Sequence[ReportEntry], figure: Callable[[ReportEntry], Mean | None], *, largest: bool
) -> list[ReportEntry]:
    """The entries whose mean is best, ties included; none where fewer than two have one, or where all are equal."""
    known = [(entry, value.value) for entry in found if (value := figure(entry)) is not None]
    values = {value for _, value in known}
    if len(values) < 2:
        return []
    top = max(values) if largest else min(values)
    return [entry for entry, value in known if value == top]


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The Pareto front of (cost, accuracy): those that no other beats in one without losing in the other.

    Args:
        points: any order.

    Returns:
        By rising cost, and so by rising accuracy.
    """
    kept: list[tuple[float, float]] = []
    for cost, accuracy in sorted(set(points), key=lambda point: (point[0], -point[1])):
        if not kept or accuracy > kept[-1][1]:
            kept.append((cost, accuracy))
    return kept


def median(values: Sequence[float]) -> float | None:
    """The median of the values; None where there are none."""
    return statistics.median(values) if values else None


def latencies(results: Results) -> list[Latency]:
    """All latencies that were measured."""
    return [run.latency for run in results.runs if run.latency is not None]


def percent(value: Mean) -> str:
    """A mean in per cent, with the interval: "97.12 ± 0.31 %". Its spaces do not break."""
    interval = "" if value.half is None else f"\xa0±\xa0{100 * value.half:.2f}"
    return f"{100 * value.value:.2f}{interval}\xa0%"
