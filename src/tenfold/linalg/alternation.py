"""Encoder and decoder of a layer made better in turns, for what the layer puts out.

For the words see `tenfold.linalg.output_forms`. For a given decoder ``H (f, r, T)`` the encoder's rows V solve, without
slices, ::

    sum_tu H_t^T H_u V S_ut = sum_t (H^T W S)_tt,

a symmetric system for which a few steps of conjugate gradients suffice, with ``A^-1 V S_F^-1`` and
``A = sum_tu rho_tu H_t^T H_u`` to precondition: its exact inverse where ``S = S_F (x) rho``. Slices are coupled by the
parts of S between them, and preconditioned each on its own. Each step lowers the error, and so does the best decoder
for the new encoder: the error never grows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from tenfold.errors import check
from tenfold.linalg.nested_cholesky import nested_cholesky, solve
from tenfold.linalg.output_decoders import decoder, outer_basis
from tenfold.linalg.output_forms import OutputForm, encoder_start, weight_start

_ENOUGH = 1e-7
"""Of the error; a round that gains less is the last."""


def best_encoder(
    form: OutputForm, rank: int, *, rounds: int = 2, steps: int = 4, outer_rank: int | None = None
) -> tuple[Float64[Tensor, "g s r F"], Float64[Tensor, "g f r s T"]]:
    """Fit a low-rank encoder and decoder to the outputs of a layer by alternating least squares, from the better start.

    The two starts are `encoder_start` and `weight_start`, so the error is never above that of the truncated SVD of the
    fold's matrices, at any number of rounds.

    Args:
        form: the layer.
        rank: in 1..full rank of the fold.
        rounds: as in `alternate`.
        steps: as in `alternate`.
        outer_rank: as in `alternate`.

    Raises:
        ArgumentError: a number out of range.
    """
    full = form.fold.full_rank
    check(1 <= rank <= full, "rank", f"in 1..{full}", rank)
    starts = [v[:, :, :rank] for v in (encoder_start(form), weight_start(form))]
    return alternate(form, better_start(form, starts, outer_rank), rounds=rounds, steps=steps, outer_rank=outer_rank)


def better_start(form: OutputForm, starts: Sequence[Tensor], outer_rank: int | None = None) -> Tensor:
    """The encoder among ``starts (g, s, r, F)`` whose best decoder has the smallest error; the first of equals."""
    errors = [float(form.error(v, _best(form, v, outer_rank)).sum()) for v in starts]
    return starts[errors.index(min(errors))]


def alternate(
    form: OutputForm,
    v: Float64[Tensor, "g s r F"],
    *,
    rounds: int = 2,
    steps: int = 4,
    outer_rank: int | None = None,
) -> tuple[Float64[Tensor, "g s r F"], Float64[Tensor, "g f r s T"]]:
    """Alternating least squares from the encoder ``v``: an encoder with no larger error, and its best decoder.

    Args:
        form: the layer.
        v: the encoder's rows, all of the rank that is wanted.
        rounds: each a new encoder for the decoder, and the best decoder for it; >= 0.
        steps: of conjugate gradients in each round, >= 1.
        outer_rank: of the decoder as a matrix, for Tucker format; None: full.

    Returns:
        the encoder's rows, whose order means nothing, and the decoder.

    Raises:
        ArgumentError: a number out of range.
    """
    check(rounds >= 0, "rounds", ">= 0", rounds)
    check(steps >= 1, "steps", ">= 1", steps)
    h = _best(form, v, outer_rank)
    error = float(form.error(v, h).sum())
    precondition = _by_covariance(form)
    for _ in range(rounds):
        new_v = encoder_steps(form, v, h, steps=steps, precondition=precondition)
        new_h = _best(form, new_v, outer_rank)
        new = float(form.error(new_v, new_h).sum())
        if not new < error:  # rounding decides: there is nothing left to gain
            break
        gain, error, v, h = error - new, new, new_v, new_h
        if gain <= _ENOUGH * error:
            break
    return v, h


def encoder_steps(
    form: OutputForm,
    v: Float64[Tensor, "g s r F"],
    h: Float64[Tensor, "g f r s T"],
    *,
    steps: int,
    precondition: Callable[[Tensor], Callable[[Tensor], Tensor]] | None = None,
) -> Float64[Tensor, "g s r F"]:
    """Conjugate-gradient steps from ``v`` towards the best encoder for the decoder ``h``.

    Args:
        form: the layer.
        v: the encoder's rows.
        h: its decoder.
        steps: each lowers the error until nothing is left to gain; ``g s r F`` of them reach the optimum.
        precondition: from a decoder's ``H^T H`` to an approximate inverse; None: the one described above.
    """
    flat = h.permute(0, 2, 3, 4, 1).flatten(1, 3)  # (g, m, f), rows as those of E
    square = flat @ flat.mT
    inverse = (precondition or _by_covariance(form))(square)
    gap = (form.w - form.product(v, h)).flatten(2)
    residual = _diagonal(form, flat @ (gap @ form.matrix))
    step = direction = inverse(residual)
    size = (residual * step).sum((1, 2, 3))
    for _ in range(steps):
        image = _diagonal(form, square @ form.rows(direction))
        curvature = (direction * image).sum((1, 2, 3))
        length = torch.where(curvature > 0, size / curvature.clamp(min=1e-300), torch.zeros_like(size))
        v = v + length[:, None, None, None] * direction
        residual = residual - length[:, None, None, None] * image
        step = inverse(residual)
        before, size = size, (residual * step).sum((1, 2, 3))
        turn = torch.where(before > 0, size / before.clamp(min=1e-300), torch.zeros_like(size))
        direction = step + turn[:, None, None, None] * direction
    return v


def _best(form: OutputForm, v: Tensor, outer_rank: int | None) -> Tensor:
    h = decoder(form, v)
    if outer_rank is None:
        return h
    u = outer_basis(form, v, outer_rank)
    return torch.einsum("gfq,gpq,gprst->gfrst", u, u, h)


def _diagonal(form: OutputForm, x: Float64[Tensor, "g m n"]) -> Float64[Tensor, "g s r F"]:
    """What of ``(r, s, T) x (s', F, T')`` has ``s = s'`` and ``T = T'``, summed over T."""
    _, _, s, f, t = form.w.shape
    return torch.einsum("grstsft->gsrf", x.reshape(len(x), -1, s, t, s, f, t))


def _by_covariance(form: OutputForm) -> Callable[[Tensor], Callable[[Tensor], Tensor]]:
    """The preconditioner of a layer: from ``H^T H`` to ``x -> A^-1 x S_F^-1``, slice by slice."""
    s_f, rho = form.separable()
    right, right_scale = nested_cholesky(s_f.flatten(0, 1))

    def of(square: Float64[Tensor, "g m m"]) -> Callable[[Tensor], Tensor]:
        g, s, t = rho.shape[:3]
        split = square.reshape(g, -1, s, t, square.shape[1] // s // t, s, t)
        a = torch.einsum("grstqsu,gstu->gsrq", split, rho).flatten(0, 1)
        left, left_scale = nested_cholesky(a)

        def inverse(x: Float64[Tensor, "g s r F"]) -> Float64[Tensor, "g s r F"]:
            half = solve(left, left_scale, x.flatten(0, 1))
            return solve(right, right_scale, half.mT).mT.reshape(x.shape)

        return inverse

    return of
