"""The settings of a training in Tucker format: tolerance, cycle, and limits of the ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from tenfold.layers.tucker_protocol import Factorised
from tenfold.linalg.tucker import Limits


@dataclass(frozen=True)
class IntegratorSettings:
    """The settings of an `Integrator`: tolerance, cycle, and limits of the ranks.

    Args:
        tau: relative tolerance of each cut, in [0, 1).
        every: optimizer steps of a cycle, >= 1.
        twice: compute the gradient again in the larger space, in the same step: the two-pass integrator.
        pinned: cut to the ranks of before, not to ``tau``.
        columns: how many columns a basis may get, as a share of those that it has, > 0.
        floor: ranks are never cut below, >= 1.
        cap: ranks are always cut to this share of the size of their mode, in (0, 1].
        multiple: ranks are rounded up to a multiple, >= 1.
        freeze: steps after which ranks stay as they are, 0: from the first; a cut is made there. None: never.
        steps: of the whole run: the last one ends its cycle; None: not known.
        begin: steps that the model is trained dense, before ``enter``.
        enter: makes the copy in Tucker format whose layers it takes then; None: it has them from the first step.
        aim: says, as the ranks freeze, which ones they are to be, by layer name; None: those that they are.
    """

    tau: float
    every: int = 10
    twice: bool = False
    pinned: bool = False
    columns: float = 1.0
    floor: int = 1
    cap: float = 1.0
    multiple: int = 1
    freeze: int | None = None
    steps: int | None = None
    begin: int = 0
    enter: Callable[[], nn.Module] | None = None
    aim: Callable[[], Mapping[str, Sequence[int]]] | None = None

    def limits(self, layer: Factorised, pinned: Sequence[int] | None) -> Limits:
        """The limits of the ranks of a layer at a cut; ``pinned``: the ranks to cut to, None: by tolerance."""
        if pinned is not None:
            return Limits(tuple(pinned), tuple(pinned))
        sizes = [len(basis) // layer.groups for basis in layer.bases]
        return Limits(self.floor, [max(1, self.floor, int(self.cap * n)) for n in sizes], self.multiple)
