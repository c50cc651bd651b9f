"""A ball of filters: the k-support norm of the lengths of the filters.

Source: Zimmer, Spiegel, Pokutta 2022 (arXiv 2205.11921), group k-support norm ball; Rao, Dudik, Harchaoui 2017.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tenfold.linalg.balls.ball import Counted, Grouping, Rebuild
from tenfold.linalg.balls.norms import SparseNorm, SupportNorm, precise


class FilterGrouping(Grouping):
    """The L2 norms of the filters as magnitudes: one per index of the first dimension of each tensor."""

    def count(self, shape: Sequence[int]) -> int:
        """The number of filters."""
        return shape[0] if shape else 1

    def magnitudes(self, x: Float[Tensor, "b *shape"]) -> Float[Tensor, "b n"]:
        """The L2 norm of each filter."""
        return torch.linalg.vector_norm(_rows(x), dim=-1, dtype=precise(x))

    def apart(self, x: Float[Tensor, "b *shape"]) -> tuple[Float[Tensor, "b n"], Rebuild]:
        """The L2 norm of each filter, and the rebuilding that keeps their directions; a zero filter stays zero."""
        z = self.magnitudes(x)
        safe = torch.where(z > 0, z, 1.0)
        return z, lambda new: (_rows(x) * (new / safe).to(x)[..., None]).view(x.shape)


@dataclass(frozen=True)
class GroupKSupport(Counted):
    """Group k-support norm ball: the convex hull of the tensors with k non-zero filters and L2 norm ``r``.

    Filters stand in the first dimension: a transposed convolution goes in with its first two swapped.

    Args:
        k: an int >= 1, how many filters; or a float in (0, 1], the share of the filters, rounded up.

    Raises:
        ArgumentError: k out of range.
    """

    split: ClassVar[Grouping] = FilterGrouping()
    of: ClassVar[type[SparseNorm | SupportNorm]] = SupportNorm


def _rows(x: Float[Tensor, "b *shape"]) -> Float[Tensor, "b n m"]:
    """One row per filter."""
    return x.reshape(*x.shape[:2], -1) if x.ndim > 1 else x[:, None, None]
