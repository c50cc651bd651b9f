"""The one front door to singular values and vectors: nothing else calls ``svd`` or ``eigh`` on weights.

Short and wide (or tall) matrices go through the Gram matrix of their short side and a symmetric eigensolver, which
costs a fraction of an SVD. Squaring halves the digits, so the work is done in float64: singular values come out with an
absolute error below ``2e-8 s_1``, finer than float32 weights carry. Whoever passes float64 wants its digits and gets
the plain SVD. Working in float64 also keeps autocast and TF32 out: neither touches it.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import scipy
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from tenfold.errors import TenfoldError, check

Driver = Literal["auto", "gram", "svd"]
NotConverged = torch.linalg.LinAlgError  # pyright: ignore[reportPrivateImportUsage] - documented, not re-exported

_LARGE = 192
_FEW = 6
"""A sixth of the eigenvectors by their indices takes as long as all of them by divide and conquer."""


def working(a: Tensor) -> Float64[Tensor, "*shape"]:
    """``a`` detached, in float64 (no copy if it is already), on the CPU where the device has no float64."""
    a = a.detach()
    return (a.cpu() if a.device.type == "mps" else a).to(torch.float64)


def like(x: Float[Tensor, "*shape"], a: Tensor) -> Float[Tensor, "*shape"]:
    """``x`` on the device and in the dtype of ``a``, contiguous: no view that would keep a larger tensor alive."""
    return x.to(a.device, a.dtype).contiguous()


def gram(a: Float[Tensor, "*batch m n"], side: Literal["left", "right"]) -> Float[Tensor, "*batch p p"]:
    """Gram matrix ``A A^T`` (left) or ``A^T A`` (right)."""
    b = a if side == "left" else a.mT
    if b.device.type != "cpu":
        return b @ b.mT
    x = b.numpy()  # numpy sees that both sides are one matrix and takes the symmetric product: half the work, no copy
    return torch.from_numpy(np.matmul(x, x.swapaxes(-1, -2)))


def gram_spectrum(g: Float64[Tensor, "*batch p p"]) -> Float64[Tensor, "*batch p"]:
    """Singular values, descending, of any ``A`` with Gram matrix ``g``: ``sqrt(eig(g))``."""
    values = torch.from_numpy(np.linalg.eigvalsh(g.numpy())) if _by_numpy(g) else torch.linalg.eigvalsh(g)
    return values.clamp(min=0).sqrt().flip(-1)


def gram_basis(
    g: Float64[Tensor, "*batch p p"], rank: int | None = None
) -> tuple[Float64[Tensor, "*batch p r"], Float64[Tensor, "*batch r"]]:
    """Singular vectors and values from a Gram matrix: eigenvectors in columns and ``sqrt`` of eigenvalues, descending.

    ``rank`` asks for the leading ones only; of a large matrix a few of them cost half of what all cost.
    """
    p = g.shape[-1]
    rank = p if rank is None else rank
    if _by_numpy(g) and rank * _FEW <= p:
        each = [scipy.linalg.eigh(x, subset_by_index=(p - rank, p - 1)) for x in g.reshape(-1, p, p).numpy()]
        values = torch.from_numpy(np.stack([x[0] for x in each])).reshape(*g.shape[:-2], rank)
        vectors = torch.from_numpy(np.stack([x[1] for x in each])).reshape(*g.shape[:-1], rank)
    elif _by_numpy(g):
        values, vectors = (torch.from_numpy(x) for x in np.linalg.eigh(g.numpy()))
    else:
        values, vectors = torch.linalg.eigh(g)
    return vectors[..., -rank:].flip(-1), values[..., -rank:].clamp(min=0).sqrt().flip(-1)


def singular_values(a: Float[Tensor, "*batch m n"], *, driver: Driver = "auto") -> Float64[Tensor, "*batch p"]:
    """Singular values of ``a``, float64, descending; ``p = min(m, n)``. On the CPU where the device has no float64.

    Args:
        a: one matrix or a batch, any floating dtype, finite.
        driver: ``"gram"`` (absolute error below ``2e-8 s_1``), ``"svd"`` (full float64 accuracy), or ``"auto"``: the
            plain SVD for float64 input, the Gram matrix for all coarser types.

    Raises:
        TenfoldError: ``a`` has NaN or infinite entries.
    """
    require_finite(a)
    w = working(a)
    if 0 in w.shape:
        return w.new_zeros(*w.shape[:-2], min(w.shape[-2:]))
    if _use_svd(a, driver):
        try:
            return torch.linalg.svdvals(_tall(w))
        except NotConverged:
            pass  # LAPACK's divide and conquer did not converge; the symmetric solver does
    side = "left" if w.shape[-2] <= w.shape[-1] else "right"
    return gram_spectrum(gram(w, side))


def truncated_svd(
    a: Float[Tensor, "*batch m n"], rank: int, *, driver: Driver = "auto"
) -> tuple[Float[Tensor, "*batch m r"], Float[Tensor, "*batch r"], Float[Tensor, "*batch n r"]]:
    """The best rank-``r`` approximation ``u diag(s) v^T`` of ``a`` in Frobenius and spectral norm.

    Args:
        a: one matrix or a batch, any floating dtype, finite. Half types are factorised in float64 and cast back.
        rank: how many triplets, ``1 <= rank <= min(m, n)``.
        driver: as in `singular_values`.

    Returns:
        ``u (m, r)``, ``s (r,)`` descending, ``v (n, r)``, in the dtype of ``a``. Singular vectors stand in columns.

    Raises:
        ArgumentError: ``rank`` out of range.
        TenfoldError: ``a`` has NaN or infinite entries.

    Source: Eckart & Young 1936; Mirsky 1960.
    """
    check(1 <= rank <= min(a.shape[-2:]), "rank", f"in 1..{min(a.shape[-2:])} for shape {tuple(a.shape)}", rank)
    require_finite(a)
    w = working(a)
    u, s, v = _plain(w) if _use_svd(a, driver) else _by_gram(w, rank)
    return like(u[..., :rank], a), like(s[..., :rank], a), like(v[..., :rank], a)


def low_rank_factors(
    a: Float[Tensor, "*batch m n"], rank: int
) -> tuple[Float[Tensor, "*batch m r"], Float[Tensor, "*batch r n"]]:
    """Balanced factors ``left @ right``, the best rank-``r`` approximation of ``a``.

    ``left = U sqrt(S)`` and ``right = sqrt(S)^-1 U^T A`` (or the same from the right), with U an orthonormal basis of
    the dominant subspace. No singular vector is found by dividing by a small singular value: whatever the scale, the
    product is ``U U^T A``, so at full rank it equals ``a`` to rounding, and any spectrum with zeros is harmless.
    Balance (``left^T left = right right^T``) is the usual start for training factors further.

    Args:
        a: one matrix or a batch, any floating dtype, finite.
        rank: ``1 <= rank <= min(m, n)``.

    Returns:
        ``left (m, r)`` and ``right (r, n)``, in the dtype of ``a``.

    Raises:
        ArgumentError: ``rank`` out of range.
        TenfoldError: ``a`` has NaN or infinite entries.

    Source: Khodak et al. 2021 (arXiv 2105.01029), spectral initialisation.
    """
    m, n = a.shape[-2:]
    check(1 <= rank <= min(m, n), "rank", f"in 1..{min(m, n)} for shape {tuple(a.shape)}", rank)
    basis, s = left_basis(a if m <= n else a.mT, rank)
    w = working(a)
    scale = s.clamp(min=1e-12 * s[..., :1]).sqrt()
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))[..., None, :]
    if m <= n:
        left, right = basis * scale, (basis / scale).mT @ w
    else:
        left, right = w @ (basis / scale), (basis * scale).mT
    return like(left, a), like(right, a)


def left_basis(
    a: Float[Tensor, "*batch m n"], rank: int | None = None, *, driver: Driver = "auto"
) -> tuple[Float64[Tensor, "*batch m r"], Float64[Tensor, "*batch r"]]:
    """Orthonormal left singular vectors of ``a`` (columns, by descending value) and its singular values, float64.

    Args:
        a: one matrix or a batch, any floating dtype, finite.
        rank: the leading so many; None: all ``min(m, n)``.
        driver: as in `singular_values`.

    Raises:
        TenfoldError: ``a`` has NaN or infinite entries.
    """
    require_finite(a)
    w = working(a)
    wide = w.shape[-2] <= w.shape[-1]
    if not _use_svd(a, driver):
        if wide:
            if w.ndim != 3 or w.shape[-2] < _LARGE or 0 in w.shape:
                return gram_basis(gram(w, "left"), rank)
            # One by one: the Gram matrices and all their vectors together would be the largest thing in memory.
            each = [gram_basis(gram(x, "left"), rank) for x in w]
            return torch.stack([u for u, _ in each]), torch.stack([s for _, s in each])
        u, s, _ = _by_gram(w, w.shape[-1] if rank is None else rank)
        return u, s
    # A = R^T Q^T: the small R^T has the same left vectors and values, and the long right ones are never formed.
    u, s, _ = _plain(torch.linalg.qr(w.mT, mode="r")[1].mT if wide else w)
    return u[..., :rank], s[..., :rank]


def stable_rank(a: Float[Tensor, "*batch m n"]) -> Float64[Tensor, "*batch"]:
    """Stable rank ``|A|_F^2 / |A|_2^2``, from 1 to the rank; 0 for a zero matrix.

    Args:
        a: one matrix or a batch, finite.

    Raises:
        TenfoldError: ``a`` has NaN or infinite entries.
    """
    power = singular_values(a).square()
    if power.shape[-1] == 0:
        return power.sum(-1)
    return power.sum(-1) / power[..., 0].where(power[..., 0] > 0, 1.0)


def energy_rank(s: Float[Tensor, "*batch p"], energy: float) -> Tensor:
    """Smallest ``k`` with ``sum_{i<=k} s_i^2 >= energy * sum s_i^2``; at least 1, without a device sync.

    Args:
        s: singular values, descending.
        energy: the share of the squared Frobenius norm to keep, in [0, 1].

    Returns:
        int64 ranks, one per batch entry.

    Raises:
        ArgumentError: ``energy`` out of range.

    Source: Xu et al. 2020 (arXiv 2004.14566), section 3.
    """
    check(0 <= energy <= 1, "energy", "in [0, 1]", energy)
    power = working(s).square()
    # Tails, not heads: 1 - head loses the digits that decide whether a small value may be dropped.
    tail = power.flip(-1).cumsum(-1).flip(-1)
    dropped = tail <= (1 - energy) * tail[..., :1]
    return (s.shape[-1] - dropped.sum(-1)).clamp(min=1)


def tail_rank(s: Float[Tensor, "*batch p"], budget: float | Tensor) -> Tensor:
    """Smallest ``k`` with ``sqrt(sum_{i>k} s_i^2) <= budget``; may be 0, without a device sync.

    Args:
        s: singular values, descending.
        budget: what the discarded part may measure in Frobenius norm, absolute, >= 0; a tensor gives one per batch
            entry (and is not checked: that would be a device sync).

    Raises:
        ArgumentError: a negative number as ``budget``.
    """
    check(isinstance(budget, Tensor) or budget >= 0, "budget", ">= 0", budget)
    power = working(s).square()
    tail = power.flip(-1).cumsum(-1).flip(-1)
    limit = torch.as_tensor(budget, dtype=torch.float64, device=power.device).square()
    return s.shape[-1] - (tail <= limit[..., None]).sum(-1)


def require_finite(a: Tensor, what: str = "a matrix to factorise") -> None:
    """Raise `TenfoldError` if ``a`` has NaN or infinite entries."""
    # A finite sum has finite terms, and costs a twentieth of looking at each; finite terms may still overflow it.
    if not torch.isfinite(a.sum()) and not torch.isfinite(a).all():
        raise TenfoldError(
            f"{what} has NaN or infinite entries (shape {tuple(a.shape)}). Load or train finite weights first."
        )


def _by_numpy(g: Tensor) -> bool:
    """From here on the LAPACK of numpy and scipy takes three quarters of the time that torch's takes."""
    return g.device.type == "cpu" and g.shape[-1] >= _LARGE and g.numel() > 0


