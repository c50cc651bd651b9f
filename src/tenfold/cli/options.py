"""The options that several verbs share, each said once."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer
from rich.markup import escape

from tenfold.cli.command import Outcome, signed
from tenfold.cli.docs import arguments
from tenfold.cli.parse import convert
from tenfold.errors import ArgumentError
from tenfold.train import Recipe


def with_default(text: str, default: str) -> str:
    """Help for an option whose default is only known later: typer would put it in round brackets."""
    return f"{escape(text)} [dim]{escape(f'[default: {default}]')}[/dim]"


METHODS = "`tenfold methods` lists them; FILE.py:CLASS is one of your own."
Out = Annotated[
    Path, typer.Option("--out", metavar="FOLDER", help="Where the run goes: a new folder.", show_default=False)
]
Force = Annotated[bool, typer.Option("--force", help="Replace what stands at --out.")]
DataRoot = Annotated[
    Path | None,
    typer.Option("--data-root", metavar="FOLDER", help="Where the data set's files are, if not in the usual places."),
]
MaybeMethod = Annotated[
    str | None,
    typer.Option(
        "--method",
        help=with_default(METHODS, "calibrated; alds where there are no data"),
        rich_help_panel="Compression",
    ),
]
Fields = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="A field of the method, e.g. measure=fro; repeatable.",
        rich_help_panel="Compression",
        show_default=False,
    ),
]
Limits = Annotated[
    list[str] | None,
    typer.Option(
        "--budget",
        metavar="COST=VALUE",
        help="What may be kept of the whole model: params=0.25 or 25% a quarter, params=70000 so many; macs=0.5; "
        "latency=0.5 half of the time measured here, latency_ms=3 so many milliseconds; repeatable.",
        rich_help_panel="Compression",
        show_default=False,
    ),
]
Runtime = Annotated[
    str | None,
    typer.Option(
        metavar="eager|compile|onnxruntime",
        help=with_default("What a budget on latency is measured in.", "eager"),
        rich_help_panel="Compression",
        show_default=False,
    ),
]
Threads = Annotated[
    int,
    typer.Option(min=1, help="Threads that it may use there.", rich_help_panel="Compression"),
]
LatencyBatch = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help=with_default("Inputs in the batch that latency is measured for.", "1; the first of --inputs"),
        rich_help_panel="Compression",
        show_default=False,
    ),
]
Align = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help=with_default(
            "Ranks are multiples of N, and of N / 2 in linear layers, where that leaves enough to choose from: layers "
            "are fast there. 1 for any rank, as published.",
            "16; 8 on a GPU",
        ),
        rich_help_panel="Compression",
        show_default=False,
    ),
]
Target = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        metavar="LAYER",
        help="Compress only these: a layer's name, the end of one, or a regular expression; repeatable.",
        rich_help_panel="Compression",
        show_default=False,
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude",
        metavar="LAYER",
        help="Leave these dense; as --target.",
        rich_help_panel="Compression",
        show_default=False,
    ),
]


def check_file(out: Path, *, force: bool) -> None:
    """Raise `ArgumentError` for a file that cannot be written, or that exists without ``force``, before any work.

    Raises:
        ArgumentError: with the remedy.
    """
    standing = next((p for p in out.absolute().parents if p.exists()), out.absolute())  # the root has no parents
    taken = out.exists() and not out.is_file()
    if taken or not standing.is_dir() or not os.access(standing, os.W_OK | os.X_OK):
        blocked = out if taken else standing
        raise ArgumentError(f"`--out` must be a file that can be written; got '{out}', and '{blocked}' is in the way.")
    if out.exists() and not force:
        raise ArgumentError(f"`--out` must be a new file; got '{out}', which exists. Replace it with --force.")


def recipe_options(
    only: Sequence[str],
    *,
    panel: str,
    shown: str | None = None,
    plain: Sequence[str] = (),
    own: Mapping[str, str] | None = None,
) -> Callable[[Callable[..., Outcome]], Callable[..., Outcome]]:
    """Give a verb one option per named field of `Recipe`; it receives those that were typed as ``recipe``, a dict.

    Args:
        only: the fields.
        panel: the heading that they stand under.
        shown: what the help says the default is; None: the field's own.
        plain: fields that are shown with their own default in any case.
        own: what the help says the default of a field is for this verb, by field; None: nothing.
    """
    texts, hints = arguments(Recipe), get_type_hints(Recipe)
    chosen = [f for f in fields(Recipe) if f.name in only]

    def decorate(work: Callable[..., Outcome]) -> Callable[..., Outcome]:
        kept = [p for p in inspect.signature(work, eval_str=True).parameters.values() if p.name != "recipe"]

        @functools.wraps(work)
        def wrapped(**options: Any) -> Outcome:
            typed = {f.name: options.pop(f.name) for f in chosen}
            given = {name: _value(name, value, hints[name]) for name, value in typed.items() if value is not None}
            return work(**options, recipe=given)

        extra = []
        for f in chosen:
            default = str(f.default if f.default not in (None, ()) else "none")
            default = (own or {}).get(f.name, default if f.name in plain else shown or default)
            text = with_default(texts[f.name], default)
            option = typer.Option("--" + f.name.replace("_", "-"), help=text, rich_help_panel=panel)
            kind = Annotated[_typed(hints[f.name]) | None, option]
            extra.append(inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind))
        return signed(wrapped, [*kept, *extra])

    return decorate


def _typed(hint: Any) -> Any:
    """What typer reads for a type: sequences are typed as one word, "30,45"."""
    if get_origin(hint) is tuple:
        return str
    return next((kind for kind in get_args(hint) if kind is not type(None)), hint)


def _value(name: str, value: Any, hint: Any) -> Any:
    if get_origin(hint) is not tuple:
        return value
    try:
        return convert(value, hint)
    except ValueError as error:
        option = "--" + name.replace("_", "-")
        raise ArgumentError(f"`{option}` must be numbers with commas between; got {value!r}. E.g. 30,45.") from error
