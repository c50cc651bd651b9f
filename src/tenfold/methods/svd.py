"""SVD: the same fraction of the full rank in every layer. The plainest baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tenfold.errors import check
from tenfold.linalg.fold import NAMES, Fold
from tenfold.methods.base import Method
from tenfold.ranks.measures import MEASURES
from tenfold.ranks.options import options, settle
from tenfold.ranks.plan import Budget, Plan
from tenfold.ranks.problem import RANK_SAVES_NOTHING, Problem
from tenfold.ranks.uniform import allocate


@dataclass(frozen=True)
class SVD(Method):
    """``j_l = max(1, round(a r_l))`` with one ``a`` for all layers, the largest that the budget allows.

    The plan's level is ``a``; its errors are ``s_{j+1} / s_1``.

    Args:
        fold: see `tenfold.linalg.fold`.

    Raises:
        ArgumentError: an unknown fold.

    Source: the baseline of Liebenwein et al. 2021 (arXiv 2107.11442), section 4; the fold is Denton et al. 2014's
    (arXiv 1404.0736) for ``"channel"``, Jaderberg et al. 2014's (arXiv 1405.3866) for ``"spatial"``.
    """

    fold: str = "channel"

    name: ClassVar[str] = "svd"

    def __post_init__(self) -> None:
        """Check the ranges."""
        check(self.fold in NAMES, "fold", f"one of {', '.join(NAMES)}", self.fold)

    def choose(self, problem: Problem, budget: Budget | None) -> Plan:
        """The largest common fraction within ``budget``."""
        assert budget is not None
        tables = options(problem, MEASURES["max"], folds=(self.fold,), slices=(1,))
        full = [Fold(s.cost.shape, s.cost.groups, 1, self.fold).full_rank for s in problem.sites]
        choice, fraction = allocate(tables, full, full, problem.limits(budget)) or (None, None)
        why = RANK_SAVES_NOTHING
        return settle(problem, self.name, tables, choice, budget, why=why, measure="max", level=fraction)
