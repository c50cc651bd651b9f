"""Calibration batches from a training set."""

from __future__ import annotations

import torch

from tenfold.train.data import Batches, Data, batches
from tenfold.train.recipe import Recipe


def calibration(data: Data, recipe: Recipe) -> Batches:
    """Training images to re-estimate batch norm from and to calibrate on: shuffled by the seed, nothing augmented."""
    order = torch.Generator().manual_seed(recipe.seed)
    return batches(data.train, recipe.batch_size, shuffle=True, generator=order)
