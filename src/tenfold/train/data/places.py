"""The folders that data sets are looked for in."""

from __future__ import annotations

import os
from pathlib import Path

from tenfold.errors import DataError


def expanded(path: Path | str) -> Path:
    """``path`` with ``~`` at its start as the home folder: no shell expands it behind a colon.

    Raises:
        DataError: the home of a user that there is not.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(f"the path {str(path)!r} cannot be used: {error}. Give the folder in full.") from error


def cache() -> Path:
    """The user's cache of tenfold: ``$XDG_CACHE_HOME/tenfold``, or ``~/.cache/tenfold``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (expanded(base) if base else Path.home() / ".cache") / "tenfold"


def places(name: str, *system: Path) -> list[Path]:
    """``$TENFOLD_DATA/name`` where the variable is set, the places of the ``system``, then the user's cache."""
    own = os.environ.get("TENFOLD_DATA")
    return [*([expanded(own) / name] if own else []), *system, cache() / name]
