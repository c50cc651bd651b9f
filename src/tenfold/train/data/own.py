"""Data sets from a user's own function: ``my_file.py:make`` wherever the name of a data set is taken."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

from tenfold.errors import DataError
from tenfold.own_code import call_own, load_own
from tenfold.train.data.split import Data, make_data


def own_data(reference: str, root: Path | str | None, validation: float) -> Data:
    """Make a data set from a user's function; runs its module. The data set is called ``reference``.

    Args:
        reference: ``module.path:function`` or ``path/to/file.py:function``.
        root: handed to a function that takes ``root``.
        validation: share of the training set to hold out where the function returns no validation set.

    Raises:
        ArgumentError: the reference leads to nothing, or the function fails.
        DataError: it returns neither a `Data` nor ``((train x, train y), (test x, test y))``, with a third pair for
            validation where there is one; or a root for a function that takes none.
    """
    function = load_own(reference, "name")
    if not callable(function):
        raise DataError(f"`name` must lead to a function that returns a data set; {reference!r} is {function!r}.")
    takes_root = "root" in call_own(inspect.signature, "name", reference, function).parameters
    if root is not None and not takes_root:
        raise DataError(f"`root` must be left out: {reference!r} takes no `root`.")
    given = {"root": None if root is None else Path(root)} if takes_root else {}
    made: Any = call_own(function, "name", reference, **given)
    if isinstance(made, Data):
        return replace(made, name=reference)
    pairs = isinstance(made, (tuple, list)) and len(made) in (2, 3)
    if not pairs or not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in made):
        raise DataError(
            f"`name` must lead to a function that returns what tenfold.train.make_data does, or the pairs "
            f"((train x, train y), (test x, test y)); {reference!r} returned {type(made).__name__}."
        )
    train, test, *held = map(tuple, made)
    return make_data(reference, train, test, *held, validation=validation)
