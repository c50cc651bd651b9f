"""From image files to arrays of bytes, by Pillow, which lets go of the interpreter meanwhile: threads help."""

from __future__ import annotations

import io
from collections.abc import Callable
from types import ModuleType
from typing import TypeVar

import numpy as np
import torch

from tenfold.errors import DataError

T = TypeVar("T")


def pillow() -> ModuleType:
    """Pillow's ``PIL.Image``.

    Raises:
        DataError: it is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError("Image files are read by Pillow, which is missing: pip install 'tenfold[train]'.") from error
    return Image


def workers() -> int:
    """Threads that decode: as many as torch computes with."""
    return max(1, torch.get_num_threads())


def decode(content: bytes, source: str, channels: int, size: int | None = None) -> np.ndarray:
    """One image, in colour or grey, cut to a square about its centre and resized.

    Args:
        content: a file that Pillow can read.
        source: what the file is called in an error.
        channels: 3 for RGB, 1 for grey; images of another kind are converted.
        size: side of the result in pixels, >= 1; None leaves the image as it is.

    Returns:
        uint8 ``(channels, size, size)``.

    Raises:
        DataError: the file is damaged, or no image.
    """
    mode = "RGB" if channels == 3 else "L"

    def read(image: ModuleType) -> np.ndarray:
        with image.open(io.BytesIO(content)) as opened:
            opened.load()
            wide = opened.mode.startswith("I")  # 16 bits: a conversion would clip them
            eight = image.fromarray((np.asarray(opened) >> 8).astype(np.uint8)) if wide else opened
            converted = eight if eight.mode == mode else eight.convert(mode)
        if size is not None and converted.size != (size, size):
            width, height = converted.size
            side = min(width, height)
            box = ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
            converted = converted.resize((size, size), image.Resampling.BILINEAR, box)
        return np.array(converted)

    pixels = _guarded(read, source)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def look(content: bytes, source: str) -> tuple[int, int]:
    """The kind and the size of an image, without its pixels.

    Returns:
        Its channels, 1 if it is grey and else 3, and its shorter side.

    Raises:
        DataError: the file is no image.
    """

    def read(image: ModuleType) -> tuple[int, int]:
        with image.open(io.BytesIO(content)) as opened:
            grey = opened.mode in ("1", "L", "LA") or opened.mode.startswith("I")
            return (1 if grey else 3), min(opened.size)

    return _guarded(read, source)


def _guarded(read: Callable[[ModuleType], T], source: str) -> T:
    image = pillow()
    try:
        return read(image)
    # what Pillow raises on files that are truncated, no images, or larger than any photograph
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, image.DecompressionBombError) as error:
        raise DataError(
            f"{source} is damaged or no image: {error}. Remove it, or put a sound copy in place."
        ) from error
