"""Batches of a split: shuffled, augmented, normalised."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from tenfold.errors import check
from tenfold.train.data.augment import Augmentation
from tenfold.train.data.split import Split


@dataclass(frozen=True)
class Batches:
    """An iterable that can be gone through again, of known length; see `batches`."""

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
        device = split.x.device
        order = torch.randperm(n, generator=self.generator) if self.shuffle else torch.arange(n)
        mean = torch.tensor(split.mean, device=device)[:, None, None]
        std = torch.tensor(split.std, device=device)[:, None, None]
        for indices in order.to(device).split(self.batch_size)[: len(self)]:
            x = split.x[indices]
            if self.augment is not None:
                x = self.augment(x, self.generator)
            yield (x.float() - mean) / std, split.y[indices]


def batches(
    split: Split,
    batch_size: int,
    *,
    shuffle: bool = False,
    generator: torch.Generator | None = None,
    augment: Augmentation | None = None,
    drop_last: bool = False,
) -> Batches:
    """Batches ``(x, y)`` of a split, on its device: ``x`` float32, ``(x - mean) / std``; ``y`` int64.

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
