"""SVD-Energy: every layer gives up the same share of its energy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tenfold.errors import check
from tenfold.linalg.fold import NAMES
from tenfold.methods.contract.sparing import Sparing
from tenfold.plans.budget import Budget
from tenfold.plans.candidates import candidates
from tenfold.plans.minmax_plan import minmax_plan
from tenfold.plans.plan import Plan
from tenfold.plans.problem import Problem
from tenfold.ranks.measures import MEASURES


@dataclass(frozen=True)
class SVDEnergy(Sparing):
    """Truncated SVD at one share ``e`` of lost energy: ``sum_{m>j} s_m^2 <= e sum_m s_m^2`` in every layer.

    ``e`` is the least that the budget allows.

    That is min-max allocation of the Frobenius error without slices; what a layer's ``e`` leaves unspent stays so. The
    plan's level is ``sqrt(e)``.

    Args:
        fold: see `tenfold.linalg.fold`.
        negligible: in [0, 1): the smallest layers that together hold at most this share of every limited cost stay
            dense; 0: as published. See `Sparing`.
        ends: any of "first" and "last": these layers stay dense. See `Sparing`.

    Raises:
        ArgumentError: an unknown fold.

    Source: the baseline of Liebenwein et al. 2021 (arXiv 2107.11442), section 4, after Alvarez & Salzmann 2017.
    """

    fold: str = "channel"

    name: ClassVar[str] = "svd-energy"

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        check(self.fold in NAMES, "fold", f"one of {', '.join(NAMES)}", self.fold)

    def choose(self, problem: Problem, budget: Budget | None) -> Plan:
        """Choose the least common share of lost energy within ``budget``."""
        assert budget is not None
        tables = candidates(problem, MEASURES["fro"], folds=(self.fold,), slices=(1,))
        left = self.spared(problem, budget, tables)
        return minmax_plan(problem, self.name, tables, budget, left, measure="fro", spend=False)
