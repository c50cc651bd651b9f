"""Dataclasses from values that anyone may have written: every field is checked against its annotation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from tenfold.errors import PlanError, TenfoldError, shortened

T = TypeVar("T")
_MOST = 200
"""Characters of a value in a message."""
_LARGEST_FLOAT = 10**308


def construct(cls: type[T], values: Mapping[Any, Any], where: str, error: type[TenfoldError] = PlanError) -> T:
    """Construct a dataclass from untrusted values, with an error for a missing, unknown or ill-typed field.

    Mappings become dataclasses where the annotation says so, at any depth, and lists become tuples.

    Args:
        cls: a dataclass.
        values: by field, as JSON or YAML gives them; parts that are built already are taken as they are.
        where: what the values belong to, for the message.
        error: the class to raise.

    Raises:
        TenfoldError: of the class ``error``, naming ``where``, the field, the rule and the value. The dataclass's own
            checks raise what they raise.
    """
    kinds = _hints(cls)
    known = [f for f in fields(cls) if f.name in kinds]  # pyright: ignore[reportArgumentType]
    unknown = [key for key in values if not isinstance(key, str) or key not in kinds]
    if unknown:
        odd = shortened(", ".join(key if isinstance(key, str) else repr(key) for key in unknown), _MOST)[1:-1]
        raise error(f"{where} has unknown fields: {odd}. Known: {', '.join(f.name for f in known)}.")
    lacking = [f.name for f in known if f.default is MISSING and f.default_factory is MISSING and f.name not in values]
    if lacking:
        raise error(f"{where} lacks fields: {', '.join(lacking)}.")
    return cls(**{key: _decoded(value, kinds[key], f"{where}: `{key}`", error) for key, value in values.items()})


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _decoded(value: Any, kind: Any, where: str, error: type[TenfoldError]) -> Any:
    """``value`` as the annotated type ``kind``; an int may stand for a float, a bool for no number."""
    inner, origin = get_args(kind), get_origin(kind)
    if kind is Any:
        return value
    if origin in (Union, UnionType):
        return _one_of(value, kind, where, error)
    if origin is Literal:
        if any(type(value) is type(word) and value == word for word in inner):
            return value
        raise error(f"{where} must be one of {', '.join(map(repr, inner))}; got {shortened(value, _MOST)}.")
    if is_dataclass(kind) and isinstance(value, Mapping):
        return construct(cast("type", kind), value, where, error)
    if origin in (dict, Mapping) and isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _decoded(item, inner[1], where, error) for key, item in value.items()}
    if origin is list and isinstance(value, list):
        return [_decoded(item, inner[0], where, error) for item in value]
    if origin is tuple and isinstance(value, (tuple, list)):
        each = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        if len(each) == len(value):
            return tuple(_decoded(v, k, where, error) for v, k in zip(value, each, strict=True))
    elif kind in (int, float):
        if _is_number(value, kind):
            return value
    elif origin is None and isinstance(value, cast("type", kind)):
        return value
    raise error(f"{where} must be of type {_name(kind)}; got {shortened(value, _MOST)}.")


def _is_number(value: Any, kind: type) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return kind is int or abs(value) <= _LARGEST_FLOAT
    return kind is float and isinstance(value, float)


def _one_of(value: Any, kind: Any, where: str, error: type[TenfoldError]) -> Any:
    """``value`` as the first type of a union that takes it."""
    arms = [each for each in get_args(kind) if each is not NoneType]
    if value is None and len(arms) < len(get_args(kind)):
        return None
    if len(arms) == 1 and isinstance(value, (Mapping, list, tuple)):
        return _decoded(value, arms[0], where, error)  # the message says which part of it is wrong
    for each in arms:
        try:
            return _decoded(value, each, where, error)
        except error:
            continue
    raise error(f"{where} must be of type {_name(kind)}; got {shortened(value, _MOST)}.")


def _name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)
