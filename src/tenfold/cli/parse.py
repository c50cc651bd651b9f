"""From what is typed to what the library takes: budgets, fields of methods, selections of layers."""

from __future__ import annotations

import re
import types
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from tenfold.errors import ArgumentError, TenfoldError
from tenfold.methods import get_method, method_class
from tenfold.methods.contract.method import Method
from tenfold.plans.budget import Budget

_REGEX = re.compile(r"[][*+?(){}|^$\\]")


def budget(texts: Sequence[str]) -> Budget | None:
    """Parse ``["params=0.25", "macs=0.5"]`` to one `Budget`; None for none.

    With a point it is a fraction, without one a number.

    Raises:
        ArgumentError: no such limit, or a value out of its range.
    """
    limits: dict[str, Any] = {}
    known = [f.name for f in fields(Budget)]
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or name not in known:
            wanted = " or ".join(f"{n}=VALUE" for n in known)
            raise ArgumentError(f"`--budget` must be {wanted}; got {text!r}. E.g. --budget params=0.25.")
        if name in limits:
            raise ArgumentError(f"`--budget` must limit {name} once; got it again as {text!r}.")
        try:
            limits[name] = _limit(value)
        except ValueError as error:
            raise ArgumentError(
                f"`--budget {name}` must be a number; got {value!r}. 0.25 or 25% keeps a quarter, 250000 so many."
            ) from error
    return Budget(**limits) if limits else None


def _limit(text: str) -> float | int | str:
    """A whole number as an int, ``25%`` as it is, which is what a budget takes; anything else as a float."""
    if re.fullmatch(r"[\d_]+", text):
        return int(text.replace("_", ""))
    return text if text.endswith("%") else float(text)


def method(name: str, settings: Sequence[str]) -> Method:
    """Make the method called ``name``, or a user's own, with its fields from ``["measure=fro", ...]``.

    Raises:
        ArgumentError: no such method or field, or a value that is not of the field's type or out of its range.
    """
    given = dict(_pair(text) for text in settings)
    hints = get_type_hints(method_class(name))
    values = {}
    for field, text in given.items():
        try:  # an unknown field is left for get_method to refuse: it names those that there are
            values[field] = convert(text, hints[field]) if field in hints else text
        except ValueError as error:
            kind = _readable(hints[field])
            raise ArgumentError(f"`--set {field}` must be {kind} for {name}; got {text!r}.") from error
    try:
        return get_method(name, **values)
    except TypeError as error:  # a method's own check choked on the value
        raise ArgumentError(f"{name} cannot be made with {given}: {error}.") from error


def method_or(default: Method, name: str | None, settings: Sequence[str]) -> Method:
    """Make the method called ``name``, as `method` does; where none is named, the default one.

    Raises:
        ArgumentError: fields without a name, whose fields they would be; and what `method` raises.
    """
    if name is None and settings:
        raise ArgumentError(
            f"`--set` must come with --method, whose field it is; got {settings[0]!r} alone. "
            f"E.g. --method alds --set measure=fro."
        )
    return default if name is None else method(name, settings)


def require_budget(made: Method, limits: Budget | None) -> None:
    """Raise `ArgumentError` for a method that needs a budget and has none, before any work."""
    if limits is None and made.needs_budget:
        raise ArgumentError(f"`--budget` must be given for {made.name}: e.g. --budget params=0.25.")


def recorded_method(record: dict[str, Any]) -> Method:
    """Make the method of a `record` that went through JSON. A user's own is imported: ask the user before.

    Raises:
        TenfoldError: fields that the method refuses, or no such method.
    """
    fields_ = {key: value for key, value in record.items() if key != "method"}
    try:
        return get_method(str(record.get("method")), **fields_)
    except TypeError as error:
        raise TenfoldError(f"the recorded method cannot be made again: {error}.") from error


def selection(values: Sequence[str]) -> str | list[str] | None:
    """Parse ``--target`` or ``--exclude``: names or endings of names, or a regular expression where one looks so."""
    if not any(_REGEX.search(value) for value in values):
        return list(values) or None
    patterns = [v if _REGEX.search(v) else rf"(?:.*\.)?{re.escape(v)}" for v in values]
    return "|".join(f"(?:{pattern})" for pattern in patterns)


def convert(text: str, hint: Any) -> Any:
    """Parse text to a value of the type ``hint``: None, bool, int, float, str, literals, and sequences "a,b,c".

    Raises:
        ValueError: it is none.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _first(text, inner)
    if origin is Literal:
        return _lookup(text, {str(value): value for value in inner})
    if origin in (Sequence, tuple, list):
        items = [part.strip() for part in text.strip("()[]").split(",") if part.strip()]
        return tuple(convert(item, inner[0]) for item in items)
    if hint is type(None):
        return _lookup(text.lower(), {"none": None})
    if hint is bool:
        return _lookup(text.lower(), {"true": True, "false": False})
    if hint in (int, float, str):
        return hint(text)
    raise ValueError(text)


def _first(text: str, kinds: tuple[Any, ...]) -> Any:
    """The first kind that takes the text; a string only where nothing narrower does."""
    for kind in sorted(kinds, key=lambda k: (k is str, k is float)):
        try:
            return convert(text, kind)
        except ValueError:
            continue
    raise ValueError(text)


def _lookup(text: str, values: dict[str, Any]) -> Any:
    if text not in values:
        raise ValueError(text)
    return values[text]


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ArgumentError(f"`--set` must be FIELD=VALUE; got {text!r}. `tenfold methods` lists the fields.")
    return name.strip().replace("-", "_"), value.strip()


def _readable(hint: Any) -> str:
    """A type in words."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(str, inner))
    if origin in (Union, types.UnionType):
        return " or ".join(_readable(kind) for kind in inner)
    if origin in (Sequence, tuple, list):
        return f"values with commas between, each {_readable(inner[0])}"
    plain = {int: "an integer", float: "a number", str: "a word", bool: "true or false", type(None): "none"}
    return plain.get(hint, f"a {getattr(hint, '__name__', hint)}, which only Python can give")
