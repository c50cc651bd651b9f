"""Batches of a split: shuffled, augmented, normalised."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from tenfold.errors import check
from tenfold.train.data.augment import Augmentation
from tenfold.train.data.images import Images
from tenfold.train.data.split import Split


@dataclass(frozen=True)
class Batches:
    """The batches of a split: an iterable of known length that can be gone through again. See `batches`."""

    split: Split
    batch_size: int
    shuffle: bool
    generator: torch.Generator
    augment: Augmentation | None
    drop_last: bool

    def __len__(self) -> int:
        whole, rest = divmod(len(self.split), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        split, n = self.split, len(self.split)
        device = split.y.device
        order = torch.randperm(n, generator=self.generator) if self.shuffle else torch.arange(n)
        mean = torch.tensor(split.mean, device=device)[:, None, None]
        std = torch.tensor(split.std, device=device)[:, None, None]
        parts = order.to(device).split(self.batch_size)[: len(self)]
        for indices, stored in zip(parts, _images(split, parts), strict=True):
            x = stored if self.augment is None else self.augment(stored, self.generator)
            yield (x.float() - mean) / std, split.y[indices]


def _images(split: Split, parts: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The images of each batch, as they were stored, on the split's device."""
    x = split.x
    if isinstance(x, Images):
        return (images.to(split.y.device) for images in x.stream(parts))
    return (x[indices] for indices in parts)


def batches(
    split: Split,
    batch_size: int,
    *,
    shuffle: bool = False,
    generator: torch.Generator | None = None,
    augment: Augmentation | None = None,
    drop_last: bool = False,
) -> Batches:
    """Make batches ``(x, y)`` of a split, on its device: ``x`` float32, ``(x - mean) / std``; ``y`` int64.

    Augmentation comes before normalisation, so that what a crop pads is black.

    Args:
        split: the examples.
        batch_size: examples in a batch, >= 1; the last batch may be smaller.
        shuffle: a new order at each pass.
        generator: the source of all randomness, a CPU generator; needed to shuffle or augment. Each pass advances it.
        augment: ``(x, generator) -> x`` on the stored images; None for none.
        drop_last: leave the last batch out if it is smaller than the others.

    Raises:
        ArgumentError: a batch size below 1; randomness asked for without a generator.
    """
    check(batch_size >= 1, "batch_size", ">= 1", batch_size)
    random = shuffle or augment is not None
    check(
        generator is not None or not random,
        "generator",
        "given where batches are shuffled or augmented",
        generator,
        "Pass torch.Generator().manual_seed(0).",
    )
    return Batches(split, batch_size, shuffle, generator or torch.Generator(), augment, drop_last)
