"""Changes of basis of a Tucker core: cores, gradients and moments transformed along with the bases.

All tensors are ``(g r_1, r_2, ..., *rest)``, g groups one after the other; see `tenfold.linalg.tucker`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tenfold.linalg.subspace import NOISE, fresh_directions
from tenfold.linalg.svd import left_basis, like, working
from tenfold.linalg.tucker import batch_product, batch_unfold, stacked


def grow(core: Float[Tensor, "rows *rest"], ranks: Sequence[int], groups: int = 1) -> Tensor:
    """Pad a Tucker core, or its momentum, with zeros to larger ranks: the same tensor in the augmented bases.

    Args:
        core: as above.
        ranks: the new ones of the first modes, none smaller than the old.
        groups: g.
    """
    old = stacked(core, groups)
    new = old.new_zeros(groups, *ranks, *old.shape[1 + len(ranks) :])
    new[tuple(slice(0, n) for n in old.shape)] = old
    return new.flatten(0, 1)


def leading(x: Float[Tensor, "rows *rest"], ranks: Sequence[int], groups: int = 1) -> Tensor:
    """The leading block of ``x`` of these ranks in each group: the inverse of `grow`.

    Args:
        x: as the core in `grow`.
        ranks: of the first modes, none larger than those of ``x``.
        groups: g.
    """
    return stacked(x, groups)[(slice(None), *(slice(r) for r in ranks))].flatten(0, 1)


def grow_square(v: Float[Tensor, "rows *rest"], ranks: Sequence[int], groups: int = 1) -> Tensor:
    """Pad second moments ``v`` of a core's entries to larger ranks, with their mean over the mode that grows.

    Zeros would make the first steps into the new directions ``(1 - beta_1) / sqrt(1 - beta_2)`` times too long: 3.2 lr
    for Adam as it is mostly used. Arguments as in `grow`.
    """
    new = stacked(v, groups)
    for mode, rank in enumerate(ranks, start=1):
        mean = new.mean(mode, keepdim=True)
        new = torch.cat([new, mean.expand(*new.shape[:mode], rank - new.shape[mode], *new.shape[mode + 1 :])], mode)
    return new.flatten(0, 1)


def turn(m: Float[Tensor, "rows *rest"], turns: Sequence[Tensor]) -> Tensor:
    """Transform a gradient or first moment of a core to the bases ``U_i P_i``: ``m x_i P_i^T``.

    Exact inside their span.

    Args:
        m: as the core.
        turns: ``P_i (g, r_i, q_i)`` of the first modes.
    """
    new = stacked(working(m), len(turns[0]))
    for mode, p in enumerate(turns):
        new = batch_product(new, p.mT, mode)
    return like(new.flatten(0, 1), m)


def turn_square(v: Float[Tensor, "rows *rest"], turns: Sequence[Tensor]) -> Tensor:
    """Transform second moments of a core to the bases ``U_i P_i``: ``v x_i (P_i o P_i)^T``, entries uncorrelated."""
    return turn(v, [p.square() for p in turns])


def new_directions(
    core: Float[Tensor, "rows *rest"],
    bases: Sequence[Tensor],
    grads: Sequence[Tensor],
    most: Sequence[int],
    *,
    rounding: float | None = None,
) -> list[Tensor]:
    """Directions outside each basis in which the Riemannian gradient at ``W = C x_i U_i`` has most energy.

    With ``Mat_i(C) = P s Q^T`` the gradient of the basis is ``grad_{U_i} = K Q s P^T``, where ``K`` is the gradient of
    the paper's K step: directions that stand before a small singular value are small in it, and drown in its rounding
    errors. ``grad_{U_i} P s^+ = K Q`` has them at their true size. Of its part outside ``U_i`` the leading left
    singular vectors are taken; see `tenfold.linalg.subspace.fresh_directions`.

    Args:
        core: C.
        bases: ``U_i (g, n_i, r_i)``, orthonormal columns.
        grads: gradients in them, ``(g, n_i, r_i)``, finite.
        most: how many directions, at most, for each mode.
        rounding: relative rounding error of ``grads``; None: the eps of their dtype.

    Returns:
        ``(g, n_i, p_i)`` of each mode, in the dtype of the bases.

    Source: Zangrando et al. 2024 (arXiv 2305.19059), the K step. [D] in gradients of the factors.
    """
    found = []
    for mode, (u, g, count) in enumerate(zip(bases, grads, most, strict=True)):
        p, s, error = _resolved(core, mode, g, rounding)
        inverse = torch.where(s > 0, 1 / s, 0)
        found.append(fresh_directions(u, working(g) @ p * inverse[..., None, :], count, noise=error * inverse))
    return [like(f, u) for f, u in zip(found, bases, strict=True)]


def tangent_gradient(
    grad_core: Float[Tensor, "rows *rest"],
    core: Float[Tensor, "rows *rest"],
    fresh: Sequence[Tensor],
    grads: Sequence[Tensor],
    *,
    rounding: float | None = None,
) -> Tensor:
    """The Riemannian gradient ``P_T(G)`` at ``W = C x_i U_i``, in the coordinates of the bases ``[U_i | fresh_i]``.

    ::

        leading block: grad_C        block (i new, others old): Ten_i( fresh_i^T grad_{U_i} pinv(Mat_i(C))^T )

    all other blocks zero. ``grad_{U_i} = Mat_i(G x_{j != i} U_j^T) Mat_i(C)^T``, so the pseudo-inverse takes back what
    the core did to it, and small singular values of the core make nothing large: the block is an orthogonal projection
    of G. What stands before a singular value so small that rounding errors make up a tenth of it is left out rather
    than inverted.

    Args:
        grad_core: gradient in the core.
        core: C.
        fresh: the new directions ``(g, n_i, p_i)`` of each mode; orthogonal to the old basis.
        grads: gradients in the old bases, ``(g, n_i, r_i)``.
        rounding: as in `new_directions`.

    Returns:
        ``(g (r_1 + p_1), r_2 + p_2, ..., *rest)``, in the dtype of ``grad_core``.

    Source: Ceruti, Kusch, Lubich 2024 (arXiv 2304.05660), the parallel integrator, for Tucker tensors as in arXiv
    2412.00858. [D] in gradients of the factors, without a K step.
    """
    groups = len(grads[0])
    old, leading = stacked(working(core), groups), stacked(grad_core, groups)
    ranks = old.shape[1 : 1 + len(grads)]
    new = grow(grad_core, [r + f.shape[-1] for r, f in zip(ranks, fresh, strict=True)], groups)
    view = stacked(new, groups)
    for mode, (f, g) in enumerate(zip(fresh, grads, strict=True)):
        p, s, error = _resolved(core, mode, g, rounding)
        part = working(f).mT @ working(g) @ p
        known = torch.linalg.vector_norm(part, dim=-2) > NOISE * error
        inverse = torch.where(known & (s > 0), 1 / s.square(), 0)
        rows = (part * inverse[..., None, :]) @ (p.mT @ batch_unfold(old, mode))
        block = [slice(0, n) for n in leading.shape]
        block[1 + mode] = slice(ranks[mode], None)
        shape = view[tuple(block)].movedim(1 + mode, 1).shape
        view[tuple(block)] = like(rows.reshape(shape).movedim(1, 1 + mode), grad_core)
    return new


def _resolved(core: Tensor, mode: int, grad: Tensor, rounding: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """``P (g, r, q)`` and ``s (g, q)`` of ``Mat_i(C) = P s Q^T``, and how long the rounding error of ``grad P`` is.

    A singular value that is a rounding error of the factorisation, which is made in float64, is zero. Each column of a
    gradient of a basis belongs to a row of the core, and is as accurate, relative to its own length.
    """
    p, s = left_basis(batch_unfold(stacked(core.detach(), len(grad)), mode), driver="svd")
    s = torch.where(s > torch.finfo(s.dtype).eps * s[..., :1], s, 0)
    relative = torch.finfo(grad.dtype).eps if rounding is None else rounding
    lengths = torch.linalg.vector_norm(working(grad), dim=-2)
    return p, s, relative * (p.mT.square() @ lengths.square()[..., None])[..., 0].sqrt()
