"""Factors fitted by least squares to what a layer should put out, given what it gets in the network as it is by now.

``x`` is what a layer's factor, or the whole layer, gets in the compressed network, ``y`` what the dense network's layer
puts out for the same examples. With a ridge that holds the solution to the one before where the data say little::

    D = (Cov(y, x) + D0 R) (Cov(x) + R)^-1,    R = 1e-3 diag Cov(x) + 1e-8 mean(diag Cov(x)) I,    b = E[y] - D E[x]

minimises ``E |y - D x - b|^2 + tr (D - D0) R (D - D0)^T``, which is no larger than it was at ``D0``; so the error on
the data never grows. The same for the whole kernel gives a target ``B`` that no low rank reaches, and::

    E |y - W x - b|^2 + tr (W - W0) R (W - W0)^T = tr (B - W) (Cov(x) + R) (B - W)^T + const

turns the fit of both factors into the problem of `tenfold.linalg.output_forms`.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from tenfold.errors import check
from tenfold.linalg.alternation import alternate, better_start
from tenfold.linalg.fold import Fold
from tenfold.linalg.joint_moments import JointMoments
from tenfold.linalg.nested_cholesky import nested_cholesky, solve
from tenfold.linalg.output_decoders import factors, outer_basis, tucker_factors
from tenfold.linalg.output_forms import OutputForm, encoder_start, form_order
from tenfold.linalg.svd import working

RIDGE = 1e-3
_FLOOR = 1e-8


def refit_last(moments: JointMoments, before: Float[Tensor, "g f m"], ridge: float = RIDGE) -> Float64[Tensor, "g f m"]:
    """Ridge regression of y on x around the present factor ``before``; the bias is `JointMoments.shift`.

    Where ``y = before x + b`` on all samples, as at full rank, it is ``before`` to rounding.

    Args:
        moments: of what the factor gets and of what it should put out.
        before: the factor as it is.
        ridge: relative to the variance of each entry of x, >= 0; 1e-8 of the mean variance is added.

    Raises:
        ArgumentError: a negative ridge.
    """
    d0 = working(before)
    return d0 + _correction(moments, d0, _ridge(moments, ridge))


def refit_both(
    fold: Fold,
    moments: JointMoments,
    dense: Float[Tensor, "out c *k"],
    left: Float[Tensor, "b rows r"],
    right: Float[Tensor, "b r columns"],
    *,
    ridge: float = RIDGE,
    rounds: int = 2,
) -> tuple[Float64[Tensor, "b rows r"], Float64[Tensor, "b r columns"]]:
    """Fit both low-rank factors to the outputs y of a layer, given its unfolded inputs x, by alternating least squares.

    On the samples never worse than the factors given.

    Alternation starts from the present encoder or from `encoder_start`, whichever is better. The ridge holds the
    product to the *dense* kernel, and where the rank is short that can make the error on the samples grow; then the
    left factor alone is refitted.

    Args:
        fold: any but the decoupled one.
        moments: of the unfolded inputs, in the order ``(channel, *k)``, and of the outputs wanted.
        dense: the dense layer's kernel.
        left: present left factors, in the layout of `Fold.decoder`.
        right: present right factors, in the layout of `Fold.encoder`.
        ridge: as in `refit_last`.
        rounds: of `tenfold.linalg.alternation.alternate`.

    Raises:
        ArgumentError: the decoupled fold, or a number out of range.
    """
    form, sorted_moments = _problem(fold, moments, dense, ridge)
    g, s, r = fold.groups, fold.slices, right.shape[1]
    v = working(right).reshape(g, s, r, -1)
    h = working(left).reshape(g, s, form.w.shape[1], -1, r).permute(0, 2, 4, 1, 3)
    inner = sorted_moments.through(_encoder(form, v))
    last = refit_last(inner, h.flatten(2), ridge)
    start = better_start(form, (v, encoder_start(form)[:, :, :r]))
    new_v, new_h = alternate(form, start, rounds=rounds)
    if sorted_moments.error(form.product(new_v, new_h).flatten(2)) > inner.error(last):
        new_v, new_h = v, last.reshape(h.shape)
    return factors(form, new_v, new_h)


def refit_tucker(
    fold: Fold,
    moments: JointMoments,
    dense: Float[Tensor, "out c *k"],
    core: Float[Tensor, "gq r *k"],
    outer: Float[Tensor, "out q"],
    inner: Float[Tensor, "gc r"],
    *,
    ridge: float = RIDGE,
    rounds: int = 2,
) -> tuple[Float64[Tensor, "gq r *k"], Float64[Tensor, "out q"], Float64[Tensor, "gc r"]]:
    """`refit_both` for the core and bases of a Tucker layer.

    Args:
        fold: the input fold.
        moments: as in `refit_both`.
        dense: as in `refit_both`.
        core: present core.
        outer: present output basis.
        inner: present input basis.
        ridge: as in `refit_last`.
        rounds: as in `refit_both`.

    Raises:
        ArgumentError: a number out of range.
    """
    form, sorted_moments = _problem(fold, moments, dense, ridge)
    g, q = fold.groups, outer.shape[1]
    v = working(inner).reshape(g, 1, -1, inner.shape[1]).mT
    middle = working(core).reshape(g, q, -1)
    between = sorted_moments.through(middle @ _encoder(form, v))
    last = refit_last(between, outer.reshape(g, -1, q), ridge)
    start = better_start(form, (v, encoder_start(form)[:, :, : v.shape[2]]), q)
    new_v, new_h = alternate(form, start, rounds=rounds, outer_rank=q)
    if sorted_moments.error(form.product(new_v, new_h).flatten(2)) > between.error(last):
        basis, triangle = torch.linalg.qr(last)
        return (triangle @ middle).reshape(core.shape), basis.reshape(outer.shape), working(inner)
    return tucker_factors(form, new_v, new_h, outer_basis(form, new_v, q))


def _ridge(moments: JointMoments, ridge: float) -> Float64[Tensor, "g m"]:
    check(ridge >= 0, "ridge", ">= 0", ridge)
    variance = moments.xx.diagonal(dim1=-2, dim2=-1) / moments.count
    mean = variance.mean(-1, keepdim=True)
    return ridge * variance + torch.where(mean > 0, _FLOOR * mean, torch.ones_like(mean))


def _correction(moments: JointMoments, w: Float64[Tensor, "g f m"], noise: Float64[Tensor, "g m"]) -> Tensor:
    """``(Cov(y, x) - W Cov(x)) (Cov(x) + R)^-1``, what is to be added to W; nothing where W fits."""
    factor, scale = nested_cholesky(moments.xx / moments.count + torch.diag_embed(noise))
    gap = (moments.yx - w @ moments.xx).mT / moments.count
    return solve(factor, scale, gap).mT


def _problem(fold: Fold, moments: JointMoments, dense: Tensor, ridge: float) -> tuple[OutputForm, JointMoments]:
    """The problem of both factors, and the moments with x in the order of its unknowns."""
    noise = _ridge(moments, ridge)
    w = working(dense).reshape(fold.groups, -1, noise.shape[-1])
    target = (w + _correction(moments, w, noise)).reshape(fold.shape)
    form = OutputForm.of_inputs(fold, target, moments.xx / moments.count + torch.diag_embed(noise), damping=0.0)
    at = form_order(fold).to(noise.device)
    ordered = replace(moments, mean_x=moments.mean_x[:, at], xx=moments.xx[:, at[:, None], at], yx=moments.yx[..., at])
    return form, ordered


def _encoder(form: OutputForm, v: Float64[Tensor, "g s r F"]) -> Float64[Tensor, "g m n"]:
    """E as a matrix."""
    slices, t = (torch.eye(form.w.shape[a], dtype=v.dtype, device=v.device) for a in (2, 4))
    return torch.einsum("gsrf,sz,tu->grstzfu", v, slices, t).reshape(len(v), -1, form.matrix.shape[-1])
