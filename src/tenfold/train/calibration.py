"""Calibration batches from a training set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from tenfold.train.data import Data, batches
from tenfold.train.recipe import Recipe


@dataclass(frozen=True)
class CalibrationBatches:
    """Training images ``(x, y)`` to re-estimate batch norm from and to calibrate on, not augmented.

    Args:
        data: the data set.
        recipe: its ``batch_size``, and the ``seed`` that shuffles them: in the same order each time they are gone
            through.
    """

    data: Data
    recipe: Recipe

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        order = torch.Generator().manual_seed(self.recipe.seed)
        return iter(batches(self.data.train, self.recipe.batch_size, shuffle=True, generator=order))
