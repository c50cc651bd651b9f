"""Low-rank projection of a weight, in a metric of its rows, with the lost energy handed to what is kept.

With ``A = diag(a) M``, ``V_r`` its top right singular vectors and ``s`` its singular values::

    M_hat = c M V_r V_r^T + rho M (I - V_r V_r^T)
    c^2   = (sum s^2 - rho^2 sum_{>r} s^2) / sum_{<=r} s^2        with transfer, else c = 1

For ``rho = 0`` that is ``diag(a)^-1 c SVD_r(diag(a) M)`` without the division: finite for ``a_i = 0`` and the same for
either sign of ``a``. With transfer ``||diag(a) M_hat||_F = ||diag(a) M||_F``.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tenfold.errors import check
from tenfold.linalg.svd import Driver, truncated_svd, working


def project(
    a: Float[Tensor, "*batch m n"],
    rank: int,
    *,
    metric: Float[Tensor, "*#batch m"] | None = None,
    transfer: bool = False,
    tail: float = 0.0,
) -> Float[Tensor, "*batch m n"]:
    """The nearest matrix of rank ``r`` in ``||diag(metric) (.)||_F``, scaled by the energy transfer if asked for.

    Args:
        a: one matrix or a batch, any floating dtype, finite.
        rank: ``1 <= rank``; from ``min(m, n)`` on the result is ``a`` itself, bit for bit.
        metric: one weight per row, of any sign, zeros allowed; None: ones. LRPET's is the batch norm's
            ``gamma / sqrt(running_var + eps)``.
        transfer: scale what is kept so that the energy in the metric stays what it was.
        tail: ``rho`` in [0, 1], at which the rest is kept; 0 cuts it off. Above 0 the rank does not fall.

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
    w = working(a)
    weighted = w if metric is None else working(metric)[..., None] * w
    _, s, v = truncated_svd(weighted, rank, driver=_driver(a))
    kept = s.square().sum(-1)
    whole = weighted.square().sum((-2, -1))
    rest = (whole - kept).clamp(min=0)
    scale = torch.ones_like(kept)
    if transfer:
        scale = ((kept + (1 - tail**2) * rest) / kept.clamp(min=torch.finfo(kept.dtype).tiny)).sqrt()
        scale = torch.where(kept > 0, scale, torch.ones_like(scale))
    inside = (w @ v) @ v.mT
    return (scale[..., None, None] * inside + tail * (w - inside)).to(a.device, a.dtype)


def nuclear_subgradient(a: Float[Tensor, "*batch m n"], rank: int) -> Float[Tensor, "*batch m n"]:
    """``U_r V_r^T``: the sub-gradient of least norm of the nuclear norm at the rank-``r`` projection of ``a``.

    Args:
        a: one matrix or a batch, any floating dtype, finite, of rank ``r`` at least.
        rank: ``1 <= rank <= min(m, n)``.

    Raises:
        ArgumentError: rank out of range.
        TenfoldError: NaN or infinite entries.

    Source: Watson 1992; Xu et al. 2020 (arXiv 2004.14566).
    """
    u, _, v = truncated_svd(working(a), rank, driver=_driver(a))
    return (u @ v.mT).to(a.device, a.dtype)


def _driver(a: Tensor) -> Driver:
    """The working copy is float64 always; how fine the factors must be, the given type says."""
    return "svd" if a.dtype == torch.float64 else "gram"
