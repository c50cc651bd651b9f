"""What a run shows while it goes: a progress bar, and scalars for TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tenfold.errors import TenfoldError


class Display:
    """A progress bar over optimizer steps, on standard error: loss, accuracy, throughput, time left.

    Args:
        total: steps of the whole run.
        done: steps that were done before.
        enabled: show it; where standard error is no terminal, nothing is shown in any case.
    """

    def __init__(self, total: int, done: int, enabled: bool) -> None:
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not (enabled and console.is_terminal),
            transient=True,
        )
        self._task = self._bar.add_task("training", total=total, completed=done, figures="")

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def step(self, title: str, loss: float, accuracy: float, throughput: float) -> None:
        """Advance the bar by one optimizer step.

        Args:
            title: the text before the bar.
            loss: mean over the epoch so far.
            accuracy: of the epoch so far, in [0, 1].
            throughput: examples per second.
        """
        figures = f"loss {loss:.4f}  accuracy {accuracy:.1%}  {throughput:,.0f} examples/s"
        self._bar.update(self._task, advance=1, description=title, figures=figures)


class Scalars:
    """Writes scalars per epoch for TensorBoard; a None folder writes nothing.

    Args:
        folder: where the event files go, or None.

    Raises:
        TenfoldError: the extra is not installed.
    """

    def __init__(self, folder: Path | None) -> None:
        self._writer = None
        if folder is not None:
            try:
                from torch.utils.tensorboard.writer import SummaryWriter
            except ImportError as error:
                raise TenfoldError("TensorBoard is missing: pip install 'tenfold[tensorboard]'.") from error
            self._writer = SummaryWriter(str(folder))

    def __enter__(self) -> Scalars:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def add(self, figures: Mapping[str, float], epoch: int) -> None:
        """Write ``figures`` at ``epoch``."""
        if self._writer is not None:
            for name, value in figures.items():
                self._writer.add_scalar(name, value, epoch)


class Meter:
    """Running means of one epoch: add each batch, read the figures."""

    def __init__(self) -> None:
        self.examples = 0
        self._loss = 0.0
        self._correct = 0
        self._began = time.perf_counter()

    def add(self, loss: float, correct: int, examples: int) -> None:
        """Add a batch: its mean loss, its number of correct predictions, and its number of examples."""
        self._loss += loss * examples
        self._correct += correct
        self.examples += examples

    @property
    def loss(self) -> float:
        """Mean loss per example."""
        return self._loss / max(self.examples, 1)

    @property
    def accuracy(self) -> float:
        """Accuracy, in [0, 1]."""
        return self._correct / max(self.examples, 1)

    @property
    def seconds(self) -> float:
        """Seconds since the meter was made."""
        return time.perf_counter() - self._began

    @property
    def throughput(self) -> float:
        """Examples per second."""
        return self.examples / max(self.seconds, 1e-9)
