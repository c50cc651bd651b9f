"""Sums of norms as regularisers: their sub-gradients and proximal maps, for the rows of a matrix and for its spectrum.

::

    prox_{t f}(A) = argmin_X  1/2 ||X - A||_F^2 + t f(X)

For ``f = sum_i ||a_i||_2`` over the rows every row is shortened by t, for ``f = sum s_i`` every singular value.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tenfold.errors import check, is_share
from tenfold.linalg.svd import left_basis, like, require_finite, working


def row_subgradient(a: Float[Tensor, "*batch m n"]) -> Float[Tensor, "*batch m n"]:
    """Sub-gradient ``a_i / ||a_i||`` of the group-lasso norm ``sum_i ||a_i||_2`` of the rows; 0 for a row of zeros.

    Args:
        a: one matrix or a batch, any floating dtype.

    Source: Yuan & Lin 2006 (group lasso); Wen et al. 2016 (arXiv 1608.03665), equation 3, for the filters of a layer.
    """
    norm = a.norm(dim=-1, keepdim=True)
    return a / norm.clamp(min=torch.finfo(norm.dtype).tiny)


def shrink_rows(a: Float[Tensor, "*batch m n"], threshold: float) -> Float[Tensor, "*batch m n"]:
    """Proximal map of ``t sum_i ||a_i||_2``, block soft thresholding of the rows: ``a_i max(0, 1 - t / ||a_i||)``.

    Args:
        a: one matrix or a batch, any floating dtype.
        threshold: t, >= 0.

    Raises:
        ArgumentError: a negative threshold.

    Source: Parikh & Boyd 2014, section 6.5.4.
    """
    check(is_share(threshold), "threshold", "a number >= 0", threshold)
    norm = a.norm(dim=-1, keepdim=True)
    kept = (norm - threshold).clamp(min=0) / norm.clamp(min=torch.finfo(norm.dtype).tiny)
    return a * kept


def shrink_spectrum(a: Float[Tensor, "*batch m n"], threshold: float) -> Float[Tensor, "*batch m n"]:
    """Proximal map of the nuclear norm ``t sum_i s_i``, singular value thresholding: ``U (S - t)_+ V^T``.

    From the left vectors of the short side: ``U diag((s - t)_+ / s) U^T A``, so that no right vector is formed.

    Args:
        a: one matrix or a batch, any floating dtype, finite.
        threshold: t, >= 0.

    Raises:
        ArgumentError: a negative threshold.
        TenfoldError: NaN or infinite entries.

    Source: Cai, Candes, Shen 2010 (arXiv 0810.3286), theorem 2.1.
    """
    check(is_share(threshold), "threshold", "a number >= 0", threshold)
    if threshold == 0:
        require_finite(a)
        return a.detach().clone()
    if a.shape[-2] > a.shape[-1]:
        return shrink_spectrum(a.mT, threshold).mT.contiguous()
    u, s = left_basis(a)
    kept = (s - threshold).clamp(min=0) / s.clamp(min=torch.finfo(s.dtype).tiny)
    return like((u * kept[..., None, :]) @ (u.mT @ working(a)), a)
