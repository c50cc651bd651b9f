"""Factors that are best for what a layer puts out, for every fold, from the covariance of its unfolded inputs.

With the unfolded input of a layer ordered as ``x[F, T]``, ``F`` what the encoder reads and ``T`` the kernel's axes that
go to the decoder, the encoder is ``E = V (x) I_T``, the decoder ``H``, and the layer puts out ``W x ~ H E x``:

| fold      | F                    | T            | the decoder is        |
| --------- | -------------------- | ------------ | --------------------- |
| channel   | channel, row, column | -            | 1x1 to the outputs    |
| spatial   | channel, row         | column       | 1 x kw to the outputs |
| spatial-t | channel, column      | row          | kh x 1 to the outputs |
| input     | channel              | row, column  | kh x kw               |
| (Tucker)  | channel              | row, column  | kh x kw; and 1x1      |

A linear layer is a convolution without axes. With slices every slice of channels has a V of its own. For the covariance
``S`` of x, and a bias that keeps the mean of the outputs, the mean squared error of the outputs and its least value
over all H, for rows of E in any order, are::

    error(H, E)^2 = tr (W - H E) S (W - H E)^T,     H = W S E^T (E S E^T)^-1,
    error(r)^2    = tr W S W^T - sum_{first r s |T| rows} |G|^2,     L L^T = E S E^T,  G = L^-1 E S W^T,

so one Cholesky factor tells the error of *every* rank, if the rows of E are ordered by rank and slices interleaved. In
Tucker format H has rank r_out as a matrix; the part of its error that this adds is the tail of the eigenvalues of
``G_r^T G_r``. Whether ``S`` is centred decides whether a bias is to keep the mean: with ``E[x x^T]`` none is needed.

Groups of a convolution are layers of their own, of equal rank; their errors add up. Stride, dilation and padding enter
only by what is unfolded. Source: `V`'s start, the errors and the alternation are ours; the channel fold is Zhang et al.
2016 (arXiv 1505.06798), the separable one Jaderberg et al. 2014 (arXiv 1405.3866), with data in place of weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from tenfold.errors import check
from tenfold.linalg.fold import Fold
from tenfold.linalg.separable import separable_fit
from tenfold.linalg.svd import gram, gram_basis, require_finite, working

DAMPING = 1e-6
"""Counts directions that the data hardly excite by their weight, and keeps all systems solvable."""


@dataclass(frozen=True)
class OutputForm:
    """The output-aware low-rank problem of one layer: a kernel in a fold, and the covariance of its unfolded inputs.

    Made by `of_inputs` or `of_outputs`.

    Args:
        fold: the form; any but the decoupled one.
        w: the kernel, ``(g, f, s, F, T)``.
        covariance: ``(g, s, F, T, s, F, T)``, damped.
        reads: what the slices' vectors x are made by, ``(g s, F, columns)``; None: the unfolded input itself.

    All float64. The encoder's rows are ``v (g, s, r, F)``, the decoder is ``h (g, f, r, s, T)``.
    """

    fold: Fold
    w: Float64[Tensor, "g f s F T"]
    covariance: Float64[Tensor, "g s F T s F T"]
    reads: Float64[Tensor, "gs F columns"] | None = None

    @staticmethod
    def of_inputs(
        fold: Fold,
        kernel: Float[Tensor, "out c *k"],
        covariance: Float[Tensor, "g n n"],
        damping: float = DAMPING,
    ) -> OutputForm:
        """The problem from the covariance of the unfolded inputs of each group, ordered ``(channel, *k)``.

        Args:
            fold: of the kernel.
            kernel: finite, any floating dtype.
            covariance: ``n = c prod(k)``; centred, or ``E[x x^T]`` for a layer that must do without a bias.
            damping: relative amount ``d`` of white noise in ``S + d tr(W S W^T) / tr(W W^T) I``, >= 0.

        Raises:
            ArgumentError: the decoupled fold, shapes that do not fit, a negative damping.
            TenfoldError: NaN or infinite entries.
        """
        _check(fold, damping)
        g, s, t = fold.groups, fold.slices, math.prod(fold.kernel_size[a] for a in fold.decoder_axes)
        n = math.prod(fold.shape[1:])
        fits = covariance.shape == (g, n, n)
        check(fits, "covariance", f"of shape {(g, n, n)} for kernel {fold.shape}", tuple(covariance.shape))
        require_finite(kernel, "`kernel`")
        require_finite(covariance, "`covariance`")
        order, moment = form_order(fold), working(covariance)
        weight = working(kernel).reshape(g, -1, n)
        if not torch.equal(order, torch.arange(n)):
            at = order.to(moment.device)
            weight, moment = weight[..., at], moment[:, at[:, None], at]
        if damping:
            outputs = ((weight @ moment) * weight).sum((1, 2))
            noise = damping * _scale(outputs, weight.square().sum((1, 2)))
            moment = moment + noise[:, None, None] * torch.eye(n, dtype=moment.dtype, device=moment.device)
        return OutputForm(fold, weight.reshape(g, -1, s, n // s // t, t), moment.reshape(g, *(s, n // s // t, t) * 2))

    @staticmethod
    def of_outputs(
        fold: Fold,
        kernel: Float[Tensor, "out c *k"],
        covariance: Float[Tensor, "g sf sf"],
        damping: float = DAMPING,
    ) -> OutputForm:
        """The problem in the channel fold from the covariance of the outputs of each slice, smaller for wide layers.

        The factors are those that `of_inputs` finds: the encoder of a slice lies in the span of the slice's rows, so
        that ``W_i x_i`` is all that it needs of ``x_i``.

        Args:
            fold: the channel fold, or any one of a linear layer.
            kernel: finite, any floating dtype.
            covariance: of ``(W_1 x_1, ..., W_s x_s)``, slice after slice, for each group.
            damping: as in `of_inputs`.

        Raises:
            ArgumentError: another fold, shapes that do not fit, a negative damping.
            TenfoldError: NaN or infinite entries.
        """
        _check(fold, damping)
        check(not fold.decoder_axes, "fold", "the channel fold: no other one is told by outputs", fold.name)
        g, s, f = fold.groups, fold.slices, fold.rows
        fits = covariance.shape == (g, s * f, s * f)
        check(fits, "covariance", f"of shape {(g, s * f, s * f)}: every slice's outputs", tuple(covariance.shape))
        require_finite(kernel, "`kernel`")
        require_finite(covariance, "`covariance`")
        reads = fold.matrices(working(kernel))
        moment = working(covariance).reshape(g, s, f, s, f)
        if damping:
            white = gram(reads, "left").reshape(g, s, f, f)
            noise = damping * _scale(torch.einsum("gifjf->g", moment), torch.einsum("giff->g", white))
            moment = moment.clone()
            torch.diagonal(moment, dim1=1, dim2=3).add_((noise[:, None, None, None] * white).permute(0, 2, 3, 1))
        unit = torch.eye(f, dtype=moment.dtype, device=moment.device)
        w = unit[None, :, None, :, None].expand(g, f, s, f, 1)
        return OutputForm(fold, w, moment.reshape(g, s, f, 1, s, f, 1), reads)

    @property
    def rank_rows(self) -> int:
        """Number of rows of E per rank: ``s |T|``."""
        return self.w.shape[2] * self.w.shape[-1]

    @property
    def matrix(self) -> Float64[Tensor, "g n n"]:
        """The covariance as a matrix for each group."""
        n = math.prod(self.w.shape[2:])
        return self.covariance.reshape(-1, n, n)

    @property
    def total(self) -> Float64[Tensor, " g"]:
        """The variance ``tr W S W^T`` of each group's outputs: its error at rank 0."""
        w = self.w.flatten(2)
        return ((w @ self.matrix) * w).sum((1, 2))

    def separable(self) -> tuple[Float64[Tensor, "g s F F"], Float64[Tensor, "g s T T"]]:
        """``S_F`` and ``rho`` of each slice in the nearest Kronecker product ``S ~ S_F (x) rho``."""
        return separable_fit(torch.diagonal(self.covariance, dim1=1, dim2=4).movedim(-1, 1))

    def rows(self, v: Float64[Tensor, "g s r F"]) -> Float64[Tensor, "g m n"]:
        """``E S`` with the rows of E ordered by rank, then slice, then T: ``m = r s |T|``."""
        g, s, r, f = v.shape
        product = v @ self.covariance.reshape(g, s, f, -1)  # (g, s, r, T n)
        return product.transpose(1, 2).reshape(g, r * self.rank_rows, -1)

    def gram_of(self, v: Float64[Tensor, "g s r F"], rows: Float64[Tensor, "g m n"]) -> Float64[Tensor, "g m m"]:
        """``E S E^T``, given ``E S``."""
        g, m, _ = rows.shape
        split = rows.reshape(g, m, *self.w.shape[2:])
        return symmetric(torch.einsum("gmsft,gsrf->gmrst", split, v).reshape(g, m, m))

    def product(self, v: Float64[Tensor, "g s r F"], h: Float64[Tensor, "g f r s T"]) -> Float64[Tensor, "g f s F T"]:
        """``H E`` in the layout of ``w``."""
        return torch.einsum("gorst,gsrf->gosft", h, v)

    def error(self, v: Float64[Tensor, "g s r F"], h: Float64[Tensor, "g f r s T"]) -> Float64[Tensor, " g"]:
        """The mean squared error ``tr (W - H E) S (W - H E)^T`` of an encoder and decoder, for each group."""
        gap = (self.w - self.product(v, h)).flatten(2)
        return ((gap @ self.matrix) * gap).sum((1, 2))


