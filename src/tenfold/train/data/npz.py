"""Images of your own in one ``.npz`` file, as ``numpy.savez`` writes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from tenfold.errors import DataError
from tenfold.train.data.arrays import array_names, read_arrays
from tenfold.train.data.registry import Sets, data_set
from tenfold.train.data.split import stratified

TEST_SHARE = 0.2
TEST_SEED = 20241


@data_set("npz:PATH")
def npz(root: Path | None, path: str) -> Sets:
    """Read ``train_x``, ``train_y``, ``test_x``, ``test_y`` (and ``validation_x``, ``validation_y``), or ``x``, ``y``.

    Images are ``(n, channels, size, size)``, ``(n, size, size, channels)`` or, grey, ``(n, size, size)``: uint8, or
    finite numbers, which become float32. Labels are ``(n,)`` integers from 0. Of ``x`` and ``y`` alone, a fixed,
    stratified fifth is the test set.

    Args:
        root: the file; None for ``path``.
        path: the file, where ``root`` is None.

    Raises:
        DataError: the file is missing, damaged, or holds other arrays.
    """
    file = root if root is not None else Path(path)
    names = array_names(file)
    if "x" in names and "train_x" not in names:
        arrays = read_arrays(file, ["x", "y"])
        x, y = _pair(arrays["x"], arrays["y"], file)
        train, test = stratified(y, TEST_SHARE, TEST_SEED)
        return (x[train], y[train]), (x[test], y[test])
    parts = ["train", "test"] + (["validation"] if "validation_x" in names else [])
    arrays = read_arrays(file, [f"{part}_{axis}" for part in parts for axis in "xy"])
    train, test, *held = (_pair(arrays[f"{part}_x"], arrays[f"{part}_y"], file) for part in parts)
    return (train, test, held[0]) if held else (train, test)


def _pair(x: np.ndarray, y: np.ndarray, file: Path) -> tuple[torch.Tensor, torch.Tensor]:
    if not np.issubdtype(y.dtype, np.integer):
        raise DataError(f"The labels in {file} must be integers from 0; got {y.dtype}. Convert them before saving.")
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
