"""What all verbs share: ``--json``, ``--seed``, ``--debug``, one sentence per error, and the exit status."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
import typer
from rich.console import Console, RenderableType

from tenfold.cli.option_names import OPTIONS, options_for
from tenfold.errors import TenfoldError, TenfoldWarning
from tenfold.train.engine import refuse_launched

INTERRUPTED = 130
"""128 + SIGINT, as shells expect."""
UNSEEN = 200
"""Columns where standard output is no terminal: nothing is squeezed for a file or a pipe."""

_SHARED: dict[str, Any] = {
    "as_json": Annotated[
        bool,
        typer.Option("--json", help="One JSON object on standard output, nothing else.", rich_help_panel="General"),
    ],
    "seed": Annotated[
        int,
        typer.Option(
            "--seed",
            min=0,
            help="Of all random numbers. Another number of threads gives other results.",
            rich_help_panel="General",
        ),
    ],
    "debug": Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel="General")
    ],
}
_DEFAULTS: dict[str, Any] = {"as_json": False, "seed": 0, "debug": False}


@dataclass(frozen=True)
class Outcome:
    """The output of a verb: JSON for programs, tables for people.

    Args:
        body: for ``--json``.
        shown: rich renderables, printed one after another.
    """

    body: dict[str, Any]
    shown: Sequence[RenderableType] = field(default_factory=tuple)


def verb(work: Callable[..., Outcome]) -> Callable[..., None]:
    """Make a command of a function that returns an `Outcome`: adds shared options, prints, words errors.

    A function with a ``seed`` of its own keeps it; for the others the global generator is seeded.
    """
    own = inspect.signature(work, eval_str=True)
    added = [name for name in _SHARED if name not in own.parameters]
    names = OPTIONS | {name: "--" + name.replace("_", "-") for name in own.parameters}

    @functools.wraps(work)
    def command(**options: Any) -> None:
        shared = {name: options.pop(name) for name in added}
        torch.manual_seed(shared.get("seed", 0))
        with _in_words(shared["debug"], names), _warnings_in_words():
            refuse_launched()
            outcome = work(**options)
            _say(outcome, shared["as_json"])

    extra = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=_DEFAULTS[name], annotation=_SHARED[name])
        for name in added
    ]
    return signed(command, [*own.parameters.values(), *extra])


def signed(command: Callable[..., Any], parameters: Sequence[inspect.Parameter]) -> Callable[..., Any]:
    """Give a command the signature that typer reads, all parameters by keyword."""
    keywords = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    command.__signature__ = inspect.Signature(keywords)  # pyright: ignore[reportFunctionMemberAccess] - documented
    command.__annotations__ = {p.name: p.annotation for p in keywords}
    with contextlib.suppress(AttributeError):
        del command.__wrapped__  # pyright: ignore[reportFunctionMemberAccess] - typer must not look behind it
    return command


def _say(outcome: Outcome, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(outcome.body, indent=2, allow_nan=False))
        return
    screen = console()
    if not screen.is_terminal:
        screen.width = UNSEEN
    for part in outcome.shown:
        screen.print(part)


def console(*, stderr: bool = False) -> Console:
    """Where all verbs print: names stand as they are, whatever rich would read in their brackets and colons."""
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


@contextlib.contextmanager
def _in_words(debug: bool, names: Mapping[str, str]) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as stop:
        if debug:
            raise
        _complain("stopped", " ".join(str(stop).split()))
        raise typer.Exit(INTERRUPTED) from None
    except (TenfoldError, OSError) as error:
        if debug:
            raise
        _complain("error", options_for(" ".join(str(error).split()), names))
        raise typer.Exit(1) from None


@contextlib.contextmanager
def _warnings_in_words() -> Iterator[None]:
    with warnings.catch_warnings():
        foreign = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any) -> None:
            if issubclass(category, TenfoldWarning):
                _complain("warning", str(message))
            else:
                foreign(message, category, *place)

        warnings.showwarning = show
        warnings.simplefilter("always", TenfoldWarning)
        yield


def _complain(kind: str, sentence: str) -> None:
    typer.echo(f"{kind}: {sentence}" if sentence else kind, err=True)
