"""Factors that are best for what a layer puts out, not for its weight.

For outputs ``y = W x`` with second moment ``S = E[y y^T] = W E[x x^T] W^T`` and any ``W_hat`` of rank r::

    E ||W x - W_hat x||^2  >=  sum_{i > r} lambda_i(S),        attained by  W_hat = U_r (U_r^T W),

U_r the top eigenvectors of S. This is the SVD of ``W E[x x^T]^{1/2}`` without ever forming a root or an inverse of the
input moment: only output moments are needed, ``f x f`` whatever the kernel, and rank-deficient calibration data needs
no special case. With a metric ``G`` on the outputs (the second moment of the loss gradient in y, say)::

    E ||G^{1/2} (W x - W_hat x)||^2  is least for  W_hat = G^{-1/2} U_r U_r^T G^{1/2} W,   U_r of  G^{1/2} S G^{1/2},

roots and inverses taken on the numerical range of G.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from tenfold.linalg.svd import gram_basis, working


def column_basis(w: Float[Tensor, "b m n"]) -> Float64[Tensor, "b m n"]:
    """An orthonormal basis Q of a space with the columns of a tall W: ``W = Q (Q^T W)``, ``m >= n``.

    All that is said above holds for ``z = Q^T y``, with ``Q^T S Q``, ``Q^T G Q`` and ``Q^T W`` for S, G and W: the best
    ``W_hat`` has its columns among those of W.
    """
    return torch.linalg.qr(working(w)).Q.cpu()


def damped(moment: Float[Tensor, "b m m"], w: Float[Tensor, "b m n"], damping: float) -> Float64[Tensor, "b m m"]:
    """Add the moment of white inputs to an output moment: ``S + damping tr(S) / tr(W W^T) W W^T``.

    Directions that the calibration data never excites then count by their weight instead of not at all.

    Args:
        moment: S, the output moments.
        w: W, the weights.
        damping: relative, >= 0.
    """
    s, w = working(moment), working(w)
    white = w @ w.mT
    scale = s.diagonal(dim1=-2, dim2=-1).sum(-1) / white.diagonal(dim1=-2, dim2=-1).sum(-1).clamp(min=1e-300)
    return s + damping * scale[:, None, None] * white


def output_basis(
    moment: Float[Tensor, "b m m"], metric: Float[Tensor, "b m m"] | None = None
) -> tuple[Float64[Tensor, "b m m"], Float64[Tensor, "b m m"], Float64[Tensor, "b m"]]:
    """The optimal output-aware factors of every rank, best directions first, and the energy of each direction.

    Returns:
        ``a``, ``b``, ``energy`` with ``W_hat = a[..., :r] (b[..., :r]^T W)`` the best of rank r, whose squared error is
        ``energy[..., r:].sum()``. Without a metric ``a = b`` is orthonormal.
    """
    s = working(moment)
    if metric is None:
        u, root = gram_basis(s)
        return u, u, root.square()
    q, g = gram_basis(working(metric))  # g: roots of the metric's eigenvalues
    kept = g > 1e-7 * g[..., :1].clamp(min=1e-300)
    half = q * torch.where(kept, g, 0.0)[..., None, :] @ q.mT
    inverse = q * torch.where(kept, 1 / g.clamp(min=1e-300), 0.0)[..., None, :] @ q.mT
    u, root = gram_basis(half @ s @ half)
    return inverse @ u, half @ u, root.square()


def output_factors(
    w: Float[Tensor, "b m n"], a: Float[Tensor, "b m m"], b: Float[Tensor, "b m m"], rank: int
) -> tuple[Float[Tensor, "b m r"], Float[Tensor, "b r n"]]:
    """The output-aware factors of one rank, ``W_hat = left right = a_r (b_r^T W)``, in the dtype of ``w``, balanced.

    Args:
        w: W.
        a: left directions, from `output_basis`.
        b: right directions, from `output_basis`.
        rank: r, in 1..m.
    """
    left, right = a[..., :rank], b[..., :rank].mT @ working(w)
    ratio = right.norm(dim=-1) / left.norm(dim=-2).clamp(min=1e-300)
    scale = torch.where(ratio > 0, ratio, torch.ones_like(ratio)).sqrt()
    return (left * scale[..., None, :]).to(w.dtype), (right / scale[..., :, None]).to(w.dtype)
