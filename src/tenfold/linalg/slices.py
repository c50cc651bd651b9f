"""Spectra of a kernel sliced along its input channels, for every number of slices at once.

For ``k`` slices ``W = [W_1 ... W_k]``, each ``W_i (f, n/k)``. The Gram matrices of all k come from one pass of
products: the left Gram ``W_i W_i^T`` of a slice is the *sum* of the left Grams of the finer slices in it, and the right
Gram ``W_i^T W_i`` of a slice is a *diagonal block* of the right Gram of the coarser slice around it. The shorter side
is used for each k. Eigenvalues only; float64.

Source: Liebenwein et al. 2021 (arXiv 2107.11442), section 3; the sharing is ours.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from tenfold.errors import check
from tenfold.linalg.svd import gram, gram_spectrum, require_finite, working


def slice_spectra(
    w: Float[Tensor, "*batch f c kappa"], slices: Iterable[int]
) -> dict[int, Float64[Tensor, "*batch k p"]]:
    """Singular values of a kernel in ``k`` channel slices, for every ``k`` in ``slices``.

    Args:
        w: kernels with their spatial axes flattened into one (``kappa = 1`` for a linear layer).
        slices: numbers of slices, each a divisor of ``c``.

    Returns:
        ``{k: s}`` with ``s (*batch, k, min(f, c kappa / k))``, descending along the last axis, absolute error
        below ``2e-8`` of the largest.

    Raises:
        ArgumentError: a number of slices that does not divide ``c``.
        TenfoldError: ``w`` has NaN or infinite entries.
    """
    require_finite(w, "`w`")
    f, c, kappa = w.shape[-3:]
    wanted = sorted(set(slices))
    for k in wanted:
        check(k >= 1 and c % k == 0, "slices", f"divisors of {c} input channels", k)
    n = c * kappa
    w64 = working(w).reshape(*w.shape[:-3], f, n)
    left = [k for k in wanted if f <= n // k]
    right = [k for k in wanted if f > n // k]
    spectra = {}
    grams: dict[int, Tensor] = {}
    for k in reversed(left):  # finest first: coarser Grams are sums of finer ones
        finer = next((m for m in grams if m % k == 0), None)
        if finer is None:
            grams[k] = gram(_cut(w64, k), "left")
        else:
            grams[k] = grams[finer].unflatten(-3, (k, finer // k)).sum(-3)
        spectra[k] = gram_spectrum(grams[k])
    grams = {}
    for k in right:  # coarsest first: finer Grams are diagonal blocks of coarser ones
        coarser = next((m for m in reversed(grams) if k % m == 0), None)
        grams[k] = gram(_cut(w64, k), "right") if coarser is None else _blocks(grams[coarser], k // coarser)
        spectra[k] = gram_spectrum(grams[k])
    return {k: spectra[k] for k in wanted}


def _cut(w: Tensor, k: int) -> Tensor:
    """``(..., f, n) -> (..., k, f, n/k)``: runs of consecutive columns."""
    return w.unflatten(-1, (k, -1)).movedim(-2, -3)


def _blocks(g: Tensor, m: int) -> Tensor:
    """The ``m`` diagonal blocks of each matrix: ``(..., k, p, p) -> (..., k m, p/m, p/m)``."""
    split = g.unflatten(-1, (m, -1)).unflatten(-3, (m, -1))  # (..., k, m, p/m, m, p/m)
    return torch.diagonal(split, dim1=-4, dim2=-2).movedim(-1, -3).flatten(-4, -3)
