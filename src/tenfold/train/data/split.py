"""A data set in memory: three splits, the statistics of the first, and a checksum of them all."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch

from tenfold.errors import DataError, check

VALIDATION_SEED = 20240
"""Fixed for ever: what is validation in one run is never training in another."""


@dataclass(frozen=True)
class Split:
    """Images and labels, as they were stored; `batches` normalises them.

    Args:
        x: images ``(n, channels, height, width)``, uint8 or float32.
        y: labels ``(n,)``, int64, from 0.
        mean: per channel, in the units of ``x``.
        std: per channel, in the units of ``x``, > 0.
    """

    x: torch.Tensor
    y: torch.Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.y)

    def to(self, device: torch.device | str) -> Split:
        """The same split with its tensors on ``device``."""
        return replace(self, x=self.x.to(device), y=self.y.to(device))


@dataclass(frozen=True)
class Data:
    """A data set. Choose on ``validation``; ``test`` is for the figure at the very end.

    Args:
        name: as given to `load_data`.
        train: what is trained on.
        validation: carved out of the published training set, the same examples every time.
        test: the published test set.
        classes: number of labels.
        channels: number of image channels.
        size: side of the images in pixels.
        checksum: SHA-256 over the bytes of all three splits.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: int
    channels: int
    size: int
    checksum: str


def stratified(y: torch.Tensor, fraction: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Split the indices of ``y`` so that every class gives the same share, rounded.

    Args:
        y: labels ``(n,)``.
        fraction: share to hold out, in (0, 1).
        seed: the split is a function of ``y``, ``fraction`` and ``seed``.

    Returns:
        The indices kept and the indices held out, each ascending; together, all of them.
    """
    check(0 < fraction < 1, "fraction", "in (0, 1)", fraction)
    generator = torch.Generator().manual_seed(seed)
    held = torch.zeros(len(y), dtype=torch.bool)
    for label in y.unique():
        members = (y == label).nonzero().flatten()
        order = torch.randperm(len(members), generator=generator)
        held[members[order[: round(len(members) * fraction)]]] = True
    return (~held).nonzero().flatten(), held.nonzero().flatten()


def make_data(
    name: str,
    train: tuple[torch.Tensor, torch.Tensor],
    test: tuple[torch.Tensor, torch.Tensor],
    *,
    validation: float = 0.1,
) -> Data:
    """A `Data` from the two sets that are published: carves the validation set, measures mean and deviation.

    Args:
        name: what the data set is called.
        train: images ``(n, channels, size, size)``, uint8 or float32, and labels ``(n,)`` from 0.
        test: the same.
        validation: share of ``train`` held out, in (0, 1); stratified, by a fixed seed.

    Raises:
        DataError: images and labels that do not belong together, or are not square images.
    """
    for part, (x, y) in (("train", train), ("test", test)):
        if x.ndim != 4 or x.shape[2] != x.shape[3] or x.shape[1:] != train[0].shape[1:] or y.shape != x.shape[:1]:
            raise DataError(
                f"The {part} set of {name!r} must be square images (n, channels, size, size) with one label each; "
                f"got images {tuple(x.shape)} and labels {tuple(y.shape)}."
            )
    kept, held = stratified(train[1], validation, VALIDATION_SEED)
    x = train[0][kept]
    mean, std = _statistics(x)

    def split(x: torch.Tensor, y: torch.Tensor) -> Split:
        return Split(x.contiguous(), y.long(), mean, std)

    splits = (split(x, train[1][kept]), split(train[0][held], train[1][held]), split(*test))
    return Data(
        name,
        *splits,
        classes=int(torch.cat([train[1], test[1]]).max()) + 1,
        channels=x.shape[1],
        size=x.shape[2],
        checksum=_checksum(splits),
    )


def _statistics(x: torch.Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    mean, std = [], []
    for channel in x.unbind(1):
        values = channel.double()
        mean.append(float(values.mean()))
        std.append(float(values.std(correction=0)) or 1.0)
    return tuple(mean), tuple(std)


def _checksum(splits: tuple[Split, ...]) -> str:
    digest = hashlib.sha256()
    for split in splits:
        for tensor in (split.x, split.y):
            digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.numpy().data)
    return digest.hexdigest()
