"""Calibration batches from a training set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from tenfold.train.data import Data, batches
from tenfold.train.data.augment import AUGMENTATIONS
from tenfold.train.recipe import Recipe


@dataclass(frozen=True)
class CalibrationBatches:
    """Training images ``(x, y)`` as the training sees them, to re-estimate batch norm from and to calibrate on.

    They are augmented: crops pad black borders, and weights were trained with norms that had seen them. Statistics from
    images without any are others, and cost the network accuracy.

    Args:
        data: the data set.
        recipe: its ``batch_size``, its augmentation, and the ``seed`` of order and augmentation: the same images each
            time they are gone through.
    """

    data: Data
    recipe: Recipe

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        recipe, random = self.recipe, torch.Generator().manual_seed(self.recipe.seed)
        augment = AUGMENTATIONS[recipe.augment]
        return iter(batches(self.data.train, recipe.batch_size, shuffle=True, generator=random, augment=augment))
