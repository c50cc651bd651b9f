"""Balls of singular values, with oracles that need none: a basis of the leading left space is enough.

With *any* basis U of k orthonormal columns, for the matrix G of a gradient::

    v = -r U U^T G / ||U^T G||_F     lies in the spectral k-support ball;   -<G, v> = r ||U^T G||_F
    v = -r U polar(U^T G)            lies in the spectral k-sparse ball;    -<G, v> = r ||U^T G||_*

so an old basis costs accuracy, never feasibility. `Spectral.warm` takes one step ``U <- orth(G G^T U)`` per call, all of
it matrix products and one Cholesky factor of size k; a momentum buffer turns slowly, so that is nearly exact.

Source: Zimmer, Spiegel, Pokutta 2022 (arXiv 2205.11921), sections 3 and 4, who start their power iteration anew at each
step; the warm start and the vertex without right vectors are derived.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tenfold.linalg.balls.ball import Ball, Norm, Radius, Rebuild, Split
from tenfold.linalg.balls.vectors import SparseNorm
from tenfold.linalg.svd import singular_values, truncated_svd

_SEED = 1e-3
"""How much of a fixed matrix is mixed into a basis. It costs 1e-6 of the energy, and a direction that a zero or
deficient gradient has lost comes back, which it never would from products with gradients alone."""
_COLD_STEPS = 3
_FLOOR = 1e-5
"""Singular values below this share of the largest count for less in a polar factor: they are rounding."""


class Values(Split):
    """The singular values of ``x.flatten(1)``, of each tensor."""

    def count(self, shape: Sequence[int]) -> int:
        return min(shape[0], math.prod(shape[1:])) if shape else 1

    def magnitudes(self, x: Float[Tensor, "b *shape"]) -> Float[Tensor, "b n"]:
        return singular_values(_wide(x))

    def apart(self, x: Float[Tensor, "b *shape"]) -> tuple[Float[Tensor, "b n"], Rebuild]:
        m = _wide(x)
        u, s, v = truncated_svd(m, m.shape[-2])
        return s, lambda new: _narrow((u * new[:, None, :]) @ v.mT, x)


@dataclass(frozen=True)
class Warm:
    """What one warm step gives, for each of ``b`` matrices.

    Args:
        vertex: a point of the set, like the gradient: ``(b, *shape)``.
        basis: for the next step, ``(b, p, k)`` with ``p`` the short side of the matrix; float32, float64 for float64.
        value: ``-<g, vertex> / radius``, which `Ball.support` bounds.
        share: ``||U^T G||^2 / ||G||^2`` in [0, 1], the energy in the basis; 0 for a zero gradient, NaN where it is not
            finite. A fall from one step to the next tells that the basis has lost the gradient. It stays on the
            device.
    """

    vertex: Float[Tensor, "b *shape"]
    basis: Float[Tensor, "b p k"]
    value: Float[Tensor, "b"]
    share: Float[Tensor, "b"]


@dataclass(frozen=True)
class Spectral(Ball):
    """A ball of singular values whose vertices have few of them."""

    split: ClassVar[Split] = Values()

    @abstractmethod
    def width(self, p: int) -> int:
        """How many of ``p`` directions a vertex has; 0 where it needs no basis."""

    @abstractmethod
    def _within(
        self, u: Float[Tensor, "b p k"], b: Float[Tensor, "b k n"]
    ) -> tuple[Float[Tensor, "b p n"], Float[Tensor, "b"]]:
        """The best vertex (of ``-lmo`` at radius 1) with columns in ``u``, where ``b = u^T G``, and its value."""

    def warm(self, g: Float[Tensor, "b *shape"], radius: Radius, basis: Float[Tensor, "b p k"] | None = None) -> Warm:
        """Nearly ``lmo(g, radius, stacked=True)``: one step from the basis of the call before; no wait for the device.

        The vertex is in the set for any basis whatsoever: of another gradient, of zeros, even with NaN.

        Args:
            g: a stack of gradients.
            radius: > 0, or one for each.
            basis: from the last call; None starts from a fixed matrix, the same everywhere, with a few steps. Where
                the vertex is found exactly without a basis it has no columns.

        Raises:
            ArgumentError: the radius is a number and not > 0.
        """
        unit, factor = self._unit(g, radius)
        m = _wide(unit.nan_to_num(0, 0, 0))
        p = m.shape[-2]
        k = self.width(p)
        if k == 0:
            u, b = torch.eye(p, dtype=m.dtype, device=m.device).expand(len(m), p, p), m
            new = m.new_zeros(len(m), p, 0)
        else:
            old = m.new_zeros(len(m), p, k) if basis is None else basis.to(m)
            u = torch.where(torch.isfinite(old.sum((-2, -1), keepdim=True)), old, 0.0)
            for _ in range(_COLD_STEPS if basis is None else 1):
                u = _orthonormal(m @ (m.mT @ (u + _SEED * _fixed(p, k).to(m))))
            b = u.mT @ m
            new = torch.where((m != 0).any(-1).any(-1)[:, None, None], u, old)
        vertex, value = self._within(u, b)
        share = b.square().sum((-2, -1)) / m.square().sum((-2, -1)).clamp(min=torch.finfo(m.dtype).tiny)
        flat = factor.reshape(-1)
        bad = torch.isnan(flat)
        top = torch.linalg.vector_norm(g.detach().to(m).flatten(1), float("inf"), dim=1)
        return Warm(
            (_narrow(vertex, unit) * factor).to(g.dtype),
            new,
            torch.where(bad, torch.nan, value * top),
            torch.where(bad, torch.nan, share.clamp(max=1)),
        )


@dataclass(frozen=True)
class Nuclear(Spectral):
    """``sum s_i <= r``; the vertex is ``-r u_1 w_1^T``. A sparse model's rank, as L1 is of its entries."""

    def norm(self, n: int) -> Norm:
        return SparseNorm(1)

    def width(self, p: int) -> int:
        return 1

    def _within(self, u: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return _scaled(u, b)

    def _vertices(self, unit: Float[Tensor, "b *shape"]) -> Float[Tensor, "b *shape"]:
        return _leading(unit, 1)
