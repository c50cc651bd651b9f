"""Norm balls: the sets that Frank-Wolfe keeps weights in. See `tenfold.linalg.balls.ball` for what they have in common.

``SETS`` holds them all by name; `from_dict` undoes `Ball.to_dict`.
"""

from typing import Any

from tenfold.errors import check
from tenfold.linalg.balls.ball import Ball as Ball
from tenfold.linalg.balls.groups import GroupKSupport as GroupKSupport
from tenfold.linalg.balls.spectral import Nuclear as Nuclear
from tenfold.linalg.balls.spectral import Spectral as Spectral
from tenfold.linalg.balls.spectral import SpectralKSparse as SpectralKSparse
from tenfold.linalg.balls.spectral import SpectralKSupport as SpectralKSupport
from tenfold.linalg.balls.spectral import Warm as Warm
from tenfold.linalg.balls.vectors import L1 as L1
from tenfold.linalg.balls.vectors import L2 as L2
from tenfold.linalg.balls.vectors import KSparse as KSparse
from tenfold.linalg.balls.vectors import KSupport as KSupport
from tenfold.linalg.balls.vectors import LInf as LInf
from tenfold.linalg.balls.vectors import Lp as Lp

_ALL = (L1, L2, LInf, Lp, KSparse, KSupport, GroupKSupport, Nuclear, SpectralKSparse, SpectralKSupport)
SETS: dict[str, type[Ball]] = {ball.__name__: ball for ball in _ALL}


def from_dict(data: dict[str, Any]) -> Ball:
    """The ball that ``data`` describes: the inverse of `Ball.to_dict`.

    Raises:
        ArgumentError: no such set, or a field out of its range.
    """
    name = data.get("ball")
    check(name in SETS, "ball", f"one of {', '.join(SETS)}", name)
    return SETS[str(name)](**{key: value for key, value in data.items() if key != "ball"})
