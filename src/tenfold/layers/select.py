"""Choose layers by name, as PEFT does: a regular expression for the whole name, or a list of names and endings."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

from tenfold.errors import ArgumentError

Selection = str | Sequence[str] | None
"""A string is a regular expression for the whole name, a list holds names or name endings, None is no choice."""


def select(selection: Selection, argument: str, layers: Iterable[str], modules: Iterable[str]) -> set[str] | None:
    """The names of the layers that ``selection`` matches; None where it is None.

    Args:
        selection: a regular expression for whole names, or a list of names and endings.
        argument: its name in the user's call, for errors.
        layers: the names that can be meant.
        modules: all names of the model, for the message.

    Raises:
        ArgumentError: no regular expression; or an entry that means no layer: a slip, or the name of a container.
    """
    if selection is None:
        return None
    if isinstance(selection, str):
        try:
            pattern = re.compile(selection)
        except re.error as error:
            raise ArgumentError(f"`{argument}` is no regular expression: {selection!r} ({error}).") from error
        found = {name for name in layers if pattern.fullmatch(name)}
        if not found:
            raise ArgumentError(
                f"`{argument}` must match the whole name of some layer with a weight matrix; {selection!r} matches "
                f"none.{near(selection, layers)}"
            )
        return found
    found = set()
    for wanted in selection:
        hits = {name for name in layers if _ends_with(name, wanted)}
        if not hits:
            there = any(_ends_with(name, wanted) for name in modules)
            rule = "is no layer with a weight matrix" if there else "is no module of the model"
            inside = any(f".{wanted}." in f".{name}" for name in layers)
            hint = f" For the layers inside it write the regular expression r'(.*\\.)?{wanted}\\..*'." if inside else ""
            endings = dict.fromkeys([*layers, *(name.rpartition(".")[2] for name in layers)])
            raise ArgumentError(
                f"`{argument}` must list names, or endings of names, of layers; {wanted!r} {rule}."
                f"{hint or near(wanted, endings)}"
            )
        found |= hits
    return found


def _ends_with(name: str, wanted: str) -> bool:
    return name == wanted or name.endswith("." + wanted)


def near(name: str, names: Iterable[str]) -> str:
    """A sentence with the ``names`` nearest to ``name``; empty where none is near."""
    close = difflib.get_close_matches(name, [n for n in names if n], n=3, cutoff=0.5)
    return f" Nearest: {', '.join(close)}." if close else ""