def encoder_start(form: OutputForm) -> Float64[Tensor, "g s r F"]:
    """Encoder rows up to full rank, best first, optimal where the covariance is a Kronecker product ``S_F (x) rho``.

    With ``M (F, f T)`` the kernel and Q the right singular vectors of ``S_F^{1/2} M (I (x) rho^{1/2})`` they are
    ``V = Q^T (I (x) rho^{1/2}) M^T``, scaled to unit variance. No root nor inverse of ``S_F`` is ever formed, so that
    covariances of any rank will do. In the channel fold without slices this is the optimum whatever the covariance;
    else near what `tenfold.linalg.alternation` reaches.
    """
    s_f, rho = form.separable()
    q, root = gram_basis(rho)
    half = (q * root[..., None, :]) @ q.mT
    m = (form.w.permute(0, 2, 3, 1, 4) @ half[:, :, None]).flatten(-2)  # (g, s, F, f T)
    if m.shape[-1] > m.shape[-2]:
        m = torch.linalg.qr(m.mT, mode="r")[1].mT  # M M^T is all that counts of M
    basis, deviation = gram_basis(symmetric(m.mT @ s_f @ m))
    v = basis.mT @ m.mT
    # What has no variance is kept at unit length: at full rank it takes part in the exact product.
    length = torch.where(deviation > 1e-7 * deviation[..., :1], deviation, v.norm(dim=-1))
    return v / torch.where(length > 0, length, torch.ones_like(length))[..., None]


