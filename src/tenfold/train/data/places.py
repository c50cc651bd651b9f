"""Where data sets are looked for."""

from __future__ import annotations

import os
from pathlib import Path


def cache() -> Path:
    """The user's cache of tenfold: ``$XDG_CACHE_HOME/tenfold``, or ``~/.cache/tenfold``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "tenfold"


def places(name: str, *system: Path) -> list[Path]:
    """``$TENFOLD_DATA/name`` where the variable is set, the places of the ``system``, then the user's cache."""
    own = os.environ.get("TENFOLD_DATA")
    return [*([Path(own) / name] if own else []), *system, cache() / name]
