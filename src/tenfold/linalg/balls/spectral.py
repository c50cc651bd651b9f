"""Balls of singular values, with oracles that need none: a basis of the leading left space is enough.

With *any* basis U of k orthonormal columns, for the matrix G of a gradient::

    v = -r U U^T G / ||U^T G||_F     lies in the spectral k-support ball;   -<G, v> = r ||U^T G||_F
    v = -r U polar(U^T G)            lies in the spectral k-sparse ball;    -<G, v> = r ||U^T G||_*

so an old basis costs accuracy, never feasibility. `Spectral.warm` takes one step ``U <- orth(G G^T U)`` per call, all
matrix products and one Cholesky factor of size k. A momentum buffer turns slowly: that is nearly exact.

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
from tenfold.linalg.balls.ball import Ball, Counted, Radius, Rebuild, Split
from tenfold.linalg.balls.norms import Norm, SparseNorm, SupportNorm
from tenfold.linalg.svd import gram, gram_basis, left_basis, singular_values, truncated_svd

_SEED = 1e-3
"""How much of a fixed matrix is mixed into a basis. It costs 1e-6 of the energy, and a direction that a zero or
deficient gradient has lost comes back, which it never would from products with gradients alone."""
_COLD_STEPS = 3
_FLOOR = 1e-5
"""Singular values below this share of the largest count for less in a polar factor: they are rounding."""


class Values(Split):
    """The singular values of ``x.flatten(1)``, of each tensor."""

    def count(self, shape: Sequence[int]) -> int:
        """The full rank."""
        return min(shape[0], math.prod(shape[1:])) if shape else 1

    def magnitudes(self, x: Float[Tensor, "b *shape"]) -> Float[Tensor, "b n"]:
        """Singular values, descending."""
        return singular_values(_wide(x))

    def apart(self, x: Float[Tensor, "b *shape"]) -> tuple[Float[Tensor, "b n"], Rebuild]:
        """Singular vectors are kept."""
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
    """A ball of singular values, with an oracle that goes on from the basis of the step before."""

    split: ClassVar[Split] = Values()

    @abstractmethod
    def width(self, p: int) -> int:
        """How many of ``p`` directions the basis has; 0 where the vertex is found without one."""

    def warm(self, g: Float[Tensor, "b *shape"], radius: Radius, basis: Tensor | None = None) -> Warm:
        """Nearly ``lmo(g, radius, stacked=True)``: one step from the basis of the call before.

        The vertex is in the set for any basis whatsoever: of another gradient, of zeros, even with NaN. Zero and
        non-finite gradients give the vertices that `lmo` gives, and leave the basis as it is.

        Args:
            g: a stack of gradients.
            radius: > 0, or one for each.
            basis: from the last call, ``(b, p, k)``; None starts from a fixed matrix, the same in every process, with
                a few steps.

        Raises:
            ArgumentError: the radius is a number and not > 0; a basis of another shape.
        """
        unit, top = self._unit(g)
        m = _wide(unit.nan_to_num(0, 0, 0))
        b, p, _ = m.shape
        k = self.width(p)
        old = m.new_zeros(b, p, k) if basis is None else basis.to(m)
        check(old.shape == (b, p, k), "basis", f"of shape {(b, p, k)} for gradients {tuple(g.shape)}", tuple(old.shape))
        u, inside, new = None, m, old
        if k > 0:
            u = torch.where(torch.isfinite(old.sum((-2, -1), keepdim=True)), old, 0.0)
            for _ in range(_COLD_STEPS if basis is None else 1):
                u = _orthonormal(m @ (m.mT @ (u + _SEED * _fixed(p, k, m.dtype, m.device))))
            inside = u.mT @ m
            new = torch.where((top > 0) & torch.isfinite(top), 1.0, 0.0)[:, None, None]
            new = torch.where(new > 0, u, old)
        vertex, value = self._best(u, inside)
        share = inside.square().sum((-2, -1)) / m.square().sum((-2, -1)).clamp(min=torch.finfo(m.dtype).tiny)
        finite = torch.isfinite(top)
        return Warm(
            (_narrow(vertex, unit) * self._factor(top, radius, unit)).to(g.dtype),
            new,
            torch.where(finite, value * top, torch.nan),
            torch.where(finite, share.clamp(max=1), torch.nan),
        )

    @abstractmethod
    def _best(self, u: Float[Tensor, "b p k"] | None, inside: Float[Tensor, "b k n"]) -> tuple[Tensor, Tensor]:
        """The vertex of ``-lmo`` at radius 1 with columns in ``u``, given ``u^T G``; and its value. None: any."""

    def _vertices(self, unit: Float[Tensor, "b *shape"]) -> Float[Tensor, "b *shape"]:
        m = _wide(unit.nan_to_num(0, 0, 0))
        k = self.width(m.shape[-2])
        u = left_basis(m, k)[0].to(m) if k else None
        return _narrow(self._best(u, m if u is None else u.mT @ m)[0], unit)


@dataclass(frozen=True)
class Nuclear(Spectral):
    """``sum s_i <= r``; the vertex is ``-r u_1 w_1^T``, of rank one."""

    def norm(self, n: int) -> Norm:
        """L1: the sum of the singular values."""
        return SparseNorm(1)

    def width(self, p: int) -> int:
        """One."""
        return 1

    def _best(self, u: Float[Tensor, "b p k"] | None, inside: Float[Tensor, "b k n"]) -> tuple[Tensor, Tensor]:
        return _scaled(u, inside)


@dataclass(frozen=True)
class SpectralKSupport(Counted, Spectral):
    """The hull of the matrices of rank k and Frobenius norm ``r``; the vertex is ``-r U_k S_k W_k^T / ||S_k||``.

    Args:
        k: an int >= 1, the rank; or a float in (0, 1], the share of the full rank ``min(m, n)``, rounded up.

    Raises:
        ArgumentError: k out of range.
    """

    of: ClassVar[type[SparseNorm | SupportNorm]] = SupportNorm

    def width(self, p: int) -> int:
        """k; 0 at full rank."""
        k = self.count(p)
        return k if k < p else 0

    def _best(self, u: Float[Tensor, "b p k"] | None, inside: Float[Tensor, "b k n"]) -> tuple[Tensor, Tensor]:
        return _scaled(u, inside)


@dataclass(frozen=True)
class SpectralKSparse(Counted, Spectral):
    """``s_1 <= r`` and ``sum s_i <= r k``; the vertex is ``-r U_k W_k^T``.

    Its polar factor takes an eigenproblem of size k, for which a GPU makes the host wait.

    Args:
        k: an int >= 1, the rank; or a float in (0, 1], the share of the full rank ``min(m, n)``, rounded up.

    Raises:
        ArgumentError: k out of range.
    """

    of: ClassVar[type[SparseNorm | SupportNorm]] = SparseNorm

    def width(self, p: int) -> int:
        """k; 0 at full rank."""
        k = self.count(p)
        return k if k < p else 0

    def _best(self, u: Float[Tensor, "b p k"] | None, inside: Float[Tensor, "b k n"]) -> tuple[Tensor, Tensor]:
        turn = _inverse_root(inside)
        value = ((turn @ inside) * inside).sum((-2, -1))
        return (turn if u is None else u @ turn) @ inside, value

    def _vertices(self, unit: Float[Tensor, "b *shape"]) -> Float[Tensor, "b *shape"]:
        m = _wide(unit.nan_to_num(0, 0, 0))
        u, s, v = truncated_svd(m, self.count(m.shape[-2]))
        noise = max(m.shape[-2:]) * torch.finfo(m.dtype).eps * s[:, :1]
        return _narrow((u * (s > noise)[:, None, :]) @ v.mT, unit)


def _scaled(u: Float[Tensor, "b p k"] | None, inside: Float[Tensor, "b k n"]) -> tuple[Tensor, Tensor]:
    """``U B / ||B||`` and ``||B||``."""
    value = torch.linalg.vector_norm(inside, dim=(-2, -1))
    scale = (1 / torch.where(value > 0, value, 1.0))[:, None, None]
    return (inside * scale if u is None else (u * scale) @ inside), value


def _inverse_root(b: Float[Tensor, "b k n"]) -> Float[Tensor, "b k k"]:
    """``(B B^T)^(-1/2)``, so that times B it is the polar factor; smaller where B is all but deficient."""
    w = _fine(b)
    vectors, s = gram_basis(gram(w, "left"))
    inverse = s / s.clamp(min=_FLOOR * s[:, :1].clamp(min=torch.finfo(s.dtype).tiny ** 0.5)).square()
    return ((vectors * inverse[:, None, :]) @ vectors.mT).to(b)


def _orthonormal(y: Float[Tensor, "b p k"]) -> Float[Tensor, "b p k"]:
    """``Y L^-T`` with ``Y^T Y + eps I = L L^T``: orthonormal columns, shorter where Y is deficient, never longer."""
    w = _fine(y)
    small = w.mT @ w
    info = torch.finfo(w.dtype)
    trace = small.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    eye = torch.eye(small.shape[-1], dtype=w.dtype, device=w.device)
    # More than the rounding of the factor: that is what makes the columns no longer than 1 whatever Y is.
    factor = torch.linalg.cholesky_ex(small + (small.shape[-1] * info.eps * trace + info.tiny) * eye)[0]
    return torch.linalg.solve_triangular(factor.mT, w, upper=True, left=False).to(y)


def _fine(x: Tensor) -> Tensor:
    """In float64, where the device has it: products of a narrow matrix with itself square its condition."""
    return x if x.device.type == "mps" else x.double()


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
