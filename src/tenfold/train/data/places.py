"""The folders that data sets are looked for in."""

from __future__ import annotations

import os
from pathlib import Path

from tenfold.errors import DataError


def expanded(path: Path | str) -> Path:
    """Expand ``~`` at the start of a path to the home folder: no shell does so behind a colon.

    Raises:
        DataError: the home of a user that there is not.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(f"the path {str(path)!r} cannot be used: {error}. Give the folder in full.") from error


def cache() -> Path:
    """The user's cache folder of tenfold: ``$XDG_CACHE_HOME/tenfold``, or ``~/.cache/tenfold``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (expanded(base) if base else Path.home() / ".cache") / "tenfold"


def places(name: str, *system: Path) -> list[Path]:
    """The folders to search: ``$TENFOLD_DATA/name`` where it is set, those of the ``system``, then the cache."""
    own = os.environ.get("TENFOLD_DATA")
    return [*([expanded(own) / name] if own else []), *system, cache() / name]
