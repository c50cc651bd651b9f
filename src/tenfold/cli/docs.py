"""Help texts come from the docstrings of the dataclasses: one place says what a field means."""

from __future__ import annotations

import inspect
import re
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class FieldDoc:
    """The documentation of one field of a dataclass.

    Args:
        name: of the field.
        type: as written.
        default: as Python writes it.
        doc: its meaning, from the docstring of the class.
    """

    name: str
    type: str
    default: str
    doc: str


def field_docs(cls: type[Any]) -> list[FieldDoc]:
    """The fields of a dataclass with what its docstring says of them under ``Args:``."""
    texts = arguments(cls)
    return [
        FieldDoc(f.name, str(f.type), _default(f), texts.get(f.name, ""))
        for f in sorted(fields(cls), key=lambda f: bool(f.kw_only))
        if f.init
    ]


def about(cls: type[Any]) -> str:
    """The first line of the docstring of a class's module, without the name before the colon."""
    line = (inspect.getdoc(inspect.getmodule(cls)) or "").partition("\n")[0]
    return line.partition(": ")[2] or line


def arguments(cls: type[Any]) -> dict[str, str]:
    """Parse the ``Args:`` of a docstring in Google's style: ``{name: text}``, each joined to one line, unmarked."""
    _, _, block = (inspect.getdoc(cls) or "").partition("Args:\n")
    found: dict[str, str] = {}
    name = None
    for line in block.splitlines():
        if line and not line.startswith(" "):
            break
        start = re.match(r"    (\w+): (.*)", line)
        if start:
            name, found[start[1]] = start[1], start[2]
        elif name and line.strip():
            found[name] += " " + line.strip()
    return {key: text.replace("``", "").replace("`", "") for key, text in found.items()}


def _default(field: Field[Any]) -> str:
    if field.default is not MISSING:
        return repr(field.default)
    return "required" if field.default_factory is MISSING else repr(field.default_factory())
