"""Files that are whole or absent: written under a temporary name beside their place, then renamed; and strict JSON."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tenfold.errors import shortened


@contextlib.contextmanager
def atomic_file(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to ``path`` on success, remove it on failure."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; put it in the place of ``path`` on success, remove it on failure.

    A folder that stands at ``path`` already is replaced as a whole, after the new one is complete.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    old = temporary.with_name(temporary.name + ".old")
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        if path.exists():
            path.replace(old)
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not path.exists():
            old.replace(path)
        shutil.rmtree(old, ignore_errors=True)


def write_json(path: Path | str, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


_DEEPEST = 64
_LARGEST = 2**64
"""Beyond it a number is no count of anything here."""


def read_json(path: Path | str) -> Any:
    """The value in a JSON file, read strictly; see `parse_json`.

    Raises:
        OSError: no regular file, or one that cannot be read.
        ValueError: see `parse_json`.
    """
    return parse_json(read_text(path))


def read_text(path: Path | str) -> str:
    """The text of a UTF-8 file.

    Raises:
        OSError: no regular file (pipes and devices may have no end), or one that cannot be read.
        ValueError: other bytes than UTF-8.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise OSError(f"'{path}' is no regular file")
    return path.read_text(encoding="utf-8")


def parse_json(text: str) -> Any:
    """The value that JSON text holds, whoever wrote it; a byte-order mark is skipped.

    Raises:
        ValueError: no JSON, a key given twice, a number that is not finite or beyond 64 bits, nesting deeper than 64,
            or a string that is no text (half of a surrogate pair).
    """
    try:
        value = json.loads(
            text.removeprefix("\ufeff"),
            parse_constant=_finite,
            parse_float=_finite,
            parse_int=_bounded,
            object_pairs_hook=_unique,
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _require_plain(value)
    return value


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{shortened(text)[1:-1]} is not a finite number")
    return number


def _bounded(text: str) -> int:
    if len(text) > 21 or abs(int(text)) >= _LARGEST:
        raise ValueError(f"the number {shortened(text)[1:-1]} has more than 64 bits")
    return int(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {shortened(next(key for key in keys if keys.count(key) > 1))} is given twice")
    return made


def _require_plain(value: Any) -> None:
    """Refuse what would break whoever prints or copies the value: deep nesting, and strings that cannot be encoded."""
    level = [value]
    for _ in range(_DEEPEST):
        strings = [part for part in level if isinstance(part, str)]
        strings += [key for part in level if isinstance(part, dict) for key in part]
        for text in strings:
            try:
                text.encode()
            except UnicodeEncodeError:
                raise ValueError(f"the string {shortened(text)} is no text: it has half of a surrogate pair") from None
        inside = [part.values() if isinstance(part, dict) else part for part in level if isinstance(part, (dict, list))]
        level = [item for part in inside for item in part]
        if not level:
            return
    raise ValueError(f"it is nested deeper than {_DEEPEST}")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
