"""Tucker format: ``W = core x_1 U_1 ... x_d U_d`` with orthonormal columns in every ``U_i (n_i, r_i)``.

``Mat_i(W)`` is the mode-i unfolding ``(n_i, prod_{j != i} n_j)``, and ``(W x_i A)`` satisfies
``Mat_i(W x_i A) = A Mat_i(W)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tenfold.errors import check
from tenfold.linalg.svd import Driver, left_basis, like, singular_values, tail_rank, working


def unfold(w: Float[Tensor, "*shape"], mode: int) -> Float[Tensor, "n rest"]:
    """``Mat_mode(w)``: the mode as rows, all other axes, in order, as columns."""
    return w.movedim(mode, 0).unsqueeze(-1).flatten(1)  # the extra axis serves vectors


def mode_product(w: Float[Tensor, "*shape"], a: Float[Tensor, "p n"], mode: int) -> Tensor:
    """``w x_mode a``: the axis ``mode`` of length n becomes one of length p."""
    return (w.movedim(mode, -1) @ a.mT).movedim(-1, mode)


def tucker_full(core: Float[Tensor, "*shape"], bases: Sequence[Tensor]) -> Tensor:
    """``core x_1 U_1 x_2 U_2 ...`` for the first ``len(bases)`` modes; further modes of the core are left alone."""
    for mode, basis in enumerate(bases):
        core = mode_product(core, basis, mode)
    return core


def hosvd(
    w: Float[Tensor, "*shape"], ranks: Sequence[int], *, sequential: bool = True
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Truncated higher-order SVD of ``w`` over its first ``len(ranks)`` modes.

    ``sequential`` takes the basis of each mode from what the earlier modes left (ST-HOSVD, cheaper and its error is
    exactly the discarded energy); otherwise from ``w`` itself (HOSVD). Either way::

        ||w - w_hat||_F <= sqrt(sum_i sum_{m > r_i} s_m(Mat_i(w))^2) <= sqrt(d) ||w - best||_F

    Args:
        w: the tensor, any floating dtype, finite.
        ranks: one per mode from the first on, ``1 <= r_i <= n_i`` (and at most the product of the other sizes at the
            time the mode is cut). Fewer ranks than modes leave the last modes alone.
        sequential: see above.

    Returns:
        core ``(r_1, ..., r_d, *rest)`` and the bases ``U_i (n_i, r_i)``, in the dtype of ``w``.

    Raises:
        ArgumentError: a rank out of range.
        TenfoldError: NaN or infinite entries.

    Source: De Lathauwer et al. 2000; Vannieuwenhoven et al. 2012 (sequential).
    """
    check(len(ranks) <= w.ndim, "ranks", f"at most {w.ndim} numbers for shape {tuple(w.shape)}", tuple(ranks))
    core, bases = working(w), []
    original = core
    for mode, rank in enumerate(ranks):
        source = unfold(core if sequential else original, mode)
        check(1 <= rank <= min(source.shape), f"ranks[{mode}]", f"in 1..{min(source.shape)}", rank)
        basis = left_basis(source, driver=_driver(w))[0][:, :rank]
        core = mode_product(core, basis.mT, mode)
        bases.append(basis)
    return like(core, w), tuple(like(b, w) for b in bases)


def hosvd_bound(w: Float[Tensor, "*shape"], ranks: Sequence[int]) -> float:
    """``sqrt(sum_i sum_{m > r_i} s_m(Mat_i(w))^2)``: no truncated HOSVD of ``w`` errs more in Frobenius norm."""
    tails = [singular_values(unfold(w, mode))[rank:].square().sum() for mode, rank in enumerate(ranks)]
    return math.sqrt(float(torch.stack(tails).sum())) if tails else 0.0


def tucker_truncate(
    core: Float[Tensor, "*shape"], bases: Sequence[Tensor], tolerance: float
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Cut the ranks of a Tucker tensor as far as ``||W - W_hat||_F <= tolerance ||W||_F`` allows.

    Mode by mode on the core, sharing one budget: ``tail_i^2 <= (tolerance^2 ||C||^2 - spent) / (modes left)``. With
    orthonormal bases the sum of the discarded energies *is* the squared error, so the bound is tight; cutting each
    mode at ``tolerance`` on its own would overshoot by ``sqrt(modes)``.

    Args:
        core: ``(r_1, ..., r_d, *rest)``.
        bases: ``U_i (n_i, r_i)`` with orthonormal columns, for the first modes.
        tolerance: relative, in [0, 1).

    Returns:
        the smaller core and bases, same dtype; at least rank 1 in every mode.

    Raises:
        ArgumentError: tolerance out of range.
    """
    check(0 <= tolerance < 1, "tolerance", "in [0, 1)", tolerance)
    small, cut = working(core), []
    left = (tolerance * small.norm()) ** 2
    for mode, basis in enumerate(bases):
        p, s = left_basis(unfold(small, mode), driver=_driver(core))
        share = (left / (len(bases) - mode)).clamp(min=0).sqrt()
        rank = max(int(tail_rank(s, share)), 1)
        left = left - s[rank:].square().sum()
        p = p[:, :rank]
        small = mode_product(small, p.mT, mode)
        cut.append(like(working(basis) @ p, basis))
    return like(small, core), tuple(cut)


def _driver(w: Tensor) -> Driver:
    """What ``"auto"`` would take for ``w``, whose float64 copy no longer tells how fine the original was."""
    return "svd" if w.dtype == torch.float64 else "gram"