def weight_start(form: OutputForm) -> Float64[Tensor, "g s r F"]:
    """Encoder rows up to full rank, best first: the right singular vectors of the fold's matrices, without data."""
    if form.reads is None:
        m = form.w.permute(0, 2, 3, 1, 4).flatten(-2)
    else:
        m = form.reads.unflatten(0, (-1, form.fold.slices))
    return gram_basis(gram(m, "left"), form.fold.full_rank)[0].mT


def form_order(fold: Fold) -> Int64[Tensor, " n"]:
    """Where entry ``(slice, F, T)`` stands in the unfolded input ``(channel, *k)``."""
    places = torch.arange(math.prod(fold.shape[1:])).reshape(fold.slices, -1, *fold.kernel_size)
    encoder, decoder = (tuple(2 + a for a in axes) for axes in (fold.encoder_axes, fold.decoder_axes))
    return places.permute(0, 1, *encoder, *decoder).flatten()


def symmetric(x: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
    """The symmetric part ``(x + x^T) / 2``, which removes rounding differences."""
    return (x + x.mT) / 2


def _check(fold: Fold, damping: float) -> None:
    decoupled = fold.name == "decoupled" and bool(fold.kernel_size)
    check(not decoupled, "fold", "one whose encoder serves all outputs", fold.name)
    check(damping >= 0, "damping", ">= 0", damping)


def _scale(outputs: Float64[Tensor, " g"], weights: Float64[Tensor, " g"]) -> Float64[Tensor, " g"]:
    """The variance of white inputs that give as much output; 1 where there is none, and the weight alone decides."""
    return torch.where(outputs > 0, outputs / weights.clamp(min=1e-300), torch.ones_like(outputs))
