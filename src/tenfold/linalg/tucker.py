"""Tucker format: ``W = core x_1 U_1 ... x_d U_d`` with orthonormal columns in every ``U_i (n_i, r_i)``.

``Mat_i(W)`` is the mode-i unfolding ``(n_i, prod_{j != i} n_j)``, and ``(W x_i A)`` satisfies
``Mat_i(W x_i A) = A Mat_i(W)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tenfold.errors import check
from tenfold.linalg.subspace import align, orthonormalise
from tenfold.linalg.svd import Driver, left_basis, like, singular_values, tail_rank, working


def unfold(w: Float[Tensor, "*shape"], mode: int) -> Float[Tensor, "n rest"]:
    """Mode unfolding ``Mat_mode(w)``: the mode as rows, all other axes, in order, as columns."""
    return w.movedim(mode, 0).unsqueeze(-1).flatten(1)  # the extra axis serves vectors


def mode_product(w: Float[Tensor, "*shape"], a: Float[Tensor, "p n"], mode: int) -> Tensor:
    """Mode product ``w x_mode a``: the axis ``mode`` (from 0) of length n becomes one of length p."""
    return batch_product(w[None], a[None], mode)[0]


def tucker_full(core: Float[Tensor, "*shape"], bases: Sequence[Tensor]) -> Tensor:
    """The full tensor ``core x_1 U_1 x_2 U_2 ...`` of a Tucker decomposition.

    Args:
        core: ``(r_1, ..., r_d, *rest)``; further modes than there are bases are left alone.
        bases: ``U_i (n_i, r_i)`` of the first modes.
    """
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
    core, bases = _hosvd(working(w), ranks, _driver(w), sequential=sequential)
    return like(core, w), tuple(like(b, w) for b in bases)


def hosvd_bound(w: Float[Tensor, "*shape"], ranks: Sequence[int]) -> float:
    """Error bound ``sqrt(sum_i sum_{m > r_i} s_m(Mat_i(w))^2)`` of the truncated HOSVD in Frobenius norm.

    Args:
        w: the tensor, any floating dtype, finite.
        ranks: see `hosvd`.

    Raises:
        TenfoldError: NaN or infinite entries.
    """
    tails = [singular_values(unfold(w, mode))[rank:].square().sum() for mode, rank in enumerate(ranks)]
    return math.sqrt(float(torch.stack(tails).sum())) if tails else 0.0


def hooi(w: Float[Tensor, "*shape"], ranks: Sequence[int], *, sweeps: int = 10) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Higher-order orthogonal iteration: `hosvd`, then every basis in turn optimised with the others fixed.

    The error never grows from sweep to sweep; where the ranks are far below full it ends a few per cent below that of
    `hosvd`.

    Args:
        w: the tensor, any floating dtype, finite.
        ranks: see `hosvd`.
        sweeps: sweeps over all modes, at most; it stops where the core's energy grows by less than 1e-7 of itself.

    Returns:
        core and bases, as `hosvd`.

    Raises:
        ArgumentError: a rank or ``sweeps`` out of range.
        TenfoldError: NaN or infinite entries.

    Source: De Lathauwer, De Moor, Vandewalle 2000, "On the best rank-1 and rank-(R1, ..., RN) approximation".
    """
    check(sweeps >= 0, "sweeps", ">= 0", sweeps)
    exact, driver = working(w), _driver(w)
    core, bases = _hosvd(exact, ranks, driver)
    for _ in range(sweeps if len(ranks) > 1 else 0):
        before, others = core.square().sum(), exact
        for mode, rank in enumerate(ranks):
            others = exact
            for other, basis in enumerate(bases):
                others = others if other == mode else mode_product(others, basis.mT, other)
            bases[mode] = left_basis(unfold(others, mode), rank, driver=driver)[0]
        core = mode_product(others, bases[-1].mT, len(ranks) - 1)
        if core.square().sum() - before <= 1e-7 * before:
            break
    return like(core, w), tuple(like(b, w) for b in bases)


