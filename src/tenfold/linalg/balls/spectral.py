"""Balls of singular values, with oracles that need none: a basis of the leading left space is enough.

With *any* k orthonormal columns U, for the matrix G of a gradient::

    v = -r U U^T G / ||U^T G||_F     lies in the spectral k-support ball;   -<G, v> = r ||U^T G||_F
    v = -r U polar(U^T G)            lies in the spectral k-sparse ball;    -<G, v> = r ||U^T G||_*

so an old basis costs accuracy, never feasibility. `Spectral.warm` takes one step per call::

    U = orth(G B^T),   B <- U^T G

three matrix products and one Cholesky factor of size k. A momentum buffer turns slowly: that is nearly exact. Keeping U
in place of B takes an eighth of the memory and a fourth product.

Source: Zimmer, Spiegel, Pokutta 2022 (arXiv 2205.11921), sections 3 and 4, who start their power iteration anew at each
step; the warm start and the vertex without right vectors are derived.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tenfold.errors import check
from tenfold.linalg.balls.ball import Ball, Counted, Grouping, Radius, Rebuild, radius_like, unit_scale
from tenfold.linalg.balls.norms import Norm, SparseNorm, SupportNorm, length, precise
from tenfold.linalg.svd import gram, gram_basis, left_basis, singular_values, truncated_svd

_SEED = 1e-5
"""How much of a fixed matrix is mixed into the columns before they are made orthonormal. It costs what float32 costs,
and a direction that a zero or deficient gradient has lost comes back, which it never would from gradients alone."""
_COLD_STEPS = 2
_FEW = 4
"""A basis of fewer columns takes more steps, each as much cheaper: a single direction is found slowly."""
_FLOOR = 1e-5
"""Singular values below this share of the largest count for less in a polar factor: they are rounding."""


class Values(Grouping):
    """The singular values of ``x.flatten(1)`` of each tensor as magnitudes."""

    def count(self, shape: Sequence[int]) -> int:
        """The full rank."""
        return min(shape[0], math.prod(shape[1:])) if shape else 1

    def magnitudes(self, x: Float[Tensor, "b *shape"]) -> Float[Tensor, "b n"]:
        """The singular values, descending."""
        return singular_values(_wide(x))

    def apart(self, x: Float[Tensor, "b *shape"]) -> tuple[Float[Tensor, "b n"], Rebuild]:
        """The singular values, and the rebuilding that keeps the singular vectors."""
        m = _wide(x)
        u, s, v = truncated_svd(m, m.shape[-2])
        return s, lambda new: _narrow((u * new[:, None, :]) @ v.mT, x)


@dataclass(frozen=True)
class Warm:
    """The result of one warm-started oracle call for each of ``b`` matrices; no device sync.

    Args:
        vertex: a point of the set, like the gradients: ``(b, *shape)``.
        basis: ``B / ||G||`` for the next step, ``(b, k, n)`` with ``n`` the long side; float32, float64 for float64.
        value: ``-<g, vertex> / radius``, at most ``support(g)``.
        share: ``||U^T G||^2 / ||G||^2`` in [0, 1], the energy in the basis; 0 for a zero gradient. A fall from one step
            to the next tells that the basis has lost the gradient: a call without a basis finds it again.
    """

    vertex: Float[Tensor, "b *shape"]
    basis: Float[Tensor, "b k n"]
    value: Float[Tensor, "b"]
    share: Float[Tensor, "b"]


@dataclass(frozen=True)
class Spectral(Ball):
    """A ball of singular values, with an oracle that is warm-started from the basis of the step before. Abstract."""

    split: ClassVar[Grouping] = Values()

    @abstractmethod
    def width(self, p: int) -> int:
        """The number of basis columns for a short side ``p``; 0 where the vertex is found without a basis."""

    def warm(self, g: Float[Tensor, "b *shape"], radius: Radius, basis: Tensor | None = None) -> Warm:
        """Warm-started linear minimisation oracle: nearly ``lmo(g, radius, stacked=True)``, by one subspace step.

        The vertex is in the set for any basis whatsoever: of another gradient, of zeros, even with NaN. A gradient
        that is zero or not finite gives 0 or NaN, as `lmo` does, and leaves the basis as it is.

        Args:
            g: a stack of gradients.
            radius: > 0, or one for each.
            basis: from the last call; None starts from a fixed matrix, the same in every process, with a few steps.

        Raises:
            ArgumentError: the radius is a number and not > 0; a basis of another shape.
        """
        x = g.detach()
        unit, scale = unit_scale(x.float() if x.element_size() < 4 else x)
        m = _wide(unit)
        b, p, n = m.shape
        old = m.new_zeros(b, self.width(p), n) if basis is None else basis.to(m)
        fits = old.shape == (b, self.width(p), n)
        check(fits, "basis", f"of shape {(b, self.width(p), n)} for gradients {tuple(g.shape)}", tuple(old.shape))
        whole = torch.linalg.vector_norm(m, dim=(-2, -1))
        live = whole > 0  # of a gradient that is not finite nothing is left
        inverse = torch.where(live, 1 / whole, 0.0)[:, None, None]
        factor = torch.where(scale.isnan(), torch.nan, -radius_like(radius, m))
        u, inside, new = None, m, old
        if old.shape[1] > 0:
            inside = old
            steps = math.ceil(_FEW / old.shape[1])
            for _ in range(steps if basis is not None else steps + _COLD_STEPS):
                u = _orthonormal(m @ inside.mT)
                inside = (u * inverse).mT @ m
            new = torch.where(live[:, None, None], inside, old)
        vertex, value = self._best(u, inside, factor)
        value = value * scale * (whole if u is not None else 1.0)
        share = torch.linalg.vector_norm(inside, dim=(-2, -1)).square().clamp(max=1) if u is not None else live.to(m)
        return Warm(_narrow(vertex, x).to(g.dtype), new, value, torch.where(scale.isnan(), torch.nan, share))

    @abstractmethod
    def _best(
        self, u: Float[Tensor, "b p k"] | None, inside: Float[Tensor, "b k n"], factor: Float[Tensor, "b"]
    ) -> tuple[Float[Tensor, "b p n"], Float[Tensor, "b"]]:
        """``factor`` times the best point of the set at radius 1 with columns in ``u``, and its value over ``inside``.

        Args:
            u: None: all columns.
            inside: ``u^T G``, up to a factor.
            factor: one per matrix.
        """

    def _vertex(self, x: Float[Tensor, "b *shape"], radius: Float[Tensor, "b"]) -> Float[Tensor, "b *shape"]:
        m = _wide(x)
        k = self.width(m.shape[-2])
        u = left_basis(m, k)[0].to(m) if k else None
        return _narrow(self._best(u, m if u is None else u.mT @ m, -radius)[0], x)


@dataclass(frozen=True)
class Nuclear(Spectral):
    """Nuclear norm ball ``sum s_i <= r``; the vertex is ``-r u_1 w_1^T``, of rank one."""

    def norm(self, n: int) -> Norm:
        """L1: the sum of the singular values."""
        return SparseNorm(1)

    def width(self, p: int) -> int:
        """One."""
        return 1

    def _best(self, u: Tensor | None, inside: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
        return _round(u, inside, factor)


@dataclass(frozen=True)
class _RankK(Counted, Spectral):
    """What the sets of rank k share."""

    def width(self, p: int) -> int:
        """k; 0 at full rank."""
        k = self.count(p)
        return k if k < p else 0


@dataclass(frozen=True)
class SpectralKSupport(_RankK):
    """Spectral k-support ball: the convex hull of the matrices of rank k and Frobenius norm ``r``.

    The vertex is ``-r U_k S_k W_k^T / ||S_k||``.

    Args:
        k: an int >= 1, the rank; or a float in (0, 1], the share of the full rank ``min(m, n)``, rounded up.

    Raises:
        ArgumentError: k out of range.
    """

    of: ClassVar[type[SparseNorm | SupportNorm]] = SupportNorm

    def _best(self, u: Tensor | None, inside: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
        return _round(u, inside, factor)


@dataclass(frozen=True)
class SpectralKSparse(_RankK):
    """Spectral k-sparse ball: ``s_1 <= r`` and ``sum s_i <= r k``; the vertex is ``-r U_k W_k^T``.

    Its polar factor takes an eigenproblem of size k, for which a GPU makes the host wait.

    Args:
        k: an int >= 1, the rank; or a float in (0, 1], the share of the full rank ``min(m, n)``, rounded up.

    Raises:
        ArgumentError: k out of range.
    """

    of: ClassVar[type[SparseNorm | SupportNorm]] = SparseNorm

    def _best(self, u: Tensor | None, inside: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
        turn = _inverse_root(inside)
        value = (turn * (inside @ inside.mT)).sum((-2, -1))
        turn = factor[:, None, None] * turn
        return (turn if u is None else u @ turn) @ inside, value

    def _vertex(self, x: Float[Tensor, "b *shape"], radius: Float[Tensor, "b"]) -> Float[Tensor, "b *shape"]:
        m = _wide(x)
        u, s, v = truncated_svd(m, self.count(m.shape[-2]))
        noise = max(m.shape[-2:]) * torch.finfo(m.dtype).eps * s[:, :1]
        return _narrow((u * (-radius[:, None] * (s > noise))[:, None, :]) @ v.mT, x)


def _round(u: Tensor | None, inside: Float[Tensor, "b k n"], factor: Float[Tensor, "b"]) -> tuple[Tensor, Tensor]:
    """``U B / ||B||``, and ``||B||``."""
    value = length(inside.flatten(-2))
    scale = (factor / torch.where(value > 0, value, 1.0))[:, None, None]
    return (inside * scale if u is None else (u * scale) @ inside), value


def _inverse_root(b: Float[Tensor, "b k n"]) -> Float[Tensor, "b k k"]:
    """``(B B^T)^(-1/2)``, so that times B it is the polar factor; smaller where B is all but deficient."""
    vectors, s = gram_basis(gram(b.to(precise(b)), "left").nan_to_num(0, 0, 0))
    floor = (_FLOOR * s[:, :1]).clamp(min=torch.finfo(s.dtype).tiny ** 0.5)
    return ((vectors * (s / torch.maximum(s, floor).square())[:, None, :]) @ vectors.mT).to(b)


def _orthonormal(y: Float[Tensor, "b p k"]) -> Float[Tensor, "b p k"]:
    """``Y L^-T`` with ``Y^T Y + eps I = L L^T``: orthonormal columns, never longer; filled up where Y is deficient."""
    w = y.to(precise(y))  # products of a matrix with itself square its condition
    size = torch.linalg.vector_norm(w, dim=(-2, -1), keepdim=True)
    w = torch.where((size > 0) & torch.isfinite(size), w / size, 0.0) + _SEED * _fixed(*y.shape[-2:], w.dtype, w.device)
    small = w.mT @ w
    # More than the rounding of the factor: that is what makes no column longer than 1, whatever Y is.
    jitter = small.shape[-1] * torch.finfo(w.dtype).eps * small.diagonal(dim1=-2, dim2=-1).sum(-1)
    eye = torch.eye(small.shape[-1], dtype=w.dtype, device=w.device)
    factor = torch.linalg.cholesky_ex(small + jitter[:, None, None] * eye)[0]
    return torch.linalg.solve_triangular(factor.mT, w, upper=True, left=False).to(y)


@lru_cache(maxsize=256)
def _fixed(p: int, k: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "p k"]:
    """One and the same matrix without structure in every process, with columns of length one or so."""
    return (torch.randn(p, k, generator=torch.Generator().manual_seed(0)) / math.sqrt(p)).to(device, dtype)


def _wide(x: Float[Tensor, "b *shape"]) -> Float[Tensor, "b p n"]:
    """The matrices of a stack, transposed where they are tall."""
    m = x.reshape(*x.shape[:2], -1) if x.ndim > 1 else x[:, None, None]
    return m if m.shape[-2] <= m.shape[-1] else m.mT


def _narrow(m: Float[Tensor, "b p n"], x: Float[Tensor, "b *shape"]) -> Float[Tensor, "b *shape"]:
    """Back from `_wide`, to the shape of ``x``."""
    rows = x.shape[1] if x.ndim > 1 else 1
    return (m if m.shape[-2] == rows else m.mT).reshape(x.shape)
