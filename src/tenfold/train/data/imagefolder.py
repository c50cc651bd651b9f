"""Images of your own in folders, one folder for each class; streamed, so that memory does not grow with the set."""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

from tenfold.errors import DataError, TenfoldWarning
from tenfold.files import is_litter
from tenfold.train.data.decode import look, readable
from tenfold.train.data.images import Images
from tenfold.train.data.places import expanded
from tenfold.train.data.registry import Sets, data_set

_READ = ".png .apng .jpg .jpeg .jpe .jfif .bmp .dib .webp .tif .tiff .gif .jp2 .j2k .avif .ppm .pgm .pbm .pnm .tga"
_NOT_READ = ".heic .heif .jxl .svg .psd .ico .pcx .dds .exr .hdr .raw .dng .cr2 .cr3 .nef .arw .orf .rw2 .eps .dcm"
READ = frozenset(_READ.split())
"""Suffixes of images that are read where Pillow can."""
IMAGES = READ | frozenset(_NOT_READ.split())
"""Suffixes of images; those that are not read are refused: left out without a word they would be missed late."""
LARGEST = 224
HELP = "Put images into train/CLASS/*.png (or .jpg ...) and test/CLASS/ or val/CLASS/, with the same classes."


@data_set("imagefolder:PATH")
def imagefolder(root: Path | None, path: str) -> Sets:
    """Read a folder of images: ``train/CLASS/`` (folders of any depth), and ``test/`` or ``val/`` beside it.

    With both, ``val/`` is the validation set; with one, it is the test set. Classes are numbered in the order of their
    names. What tools leave behind (``.ipynb_checkpoints``, ``__MACOSX``, ``@eaDir``) is passed over. Images are turned
    upright, cut to a square about their centre and resized to ``SIZE`` where the name ends in ``@SIZE``, or else to the
    shorter side of the first one, 224 at most; they are grey if the first one is, and else RGB. Grey images of more
    than 8 bits keep their values, as float32.

    Args:
        root: the folder that holds ``train``; None for ``path``.
        path: ``PATH`` or ``PATH@SIZE``.

    Raises:
        DataError: folders that are missing, or do not hold the same classes; a class without an image to train on;
            image files that cannot be read.

    Warns:
        TenfoldWarning: files that are no images are left out; a class has no image to test on.
    """
    where, size = _sized(path)
    folder = root if root is not None else where
    parts = [part for part in ("test", "val") if (folder / part).is_dir()]
    if not (folder / "train").is_dir() or not parts:
        raise DataError(f"{folder} must hold the folders train, and test or val; it does not. {HELP}")
    classes = _classes(folder / "train")
    names, labels = _index(folder, "train", classes)
    first = folder / names[0]
    channels, side, deep = look(first.read_bytes(), str(first))
    train = Images(folder, tuple(names), channels, size or min(side, LARGEST), deep), labels
    others = []
    for part in parts:
        names, labels = _index(folder, part, classes)
        others.append((Images(folder, tuple(names), channels, train[0].size, deep), labels))
    return (train, *others)


def _sized(path: str) -> tuple[Path, int | None]:
    match = re.fullmatch(r"(.*)@(\d+)", path, re.DOTALL)
    if match is None:
        return expanded(path), None
    if int(match[2]) < 1:
        raise DataError(f"`name` must ask for a size >= 1 behind the @; got {path!r}.")
    return expanded(match[1]), int(match[2])


def _classes(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not _is_left_behind(entry.name))


def _index(folder: Path, part: str, classes: list[str]) -> tuple[list[str], torch.Tensor]:
    """The names of all images of a part, relative to ``folder``, sorted within their class; and their labels."""
    strangers = set(_classes(folder / part)) - set(classes)
    if strangers:
        raise DataError(f"{folder / part} holds classes that train lacks: {', '.join(sorted(strangers))}. {HELP}")
    names: list[str] = []
    counts = []
    others: Counter[str] = Counter()
    for label in classes:
        found = []
        for file in _files(folder / part / label):
            suffix = file.suffix.lower()
            if suffix not in IMAGES:
                others[suffix or file.name] += 1
            elif suffix in READ and readable(suffix):
                found.append(file.relative_to(folder).as_posix())
            else:
                raise DataError(
                    f"{file} is an image that cannot be read here. Convert it to PNG or JPEG, or remove it."
                )
        names += sorted(found)
        counts.append(len(found))
    if others:
        listed = ", ".join(f"{n} of {suffix}" for suffix, n in others.most_common(5))
        warnings.warn(
            f"{folder / part} holds files that are no images, left out: {listed}.", TenfoldWarning, stacklevel=2
        )
    if not names:
        raise DataError(f"{folder / part} holds no image in a folder of a class. {HELP}")
    empty = [label for label, count in zip(classes, counts, strict=True) if count == 0]
    if empty and part == "train":
        raise DataError(f"{folder / part} holds no image of {', '.join(empty)}. Add some, or remove the folder. {HELP}")
    if empty:
        some = ", ".join(empty[:5]) + (" ..." if len(empty) > 5 else "")
        text = f"{folder / part} holds no image of {len(empty)} of the {len(classes)} classes of train: {some}."
        warnings.warn(text, TenfoldWarning, stacklevel=2)
    return names, torch.repeat_interleave(torch.arange(len(classes)), torch.tensor(counts))


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder but those that systems and tools left there."""
    for base, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not _is_left_behind(name)]
        yield from (Path(base) / file for file in files if not _is_left_behind(file))


def _is_left_behind(name: str) -> bool:
    """What is hidden, too."""
    return name.startswith(".") or is_litter(name)
