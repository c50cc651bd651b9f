"""Reading ``.npz`` files: no pickles, no array larger than its file can hold, and errors that say what was missed."""

from __future__ import annotations

import lzma
import math
import struct
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from tenfold.errors import DataError, shortened
from tenfold.files import regular

_DENSEST = 1032
"""Bytes that one byte of a compressed file can stand for, at most."""


def array_names(path: Path) -> list[str]:
    """The names of the arrays in an ``.npz`` file.

    Raises:
        DataError: no file there, or none of numpy's archives.
    """
    try:
        with zipfile.ZipFile(regular(path)) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except FileNotFoundError as error:
        raise DataError(f"There is no file {path}. Give the path of an .npz file, as numpy.savez writes it.") from error
    except _DAMAGE as error:
        why = shortened(str(error), 200)[1:-1]
        raise DataError(f"{path} is damaged or no .npz file: {why}. Write it with numpy.savez.") from error


_DAMAGE = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error)
"""What is raised over a damaged file; of these RuntimeError by one that is encrypted."""


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
        with zipfile.ZipFile(path) as archive:
            members = {each.removesuffix(".npy"): each for each in archive.namelist()}
            return {name: _array(archive, members[name], path.stat().st_size) for name in names}
    except (*_DAMAGE, MemoryError) as error:
        why = shortened(str(error), 200)[1:-1]
        raise DataError(f"{path} is damaged, or holds Python objects: {why}. Write it again.") from error


def _array(archive: zipfile.ZipFile, name: str, size: int) -> np.ndarray:
    """An array of an archive of ``size`` bytes.

    Raises:
        ValueError: its header says more, or less, than there is: memory for that much is never asked for.
    """
    about = archive.getinfo(name)
    with archive.open(about) as file:
        shape, kind = _header(file)
        if kind.hasobject:
            raise ValueError(f"{name} holds Python objects")
        there, said = about.file_size - file.tell(), math.prod(shape) * kind.itemsize
        if said != there or there > size * _DENSEST or min(shape, default=1) < 0:
            raise ValueError(f"{name} has {there} bytes, and its header says {shortened(shape)} of {kind}")
    with archive.open(about) as file:
        return npy.read_array(file, allow_pickle=False)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type that the beginning of an ``.npy`` file says."""
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of numpy's format holds no plain array")
    shape, _, kind = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(file)
    return shape, kind
