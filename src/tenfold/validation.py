"""Dataclasses from values that anyone may have written: every field is checked against its annotation."""

from __future__ import annotations

from dataclasses import MISSING, fields
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from tenfold.errors import PlanError, TenfoldError

T = TypeVar("T")


def construct(cls: type[T], values: dict[str, Any], where: str, error: type[TenfoldError] = PlanError) -> T:
    """``cls(**values)``, with a sentence for a missing or unknown field, or a value of another type.

    Raises:
        TenfoldError: of the class ``error``, naming ``where``, the field, the rule and the value.
    """
    kinds = get_type_hints(cls)
    known = [f for f in fields(cls) if f.name in kinds]  # pyright: ignore[reportArgumentType]
    unknown = [key for key in values if key not in kinds]
    if unknown:
        names = ", ".join(f.name for f in known)
        raise error(f"{where} has unknown fields: {', '.join(unknown)}. Known: {names}.")
    lacking = [f.name for f in known if f.default is MISSING and f.default_factory is MISSING and f.name not in values]
    if lacking:
        raise error(f"{where} lacks fields: {', '.join(lacking)}.")
    for key, value in values.items():
        if not _is(value, kinds[key]):
            raise error(f"{where}: `{key}` must be of type {_name(kinds[key])}; got {value!r}.")
    return cls(**values)


def _is(value: Any, kind: Any) -> bool:
    """Whether ``value`` is of the annotated type ``kind``; an int may stand for a float, a bool for no number."""
    inner = get_args(kind)
    if kind is Any:
        return True
    if get_origin(kind) in (Union, UnionType):
        return any(_is(value, each) for each in inner)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(_is(item, inner[1]) for item in value.values())
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_is(item, inner[0]) for item in value)
    if get_origin(kind) is tuple and isinstance(value, tuple):
        each = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        return len(each) == len(value) and all(map(_is, value, each))
    if kind in (int, float):
        return isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
    return isinstance(value, get_origin(kind) or kind)


def _name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)
