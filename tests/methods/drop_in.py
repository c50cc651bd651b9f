"""A folder whose files count as methods for the length of one test."""

import contextlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tenfold


@contextlib.contextmanager
def methods_from(folder: Path) -> Iterator[Path]:
    """Add ``folder`` to the package of the methods; what was imported from there is forgotten afterwards."""
    package = tenfold.methods
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(package, "__path__", [*package.__path__, str(folder)])
        importlib.invalidate_caches()
        try:
            yield folder
        finally:
            for path in {name for name in set(sys.modules) - before if name.startswith("tenfold.methods.")}:
                if str(folder) in str(sys.modules[path].__file__):
                    del sys.modules[path]
                    delattr(package, path.rpartition(".")[2])
