"""The library names arguments in its errors; on the command line they are options."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping

from tenfold.errors import TenfoldError

OPTIONS = {
    "example_inputs": "--inputs",
    "target_modules": "--target",
    "exclude_modules": "--exclude",
    "root": "--data-root",
    "params": "--budget params",
    "macs": "--budget macs",
}


def options_for(sentence: str, names: Mapping[str, str]) -> str:
    """``sentence`` with every argument in back-ticks that ``names`` has replaced by its option."""
    return re.sub(r"`(\w+)`", lambda found: f"`{names.get(found[1], found[1])}`", sentence)


@contextlib.contextmanager
def renamed(**names: str) -> Iterator[None]:
    """Errors from inside speak of these options, where one argument's name stands for several: ``name="--data"``."""
    try:
        yield
    except TenfoldError as error:
        error.args = (options_for(str(error), names), *error.args[1:])
        raise
