"""Folds: exact, reversible views of a kernel as a batch of matrices, and of matrix factors as two kernels.

A kernel ``W (f, c, *k)`` has ``f`` output channels, ``c`` input channels *per group*, and spatial axes ``k`` (none for
a linear layer). With ``g`` groups and ``s`` slices of consecutive input channels, and with the spatial axes split into
those that stay with the encoder (``E``) and those that go to the decoder (``D``)::

    W (g f', s c', k_E, k_D)  ->  batch of g s matrices, each (f' k_D) x (c' k_E)        f = g f', c = s c'

A factor pair ``left (g s, f' k_D, r)``, ``right (g s, r, c' k_E)`` is then two convolutions in a row::

    encoder (g s r, c', k_E)    g s groups, kernel k_E on E and 1 elsewhere, no bias
    decoder (f, s r, k_D)       g groups,   kernel k_D on D and 1 elsewhere, bias

| name        | encoder keeps | matrix (g = s = 1)       |
| ----------- | ------------- | ------------------------ |
| channel     | every axis    | ``f x (c k1 k2)``        |
| spatial     | the first     | ``(f k2) x (c k1)``      |
| spatial-t   | all but first | ``(f k1) x (c k2)``      |
| input       | none          | ``(f k1 k2) x c``        |
| decoupled   | none          | ``(k1 k2) x c``, f times |

With ``s > 1`` the input channels are sliced *first* and each slice is folded (Liebenwein et al. 2021, section 3.1).

The decoupled fold (Xu et al. 2020, arXiv 2004.14566) takes every output channel for a group of its own, with ``s = 1``:
``f`` matrices, of which all in one group of the layer read the same ``c`` channels. Output channel ``n`` owns ``r``
consecutive channels between the two convolutions, which are a pointwise and a depthwise one, ``r`` times in parallel::

    encoder (f r, c, 1)    g groups, kernel 1, no bias
    decoder (f, r, k)      f groups, kernel k, bias

A linear layer has no axis to decouple: there it is the channel fold, as every other one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from tenfold.errors import check

NAMES = ("channel", "spatial", "spatial-t", "input", "decoupled")


def folds_for(spatial: int) -> tuple[str, ...]:
    """The folds that differ from each other for a kernel with ``spatial`` spatial axes."""
    return {0: ("channel",), 1: ("channel", "input", "decoupled")}.get(spatial, NAMES)


def divisors(c: int) -> tuple[int, ...]:
    """The divisors of ``c``, ascending: the numbers of slices that leave no remainder."""
    small = [d for d in range(1, math.isqrt(c) + 1) if c % d == 0]
    return tuple(sorted({*small, *(c // d for d in small)}))


def slice_counts(shape: tuple[int, ...], name: str) -> tuple[int, ...]:
    """The numbers of slices that a fold of a kernel ``(f, c, *k)`` can have, ascending: divisors of ``c``, or 1."""
    return (1,) if _decouples(shape, name) else divisors(shape[1])


def _decouples(shape: tuple[int, ...], name: str) -> bool:
    return name == "decoupled" and len(shape) > 2


@dataclass(frozen=True)
class Fold:
    """An exact, reversible view of one kernel as a batch of matrices.

    Args:
        shape: of the kernel, ``(f, c, *k)`` with ``c`` the input channels per group.
        groups: of the layer, dividing ``f``.
        slices: runs of consecutive input channels, dividing ``c``; 1 in the decoupled fold.
        name: which spatial axes stay with the encoder; see the table above.

    Raises:
        ArgumentError: a number that does not divide, slices of the decoupled fold, or an unknown name.
    """

    shape: tuple[int, ...]
    groups: int = 1
    slices: int = 1
    name: str = "channel"

    def __post_init__(self) -> None:
        """Check that groups and slices divide the channels."""
        f, c = self.shape[:2]
        check(self.groups >= 1 and f % self.groups == 0, "groups", f"a divisor of {f} output channels", self.groups)
        check(self.slices >= 1 and c % self.slices == 0, "slices", f"a divisor of {c} input channels", self.slices)
        check(self.name in NAMES, "fold", f"one of {', '.join(NAMES)}", self.name)
        check(self.slices == 1 or not self._decoupled, "slices", "1 in the decoupled fold", self.slices)

    @property
    def kernel_size(self) -> tuple[int, ...]:
        """The spatial part of the kernel's shape."""
        return self.shape[2:]

    @property
    def encoder_axes(self) -> tuple[int, ...]:
        """Indices of the spatial axes that stay with the encoder."""
        axes = tuple(range(len(self.kernel_size)))
        return {"channel": axes, "spatial": axes[:1], "spatial-t": axes[1:]}.get(self.name, ())

    @property
    def decoder_axes(self) -> tuple[int, ...]:
        """Indices of the spatial axes that go to the decoder."""
        return tuple(a for a in range(len(self.kernel_size)) if a not in self.encoder_axes)

    @property
    def encoder_groups(self) -> int:
        """Number of groups of the encoder: ``g s``; decoupled: ``g``."""
        return self.groups * self.slices

    @property
    def decoder_groups(self) -> int:
        """Number of groups of the decoder: ``g``; decoupled: ``f``."""
        return self.shape[0] if self._decoupled else self.groups

    @property
    def batch(self) -> int:
        """Number of matrices: ``g s``; decoupled: ``f``."""
        return self.decoder_groups * self.slices

    @property
    def rows(self) -> int:
        """Number of rows of each matrix: ``f' k_D``; decoupled: ``k``."""
        return self.shape[0] // self.decoder_groups * math.prod([self.kernel_size[a] for a in self.decoder_axes])

    @property
    def columns(self) -> int:
        """Number of columns of each matrix: ``c' k_E``."""
        return self.shape[1] // self.slices * math.prod([self.kernel_size[a] for a in self.encoder_axes])

    @property
    def full_rank(self) -> int:
        """The largest rank of a matrix of this fold: ``min(rows, columns)``."""
        return min(self.rows, self.columns)

    def encoder_params(self, rank: int) -> int:
        """Number of encoder weights at ``rank``: ``g s r c' k_E``; decoupled: ``f r c``."""
        return self.batch * rank * self.columns

    def decoder_params(self, rank: int) -> int:
        """Number of decoder weights at ``rank``: ``f s r k_D``."""
        return self.batch * rank * self.rows

    def matrices(self, kernel: Float[Tensor, "f c *k"]) -> Float[Tensor, "b rows columns"]:
        """The kernel as a batch of matrices (a view where the memory layout allows).

        Raises:
            ArgumentError: a kernel of another shape.
        """
        check(tuple(kernel.shape) == tuple(self.shape), "kernel", f"of shape {tuple(self.shape)}", tuple(kernel.shape))
        return kernel.reshape(self._split).permute(self._order).reshape(self.batch, self.rows, self.columns)

    def kernel(self, matrices: Float[Tensor, "b rows columns"]) -> Float[Tensor, "f c *k"]:
        """The exact inverse of `matrices`."""
        permuted = [self._split[i] for i in self._order]
        inverse = sorted(range(len(self._order)), key=self._order.__getitem__)
        return matrices.reshape(permuted).permute(inverse).reshape(self.shape)

    def encoder(self, right: Float[Tensor, "b r columns"]) -> Float[Tensor, "br c1 *kE"]:
        """The right factors as the encoder's kernel ``(b r, c', *k)``, size 1 on the decoder's axes."""
        return right.reshape(-1, self.shape[1] // self.slices, *self._kernel_on(self.encoder_axes))

    def decoder(self, left: Float[Tensor, "b rows r"]) -> Float[Tensor, "f sr *kD"]:
        """The left factors as the decoder's kernel ``(f, s r, *k)``, size 1 on the encoder's axes."""
        g, s, r = self.decoder_groups, self.slices, left.shape[-1]
        split = left.reshape(g, s, self.shape[0] // g, -1, r).permute(0, 2, 1, 4, 3)
        return split.reshape(self.shape[0], s * r, *self._kernel_on(self.decoder_axes))

    def factors(
        self, encoder: Float[Tensor, "br c1 *kE"], decoder: Float[Tensor, "f sr *kD"]
    ) -> tuple[Float[Tensor, "b rows r"], Float[Tensor, "b r columns"]]:
        """Left and right factors: the exact inverse of `decoder` and `encoder`."""
        g, s = self.decoder_groups, self.slices
        right = encoder.reshape(self.batch, -1, self.columns)
        split = decoder.reshape(g, self.shape[0] // g, s, right.shape[1], -1).permute(0, 2, 1, 4, 3)
        return split.reshape(self.batch, self.rows, -1), right

    def product(self, encoder: Float[Tensor, "br c1 *kE"], decoder: Float[Tensor, "f sr *kD"]) -> Tensor:
        """The kernel ``(f, c, *k)`` that equals encoder and decoder in a row."""
        left, right = self.factors(encoder, decoder)
        return self.kernel(left @ right)

    def _kernel_on(self, axes: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(k if a in axes else 1 for a, k in enumerate(self.kernel_size))

    @property
    def _decoupled(self) -> bool:
        return _decouples(self.shape, self.name)

    @property
    def _split(self) -> tuple[int, ...]:
        g, s = self.decoder_groups, self.slices
        return (g, self.shape[0] // g, s, self.shape[1] // s, *self.kernel_size)

    @property
    def _order(self) -> tuple[int, ...]:
        return (0, 2, 1, *(4 + a for a in self.decoder_axes), 3, *(4 + a for a in self.encoder_axes))
