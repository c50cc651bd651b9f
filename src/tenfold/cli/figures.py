"""How good a network is, stage by stage: accuracy on a data set, or a score of the user's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group
from torch import Tensor, nn

from tenfold.bench.budget_search import Probe
from tenfold.bench.latency import Comparison
from tenfold.cli import tables
from tenfold.errors import ArgumentError
from tenfold.own_code import call_own
from tenfold.runtimes.timing import WORTH
from tenfold.train import Data, Score, evaluate


@dataclass(frozen=True)
class SplitAccuracy:
    """Accuracy and loss at one stage. Nothing is ever chosen by the test figures.

    Args:
        name: of the stage, e.g. "right after compression".
        validation: on the held-out part of the training set.
        test: on the test set.
    """

    name: str
    validation: Score
    test: Score

    @property
    def value(self) -> float:
        """The validation accuracy, which a guard compares."""
        return self.validation.accuracy

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain values, for JSON; a loss that is not finite becomes null."""
        return {"stage": self.name, "validation": _plain(self.validation), "test": _plain(self.test)}


@dataclass(frozen=True)
class OwnScore:
    """A score of the user's own at one stage.

    Args:
        name: of the stage.
        value: higher is better.
    """

    name: str
    value: float

    def to_dict(self) -> dict[str, Any]:
        """The score as plain values, for JSON."""
        return {"stage": self.name, "score": self.value}


Stage = SplitAccuracy | OwnScore


@dataclass(frozen=True)
class ByAccuracy:
    """Measures classifiers by their accuracy on a data set."""

    data: Data

    def stage(self, name: str, model: nn.Module) -> SplitAccuracy:
        """Accuracy and loss on the validation and test sets."""
        return SplitAccuracy(name, evaluate(model, self.data.validation), evaluate(model, self.data.test))

    def value(self, model: nn.Module) -> float:
        """Accuracy on the validation set."""
        return evaluate(model, self.data.validation).accuracy


@dataclass(frozen=True)
class ByOwnScore:
    """Measures networks by a function of the user's.

    Args:
        function: of a model in eval mode; returns a number, higher is better.
        reference: where it comes from, for errors.
    """

    function: Callable[[nn.Module], Any]
    reference: str

    def stage(self, name: str, model: nn.Module) -> OwnScore:
        """The score of ``model`` at the stage ``name``."""
        return OwnScore(name, self.value(model))

    def value(self, model: nn.Module) -> float:
        """The score of ``model``, by the user's function.

        Raises:
            ArgumentError: the function fails, or returns no finite number.
        """
        found: Any = call_own(self.function, "score", self.reference, model.eval())
        value = found.item() if isinstance(found, Tensor) and found.numel() == 1 else found
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise ArgumentError(
                f"`score` must return a finite number, higher is better; {self.reference!r} returned {found!r}."
            )
        return number


def stages(title: str, rows: Sequence[Stage]) -> list[Group]:
    """A table of the figures, stage by stage; nothing where there are none."""
    if not rows:
        return []
    own = isinstance(rows[0], OwnScore)
    made = tables.table(("Score", "") if own else ("Accuracy", "Validation", "Test"))
    for row in rows:
        made.add_row(row.name, *_cells(row))
    return [tables.titled(title, made)]


def probes(tried: Sequence[Probe], least: float, points: float, *, own: bool) -> Group:
    """Table of the budgets that a guard tried, in order.

    Args:
        tried: the probes.
        least: the lowest score allowed.
        points: of accuracy that might be lost.
        own: whether the score is the user's, which need not be a share.
    """
    shown = (lambda value: f"{value:.4g}") if own else (lambda value: f"{value:.2%}")
    what = "score" if own else "validation accuracy"
    made = tables.table(("Budget", "Kept", "Score" if own else "Validation", "Enough"), left=0)
    for probe in tried:
        verdict = "yes" if probe.enough else "no"
        made.add_row(f"{probe.budget:.1%}", f"{probe.kept:.1%}", shown(probe.score), verdict)
    return tables.titled(f"Guard {points:g} points: {what}, batch norm as in the end, at least {shown(least)}", made)


def _cells(row: Stage) -> tuple[str, ...]:
    if isinstance(row, OwnScore):
        return (f"{row.value:.5g}",)
    return f"{row.validation.accuracy:.2%}", f"{row.test.accuracy:.2%}"


def _plain(score: Score) -> dict[str, float | None]:
    return {"loss": score.loss if math.isfinite(score.loss) else None, "accuracy": score.accuracy}


def faster(latency: Comparison | str) -> str:
    """A sentence on whether a compressed network is faster than the dense one; or why that is not known."""
    if isinstance(latency, str):
        return f"Not timed: {latency}"
    threads = f"{latency.threads} thread{'s' * (latency.threads > 1)}"
    where = f"{latency.small_form.runtime}, {threads}, batch of {latency.batch}, optimised for inference"
    times = f"{latency.dense_ms:.3g} ms dense, {latency.small_ms:.3g} ms compressed"
    if latency.speedup < WORTH:
        return (
            f"Not faster here: {times} ({where}). What can be had: --budget latency=0.7; a larger batch or another "
            "runtime gains more."
        )
    return f"{latency.speedup:.2f} times as fast: {times} ({where})."
