"""Bases that grow and shrink: the building blocks of dynamical low-rank training.

A basis ``U (n, r)`` has orthonormal columns. It grows by directions that a gradient points to, and shrinks when the
core between two bases is cut. Everything is done in float64; results have the dtype of the argument.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from tenfold.errors import check
from tenfold.linalg.svd import left_basis, like, singular_values, tail_rank, truncated_svd, working

NOISE = 10
"""Directions below so many eps of what they were computed from are rounding errors."""


def orthonormalise(
    x: Float[Tensor, "*batch n r"],
) -> tuple[Float64[Tensor, "*batch n r"], Float64[Tensor, "*batch r r"]]:
    """QR decomposition ``x = Q R`` with no negative number on the diagonal of R.

    With that sign a basis that is nearly orthonormal comes out as nearly itself.

    Args:
        x: at most as many columns as rows.
    """
    q, r = torch.linalg.qr(working(x))
    sign = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(r)
    return q * sign[..., None, :], r * sign[..., :, None]


def fresh_directions(
    u: Float[Tensor, "*batch n r"],
    x: Float[Tensor, "*batch n q"],
    most: int | None = None,
    *,
    noise: Float[Tensor, "*batch q"] | None = None,
) -> Float[Tensor, "*batch n p"]:
    """An orthonormal basis of the part of ``x`` outside the span of ``u``: ``span [u | result] = span [u | x]``.

    ``X = (I - u u^T) x``, projected twice, since once leaves ``eps |x|`` behind. Singular directions of X below
    ``10 eps |x|`` are rounding errors and are left out. Where ``most`` allows fewer, the leading left singular vectors
    of X are taken: the first columns of a QR would hold a fraction of their energy.

    Args:
        u: orthonormal columns.
        x: finite; for a basis, the gradient in it.
        most: columns of the result, at most; None: as many as there are.
        noise: length of the rounding error in each column of ``x``, where columns are known to different accuracy;
            None: ``eps |x|`` for the matrix as a whole.

    Returns:
        p columns, orthogonal to u and to each other, in the dtype of u; ``p <= min(q, n - r, most)``. In a batch, as
        many as the matrix with the most: the others get columns that are orthonormal but arbitrary.

    Source: Ceruti, Kusch, Lubich 2022 (arXiv 2104.05247), the augmentation of the rank-adaptive integrator.
    """
    basis, outside = working(u), working(x)
    whole = torch.linalg.matrix_norm(outside)
    for _ in range(2):
        outside = outside - basis @ (basis.mT @ outside)
    if noise is None:
        directions, s = left_basis(outside, driver="svd")
        real = (s > NOISE * torch.finfo(x.dtype).eps * whole[..., None]).sum(-1)
    else:
        each = working(noise)
        known = torch.linalg.vector_norm(outside, dim=-2) > NOISE * each
        outside = torch.where(known[..., None, :], outside, 0)
        real = (singular_values(outside / torch.where(known, each, 1)[..., None, :], driver="svd") > NOISE).sum(-1)
        directions, s = left_basis(outside, driver="svd")
    count = min(int(real.max()), u.shape[-2] - u.shape[-1], s.shape[-1] if most is None else most)
    # The QR makes them orthogonal to u to the last digit, and completes the basis where they are noise.
    q = orthonormalise(torch.cat([basis, directions[..., :count]], -1))[0]
    return like(q[..., u.shape[-1] :], u)


def augment(
    u: Float[Tensor, "*batch n r"], x: Float[Tensor, "*batch n q"], most: int | None = None
) -> Float[Tensor, "*batch n rp"]:
    """Augment a basis: ``[u | new]`` spans ``[u | x]``, with u itself in front, untouched, then `fresh_directions`.

    A tensor in the old basis is the same tensor in the new one with its core padded by zeros.

    Args:
        u: orthonormal columns.
        x: finite.
        most: new columns, at most; None: as many as there are.
    """
    return torch.cat([u.detach(), fresh_directions(u, x, most)], -1)


def truncate_core(
    u: Float[Tensor, "m a"], core: Float[Tensor, "a b"], v: Float[Tensor, "n b"], tolerance: float
) -> tuple[Float[Tensor, "m r"], Float[Tensor, "r r"], Float[Tensor, "n r"]]:
    """Cut the rank of ``u core v^T`` as far as ``|u core v^T - u' core' v'^T| <= tolerance |core|`` allows.

    ``core = P s Q^T``, then ``u' = u P_r``, ``core' = diag(s_r)``, ``v' = v Q_r``: v is turned by Q, whose columns are
    the right singular vectors, and not by its transpose.

    Args:
        u: orthonormal columns.
        core: any matrix between the two bases.
        v: orthonormal columns.
        tolerance: relative, Frobenius norm, in [0, 1).

    Returns:
        the smaller factors, rank at least 1, same dtypes; ``core'`` is diagonal.

    Raises:
        ArgumentError: tolerance out of range.
        TenfoldError: NaN or infinite entries in the core.

    Source: Schotthoefer et al. 2022 (arXiv 2205.13571), the truncation step of DLRT.
    """
    check(0 <= tolerance < 1, "tolerance", "in [0, 1)", tolerance)
    p, s, q = truncated_svd(core, min(core.shape))
    scale = working(s)
    rank = max(1, int(tail_rank(scale, tolerance * scale.norm())))
    left, right = working(u) @ working(p[:, :rank]), working(v) @ working(q[:, :rank])
    return like(left, u), torch.diag(s[:rank]), like(right, v)


def align(p: Float64[Tensor, "*batch r q"]) -> Float64[Tensor, "*batch q q"]:
    """Orthogonal Procrustes: the rotation R that brings the columns of ``p R`` nearest to the first q unit vectors.

    The columns of p span a subspace; which basis of it is used does not matter to the weight, but it does to state
    that an optimizer keeps entry by entry. ``R = X Y^T`` with ``p^T [I; 0] = X s Y^T``.

    Source: Schoenemann 1966.
    """
    x, _, y = truncated_svd(p[..., : p.shape[-1], :].mT, p.shape[-1])
    return x @ y.mT
