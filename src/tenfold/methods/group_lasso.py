"""Group lasso: a penalty on the norms of filters, so that whole filters die while a network trains.

Wen, Wu, Wang, Chen, Li, "Learning Structured Sparsity in Deep Neural Networks", NeurIPS 2016, arXiv 1608.03665.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tenfold.linalg.proximal import row_subgradient, shrink_rows
from tenfold.methods.contract.penalised import Penalised
from tenfold.optim.projection.penalty import Penalty


@dataclass(frozen=True)
class GroupLasso(Penalised):
    """Group lasso on filters: ``min loss(W) + lambda sum_l sum_f ||w_{l,f}||_2``, filters f of the layers l.

    What it trains is meant for `tenfold.prune_filters`. `plan` gives low ranks, the same fraction in every layer, as
    `SVD` does, so that it can be compared; without a budget every layer stays dense.

    Args:
        strength: lambda, >= 0.
        update: "subgradient" adds ``lambda w / ||w||`` to the gradient, as published; "proximal" shortens each
            filter by ``lambda lr`` after the step, which makes filters exactly zero.
        every: optimizer steps between proximal maps, or for which a sub-gradient is held, >= 1.
        linear: whether the rows of linear layers are groups too.

    Raises:
        ArgumentError: a value out of range.

    Source: the paper, equation 3, filter-wise groups alone: its channel-wise and shape-wise groups are not used. The
    proximal update is Parikh & Boyd 2014, section 6.5.4, with the learning rate as the step.
    """

    name: ClassVar[str] = "group-lasso"

    @property
    def penalty(self) -> Penalty:
        """The penalty ``lambda sum_f ||w_f||_2``."""
        return Penalty(self.strength, row_subgradient, shrink_rows)