def _use_svd(a: Tensor, driver: Driver) -> bool:
    check(driver in ("auto", "gram", "svd"), "driver", "'auto', 'gram' or 'svd'", driver)
    return driver == "svd" or (driver == "auto" and a.dtype == torch.float64)


def _tall(w: Tensor) -> Tensor:
    """``w`` or its transpose: LAPACK takes two to six times as long for a wide matrix as for the same one upright."""
    return w.mT if w.shape[-2] < w.shape[-1] else w


def _plain(w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if w.shape[-2] < w.shape[-1]:
        v, s, u = _plain(_tall(w))
        return u, s, v
    try:
        u, s, vh = torch.linalg.svd(w, full_matrices=False)
    except NotConverged:  # not converged: the symmetric solver does, and Ritz restores the digits
        return _by_gram(w, min(w.shape[-2:]))
    return u, s, vh.mT


def _by_gram(w: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Dominant subspace from the Gram matrix, then a Rayleigh-Ritz step for orthonormal vectors on both sides.

    ``U^T A = R^T Q^T`` with a QR of ``A^T U``, and an SVD of the small ``R``: no division by a singular value.
    """
    if w.shape[-2] > w.shape[-1]:
        v, s, u = _by_gram(w.mT, rank)
        return u, s, v
    basis = gram_basis(gram(w, "left"), rank)[0]
    q, r = torch.linalg.qr(w.mT @ basis)
    left, s, right = _square(r.mT)
    return basis @ left, s, q @ right


def _square(b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """SVD of small square matrices, to full accuracy even where LAPACK's SVD does not converge.

    Then from the eigenvectors ``(u; v) / sqrt(2)`` of ``[[0, b], [b^T, 0]]``, whose eigenvalues are ``+-s``. Where
    ``s`` is rounding noise the pairs mix and their halves are not orthonormal: the two QRs mend exactly those.
    """
    try:
        u, s, vh = torch.linalg.svd(b)
    except NotConverged:
        p, zero = b.shape[-1], torch.zeros_like(b)
        values, pairs = torch.linalg.eigh(torch.cat([torch.cat([zero, b], -1), torch.cat([b.mT, zero], -1)], -2))
        values, pairs = values[..., p:].flip(-1), pairs[..., p:].flip(-1)
        (u, ru), (v, rv) = torch.linalg.qr(pairs[..., :p, :]), torch.linalg.qr(pairs[..., p:, :])
        same = ru.diagonal(dim1=-2, dim2=-1).sign() == rv.diagonal(dim1=-2, dim2=-1).sign()
        return u * (same * 2 - 1)[..., None, :], values.clamp(min=0), v
    return u, s, vh.mT
