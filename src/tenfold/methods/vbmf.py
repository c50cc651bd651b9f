"""VBMF: ranks that variational Bayes finds in the weights, no budget needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tenfold.errors import check
from tenfold.linalg.fold import NAMES
from tenfold.linalg.vbmf import vbmf_rank
from tenfold.methods.contract.method import Method
from tenfold.plans.budget import Budget
from tenfold.plans.candidates import as_plan, candidates
from tenfold.plans.plan import Plan
from tenfold.plans.problem import RANK_SAVES_NOTHING, Problem
from tenfold.ranks.measures import MEASURES
from tenfold.ranks.uniform import allocate, entry_at


@dataclass(frozen=True)
class VBMF(Method):
    """Truncated SVD at the ranks of empirical variational Bayes matrix factorisation, at least 1.

    With a budget all ranks are scaled, up or down, by one factor to fit, the plan's level. Grouped layers take the
    largest rank over their groups. A rank that saves nothing leaves its layer dense.

    Args:
        fold: see `tenfold.linalg.fold`.

    Raises:
        ArgumentError: an unknown fold.

    Source: Nakajima et al. 2013 (JMLR 14); for the ranks of convolutions Kim et al. 2016 (arXiv 1511.06530), who apply
    it to the two unfoldings of a Tucker format. Here it is applied to the matrix that is factorised.
    """

    fold: str = "channel"

    name: ClassVar[str] = "vbmf"
    needs_budget: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        check(self.fold in NAMES, "fold", f"one of {', '.join(NAMES)}", self.fold)

    def choose(self, problem: Problem, budget: Budget | None) -> Plan:
        """Choose the variational Bayes ranks, scaled to ``budget`` where there is one."""
        tables = candidates(problem, MEASURES["max"], folds=(self.fold,), slices=(1,))
        sides = [sorted(site.matrices(self.fold).shape[-2:]) for site in problem.sites]
        spectra = [by_slices[1][:, 0] for by_slices in problem.spectra(self.fold, (1,))]
        ranks = [max(1, *(vbmf_rank(s, *of) for s in groups)) for groups, of in zip(spectra, sides, strict=True)]
        if budget is None:
            choice, factor = [entry_at(t, j) for j, t in zip(ranks, tables, strict=True)], 1.0
        else:
            full = [short for short, _ in sides]
            choice, factor = allocate(tables, ranks, full, problem.limits(budget)) or (None, None)
        why = RANK_SAVES_NOTHING
        return as_plan(problem, self.name, tables, choice, budget, why=why, measure="max", level=factor)
