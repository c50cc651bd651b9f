"""Work that waits until another package is imported: tenfold joins it without loading it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def when_imported(module: str, work: Callable[[], object]) -> None:
    """Do ``work`` as soon as ``module`` has been imported: now, where it has been already; never, where it never is.

    Args:
        module: its full name, ``"package.part"``.
        work: what to do, once.
    """
    if module in sys.modules:
        work()
    else:
        sys.meta_path.insert(0, _Awaited(module, work))


class _Awaited(MetaPathFinder):
    """Finds one module by whatever finds it otherwise, and has ``work`` done at the end of its execution."""

    def __init__(self, module: str, work: Callable[[], object]) -> None:
        self._module = module
        self._work = work

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder.find_spec`."""
        if fullname != self._module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        loader: Any = spec.loader
        execute = loader.exec_module

        def execute_and_work(module: ModuleType) -> None:
            del loader.exec_module  # the loader is as it was
            execute(module)
            self._work()

        loader.exec_module = execute_and_work
        return spec
