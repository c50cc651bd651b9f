"""Low-rank projection of a weight, in a metric of its rows, with the lost energy handed to what is kept.

With ``A = diag(a) M``, ``V_r`` its top right singular vectors and ``s`` its singular values::

    M_hat = c M V_r V_r^T + rho M (I - V_r V_r^T)
    c^2   = (sum s^2 - rho^2 sum_{>r} s^2) / sum_{<=r} s^2        with transfer, else c = 1

For ``rho = 0`` that is ``diag(a)^-1 c SVD_r(diag(a) M)`` without the division: finite for ``a_i = 0`` and the same for
either sign of ``a``. With transfer ``||diag(a) M_hat||_F = ||diag(a) M||_F``.

All of it comes from one Gram matrix of the short side, in float64. For a tall M that is ``A^T A``, and V its
eigenvectors. For a wide one it is ``A A^T = U S^2 U^T``; ``V_r = A^T U_r S_r^-1`` is never formed::

    M V_r V_r^T = (M M^T diag(a) U_r S_r^-1) (S_r^-1 U_r^T diag(a) M)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from tenfold.errors import check
from tenfold.linalg.svd import gram, gram_basis, like, require_finite, working


@dataclass(frozen=True)
class Basis:
    """An orthonormal basis of a leading subspace of a Gram matrix ``G``.

    Args:
        vectors: ``U (b, p, r)``; columns of zeros are no directions.
        dual: ``U (U^T G U)^-1``.
        energy: ``tr(U^T G U)``, the sum of ``s^2`` over the subspace, float64.
    """

    vectors: Float[Tensor, "*batch p r"]
    dual: Float[Tensor, "*batch p r"]
    energy: Float64[Tensor, "*batch"]

    def __getitem__(self, part: slice) -> Basis:
        """Some matrices of the batch."""
        return Basis(self.vectors[part], self.dual[part], self.energy[part])


@dataclass(frozen=True)
class Spectrum:
    """All eigenvectors of a Gram matrix, best first, and the singular values ``s`` that they stand for."""

    vectors: Float64[Tensor, "*batch p p"]
    values: Float64[Tensor, "*batch p"]

    def leading(self, rank: Tensor | int) -> Basis:
        """The leading ``rank`` directions; a tensor gives one rank per matrix, the columns beyond it are zeros."""
        most = rank if isinstance(rank, int) else int(rank.max())
        u, s = self.vectors[..., :most], self.values[..., :most]
        if not isinstance(rank, int):
            keep = torch.arange(most, device=u.device) < rank.to(u.device)[..., None]
            u, s = u * keep[..., None, :], s * keep
        return Basis(u, u * _inverse(s).square()[..., None, :], s.square().sum(-1))


@dataclass(frozen=True)
class Weighted:
    """A batch of matrices ``A = diag(a) M``, by the Gram matrix of its short side.

    Args:
        matrix: ``M (b, m, n)``, any floating dtype.
        metric: ``a (b, m)``; None: ones.
        inner: ``M M^T`` where M is wide, else None.
        gram: ``A A^T`` where M is wide, else ``A^T A``.
    """

    matrix: Float[Tensor, "*batch m n"]
    metric: Float[Tensor, "*#batch m"] | None
    inner: Float[Tensor, "*batch m m"] | None
    gram: Float[Tensor, "*batch p p"]

    @classmethod
    def of(
        cls,
        matrix: Float[Tensor, "*batch m n"],
        metric: Float[Tensor, "*#batch m"] | None = None,
        *,
        coarse: bool = False,
    ) -> Weighted:
        """The matrices and their Gram matrices.

        Args:
            matrix: ``M``, finite.
            metric: one weight per row.
            coarse: Gram matrices in the dtype of the matrix, for `refined`; otherwise in float64, for `spectrum`.
        """
        m = matrix.detach()
        w = m if coarse else working(m)
        a = None if metric is None else metric.detach().to(w)
        if w.shape[-2] > w.shape[-1]:
            return cls(m, a, None, gram(w if a is None else a[..., None] * w, "right"))
        inner = gram(w, "left")
        return cls(m, a, inner, inner if a is None else a[..., :, None] * inner * a[..., None, :])

    def __getitem__(self, part: slice) -> Weighted:
        """Some matrices of the batch."""
        metric, inner = (None if x is None else x[part] for x in (self.metric, self.inner))
        return Weighted(self.matrix[part], metric, inner, self.gram[part])

    @property
    def energy(self) -> Float64[Tensor, "*batch"]:
        """``||A||_F^2``."""
        return self.gram.diagonal(dim1=-2, dim2=-1).sum(-1, dtype=torch.float64)

    def spectrum(self) -> Spectrum:
        """All directions and singular values, exactly: an eigenproblem of the short side."""
        return Spectrum(*gram_basis(self.gram))

    def refined(self, old: Float[Tensor, "*batch p r"]) -> tuple[Basis, Float64[Tensor, "*batch"]]:
        """One subspace iteration from the basis of a nearby matrix, and the residual of its result.

        ``U <- orth(G U (U^T G U)^-1)``, all of it matrix products and Cholesky factors of size r. Where a matrix of
        rank r has changed by d, relatively, the error of its projection falls from O(d) to O(d^3); where it had a
        spectrum beyond r before, only by the square of the gap.

        Args:
            old: orthonormal columns.

        Returns:
            the basis, and the residual ``||G U - U T||_F / ||G||_F`` with ``T = U^T G U``; infinite where a factor
            failed. A small one says that the space is invariant, not that it is the leading one: look at the exact
            answer from time to time.
        """
        g = self.gram
        u = old.to(g)
        image = g @ u
        # Dividing by U^T G U leaves columns of about one length: the Cholesky factor of their products is accurate.
        step = _solve(u.mT @ image, image)
        factor, failed = torch.linalg.cholesky_ex(step.mT @ step)
        new = torch.linalg.solve_triangular(factor.mT, step, upper=True, left=False)
        image = g @ new
        small = new.mT @ image
        residual = (image - new @ small).norm(dim=(-2, -1)) / g.norm(dim=(-2, -1)).clamp(min=_tiny(g))
        wrong = (failed != 0) | ~torch.isfinite(residual)
        energy = small.diagonal(dim1=-2, dim2=-1).sum(-1, dtype=torch.float64)
        return Basis(new, _solve(small, new), energy), torch.where(wrong, torch.inf, residual.double())

    def factors(self, basis: Basis) -> tuple[Float[Tensor, "*batch m r"], Float[Tensor, "*batch r n"]]:
        """Low-rank factors ``left @ right = M V V^T`` for the directions in ``basis``, in the dtype of the matrix."""
        u, m = basis.vectors, self.matrix
        if self.inner is None:
            return m @ u.to(m), u.mT.to(m)
        if self.metric is None:  # M M^T U (U^T M M^T U)^-1 = U for leading vectors
            return u.to(m), u.mT.to(m) @ m
        a = self.metric[..., :, None]
        return (self.inner @ (a * basis.dual)).to(m), (a * u).mT.to(m) @ m

    def within(self, x: Float[Tensor, "*batch m n"], basis: Basis) -> Float[Tensor, "*batch m n"]:
        """Project another matrix of the same shape, such as a momentum, onto the same row space: ``X V V^T``."""
        if self.inner is None:
            v = basis.vectors.to(x)
            return (x @ v) @ v.mT
        a = 1 if self.metric is None else self.metric[..., :, None]
        m = self.matrix.to(x)
        return (x @ (m.mT @ (a * basis.dual).to(x))) @ ((a * basis.vectors).to(x).mT @ m)

    def polar(self, spectrum: Spectrum, rank: Tensor | int) -> Float[Tensor, "*batch m n"]:
        """The polar factor ``U_r V_r^T`` of ``A``: without a metric a sub-gradient of the nuclear norm."""
        u, m = spectrum.leading(rank).vectors, self.matrix
        turn = ((u * _inverse(spectrum.values[..., : u.shape[-1]])[..., None, :]) @ u.mT).to(m)
        return m @ turn if self.inner is None else turn @ m


def _inverse(s: Float64[Tensor, "*batch r"]) -> Float64[Tensor, "*batch r"]:
    """``1 / s``, and 0 where ``s`` is rounding noise: there is no direction to keep."""
    return torch.where(s > 1e-8 * s[..., :1], 1 / s.clamp(min=1e-300), 0.0)


def _solve(small: Float[Tensor, "*batch r r"], x: Float[Tensor, "*batch p r"]) -> Float[Tensor, "*batch p r"]:
    """``x small^-1`` for a symmetric, (all but) positive definite ``small``."""
    floor = torch.finfo(small.dtype).eps * small.diagonal(dim1=-2, dim2=-1).mean(-1).clamp(min=_tiny(small))
    eye = torch.eye(small.shape[-1], dtype=small.dtype, device=small.device)
    return torch.cholesky_solve(x.mT, torch.linalg.cholesky_ex(small + floor[..., None, None] * eye)[0]).mT


def _tiny(x: Tensor) -> float:
    return torch.finfo(x.dtype).tiny


@contextmanager
def full_precision(x: Tensor) -> Iterator[None]:
    """Switch autocast and TF32 off for the block: either costs float32 products three digits."""
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision
    settings.fp32_precision = "ieee"
    try:
        with torch.autocast(x.device.type, enabled=False):
            yield
    finally:
        settings.fp32_precision = before


def transfer_scale(
    whole: Float64[Tensor, "*batch"], kept: Float64[Tensor, "*batch"], tail: float = 0.0
) -> Float64[Tensor, "*batch"]:
    """Energy-transfer factor ``c = sqrt((sum s^2 - rho^2 sum_{>r} s^2) / sum_{<=r} s^2)``; 1 where nothing is kept.

    Args:
        whole: ``sum s^2``.
        kept: ``sum_{<=r} s^2``.
        tail: ``rho`` in [0, 1].
    """
    rest = (whole - kept).clamp(min=0)
    scale = ((kept + (1 - tail**2) * rest) / kept.clamp(min=torch.finfo(kept.dtype).tiny)).sqrt()
    return torch.where(kept > 0, scale, torch.ones_like(scale))


def project(
    a: Float[Tensor, "*batch m n"],
    rank: int,
    *,
    metric: Float[Tensor, "*#batch m"] | None = None,
    transfer: bool = False,
    tail: float = 0.0,
) -> Float[Tensor, "*batch m n"]:
    """Best rank-``r`` approximation of ``a`` in ``||diag(metric) (.)||_F``, with energy transfer if asked for.

    Args:
        a: one matrix or a batch, any floating dtype, finite.
        rank: ``1 <= rank``; from ``min(m, n)`` on the result is ``a`` itself, bit for bit.
        metric: one weight per row, of any sign, zeros allowed; None: ones. LRPET's is the batch norm's
            ``gamma / sqrt(running_var + eps)``.
        transfer: scale what is kept so that the energy in the metric stays what it was.
        tail: ``rho`` in [0, 1], the factor that scales the rest; 0 cuts it off. Above 0 the rank does not fall.

    Returns:
        a new tensor like ``a``.

    Raises:
        ArgumentError: rank or tail out of range.
        TenfoldError: NaN or infinite entries.

    Source: Guo et al. 2024 (arXiv 2204.05566), batch-norm rectification and energy transfer, the division by the metric
    removed; Xu et al. 2020 (arXiv 2004.14566), trained rank pruning, for ``metric=None, transfer=False``.
    """
    check(rank >= 1, "rank", ">= 1", rank)
    check(0 <= tail <= 1, "tail", "in [0, 1]", tail)
    if rank >= min(a.shape[-2:]):
        return a.detach().clone()
    require_finite(a)
    if metric is not None:
        require_finite(metric, "`metric`")
    with full_precision(a):
        weighted = Weighted.of(a.float() if a.element_size() < 4 else a, metric)  # half types: products are coarse
        basis = weighted.spectrum().leading(rank)
        left, right = weighted.factors(basis)
        inside = left @ right
    scale = transfer_scale(weighted.energy, basis.energy, tail) if transfer else torch.ones_like(basis.energy)
    return like(scale[..., None, None].to(inside) * inside + tail * (weighted.matrix - inside), a)


def nuclear_subgradient(a: Float[Tensor, "*batch m n"], rank: int) -> Float[Tensor, "*batch m n"]:
    """Sub-gradient ``U_r V_r^T`` of the nuclear norm at the rank-``r`` projection of ``a``, the one of least norm.

    Args:
        a: one matrix or a batch, any floating dtype, finite, of rank ``r`` at least.
        rank: ``1 <= rank <= min(m, n)``.

    Raises:
        ArgumentError: rank out of range.
        TenfoldError: NaN or infinite entries.

    Source: Watson 1992; Xu et al. 2020 (arXiv 2004.14566).
    """
    check(1 <= rank <= min(a.shape[-2:]), "rank", f"in 1..{min(a.shape[-2:])} for shape {tuple(a.shape)}", rank)
    require_finite(a)
    weighted = Weighted.of(working(a))
    return like(weighted.polar(weighted.spectrum(), rank), a)
