"""CIFAR-10 (JPEG): the images of CIFAR-10 as JPEG files, one after another in one small ``.npz`` file.

For each of ``train`` and ``test``: ``*_jpeg`` ``(bytes,)`` uint8, the files; ``*_offsets`` ``(n + 1,)`` int64: file i
is ``jpeg[offsets[i]:offsets[i + 1]]``; ``*_labels`` ``(n,)`` uint8. ``classes`` holds the names.

The compression is lossy: what is trained and measured on it compares with itself, not with published accuracies.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from tenfold.errors import DataError
from tenfold.train.data.arrays import read_arrays
from tenfold.train.data.decode import decode, workers
from tenfold.train.data.places import places
from tenfold.train.data.registry import Sets, data_set

FILE = "cifar10-jpeg.npz"
SIZE = 32
BLOCK = 500
ARRAYS = ("jpeg", "offsets", "labels")


@data_set("cifar10-jpeg")
def cifar10_jpeg(root: Path | None) -> Sets:
    """Read CIFAR-10 in JPEG from the file or folder ``root``; by default ``$TENFOLD_DATA`` and the cache are searched.

    All images are decoded once, into memory (184 MB).

    Raises:
        DataError: the file is missing or damaged; nothing is downloaded.
    """
    path = _find(root)
    arrays = read_arrays(path, [f"{part}_{array}" for part in ("train", "test") for array in ARRAYS])
    classes = len(read_arrays(path, ["classes"])["classes"])
    return _decoded("train", arrays, path, classes), _decoded("test", arrays, path, classes)


def _find(root: Path | None) -> Path:
    given = None if root is None else root / FILE if root.is_dir() else root
    candidates = places(FILE) if given is None else [given]
    found = next((place for place in candidates if place.is_file()), None)
    if found is None:
        looked = ", ".join(str(place) for place in candidates)
        raise DataError(
            f"CIFAR-10 (JPEG) was found in none of {looked}. Give the path of {FILE} as `root`, or put it into "
            "$TENFOLD_DATA; it cannot be downloaded, `cifar10` can."
        )
    return found


def _decoded(part: str, arrays: dict[str, np.ndarray], path: Path, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    jpeg, offsets, labels = (arrays[f"{part}_{array}"] for array in ARRAYS)
    flat = jpeg.dtype == np.uint8 and jpeg.ndim == 1 and labels.ndim == 1 and offsets.shape == (len(labels) + 1,)
    if not flat or not np.issubdtype(offsets.dtype, np.integer) or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{path} is damaged: files, offsets and labels do not have the shapes and types of the layout.")
    if offsets[0] != 0 or offsets[-1] != len(jpeg) or bool((np.diff(offsets) <= 0).any()):
        raise DataError(f"{path} is damaged: its offsets must rise from 0 to {len(jpeg)}. Copy it again.")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise DataError(f"{path} is damaged: its labels must be in 0 ... {classes - 1}. Copy it again.")
    x = np.empty((len(labels), 3, SIZE, SIZE), np.uint8)

    def fill(start: int) -> None:
        for index in range(start, min(start + BLOCK, len(labels))):
            source = f"Image {index} of {path}"
            image = decode(jpeg[offsets[index] : offsets[index + 1]].tobytes(), source, 3)
            if image.shape != x.shape[1:]:
                raise DataError(f"{source} must be {SIZE}x{SIZE} pixels; got {image.shape[1:]}. Copy it again.")
            x[index] = image

    with ThreadPoolExecutor(workers()) as pool:
        for _ in pool.map(fill, range(0, len(labels), BLOCK)):
            pass
    return torch.from_numpy(x), torch.from_numpy(labels.astype(np.int64))
