"""Cholesky factors of Gram matrices that may be singular, without pivoting: the order of the rows is kept."""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor

_PIVOT = 1e-5
"""Below, a row is all but a combination of the rows before it, and the factor is taken of a matrix slightly larger."""
_NOISE = 1e-12
"""Above what rounding does to the eigenvalues of a matrix of thousands of rows of unit length."""


def nested_cholesky(
    k: Float64[Tensor, "g m m"], floor: Float64[Tensor, "g m"] | float = 0.0
) -> tuple[Float64[Tensor, "g m m"], Float64[Tensor, "g m"]]:
    """Scaled Cholesky factor ``L`` and ``d`` with ``K = diag(d) L L^T diag(d)``, for every leading block of K as well.

    Rows of K that depend on earlier ones (to 1e-5 of their length) make it singular; then ``K + 1e-12 diag(K)`` takes
    its place, so that errors that are computed from ``L`` are bounds from above, off by as little. Rows without length
    take no part: their ``d`` is infinite, and to divide by it gives zeros. No exception, and no NaN, comes of any
    finite positive semi-definite K.

    Args:
        k: symmetric, positive semi-definite to rounding.
        floor: what a diagonal entry must exceed for its row to have length; what rounding leaves there.
    """
    diagonal = k.diagonal(dim1=-2, dim2=-1)
    seen = diagonal > floor
    d = torch.where(seen, diagonal.clamp(min=0).sqrt(), torch.inf)
    unit = k / d[:, :, None] / d[:, None, :] + torch.diag_embed((~seen).to(k.dtype))
    eye = torch.eye(k.shape[-1], dtype=k.dtype, device=k.device)
    factor, info = torch.linalg.cholesky_ex(unit)
    bad = (info > 0) | ~(factor.diagonal(dim1=-2, dim2=-1) > _PIVOT).all(-1)
    noise = _NOISE
    while bool(bad.any()):
        again, info = torch.linalg.cholesky_ex(unit + noise * eye)
        factor = torch.where(bad[:, None, None], again, factor)
        bad, noise = bad & (info > 0), 10 * noise
    return factor, d


def solve(factor: Float64[Tensor, "g m m"], d: Float64[Tensor, "g m"], x: Float64[Tensor, "g m p"]) -> Tensor:
    """Solve ``K^-1 x`` with ``factor`` and ``d`` as `nested_cholesky` gives them; zeros in rows without length."""
    return torch.cholesky_solve(x / d[..., None], factor) / d[..., None]


def whiten(factor: Float64[Tensor, "g m m"], d: Float64[Tensor, "g m"], x: Float64[Tensor, "g m p"]) -> Tensor:
    """Whiten ``x`` with ``factor`` and ``d`` as `nested_cholesky` gives them: ``(diag(d) L)^-1 x``."""
    return torch.linalg.solve_triangular(factor, x / d[..., None], upper=False)
