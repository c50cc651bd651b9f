"""Images of your own in one ``.npz`` file, as ``numpy.savez`` writes it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch

from tenfold.errors import DataError
from tenfold.train.data.arrays import array_names, read_arrays
from tenfold.train.data.places import expanded
from tenfold.train.data.registry import Sets, data_set
from tenfold.train.data.split import stratified

TEST_SHARE = 0.2
TEST_SEED = 20241
PARTS = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("val", "valid", "validation", "dev"), "validation"
)
AXES = dict.fromkeys(("x", "image", "images", "data", "features", "inputs", "arr_0"), "x") | dict.fromkeys(
    ("y", "label", "labels", "target", "targets", "arr_1"), "y"
)
HELP = (
    "Name them train_x, train_y, test_x, test_y (and validation_x, validation_y), or x, y; x_train, train_images, "
    "labels, "
    "data and target, and the like are understood."
)


@data_set("npz:PATH")
def npz(root: Path | None, path: str) -> Sets:
    """Read images and labels from one ``.npz`` file.

    Its arrays are ``train_x``, ``train_y``, ``test_x``, ``test_y`` (and ``validation_x``, ``validation_y``), or ``x``,
    ``y``. Other usual names are understood, in capitals or not: ``x_train``, ``train_images``, ``val_labels``,
    ``images``, ``data``, ``target``, and numpy's own ``arr_0``, ``arr_1``. Images are ``(n, channels, size, size)``,
    ``(n, size, size, channels)`` or, grey, ``(n, size, size)``: uint8, or finite numbers, which become float32. Labels
    are ``(n,)`` or ``(n, 1)`` integers from 0. With no test set the validation set is it; of ``x`` and ``y`` alone, a
    fixed, stratified fifth is the test set.

    Args:
        root: the file; None for ``path``.
        path: the file, where ``root`` is None.

    Raises:
        DataError: the file is missing, damaged, or holds other arrays.
    """
    file = root if root is not None else expanded(path)
    names = array_names(file)
    found = _understood(names, file)
    parts = {part for part, _ in found}
    if parts == {""}:
        wanted = [""]
    else:
        wanted = ["train", "test"] if "test" in parts or "validation" not in parts else ["train", "validation"]
        wanted += ["validation"] if {"test", "validation"} <= parts else []
    lacking = [f"{part}_{axis}".lstrip("_") for part in wanted for axis in "xy" if (part, axis) not in found]
    if lacking:
        held = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
        raise DataError(f"{file} must hold images and labels; it lacks {', '.join(lacking)}, and holds {held}. {HELP}")
    arrays = read_arrays(file, [found[part, axis] for part in wanted for axis in "xy"])
    pairs = [_pair(arrays[found[part, "x"]], arrays[found[part, "y"]], file) for part in wanted]
    if wanted != [""]:
        train, test, *held_out = pairs
        return (train, test, held_out[0]) if held_out else (train, test)
    [(x, y)] = pairs
    train, test = stratified(y, TEST_SHARE, TEST_SEED)
    return (x[train], y[train]), (x[test], y[test])


def _understood(names: list[str], file: Path) -> dict[tuple[str, str], str]:
    """Which array is which: ``(part, "x" or "y")``, the part "" where the name says none.

    Raises:
        DataError: two arrays that may be the same.
    """
    found: dict[tuple[str, str], str] = {}
    for name in names:
        key = _key(name.lower())
        if key in found:
            raise DataError(
                f"{file} must hold one array of each kind; {found[key]!r} and {name!r} may be the same. {HELP}"
            )
        if key is not None:
            found[key] = name
    return found


def _key(name: str) -> tuple[str, str] | None:
    if name in AXES:
        return "", AXES[name]
    first, _, second = re.sub(r"[-. ]", "_", name).partition("_")
    if first in PARTS and second in AXES:
        return PARTS[first], AXES[second]
    return (PARTS[second], AXES[first]) if second in PARTS and first in AXES else None


def _pair(x: np.ndarray, y: np.ndarray, file: Path) -> tuple[torch.Tensor, torch.Tensor]:
    if not np.issubdtype(y.dtype, np.integer):
        raise DataError(f"The labels in {file} must be integers from 0; got {y.dtype}. Convert them before saving.")
    if y.shape == (*x.shape[:1], 1):
        y = y[:, 0]
    if y.shape != x.shape[:1]:
        raise DataError(f"{file} must hold images with one label each; got images {x.shape} and labels {y.shape}.")
    return _images(x, file), torch.from_numpy(y.astype(np.int64))


def _images(x: np.ndarray, file: Path) -> torch.Tensor:
    if x.dtype != np.uint8:
        if not (np.issubdtype(x.dtype, np.number) or x.dtype == bool) or np.iscomplexobj(x):
            raise DataError(f"The images in {file} must be uint8 or real numbers; got {x.dtype}.")
        x = x.astype(np.float32)
        if not np.isfinite(x).all():
            raise DataError(f"The images in {file} must be finite; got NaN or infinity. Clean them before saving.")
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and x.shape[1] == x.shape[2] != x.shape[3]:
        x = x.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(x))
