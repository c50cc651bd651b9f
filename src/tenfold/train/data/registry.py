"""The names of the data sets."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

from tenfold.errors import DataError
from tenfold.train.data.own import own_data
from tenfold.train.data.places import expanded
from tenfold.train.data.split import Data, Pair, make_data

P = ParamSpec("P")
Sets = tuple[Pair, Pair] | tuple[Pair, Pair, Pair]

_READERS: dict[str, Callable[..., Sets]] = {}


def data_set(name: str) -> Callable[[Callable[P, Sets]], Callable[P, Sets]]:
    """Register a reader ``root -> ((train x, train y), (test x, test y))`` under ``name``.

    A third pair is the validation set, where one is published. A reader whose name is written ``kind:PATH`` is called
    with what stands behind the colon as its second argument.
    """

    def register(read: Callable[P, Sets]) -> Callable[P, Sets]:
        _READERS[name] = read
        return read

    return register


def data_names() -> list[str]:
    """The names that `load_data` knows, sorted."""
    return sorted(_readers())


def load_data(name: str, root: Path | str | None = None, *, validation: float = 0.1) -> Data:
    """Load a data set by name, split into training, validation and test examples.

    Args:
        name: one of `data_names`; after a colon, a path of your own: ``"npz:digits.npz"``, ``"imagefolder:photos@64"``;
            or a function of your own: ``"my_file.py:make"``, see `tenfold.train.data.own`.
        root: the folder that holds the data set's files, or the file; by default the usual places are searched, and
            what is found nowhere is downloaded, where it can be. Given, nothing else is searched, and it takes the
            place of the path in ``name``. A ``~`` at the start of either is the home folder.
        validation: share of the published training set to hold out, in (0, 1); the same examples every time. Unused
            where a validation set is published.

    Raises:
        DataError: an unknown name, or files that are missing or damaged.
    """
    known = _readers()
    kind, colon, path = name.partition(":")
    found = next((n for n in known if n.partition(":")[:2] == (kind, colon)), None)
    slip = difflib.get_close_matches(kind, [n.partition(":")[0] for n in known], n=1)
    if found is None and colon and not slip:
        return own_data(name, root, validation)
    if found is None:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or sorted(known)
        raise DataError(f"`name` must be a known data set; got {name!r}. Nearest: {', '.join(near)}.")
    place = None if root is None else expanded(root)
    train, test, *held = known[found](place, path) if colon else known[found](place)
    return make_data(name, train, test, *held, validation=validation)


def _readers() -> dict[str, Callable[..., Sets]]:
    package = importlib.import_module(__package__ or "")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return _READERS