def tucker_truncate(
    core: Float[Tensor, "*shape"], bases: Sequence[Tensor], tolerance: float
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Truncate the ranks of a Tucker tensor as far as ``||W - W_hat||_F <= tolerance ||W||_F`` allows.

    `tucker_cut` without its limits.

    Args:
        core: ``(r_1, ..., r_d, *rest)``.
        bases: ``U_i (n_i, r_i)`` with orthonormal columns, for the first modes.
        tolerance: relative, in [0, 1).

    Returns:
        the smaller core and bases, same dtype; at least rank 1 in every mode.

    Raises:
        ArgumentError: tolerance out of range.
    """
    cut = tucker_cut(core, bases, tolerance)
    return cut.core, cut.bases


@dataclass(frozen=True)
class Limits:
    """Limits of the ranks of a truncation; they go before its tolerance.

    Args:
        least: per mode, or one for all. A rank that the tensor cannot have (above the product of the others) is never
            given.
        most: per mode; None: no limit. It goes before ``least``, and may break the tolerance.
        multiple: ranks are rounded up to a multiple of it, where ``most`` lets them.
    """

    least: int | Sequence[int] = 1
    most: Sequence[int] | None = None
    multiple: int = 1

    def rank(self, mode: int, wanted: int, possible: int) -> int:
        """The rank of a mode within the limits.

        Args:
            mode: from 0.
            wanted: the rank that the tolerance asks for.
            possible: the largest rank that the tensor can have there.
        """
        least = self.least if isinstance(self.least, int) else self.least[mode]
        rank = -(-max(wanted, least, 1) // self.multiple) * self.multiple
        return min(rank, possible, possible if self.most is None else self.most[mode])


@dataclass(frozen=True)
class Cut:
    """The result of `tucker_cut`.

    Args:
        core: the smaller core.
        bases: the smaller bases, orthonormal.
        turns: ``P_i (g, r_i, r_i')`` with ``U_i' = U_i P_i``, float64: for what else is kept in the old bases.
        error: ``||W - W_hat||_F / ||W||_F``, the realised one.
        overridden: the limits made the error larger than the tolerance.
    """

    core: Tensor
    bases: tuple[Tensor, ...]
    turns: tuple[Tensor, ...]
    error: float
    overridden: bool


def tucker_cut(
    core: Float[Tensor, "*shape"],
    bases: Sequence[Tensor],
    tolerance: float,
    *,
    limits: Limits | None = None,
    groups: int = 1,
    aligned: bool = False,
) -> Cut:
    """Truncate the ranks of a Tucker tensor as far as ``||W - W_hat||_F <= tolerance ||W||_F`` and the limits allow.

    Mode by mode on the core, sharing one budget: ``tail_i^2 <= (tolerance^2 ||C||^2 - spent) / (modes left)``. With
    orthonormal bases the sum of the discarded energies *is* the squared error, so the bound is tight; cutting each
    mode at ``tolerance`` on its own would overshoot by ``sqrt(modes)``. In the end ``r_i <= prod_{j != i} r_j``, at
    no cost: a matrix has one rank. The bases are orthonormalised anew, so that rounding never adds up.

    For types coarser than float64 the spectra are those of float64 Gram matrices, in which values below 1e-8 of the
    largest drown. So the tolerance holds, and the error is the true one, to about 1e-8 times the root of the mode's
    size: less than such a type rounds its numbers by.

    Args:
        core: ``(g r_1, r_2, ..., r_d, *rest)``, the groups one after the other; finite.
        bases: ``U_i (g n_i, r_i)`` with orthonormal columns in every group, for the first modes.
        tolerance: relative, in [0, 1).
        limits: of the ranks.
        groups: g tensors that share their ranks; their energies are added up.
        aligned: turn each basis, inside the subspace that is kept, as near as can be to the leading columns of the old
            one, in place of singular vectors; see `tenfold.linalg.subspace.align`.

    Raises:
        ArgumentError: tolerance out of range.
        TenfoldError: NaN or infinite entries.

    Source: Zangrando et al. 2024 (arXiv 2305.19059), the truncation of TDLRT, by sequential HOSVD (Vannieuwenhoven et
    al. 2012). Deviation: one budget for all modes, where theirs cuts each mode at the tolerance.
    """
    small, turns, error = _turned(stacked(working(core), groups), len(bases), tolerance, limits, _driver(core))
    made = []
    for mode, basis in enumerate(bases):
        if aligned:
            turn = align(turns[mode])
            turns[mode], small = turns[mode] @ turn, batch_product(small, turn.mT, mode)
        q, r = orthonormalise(stacked(working(basis), groups) @ turns[mode])
        small = batch_product(small, r, mode)
        made.append(like(q.flatten(0, 1), basis))
    return Cut(like(small.flatten(0, 1), core), tuple(made), tuple(turns), error, _broken(error, tolerance))


def tensor_cut(
    w: Float[Tensor, "gn *shape"], modes: int, tolerance: float = 0.0, *, limits: Limits | None = None, groups: int = 1
) -> Cut:
    """Truncated Tucker decomposition of a full tensor over its first ``modes`` modes, to a tolerance: `tucker_cut`.

    Args:
        w: ``(g n_1, n_2, ..., *rest)``, the groups one after the other; finite.
        modes: as many as there will be bases.
        tolerance: relative, in [0, 1).
        limits: of the ranks.
        groups: g tensors that share their ranks.

    Raises:
        ArgumentError: tolerance out of range.
        TenfoldError: NaN or infinite entries.
    """
    small, turns, error = _turned(stacked(working(w), groups), modes, tolerance, limits, _driver(w))
    bases = tuple(like(turn.flatten(0, 1), w) for turn in turns)
    return Cut(like(small.flatten(0, 1), w), bases, tuple(turns), error, _broken(error, tolerance))


def stacked(x: Float[Tensor, "rows *rest"], groups: int) -> Tensor:
    """View ``(g n, *rest)`` as ``(g, n, *rest)``."""
    return x.unflatten(0, (groups, -1))


def batch_unfold(x: Float[Tensor, "g *shape"], mode: int) -> Float[Tensor, "g n rest"]:
    """`unfold` of each of g tensors."""
    return x.movedim(mode + 1, 1).unsqueeze(-1).flatten(2)


def batch_product(x: Float[Tensor, "g *shape"], a: Float[Tensor, "g p n"], mode: int) -> Tensor:
    """`mode_product` of each of g tensors with its own matrix."""
    front = x.movedim(mode + 1, 1)
    return (a @ batch_unfold(x, mode)).reshape(len(x), a.shape[1], *front.shape[2:]).movedim(1, mode + 1)


def _hosvd(
    exact: Tensor, ranks: Sequence[int], driver: Driver, *, sequential: bool = True
) -> tuple[Tensor, list[Tensor]]:
    """`hosvd` in float64."""
    shape = tuple(exact.shape)
    check(len(ranks) <= len(shape), "ranks", f"at most {len(shape)} numbers for shape {shape}", tuple(ranks))
    core, bases = exact, []
    for mode, rank in enumerate(ranks):
        source = unfold(core if sequential else exact, mode)
        check(1 <= rank <= min(source.shape), f"ranks[{mode}]", f"in 1..{min(source.shape)}", rank)
        bases.append(left_basis(source, rank, driver=driver)[0])
        core = mode_product(core, bases[mode].mT, mode)
    return core, bases


def _turned(
    small: Tensor, modes: int, tolerance: float, limits: Limits | None, driver: Driver
) -> tuple[Tensor, list[Tensor], float]:
    """Cores ``(g, r_1, ...)`` in float64 cut to a tolerance: smaller ones, the turns, and the relative error."""
    check(0 <= tolerance < 1, "tolerance", "in [0, 1)", tolerance)
    limits = limits or Limits()
    whole = small.square().sum()
    spent, turns = torch.zeros_like(whole), []
    for mode in range(modes):
        p, s = left_basis(batch_unfold(small, mode), driver=driver)
        pooled = s.square().sum(0).sqrt()
        share = (tolerance**2 * whole - spent).clamp(min=0) / (modes - mode)
        wanted = int(tail_rank(pooled, share.sqrt()))
        rank = limits.rank(mode, wanted, len(pooled))
        spent = spent + pooled[rank:].square().sum()
        turns.append(p[..., :rank])
        small = batch_product(small, turns[mode].mT, mode)
    for mode, turn in enumerate(turns):
        possible = math.prod(small.shape[1:]) // small.shape[1 + mode]
        if small.shape[1 + mode] > possible:  # a later mode has become smaller than this one can use
            p = left_basis(batch_unfold(small, mode), driver="svd")[0]
            turns[mode] = turn @ p
            small = batch_product(small, p.mT, mode)
    return small, turns, math.sqrt(float(spent / whole)) if float(whole) > 0 else 0.0


def _broken(error: float, tolerance: float) -> bool:
    """Whether a cut erred by more than it was allowed to."""
    return error > tolerance * (1 + 1e-9) + 1e-12


def _driver(w: Tensor) -> Driver:
    """What ``"auto"`` would take for ``w``, whose float64 copy no longer tells how fine the original was."""
    return "svd" if w.dtype == torch.float64 else "gram"
