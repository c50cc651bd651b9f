"""Random factors in place of those of a weight: training from scratch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from tenfold.layers.decomposed import Decomposed
from tenfold.layers.matrix import LowRank
from tenfold.layers.spec import LayerSpec
from tenfold.layers.swap import Structure, planned
from tenfold.layers.tucker import TuckerConv, channel_sizes
from tenfold.linalg.fold import Fold
from tenfold.linalg.multilinear import random_tucker
from tenfold.linalg.svd import low_rank_factors
from tenfold.linalg.tucker import stacked


@dataclass(frozen=True)
class Fresh:
    """Builds factorised layers with random factors; a `Make` for `tenfold.layers.swap.rebuild`.

    The bases are orthonormal and the core between them is normal, ``E ||W_hat||^2 = ||W||^2`` for the weight W that
    is replaced: of one as it was initialised, what its initialisation expects. A matrix, ``U C V^T``, gets balanced
    factors.

    Args:
        generator: where the random numbers come from, in the order of the layers.
    """

    generator: torch.Generator

    def __call__(self, old: nn.Module, spec: LayerSpec, structure: Structure, /, *, empty: bool) -> Decomposed:
        """See `tenfold.layers.swap.Make`."""
        new = planned(old, spec, structure, empty=True)
        if empty:
            return new
        norm = float(cast("Tensor", old.weight).detach().double().norm())
        if isinstance(new, TuckerConv):
            channels, _ = channel_sizes(spec.shape, spec.groups)
            sizes = (*channels, *spec.kernel_size)
            core, bases = random_tucker(sizes, new.rank, norm, self.generator, groups=spec.groups)
            new.set_factors(core, *bases)
        elif isinstance(new, LowRank):
            fold = Fold(spec.shape, spec.groups, new.slices, new.fold or "channel")
            sizes, b = (fold.rows, fold.columns), fold.batch
            core, bases = random_tucker(sizes, (new.rank, new.rank), norm, self.generator, groups=b)
            left, right = low_rank_factors(stacked(core, b), new.rank)
            new.set_factors(stacked(bases[0], b) @ left, right @ stacked(bases[1], b).mT)
        return new
