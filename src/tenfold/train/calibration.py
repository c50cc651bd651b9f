"""Parts of the training set, and the images that a compression looks at."""

from __future__ import annotations

from dataclasses import replace

import torch

from tenfold.errors import check
from tenfold.train.data import Batches, Data, batches
from tenfold.train.recipe import Recipe


def calibration(data: Data, recipe: Recipe) -> Batches:
    """Training images to re-estimate batch norm from and to calibrate on: shuffled by the seed, nothing augmented."""
    order = torch.Generator().manual_seed(recipe.seed)
    return batches(data.train, recipe.batch_size, shuffle=True, generator=order)


def limited(data: Data, examples: int | None, name: str = "examples") -> Data:
    """``data`` with so many training examples, the same every time; None: with all of them.

    Args:
        data: the data set.
        examples: how many, >= 1.
        name: what they are called where they are asked for, for an error.

    Raises:
        ArgumentError: there are not so many.
    """
    if examples is None:
        return data
    there = len(data.train)
    check(examples <= there, name, f"at most {there}, the training examples of {data.name}", examples)
    order = torch.randperm(there, generator=torch.Generator().manual_seed(0))[:examples].sort().values
    x = data.train.x.take(order) if not isinstance(data.train.x, torch.Tensor) else data.train.x[order]
    return replace(data, train=replace(data.train, x=x, y=data.train.y[order]))
