"""From image files to arrays, by Pillow, which lets go of the interpreter meanwhile: threads help."""

from __future__ import annotations

import io
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import torch

from tenfold.errors import DataError

T = TypeVar("T")
_BITS_PER_SAMPLE = 258
"""The number of the tag in TIFF."""


def pillow() -> ModuleType:
    """Import Pillow's ``PIL.Image``.

    Raises:
        DataError: it is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError("Image files are read by Pillow, which is missing: pip install 'tenfold[train]'.") from error
    return Image


def image_ops() -> ModuleType:
    """Import Pillow's ``PIL.ImageOps``."""
    from PIL import ImageOps

    return ImageOps


def workers() -> int:
    """The number of threads that decode: as many as torch computes with."""
    return max(1, torch.get_num_threads())


def decode(content: bytes, source: str, channels: int, size: int | None = None, *, deep: bool = False) -> np.ndarray:
    """Decode one image: upright, in colour or grey, cut to a square about its centre and resized.

    Upright: turned and mirrored as its EXIF orientation says. Of an animation, or a file of several pages, the first.

    Args:
        content: a file that Pillow can read.
        source: what the file is called in an error.
        channels: 3 for RGB, 1 for grey; images of another kind are converted.
        size: side of the result in pixels, >= 1; None leaves the image as it is.
        deep: whether the set has grey images of more than 8 bits.

    Returns:
        ``(channels, size, size)``: uint8; deep, float32 of the values that the file has.

    Raises:
        DataError: the file is damaged, or no image, or has another depth than the set.
    """
    mode = "F" if deep else "RGB" if channels == 3 else "L"

    def read(image: ModuleType) -> np.ndarray:
        with image.open(io.BytesIO(content)) as opened:
            if _is_deep(opened) != deep:
                there, all_ = ("more than 8", "8") if _is_deep(opened) else ("8", "more than 8")
                raise DataError(
                    f"{source} has {there} bits, where the first image of the set has {all_}: their values cannot be "
                    "compared. Convert the images to one depth."
                )
            _require_all_bits(opened, content, source)
            upright = image_ops().exif_transpose(opened)
            upright.load()
            # not by Pillow's conversion, which clips 16 bits
            wide = image.fromarray(np.asarray(upright).astype(np.float32)) if deep else upright
            converted = wide if wide.mode == mode else wide.convert(mode)
        if size is not None and converted.size != (size, size):
            width, height = converted.size
            side = min(width, height)
            box = ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
            converted = converted.resize((size, size), image.Resampling.BILINEAR, box)
        return np.array(converted)

    pixels = _guarded(read, source)
    if deep and not np.isfinite(pixels).all():
        raise DataError(f"{source} has values that are NaN or infinite. Clean it, or leave it out.")
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def look(content: bytes, source: str) -> tuple[int, int, bool]:
    """Read the channels and the size of an image, without its pixels.

    Returns:
        Its channels, 1 if it is grey and else 3; its shorter side; whether it is grey with more than 8 bits.

    Raises:
        DataError: the file is no image.
    """

    def read(image: ModuleType) -> tuple[int, int, bool]:
        with image.open(io.BytesIO(content)) as opened:
            grey = opened.mode in ("1", "L", "LA") or _is_deep(opened)
            return (1 if grey else 3), min(opened.size), _is_deep(opened)

    return _guarded(read, source)


def readable(suffix: str) -> bool:
    """Whether Pillow, as it is installed, reads files that end so: ".png"."""
    image = pillow()
    return image.registered_extensions().get(suffix.lower()) in image.OPEN


def _is_deep(opened: Any) -> bool:
    """Grey images of 16 or 32 bits, integers or not; Pillow has none in colour."""
    return opened.mode.startswith("I") or opened.mode == "F"


def _require_all_bits(opened: Any, content: bytes, source: str) -> None:
    """Refuse images in colour of which Pillow reads the upper 8 bits and drops the lower ones."""
    bits: Any = content[24] if opened.format == "PNG" else 8
    if opened.format == "TIFF":
        bits = max(opened.tag_v2.get(_BITS_PER_SAMPLE, (8,)))
    if bits > 8 and not _is_deep(opened):
        raise DataError(
            f"{source} has {bits} bits in several channels, of which 8 would be read. Convert it to 8 bits, or to grey."
        )


def _guarded(read: Callable[[ModuleType], T], source: str) -> T:
    image = pillow()
    try:
        return read(image)
    # what Pillow raises on files that are truncated, no images, or larger than any photograph
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, image.DecompressionBombError) as error:
        raise DataError(
            f"{source} is damaged or no image: {error}. Remove it, or put a sound copy in place."
        ) from error
