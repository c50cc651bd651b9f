"""What a layer in Tucker format offers to whoever changes its ranks while it trains.

::

    W = C x_1 U_1 x_2 U_2 ...        core C (r_1, r_2, ..., *rest),  bases U_i (n_i, r_i), orthonormal columns

``W (n_1, n_2, ..., *rest)`` is the kernel in the one layout ``(out, in / groups, *k)``. A linear layer has no rest:
``W = U_1 C U_2^T`` with a square C. A layer with g groups has one core and one set of bases for each, of the same
ranks, stacked as convolutions stack them: core ``(g r_1, r_2, ..., *rest)``, out basis ``(out, r_1)`` and in basis
``(in, r_2)`` with the rows of the first group first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class Factorised(Protocol):
    """A module whose kernel is a Tucker tensor.

    ``core`` and ``bases`` are Parameters that live as long as the module: whoever changes a rank writes
    ``parameter.data = new`` and the forward pass reads their shapes each time. Loading a state of other ranks resizes
    them first. The bases may have ``requires_grad`` switched on and off; nothing but an integrator changes them.
    """

    groups: int
    augmented: Tensor
    """A bool buffer ``()``, saved with the rest: the ranks have grown, and the cut that follows has not been made."""

    @property
    def core(self) -> nn.Parameter:
        """``C (g r_1, r_2, ..., *rest)``."""
        ...

    @property
    def bases(self) -> Sequence[nn.Parameter]:
        """``U_i (g n_i, r_i)`` of the active modes, the first ones of the kernel, in order: out, in, then spatial."""
        ...

    @property
    def ranks(self) -> tuple[int, ...]:
        """``r_i`` of the active modes."""
        ...

    def set_ranks_(self, ranks: Sequence[int]) -> None:
        """Resize core and bases, their numbers undefined: for loading into."""
        ...
