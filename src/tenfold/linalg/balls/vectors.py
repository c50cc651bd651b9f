"""Balls of entries: L1, L2, LInf, Lp, and the two families between them.

Source: Zimmer, Spiegel, Pokutta 2022 (arXiv 2205.11921), section 3 and appendix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tenfold.errors import check
from tenfold.linalg.balls.ball import Ball, Counted, Grouping, Rebuild
from tenfold.linalg.balls.norms import Norm, PowerNorm, SparseNorm, SupportNorm


class Entries(Grouping):
    """The absolute values of the entries as magnitudes; the directions are signs."""

    def count(self, shape: Sequence[int]) -> int:
        """The number of entries."""
        return math.prod(shape)

    def magnitudes(self, x: Float[Tensor, "b *shape"]) -> Float[Tensor, "b n"]:
        """The absolute values ``|x|``."""
        return x.abs().reshape(len(x), -1)

    def apart(self, x: Float[Tensor, "b *shape"]) -> tuple[Float[Tensor, "b n"], Rebuild]:
        """The absolute values, and the rebuilding that keeps the signs."""
        return self.magnitudes(x), lambda z: torch.copysign(z.view(x.shape), x)


@dataclass(frozen=True)
class L1(Ball):
    """L1 ball ``sum |x_i| <= r``; its vertices have one non-zero entry."""

    split: ClassVar[Grouping] = Entries()
    powers: ClassVar[tuple[float, float] | None] = (1, math.inf)

    def norm(self, n: int) -> Norm:
        """The L1 norm."""
        return SparseNorm(1)


@dataclass(frozen=True)
class L2(Ball):
    """L2 ball ``||x||_2 <= r``; the vertex is ``-r g / ||g||``."""

    split: ClassVar[Grouping] = Entries()
    powers: ClassVar[tuple[float, float] | None] = (2, 2)

    def norm(self, n: int) -> Norm:
        """The L2 norm."""
        return SupportNorm(n)


@dataclass(frozen=True)
class LInf(Ball):
    """LInf ball ``max |x_i| <= r``; the vertex is ``-r sign(g)``."""

    split: ClassVar[Grouping] = Entries()
    powers: ClassVar[tuple[float, float] | None] = (math.inf, 1)

    def norm(self, n: int) -> Norm:
        """The LInf norm."""
        return SparseNorm(n)


@dataclass(frozen=True)
class Lp(Ball):
    """Lp ball ``(sum |x_i|^p)^(1/p) <= r``, without a projection.

    The vertex is ``-r sign(g_i) (|g_i| / ||g||_q)^(q-1)`` with ``1/p + 1/q = 1``.

    Args:
        p: > 1 and finite; `L1` and `LInf` are the ends.

    Raises:
        ArgumentError: p out of range.
    """

    p: float

    split: ClassVar[Grouping] = Entries()
    projects: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(1 < self.p < math.inf, "p", "> 1 and finite", self.p, "Take L1 or LInf for the ends.")

    def norm(self, n: int) -> Norm:
        """The Lp norm."""
        return PowerNorm(self.p)


@dataclass(frozen=True)
class KSparse(Counted):
    """K-sparse polytope ``max |x_i| <= r`` and ``sum |x_i| <= r k``; its vertices are ``+-r`` on k entries.

    Args:
        k: an int >= 1, how many entries; or a float in (0, 1], the share of the entries, rounded up.

    Raises:
        ArgumentError: k out of range.
    """

    split: ClassVar[Grouping] = Entries()
    of: ClassVar[type[SparseNorm | SupportNorm]] = SparseNorm


@dataclass(frozen=True)
class KSupport(Counted):
    """K-support norm ball: the convex hull of the vectors with k non-zero entries and L2 norm ``r``.

    The vertex is the k largest entries of ``-g``, scaled.

    Args:
        k: an int >= 1, how many entries; or a float in (0, 1], the share of the entries, rounded up.

    Raises:
        ArgumentError: k out of range.
    """

    split: ClassVar[Grouping] = Entries()
    of: ClassVar[type[SparseNorm | SupportNorm]] = SupportNorm
