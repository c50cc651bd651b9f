"""Methods from a user's own file: ``my_file.py:MyMethod`` wherever the name of a method is taken."""

from __future__ import annotations

import inspect
from typing import Any

from tenfold.errors import ArgumentError
from tenfold.methods.contract.method import Method
from tenfold.own_code import absolute, load_own

_REFERENCES: dict[type[Method], str] = {}


def own_method(reference: str, argument: str = "method") -> type[Method]:
    """Import the method class that ``reference`` names.

    Args:
        reference: ``module.path:Class`` or ``path/to/file.py:Class``.
        argument: its name in the user's call, for errors.

    Raises:
        ArgumentError: it leads to nothing, or to no concrete `Method` with a name.
    """
    kind: Any = load_own(reference, argument)
    is_method = inspect.isclass(kind) and issubclass(kind, Method)
    if not is_method or inspect.isabstract(kind) or not isinstance(vars(kind).get("name"), str):
        raise ArgumentError(
            f"`{argument}` must lead to a class that derives from tenfold.Method, defines `choose` and has a `name`; "
            f"{reference!r} is {kind!r}."
        )
    found: type[Method] = kind  # pyright: ignore[reportAssignmentType] - checked above
    _REFERENCES[found] = absolute(reference)
    return found


def record(method: Method) -> dict[str, Any]:
    """`Method.to_dict` for JSON; a user's own method goes by its reference, from which `get_method` makes it again."""
    return method.to_dict() | {"method": _REFERENCES.get(type(method), method.name)}
