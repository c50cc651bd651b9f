"""Reading ``.npz`` files: no pickles, and errors that say what was looked for."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path

import numpy as np

from tenfold.errors import DataError


def array_names(path: Path) -> list[str]:
    """The names of the arrays in an ``.npz`` file.

    Raises:
        DataError: no file there, or none of numpy's archives.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except FileNotFoundError as error:
        raise DataError(f"There is no file {path}. Give the path of an .npz file, as numpy.savez writes it.") from error
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is damaged or no .npz file: {error}. Write it with numpy.savez.") from error


def read_arrays(path: Path, names: Collection[str]) -> dict[str, np.ndarray]:
    """Read named arrays from an ``.npz`` file.

    Raises:
        DataError: no file there, a damaged one, or one without these arrays.
    """
    present = array_names(path)
    missing = [name for name in names if name not in present]
    if missing:
        raise DataError(f"{path} must hold the arrays {', '.join(names)}; it lacks {', '.join(missing)}.")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in names}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is damaged, or holds Python objects: {error}. Write it again.") from error
