"""What is kept in the coordinates of a Tucker core, taken along where its bases change: cores, gradients, moments.

All tensors are ``(g r_1, r_2, ..., *rest)``, g groups one after the other; see `tenfold.linalg.tucker`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tenfold.linalg.svd import like, truncated_svd, working
from tenfold.linalg.tucker import batch_product, batch_unfold, stacked

AMPLIFIED = 100
"""How often rounding errors may be amplified to a whole, by an inverse: singular values below are taken for zero."""


def grow(core: Float[Tensor, "rows *rest"], ranks: Sequence[int], groups: int = 1) -> Tensor:
    """``core`` padded with zeros to ``ranks``: the same tensor in the augmented bases, and likewise its momentum.

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
    """The block of ``x`` of these first ranks in each group: what `grow` has padded."""
    return stacked(x, groups)[(slice(None), *(slice(r) for r in ranks))].flatten(0, 1)


def grow_square(v: Float[Tensor, "rows *rest"], ranks: Sequence[int], groups: int = 1) -> Tensor:
    """``v``, second moments of the core's entries, padded to ``ranks`` with the mean over the mode that grows.

    Zeros would make the first steps into the new directions ``(1 - beta_1) / sqrt(1 - beta_2)`` times too long: 3.2 lr
    for Adam as it is mostly used.
    """
    new = stacked(v, groups)
    for mode, rank in enumerate(ranks, start=1):
        mean = new.mean(mode, keepdim=True)
        new = torch.cat([new, mean.expand(*new.shape[:mode], rank - new.shape[mode], *new.shape[mode + 1 :])], mode)
    return new.flatten(0, 1)


def turn(m: Float[Tensor, "rows *rest"], turns: Sequence[Tensor]) -> Tensor:
    """``m x_i P_i^T``: a gradient or a first moment in the bases ``U_i P_i``, ``P_i (g, r_i, q_i)``.

    Exact inside their span.
    """
    new = stacked(working(m), len(turns[0]))
    for mode, p in enumerate(turns):
        new = batch_product(new, p.mT, mode)
    return like(new.flatten(0, 1), m)


def turn_square(v: Float[Tensor, "rows *rest"], turns: Sequence[Tensor]) -> Tensor:
    """``v x_i (P_i o P_i)^T``: second moments in the bases ``U_i P_i``, as if the entries were not correlated."""
    return turn(v, [p.square() for p in turns])


def tangent_gradient(
    grad_core: Float[Tensor, "rows *rest"],
    core: Float[Tensor, "rows *rest"],
    fresh: Sequence[Tensor],
    grads: Sequence[Tensor],
) -> Tensor:
    """The Riemannian gradient ``P_T(G)`` at ``W = C x_i U_i``, in the coordinates of the bases ``[U_i | fresh_i]``.

    ::

        leading block: grad_C        block (i new, others old): Ten_i( fresh_i^T grad_{U_i} pinv(Mat_i(C))^T )

    all other blocks zero. ``grad_{U_i} = Mat_i(G x_{j != i} U_j^T) Mat_i(C)^T``, so the pseudo-inverse takes back what
    the core did to it, and small singular values of the core make nothing large: the block is an orthogonal projection
    of G. Singular values that are rounding errors, below ``100 eps s_1``, are left out rather than inverted.

    Args:
        grad_core: gradient in the core.
        core: C.
        fresh: the new directions ``(g, n_i, p_i)`` of each mode; orthogonal to the old basis.
        grads: gradients in the old bases, ``(g, n_i, r_i)``.

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
        unfolded = batch_unfold(old, mode)
        p, s, q = truncated_svd(unfolded, min(unfolded.shape[-2:]), driver="svd")
        cutoff = min(AMPLIFIED * torch.finfo(g.dtype).eps, 0.1) * s[..., :1]
        inverse = torch.where(s > cutoff, 1 / s, 0)[..., None, :]
        rows = (working(f).mT @ working(g) @ p * inverse) @ q.mT
        block = [slice(0, n) for n in leading.shape]
        block[1 + mode] = slice(ranks[mode], None)
        shape = view[tuple(block)].movedim(1 + mode, 1).shape
        view[tuple(block)] = like(rows.reshape(shape).movedim(1, 1 + mode), grad_core)
    return new
