"""How far a sliced low-rank approximation is from its kernel: five measures, all relative to the kernel itself.

With ``k`` slices cut to rank ``j``, singular values ``s_i`` of slice i, and ``W_hat`` the approximation::

    max       max_i s_{i,j+1} / s_1                what the authors' code minimises; a LOWER bound of `spectral`
    spectral  ||W - W_hat||_2 / ||W||_2            the paper's equation 1
    rss       sqrt(sum_i s_{i,j+1}^2) / s_1        an upper bound of `spectral`, tighter than `bound`
    bound     sqrt(k) max_i s_{i,j+1} / s_1        the paper's Theorem 1
    fro       sqrt(sum_i sum_{m>j} s_im^2) / ||W||_F

    max <= spectral <= rss <= bound

``s_1 = ||W||_2``. A grouped layer is block diagonal: spectral quantities are the largest over its groups, energies add
up; in the decoupled fold every output channel counts as a group. A zero kernel has error 0.

Source: Liebenwein et al. 2021 (arXiv 2107.11442), equation 1 and Theorem 1; `rss` and `fro` are ours.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from types import MappingProxyType

import scipy
import torch
from jaxtyping import Float64
from torch import Tensor

from tenfold.linalg.svd import gram, gram_basis, working

Spectra = Float64[Tensor, "g k p"]
Errors = Float64[Tensor, " p"]
Measure = Callable[[Spectra, Tensor, Callable[[], Tensor]], Errors]
"""``(s, s_1, matrices) -> errors`` for ranks ``1..p``; ``matrices()`` gives the slices ``(g, k, rows, columns)``."""


_LANCZOS = 64
"""Up to this size all eigenvalues at once are faster than the largest by Lanczos."""


def _next(s: Float64[Tensor, "*batch p"]) -> Float64[Tensor, "*batch p"]:
    """``s_{j+1}`` for ``j = 1..p``: moved up by one, 0 behind the last."""
    return torch.cat([s[..., 1:], torch.zeros_like(s[..., :1])], dim=-1)


def _relative(error: Tensor, scale: Tensor) -> Tensor:
    return error / scale if scale > 0 else torch.zeros_like(error)


def max_error(s: Spectra, top: Tensor, matrices: Callable[[], Tensor]) -> Errors:
    """The measure `max`: ``max_i s_{i,j+1} / s_1``."""
    return _relative(_next(s).amax((0, 1)), top)


def rss_error(s: Spectra, top: Tensor, matrices: Callable[[], Tensor]) -> Errors:
    """The measure `rss`: ``sqrt(sum_i s_{i,j+1}^2) / s_1``, the largest over the groups."""
    return _relative(_next(s).square().sum(1).amax(0).sqrt(), top)


def bound_error(s: Spectra, top: Tensor, matrices: Callable[[], Tensor]) -> Errors:
    """The measure `bound`: ``sqrt(k) max_i s_{i,j+1} / s_1``."""
    return max_error(s, top, matrices) * s.shape[1] ** 0.5


def fro_error(s: Spectra, top: Tensor, matrices: Callable[[], Tensor]) -> Errors:
    """The measure `fro`: ``sqrt(sum_i sum_{m>j} s_im^2) / ||W||_F``."""
    tail = s.square().sum((0, 1)).flip(-1).cumsum(-1).flip(-1)
    return _relative(_next(tail).sqrt(), tail[0].sqrt())


def spectral_error(s: Spectra, top: Tensor, matrices: Callable[[], Tensor]) -> Errors:
    """The measure `spectral`: ``||W - W_hat||_2 / ||W||_2``; for one slice ``s_{j+1} / s_1``.

    With more slices it comes from the residuals' Gram matrices.

    The residual at rank j has the Gram matrix ``sum_i sum_{m>j} s_im^2 u_im u_im^T``; going down from full rank each j
    adds one term per slice, and the top eigenvalue of the sum is what is asked for.
    """
    if s.shape[1] == 1:
        return max_error(s, top, matrices)
    worst = torch.zeros(s.shape[-1], dtype=torch.float64)
    for group in working(matrices()).cpu():
        worst = torch.maximum(worst, _residual_norms(group, s.shape[-1]))
    return _relative(worst, top)


def _residual_norms(slices: Float64[Tensor, "k rows columns"], p: int) -> Errors:
    left = slices.shape[-2] <= slices.shape[-1]
    basis, values = gram_basis(gram(slices, "left" if left else "right"))
    scaled = basis * values[..., None, :] if left else slices @ basis  # (k, rows, p), columns s_im u_im
    total = torch.zeros(slices.shape[-2], slices.shape[-2], dtype=torch.float64)
    norms, start = torch.zeros(p, dtype=torch.float64), None
    for j in range(p - 1, 0, -1):
        term = scaled[:, :, j]
        total += term.mT @ term
        value, start = _top_eigenvalue(total, start)
        norms[j - 1] = value**0.5
    return norms


def _top_eigenvalue(a: Tensor, start: Tensor | None) -> tuple[float, Tensor | None]:
    """Of a symmetric non-negative matrix; large ones by Lanczos, started at the last eigenvector."""
    if a.shape[0] > _LANCZOS:
        # With a little of every direction: the last eigenvector may be orthogonal to the one that has overtaken it.
        v0 = torch.randn(a.shape[0], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        v0 = v0 if start is None else start + 1e-3 * v0 / v0.norm()
        arpack = scipy.sparse.linalg
        with contextlib.suppress(arpack.ArpackError):  # a zero matrix, or no convergence: the dense solver decides
            values, vectors = arpack.eigsh(a.numpy(), k=1, which="LA", v0=v0.numpy(), tol=1e-12)
            return max(float(values[0]), 0.0), torch.from_numpy(vectors[:, 0].copy())
    return float(torch.linalg.eigvalsh(a)[-1].clamp(min=0)), None


MEASURES: Mapping[str, Measure] = MappingProxyType(
    {"max": max_error, "spectral": spectral_error, "rss": rss_error, "bound": bound_error, "fro": fro_error}
)
