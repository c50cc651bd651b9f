"""Fashion-MNIST (Xiao et al., 2017): 60,000 + 10,000 grey images of 28x28 pixels, ten kinds of clothing."""

from __future__ import annotations

import gzip
import hashlib
import urllib.request
import zlib
from pathlib import Path

import numpy as np
import torch

from tenfold.errors import DataError
from tenfold.files import atomic_file
from tenfold.train.data.places import places
from tenfold.train.data.registry import Sets, data_set

ADDRESS = "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/"
SYSTEM = Path("/usr/share/datasets/fashion-mnist")
MD5 = {  # of the bytes inside the archives: distributions zip them again
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}
HELP = (
    "Give the folder of the four .gz files as `root`, put them under $TENFOLD_DATA/fashion-mnist, "
    "or install your system's package (Debian and Ubuntu: dataset-fashion-mnist)."
)


@data_set("fashion-mnist")
def fashion_mnist(root: Path | None) -> Sets:
    """Read Fashion-MNIST, zipped or not, from ``root``, or else from the first of the usual places that has it.

    ``$TENFOLD_DATA/fashion-mnist``, the system's package, the user's cache; found nowhere, they are downloaded into
    the cache.

    Raises:
        DataError: files that are missing and cannot be fetched, or whose checksum is wrong.
    """
    folder = _find([root] if root is not None else _places())
    if folder is None and root is not None:
        raise DataError(f"`root` must hold {', '.join(f'{name}.gz' for name in MD5)}; {root} does not. {HELP}")
    folder = folder or _download(_places()[-1])
    arrays = {name: _idx(_read(folder, name)) for name in MD5}
    x, y, test_x, test_y = (torch.from_numpy(array) for array in arrays.values())
    return (x.unsqueeze(1), y.long()), (test_x.unsqueeze(1), test_y.long())


def _places() -> list[Path]:
    return places("fashion-mnist", SYSTEM)


def _find(folders: list[Path]) -> Path | None:
    whole = (f for f in folders if all((f / name).is_file() or (f / f"{name}.gz").is_file() for name in MD5))
    return next(whole, None)


def _download(folder: Path) -> Path:
    for name in MD5:
        url = f"{ADDRESS}{name}.gz"
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:  # noqa: S310 - a constant address
                content = answer.read()
        except OSError as error:
            looked = ", ".join(str(place) for place in _places())
            raise DataError(
                f"Fashion-MNIST was found in none of {looked}, and {url} cannot be read: {error}. {HELP}"
            ) from error
        _verified(name, _unzip(content, url), url)
        with atomic_file(folder / f"{name}.gz") as temporary:
            temporary.write_bytes(content)
    return folder


def _read(folder: Path, name: str) -> bytes:
    path = folder / name
    if path.is_file():
        return _verified(name, path.read_bytes(), str(path))
    path = folder / f"{name}.gz"
    return _verified(name, _unzip(path.read_bytes(), str(path)), str(path))


def _unzip(content: bytes, source: str) -> bytes:
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{source} is damaged: {error}. Remove it and fetch it again. {HELP}") from error


def _verified(name: str, content: bytes, source: str) -> bytes:
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != MD5[name]:
        raise DataError(
            f"{source} is damaged: the md5 of its unzipped bytes must be {MD5[name]}; got {found}. "
            f"Remove it and fetch it again. {HELP}"
        )
    return content


def _idx(content: bytes) -> np.ndarray:
    """The IDX format: two zero bytes, the type (8: uint8), the number of axes, their lengths (big-endian), values."""
    axes = content[3]
    shape = np.frombuffer(content, ">u4", count=axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape.tolist()).copy()
