"""One file per published method. Dropping a file in here is all it takes to add one: it is found by being here."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from typing import Any

from tenfold.errors import ArgumentError, TenfoldError
from tenfold.methods.contract.method import Method
from tenfold.methods.contract.own import own_method


def list_methods() -> dict[str, type[Method]]:
    """All methods of tenfold: classes by name.

    Raises:
        TenfoldError: two methods of one name.
    """
    found: dict[str, type[Method]] = {}
    for path in sorted(f"{__name__}.{info.name}" for info in pkgutil.iter_modules(__path__)):
        for value in vars(importlib.import_module(path)).values():
            if not (inspect.isclass(value) and issubclass(value, Method)) or inspect.isabstract(value):
                continue
            if found.setdefault(value.name, value) is not value:
                raise TenfoldError(f"`name` must be a method's own: '{value.name}' is in {path} and another file.")
    return dict(sorted(found.items()))


def method_class(name: str) -> type[Method]:
    """The class of the method called ``name``, or a user's own: ``module.path:Class`` or ``path/to/file.py:Class``.

    Raises:
        ArgumentError: no such method.
    """
    if ":" in name:
        return own_method(name)
    known = list_methods()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        raise ArgumentError(f"`method` must be one of {', '.join(known)}, or FILE.py:CLASS; got {name!r}.{hint}")
    return known[name]


def get_method(name: str, **fields: Any) -> Method:
    """Make a method from its name and fields; fields that are not given have their defaults.

    Args:
        name: one of `list_methods`, or a user's own class: ``module.path:Class`` or ``path/to/file.py:Class``.
        fields: by name; lists, as JSON has them, become tuples.

    Raises:
        ArgumentError: no such method or field, or a value out of range.
    """
    kind = method_class(name)
    allowed = list(inspect.signature(kind).parameters)
    unknown = [field for field in fields if field not in allowed]
    if unknown:
        raise ArgumentError(f"`{unknown[0]}` is no field of {name}; it has: {', '.join(allowed) or 'none'}.")
    return kind(**{field: tuple(value) if isinstance(value, list) else value for field, value in fields.items()})
