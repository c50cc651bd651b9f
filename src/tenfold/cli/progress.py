"""The bar that shows which step of a verb is at work."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tenfold.cli.command import console


class Steps:
    """A bar over the steps of a verb, on standard error; where that is no terminal, nothing is shown.

    Args:
        count: how many there are.
    """

    def __init__(self, count: int = 1) -> None:
        screen = console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=screen,
            disable=not screen.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("", total=count)

    @contextlib.contextmanager
    def step(self, title: str, *, shows_itself: bool = False) -> Iterator[None]:
        """Advance the bar to the next step; one that ``shows_itself`` has a bar of its own."""
        self._bar.update(self._task, description=title)
        if shows_itself:
            yield
        else:
            with self._bar:
                yield
        self._bar.advance(self._task)

    def say(self, text: str) -> None:
        """Show how far the step is."""
        self._bar.update(self._task, description=text)
