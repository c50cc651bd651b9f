"""First and second moments of inputs and outputs together, batch by batch, in float64."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from tenfold.linalg.svd import gram, working


@dataclass(frozen=True)
class JointMoments:
    """First and second moments of inputs x and outputs y, in groups. Made by `of`, added up by `merged`.

    Args:
        count: samples.
        mean_x: ``(g, m)``.
        mean_y: ``(g, f)``.
        xx: ``sum (x - mean)(x - mean)^T``, ``(g, m, m)``.
        yx: ``sum (y - mean)(x - mean)^T``, ``(g, f, m)``.
        yy: ``sum (y - mean)^2``, ``(g, f)``.
    """

    count: int
    mean_x: Float64[Tensor, "g m"]
    mean_y: Float64[Tensor, "g f"]
    xx: Float64[Tensor, "g m m"]
    yx: Float64[Tensor, "g f m"]
    yy: Float64[Tensor, "g f"]

    @staticmethod
    def of(x: Float[Tensor, "g samples m"], y: Float[Tensor, "g samples f"]) -> JointMoments:
        """The moments of one batch of at least one sample."""
        x, y = working(x), working(y)
        mean_x, mean_y = x.mean(1), y.mean(1)
        x, y = x - mean_x[:, None], y - mean_y[:, None]
        return JointMoments(x.shape[1], mean_x, mean_y, gram(x, "right"), y.mT @ x, y.square().sum(1))

    def merged(self, other: JointMoments) -> JointMoments:
        """The moments of both sets of samples together.

        Source: Chan, Golub, LeVeque 1983: no difference of large sums, so how the samples are split is no matter.
        """
        total = self.count + other.count
        share, weight = other.count / total, self.count * other.count / total
        x, y = other.mean_x - self.mean_x, other.mean_y - self.mean_y
        return replace(
            self,
            count=total,
            mean_x=self.mean_x + share * x,
            mean_y=self.mean_y + share * y,
            xx=self.xx + other.xx + weight * x[:, :, None] * x[:, None, :],
            yx=self.yx + other.yx + weight * y[:, :, None] * x[:, None, :],
            yy=self.yy + other.yy + weight * y.square(),
        )

    def about_zero(self) -> JointMoments:
        """The moments about zero in place of the means: for a layer whose bias is not to move."""
        x, y, n = self.mean_x, self.mean_y, self.count
        return replace(
            self,
            mean_x=torch.zeros_like(x),
            mean_y=torch.zeros_like(y),
            xx=self.xx + n * x[:, :, None] * x[:, None, :],
            yx=self.yx + n * y[:, :, None] * x[:, None, :],
            yy=self.yy + n * y.square(),
        )

    def through(self, a: Float64[Tensor, "g p m"]) -> JointMoments:
        """The moments of ``A x`` and y."""
        return replace(self, mean_x=(a @ self.mean_x[..., None])[..., 0], xx=a @ self.xx @ a.mT, yx=self.yx @ a.mT)

    def error(self, d: Float64[Tensor, "g f m"]) -> float:
        """The mean squared error ``E |y - D x - b|^2`` with the best b, summed over groups."""
        gap = self.yy.sum() - 2 * (d * self.yx).sum() + ((d @ self.xx) * d).sum()
        return max(float(gap) / self.count, 0.0)

    def shift(self, d: Float64[Tensor, "g f m"]) -> Float64[Tensor, "g f"]:
        """The best bias, ``E[y] - D E[x]``."""
        return self.mean_y - (d @ self.mean_x[..., None])[..., 0]

    @property
    def bytes(self) -> int:
        """The memory that the moments take, in bytes."""
        each = (self.mean_x, self.mean_y, self.xx, self.yx, self.yy)
        return sum(t.numel() * t.element_size() for t in each)


def pooled(each: Iterable[JointMoments]) -> JointMoments:
    """Pool the moments of layers that share a weight but no bias: deviations from each layer's own mean, added up.

    The means of the result are those of the first layer, and mean nothing.
    """
    first, *others = each
    for other in others:
        first = replace(
            first,
            count=first.count + other.count,
            xx=first.xx + other.xx,
            yx=first.yx + other.yx,
            yy=first.yy + other.yy,
        )
    return first
