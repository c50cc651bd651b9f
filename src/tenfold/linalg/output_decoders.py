"""What is best for a given encoder: the decoder, the error of every rank, and the two as factors of a layer.

For the words and the mathematics see `tenfold.linalg.output_forms`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from tenfold.errors import check
from tenfold.linalg.nested_cholesky import nested_cholesky, solve, whiten
from tenfold.linalg.output_forms import OutputForm
from tenfold.linalg.svd import gram, gram_basis, gram_spectrum, truncated_svd

_ROUNDING = 1e-13
"""Of the largest variance: a row of unit length that has less has none."""


def lost(form: OutputForm, v: Float64[Tensor, "g s r F"]) -> Float64[Tensor, " r_and_1"]:
    """Mean squared errors of the outputs at every rank 0, 1, ..., r of the encoder, each with its best decoder.

    Summed over groups; the first number is the variance of the outputs. Never negative, never growing with rank.

    Args:
        form: the layer.
        v: the encoder's rows, best first.
    """
    power = _by_rank(form, _whitened(form, v))
    return _tails(power, _missing(form, power))


def tucker_lost(
    form: OutputForm, v: Float64[Tensor, "g 1 r F"], ranks: Sequence[int]
) -> Float64[Tensor, "ranks f_and_1"]:
    """Mean squared errors in Tucker format at each input rank in ``ranks`` and every output rank 0, 1, ..., f.

    Summed over groups, which share their ranks. The best decoder for each pair is ``U U^T H``, U from `outer_basis`.

    Args:
        form: the layer, in the input fold.
        v: the encoder's rows, at least as many as the largest rank.
        ranks: input ranks, each in 1..r; the work is an eigenproblem ``f x f`` for each.

    Raises:
        ArgumentError: a rank out of range.
    """
    r, t, f = v.shape[2], form.rank_rows, form.w.shape[1]
    check(all(1 <= x <= r for x in ranks), "ranks", f"in 1..{r}", tuple(ranks))
    g = _whitened(form, v)
    power = _by_rank(form, g)
    each = []
    for rank, missing in zip(ranks, _tails(power, _missing(form, power))[list(ranks)], strict=True):
        part = g[:, : rank * t]
        energy = gram_spectrum(gram(part, "left" if rank * t < f else "right")).square().sum(0)
        each.append(_tails(torch.cat([energy, energy.new_zeros(f - len(energy))]), missing))
    return torch.stack(each)


def decoder(form: OutputForm, v: Float64[Tensor, "g s r F"]) -> Float64[Tensor, "g f r s T"]:
    """The least-squares decoder of an encoder, ``H = W S E^T (E S E^T)^-1``."""
    factor, scale, rows = _factored(form, v)
    h = solve(factor, scale, rows @ form.w.flatten(2).mT)
    return h.mT.reshape(*h.mT.shape[:2], v.shape[2], v.shape[1], -1)


def outer_basis(form: OutputForm, v: Float64[Tensor, "g 1 r F"], rank: int) -> Float64[Tensor, "g f q"]:
    """The orthonormal output basis U for which ``U U^T H`` is the best decoder of this rank as a matrix.

    Args:
        form: the layer.
        v: the encoder's rows.
        rank: q, 1 <= q <= f.

    Raises:
        ArgumentError: a rank out of range.
    """
    f = form.w.shape[1]
    check(1 <= rank <= f, "rank", f"in 1..{f}", rank)
    return gram_basis(gram(_whitened(form, v), "right"), rank)[0]


def factors(
    form: OutputForm, v: Float64[Tensor, "g s r F"], h: Float64[Tensor, "g f r s T"]
) -> tuple[Float64[Tensor, "b rows r"], Float64[Tensor, "b r columns"]]:
    """Left and right factors of the fold's matrices, balanced, as `Fold.decoder` and `Fold.encoder` take them."""
    left = h.permute(0, 3, 1, 4, 2).reshape(form.fold.batch, form.fold.rows, -1)
    right = v.flatten(0, 1)
    return balanced(left, right if form.reads is None else right @ form.reads)


def tucker_factors(
    form: OutputForm, v: Float64[Tensor, "g 1 r F"], h: Float64[Tensor, "g f r 1 T"], outer: Float64[Tensor, "g f q"]
) -> tuple[Float64[Tensor, "gq r *k"], Float64[Tensor, "gf q"], Float64[Tensor, "gF r"]]:
    """Core, output and input basis of ``U U^T H E``, as a Tucker layer takes them; both bases orthonormal.

    Args:
        form: the layer, in the input fold.
        v: the encoder's rows.
        h: its decoder, of any rank.
        outer: U, orthonormal columns.
    """
    inner, triangle = torch.linalg.qr(v[:, 0].mT)
    core = torch.einsum("gfq,gfrt,gpr->gqpt", outer, h[:, :, :, 0], triangle)
    core = core.reshape(-1, core.shape[2], *form.fold.kernel_size)
    return core, outer.flatten(0, 1), inner.flatten(0, 1)


def balanced(
    left: Float64[Tensor, "b m r"], right: Float64[Tensor, "b r n"]
) -> tuple[Float64[Tensor, "b m r"], Float64[Tensor, "b r n"]]:
    """Balance two factors: the same product with ``left^T left = right right^T``, diagonal.

    ``r <= min(m, n)``. Nothing is divided by a singular value: factors of lower rank are harmless.
    """
    q, upper = torch.linalg.qr(left)
    p, lower = torch.linalg.qr(right.mT)
    u, s, w = truncated_svd(upper @ lower.mT, right.shape[-2], driver="svd")
    root = s.sqrt()[..., None, :]
    return q @ (u * root), (p @ (w * root)).mT


def _whitened(form: OutputForm, v: Tensor) -> Float64[Tensor, "g m f"]:
    """``G = L^-1 E S W^T``: what each row tells of each output that no earlier row does."""
    factor, scale, rows = _factored(form, v)
    return whiten(factor, scale, rows @ form.w.flatten(2).mT)


def _factored(form: OutputForm, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of ``E S E^T`` the nested Cholesky factor and its scale, and ``E S``."""
    rows = form.rows(v)
    largest = form.matrix.diagonal(dim1=-2, dim2=-1).amax(-1)
    length = v.square().sum(-1).transpose(1, 2)[..., None].expand(-1, -1, -1, form.w.shape[-1]).flatten(1)
    return *nested_cholesky(form.gram_of(v, rows), _ROUNDING * largest[:, None] * length), rows


def _by_rank(form: OutputForm, whitened: Tensor) -> Float64[Tensor, " r"]:
    return whitened.square().sum((0, 2)).unflatten(0, (-1, form.rank_rows)).sum(1)


def _missing(form: OutputForm, power: Tensor) -> Tensor:
    """What is lost at the last rank: nothing where that is full."""
    rest = (form.total.sum() - power.sum()).clamp(min=0)
    return torch.zeros_like(rest) if len(power) >= form.fold.full_rank else rest


def _tails(power: Float64[Tensor, " r"], missing: Tensor) -> Float64[Tensor, " r_and_1"]:
    """``missing + sum_{i > r} power_i`` for r = 0, 1, ...; small numbers are summed first."""
    return torch.cat([missing[None], power.flip(0)]).cumsum(0).flip(0)
