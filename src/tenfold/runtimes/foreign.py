"""Other packages at work: they fail in pages and talk meanwhile."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator

from tenfold.errors import TenfoldError


@contextlib.contextmanager
def foreign_errors(what: str, remedy: str) -> Iterator[None]:
    """Turn foreign errors within the block into one sentence; ours pass as they are.

    Args:
        what: did not go, "the model cannot be exported: ONNX"; " failed with ..." comes after it.
        remedy: a sentence.

    Raises:
        TenfoldError: in place of any other exception.
    """
    try:
        yield
    except TenfoldError:
        raise
    except Exception as error:
        raise TenfoldError(f"{what} failed with {type(error).__name__}: {_said(error)}. {remedy}") from error


def _said(error: Exception) -> str:
    """The first line of a message, and those after it that a line ending with a colon introduces."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    end = next((i for i, line in enumerate(lines) if not line.endswith(":")), 0)
    return " ".join(lines[: end + 1])[:300].rstrip(".")


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Silence exporters and compilers: both streams, logs and warnings. What matters comes back as an error."""
    before = logging.root.manager.disable
    with warnings.catch_warnings(), open(os.devnull, "w") as nowhere:
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        try:
            with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
                yield
        finally:
            logging.disable(before)
