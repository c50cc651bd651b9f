"""The names of the data sets."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path

import torch

from tenfold.errors import DataError
from tenfold.train.data.split import Data, make_data

Pair = tuple[torch.Tensor, torch.Tensor]
Reader = Callable[[Path | None], tuple[Pair, Pair]]

_READERS: dict[str, Reader] = {}


def data_set(name: str) -> Callable[[Reader], Reader]:
    """Register a reader ``root -> ((train x, train y), (test x, test y))`` under ``name``."""

    def register(read: Reader) -> Reader:
        _READERS[name] = read
        return read

    return register


def data_names() -> list[str]:
    """The names that `load_data` knows, sorted."""
    return sorted(_readers())


def load_data(name: str, root: Path | str | None = None, *, validation: float = 0.1) -> Data:
    """A data set by name, split into training, validation and test examples.

    Args:
        name: one of `data_names`.
        root: the folder that holds the data set's files; by default the usual places are searched, and what is found
            nowhere is downloaded. Given, nothing else is searched.
        validation: share of the published training set to hold out, in (0, 1); the same examples every time.

    Raises:
        DataError: an unknown name, or files that are missing or damaged.
    """
    known = _readers()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or sorted(known)
        raise DataError(f"`name` must be a known data set; got {name!r}. Nearest: {', '.join(near)}.")
    train, test = known[name](None if root is None else Path(root))
    return make_data(name, train, test, validation=validation)


def _readers() -> dict[str, Reader]:
    package = importlib.import_module(__package__ or "")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return _READERS
