"""CIFAR-10 (Krizhevsky, 2009): 50,000 + 10,000 colour images of 32x32 pixels, ten kinds of animals and vehicles."""

from __future__ import annotations

import hashlib
import io
import pickle
import shutil
import tarfile
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tenfold.errors import DataError
from tenfold.files import atomic_file
from tenfold.train.data.places import places
from tenfold.train.data.registry import Sets, data_set

ADDRESS = "https://www.cs.toronto.edu/~kriz/"
BINARY, PYTHON = "cifar-10-binary.tar.gz", "cifar-10-python.tar.gz"
FOLDERS = {BINARY: "cifar-10-batches-bin", PYTHON: "cifar-10-batches-py"}
MD5 = {  # as published for the archives; of the python batches, as usually checked
    BINARY: "c32a1d4ab5d03f1284b67883e8d87530",
    PYTHON: "c58f30108f718f92721af3b95e74349a",
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
NAMES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
PIXELS = 3 * 32 * 32
RECORDS = 10_000
HELP = f"Give the folder of {BINARY} or {PYTHON}, packed or unpacked, as `root`, or put it under $TENFOLD_DATA/cifar10."
SAFE = {  # all that a pickled array of bytes needs; nothing else is looked up
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}

Read = Callable[[str], bytes]


@data_set("cifar10")
def cifar10(root: Path | None) -> Sets:
    """Read CIFAR-10, the binary or the Python version, from ``root``, or else from the first of the usual places.

    ``$TENFOLD_DATA/cifar10``, the user's cache; found nowhere, the binary archive is downloaded into the cache. In each
    place: an archive, its folder, or the files themselves. Archives and Python batches must have the published md5;
    Python batches are unpickled without access to any code but numpy's arrays.

    Raises:
        DataError: batches that are missing and cannot be fetched, or damaged.
    """
    folders = [root] if root is not None else places("cifar10")
    found = next((found for folder in folders if (found := _find(folder)) is not None), None)
    if found is None:
        if root is not None:
            raise DataError(f"`root` must hold CIFAR-10: an archive or the six batches; {root} does not. {HELP}")
        found = _find(_download(folders[-1]))
        assert found is not None
    kind, source = found
    parts = _batches(kind, source)
    pixels, labels = (np.concatenate([part[i] for part in parts[:-1]]) for i in range(2))
    return _pair(pixels, labels), _pair(*parts[-1])


def _find(folder: Path) -> tuple[str, Path] | None:
    """The version and the archive or folder that holds it, unpacked before packed."""
    for kind, name in FOLDERS.items():
        for place in (folder, folder / name):
            if all((place / file).is_file() for file in _files(kind)):
                return kind, place
    for kind in FOLDERS:
        for place in (folder, folder / kind):
            if place.name == kind and place.is_file():
                return kind, place
    return None


def _files(kind: str) -> list[str]:
    return [f"{name}.bin" if kind == BINARY else name for name in NAMES]


def _batches(kind: str, source: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pixels ``(n, 3072)`` and labels ``(n,)`` of the five training batches and the test batch."""
    parse = _binary if kind == BINARY else _pickled
    if source.is_dir():
        return [parse((source / file).read_bytes(), str(source / file)) for file in _files(kind)]
    _verify(source, kind)
    try:
        with tarfile.open(source) as archive:
            members = [archive.extractfile(f"{FOLDERS[kind]}/{file}") for file in _files(kind)]
            return [parse(member.read() if member else b"", str(source)) for member in members]
    except (tarfile.TarError, KeyError, OSError, EOFError) as error:
        raise DataError(f"{source} is damaged: {error}. Remove it and fetch it again. {HELP}") from error


def _binary(content: bytes, source: str) -> tuple[np.ndarray, np.ndarray]:
    """Records of a label and 3072 bytes of pixels: all of red, all of green, all of blue."""
    if len(content) != RECORDS * (1 + PIXELS):
        raise DataError(
            f"{source} is damaged: it must hold {RECORDS * (1 + PIXELS)} bytes, {RECORDS} images; got {len(content)}. "
            f"Remove it and fetch it again. {HELP}"
        )
    records = np.frombuffer(content, np.uint8).reshape(RECORDS, 1 + PIXELS)
    return _checked(records[:, 1:], records[:, 0], source)


def _pickled(content: bytes, source: str) -> tuple[np.ndarray, np.ndarray]:
    name = Path(source).name
    if name in MD5 and name != PYTHON:  # a member of an archive is verified already
        _compare(hashlib.md5(content, usedforsecurity=False).hexdigest(), name, source)
    try:
        batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        pixels, labels = batch[b"data"], np.asarray(batch[b"labels"])
    except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError) as error:
        raise DataError(f"{source} is damaged: {error}. Remove it and fetch it again. {HELP}") from error
    except (TypeError, ValueError, KeyError) as error:
        raise DataError(f"{source} is not a batch of CIFAR-10: {error!r}. Fetch it again. {HELP}") from error
    return _checked(pixels, labels, source)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) not in SAFE:
            raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}, which no batch of images needs")
        return super().find_class(module_name, global_name)


def _checked(pixels: Any, labels: np.ndarray, source: str) -> tuple[np.ndarray, np.ndarray]:
    whole = isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.shape == (RECORDS, PIXELS)
    if not whole or labels.shape != (RECORDS,) or labels.min() < 0 or labels.max() > 9:
        raise DataError(
            f"{source} is damaged: it must hold {RECORDS} images of {PIXELS} bytes with labels 0 to 9. "
            f"Remove it and fetch it again. {HELP}"
        )
    return pixels, labels


def _pair(pixels: np.ndarray, labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.from_numpy(pixels.reshape(-1, 3, 32, 32).copy())
    return x, torch.from_numpy(labels.astype(np.int64))


def _download(folder: Path) -> Path:
    url = f"{ADDRESS}{BINARY}"
    with atomic_file(folder / BINARY) as temporary:
        try:
            with urllib.request.urlopen(url, timeout=60) as answer, temporary.open("wb") as out:  # noqa: S310 - constant
                shutil.copyfileobj(answer, out)
        except OSError as error:
            looked = ", ".join(str(place) for place in places("cifar10"))
            raise DataError(
                f"CIFAR-10 was found in none of {looked}, and {url} cannot be read: {error}. {HELP}"
            ) from error
        _verify(temporary, BINARY, url)
    return folder


def _verify(archive: Path, kind: str, source: str = "") -> None:
    with archive.open("rb") as content:
        _compare(hashlib.file_digest(content, "md5").hexdigest(), kind, source or str(archive))


def _compare(found: str, name: str, source: str) -> None:
    if found != MD5[name]:
        raise DataError(
            f"{source} is damaged: its md5 must be {MD5[name]}; got {found}. Remove it and fetch it again. {HELP}"
        )
