"""SVD: the same fraction of the full rank in every layer. The plainest baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tenfold.errors import check
from tenfold.linalg.fold import NAMES
from tenfold.methods.contract.sparing import Sparing
from tenfold.plans.budget import Budget
from tenfold.plans.plan import Plan
from tenfold.plans.problem import Problem
from tenfold.plans.uniform_plan import uniform_plan


@dataclass(frozen=True)
class SVD(Sparing):
    """Truncated SVD at the same fraction of the full rank in every layer: ``j_l = max(1, round(a r_l))``.

    ``a`` is the largest that the budget allows. The plan's level is ``a``; its errors are ``s_{j+1} / s_1``.

    Args:
        fold: see `tenfold.linalg.fold`.
        negligible: in [0, 1): the smallest layers that together hold at most this share of every limited cost stay
            dense; 0: as published. See `Sparing`.
        ends: any of "first" and "last": these layers stay dense. See `Sparing`.

    Raises:
        ArgumentError: an unknown fold.

    Source: the baseline of Liebenwein et al. 2021 (arXiv 2107.11442), section 4; the fold is Denton et al. 2014's
    (arXiv 1404.0736) for ``"channel"``, Jaderberg et al. 2014's (arXiv 1405.3866) for ``"spatial"``.
    """

    fold: str = "channel"

    name: ClassVar[str] = "svd"

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        check(self.fold in NAMES, "fold", f"one of {', '.join(NAMES)}", self.fold)

    def choose(self, problem: Problem, budget: Budget | None) -> Plan:
        """Choose the largest common fraction of the full rank within ``budget``."""
        return uniform_plan(problem, self.name, budget, self.fold, self.spared)
