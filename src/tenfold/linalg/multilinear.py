"""Multilinear ranks: which of them a tensor can have, what each pair of them would lose, random tensors of some."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from tenfold.linalg.subspace import orthonormalise
from tenfold.linalg.svd import left_basis, working
from tenfold.linalg.tucker import mode_product, unfold


def feasible(ranks: Sequence[int], sizes: Sequence[int], rest: int = 1) -> tuple[int, ...]:
    """The largest ranks up to ``ranks`` that a Tucker tensor can have: ``r_i <= min(n_i, rest prod_{j != i} r_j)``.

    More than that is redundant: the mode-i unfolding of the core has only so many columns.

    Args:
        ranks: one per active mode, each >= 1.
        sizes: ``n_i`` of the same modes.
        rest: the product of the sizes of all other modes.
    """
    cut = [min(r, n) for r, n in zip(ranks, sizes, strict=True)]
    while True:
        now = [min(r, rest * math.prod(cut) // r) for r in cut]
        if now == cut:
            return tuple(cut)
        cut = now


def rank_pair_errors(w: Float[Tensor, "n1 n2 *rest"]) -> Float64[Tensor, "n1 n2"]:
    """Squared errors ``||W - W_hat||_F^2`` of the higher-order SVD over two modes, for all pairs of ranks at once.

    With *all* singular vectors of both modes, ``E = W x_1 U_1^T x_2 U_2^T`` is the tensor in other coordinates, and
    cutting at ``(r_1, r_2)`` keeps its leading block: the error is the energy of the rest. Two cumulative sums of
    non-negative numbers give it for every pair, without cancellation.

    Returns:
        entry ``(r_1 - 1, r_2 - 1)`` for the ranks ``(r_1, r_2)``; zero in the last one.
    """
    core = working(w)
    for mode in (0, 1):
        basis = left_basis(unfold(w, mode))[0]
        core = mode_product(core, basis.mT, mode)  # fewer columns than rows: what is missing has no energy
    found = core.flatten(2).square().sum(-1) if core.ndim > 2 else core.square()
    energy = found.new_zeros(w.shape[:2])
    energy[: found.shape[0], : found.shape[1]] = found
    beyond = _from_here(energy, 1)  # [i, j]: of row i, from column j on
    rows = _from_here(beyond[:, :1], 0)  # [i]: from row i on
    zero = energy.new_zeros(1, energy.shape[1])
    right = torch.cat([beyond[:, 1:], energy.new_zeros(energy.shape[0], 1)], 1).cumsum(0)
    return right + torch.cat([rows.expand_as(energy)[1:], zero], 0)


def random_tucker(
    sizes: Sequence[int], ranks: Sequence[int], norm: float, generator: torch.Generator, *, groups: int = 1
) -> tuple[Float64[Tensor, "gr *core"], tuple[Float64[Tensor, "gn r"], ...]]:
    """Random Tucker tensor: orthonormal bases and a normal core with ``E ||C x_1 U_1 ... x_d U_d||^2 = norm^2``.

    Args:
        sizes: of all modes of each tensor.
        ranks: of the first modes, ``1 <= r_i <= n_i``.
        norm: of the whole, in Frobenius norm, >= 0.
        generator: the numbers are drawn on its device, whatever else is where.
        groups: g independent tensors, one after the other.

    Returns:
        core ``(g r_1, r_2, ..., *rest)`` and bases ``U_i (g n_i, r_i)``.
    """

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64, device=generator.device)

    bases = [normal(groups, n, r) for n, r in zip(sizes, ranks, strict=False)]
    core = normal(groups * ranks[0], *ranks[1:], *sizes[len(ranks) :])
    return core * (norm / math.sqrt(core.numel())), tuple(orthonormalise(b)[0].flatten(0, 1) for b in bases)


def _from_here(x: Tensor, axis: int) -> Tensor:
    """Sums from each entry to the end of an axis."""
    return x.flip(axis).cumsum(axis).flip(axis)
