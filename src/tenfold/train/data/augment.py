"""Augmentation of a batch of images: pure functions of the batch and an explicit generator, any dtype."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from tenfold.errors import check

Augmentation = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


def random_crop(x: torch.Tensor, padding: int, generator: torch.Generator) -> torch.Tensor:
    """Random crop: pad each image by zeros, and cut out its size at a random place of its own.

    Args:
        x: images ``(n, channels, height, width)``.
        padding: pixels on each side, >= 0; offsets are uniform on ``0 ... 2 padding`` in both directions.
        generator: a CPU generator; draws ``(2, n)`` integers.

    Returns:
        A new batch of the same shape and dtype.

    Raises:
        ArgumentError: a negative padding.
    """
    check(padding >= 0, "padding", ">= 0", padding)
    n, _, height, width = x.shape
    offsets = torch.randint(0, 2 * padding + 1, (2, n), generator=generator).to(x.device)
    padded = F.pad(x, (padding, padding, padding, padding))
    rows = offsets[0, :, None] + torch.arange(height, device=x.device)
    columns = offsets[1, :, None] + torch.arange(width, device=x.device)
    images = torch.arange(n, device=x.device)[:, None, None]
    # index tensors on both sides of the channel slice: torch puts the channels last
    return padded[images, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def random_flip(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirror each image left to right with probability one half.

    Args:
        x: images ``(n, channels, height, width)``.
        generator: a CPU generator; draws ``n`` numbers.

    Returns:
        A new batch of the same shape and dtype.
    """
    flip = torch.rand(len(x), generator=generator) < 0.5
    return torch.where(flip.to(x.device)[:, None, None, None], x.flip(-1), x)


def crop(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """`random_crop` with an eighth of the image's side as padding, at least one pixel: 4 for 28 and 32, 1 for 8."""
    return random_crop(x, max(1, round(x.shape[-1] / 8)), generator)


def crop_flip(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """`crop`, then `random_flip`: the usual augmentation of small photographs."""
    return random_flip(crop(x, generator), generator)


AUGMENTATIONS: dict[str, Augmentation | None] = {"none": None, "crop": crop, "crop-flip": crop_flip}
"""By the names that recipes use. Digits and letters must not be mirrored: "crop" is for them."""
