"""Images of your own in folders, one folder for each class; streamed, so that memory does not grow with the set."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch

from tenfold.errors import DataError
from tenfold.train.data.decode import look
from tenfold.train.data.images import Images
from tenfold.train.data.registry import Sets, data_set

SUFFIXES = (".png", ".jpg", ".jpeg")
LARGEST = 224
HELP = "Put images into train/CLASS/*.png (or .jpg) and test/CLASS/ or val/CLASS/, with the same classes."


@data_set("imagefolder:PATH")
def imagefolder(root: Path | None, path: str) -> Sets:
    """Read ``train/CLASS/*.png`` (or ``.jpg``, ``.jpeg``, in folders of any depth) and ``test/`` or ``val/`` beside it.

    With both, ``val/`` is the validation set; with one, it is the test set. Classes are numbered in the order of their
    names. Images are cut to a square about their centre and resized to ``SIZE`` where the name ends in ``@SIZE``, or
    else to the shorter side of the first one, 224 at most; they are grey if the first one is, and else RGB.

    Args:
        root: the folder that holds ``train``; None for ``path``.
        path: ``PATH`` or ``PATH@SIZE``.

    Raises:
        DataError: folders that are missing, or do not hold the same classes.
    """
    where, size = _sized(path)
    folder = root if root is not None else where
    parts = [part for part in ("test", "val") if (folder / part).is_dir()]
    if not (folder / "train").is_dir() or not parts:
        raise DataError(f"{folder} must hold the folders train, and test or val; it does not. {HELP}")
    classes = sorted(entry.name for entry in (folder / "train").iterdir() if entry.is_dir())
    names, labels = _index(folder, "train", classes)
    first = folder / names[0]
    channels, side = look(first.read_bytes(), str(first))
    train = Images(folder, tuple(names), channels, size or min(side, LARGEST)), labels
    others = []
    for part in parts:
        names, labels = _index(folder, part, classes)
        others.append((Images(folder, tuple(names), channels, train[0].size), labels))
    return (train, *others)


def _sized(path: str) -> tuple[Path, int | None]:
    match = re.fullmatch(r"(.*)@(\d+)", path, re.DOTALL)
    if match is None:
        return Path(path), None
    if int(match[2]) < 1:
        raise DataError(f"`name` must ask for a size >= 1 behind the @; got {path!r}.")
    return Path(match[1]), int(match[2])


def _index(folder: Path, part: str, classes: list[str]) -> tuple[list[str], torch.Tensor]:
    """The names of all images of a part, relative to ``folder``, sorted within their class; and their labels."""
    strangers = {entry.name for entry in (folder / part).iterdir() if entry.is_dir()} - set(classes)
    if strangers:
        raise DataError(f"{folder / part} holds classes that train lacks: {', '.join(sorted(strangers))}. {HELP}")
    names: list[str] = []
    counts = []
    for label in classes:
        found = sorted(
            (Path(base) / file).relative_to(folder).as_posix()
            for base, _, files in os.walk(folder / part / label)
            for file in files
            if file.lower().endswith(SUFFIXES) and not file.startswith(".")
        )
        names += found
        counts.append(len(found))
    if not names:
        raise DataError(f"{folder / part} holds no image in a folder of a class. {HELP}")
    return names, torch.repeat_interleave(torch.arange(len(classes)), torch.tensor(counts))
