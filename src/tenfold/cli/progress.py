"""The figures of a run, stage by stage, and the bar that shows which stage it is at."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import nn

from tenfold.train import Data, Score, evaluate


@dataclass(frozen=True)
class Stage:
    """How good a model is at one stage. Nothing is ever chosen by the test figures.

    Args:
        name: e.g. "after compression".
        validation: on the held-out part of the training set.
        test: on the test set.
    """

    name: str
    validation: Score
    test: Score

    def to_dict(self) -> dict[str, Any]:
        """For JSON; a loss that is not finite becomes null."""
        return {"stage": self.name, "validation": _plain(self.validation), "test": _plain(self.test)}


def score(name: str, model: nn.Module, data: Data) -> Stage:
    """Evaluate ``model`` on the validation and test sets."""
    return Stage(name, evaluate(model, data.validation), evaluate(model, data.test))


class Steps:
    """A bar over the steps of a verb, on standard error; where that is no terminal, nothing is shown.

    Args:
        titles: of the steps, in order.
    """

    def __init__(self, titles: Sequence[str]) -> None:
        console = Console(stderr=True)
        self._titles = iter(titles)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("", total=len(titles))

    @contextlib.contextmanager
    def step(self, *, shows_itself: bool = False) -> Iterator[None]:
        """The next step; one that ``shows_itself`` has a bar of its own."""
        self._bar.update(self._task, description=next(self._titles))
        if shows_itself:
            yield
        else:
            with self._bar:
                yield
        self._bar.advance(self._task)

    def say(self, text: str) -> None:
        """How far the step is."""
        self._bar.update(self._task, description=text)


def _plain(score: Score) -> dict[str, float | None]:
    return {"loss": score.loss if math.isfinite(score.loss) else None, "accuracy": score.accuracy}
