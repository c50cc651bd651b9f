"""Activation-aware SVD: the smallest error in what each layer puts out, not in its weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tenfold.errors import check, is_count, is_share
from tenfold.linalg.output_aware import damped, output_basis
from tenfold.methods.contract.method import Method
from tenfold.plans.budget import Budget
from tenfold.plans.candidates import as_plan
from tenfold.plans.output_candidates import OutputBasis, factors_of, output_candidates
from tenfold.plans.plan import Plan
from tenfold.plans.problem import Problem
from tenfold.ranks.minmax import allocate


@dataclass(frozen=True)
class ActivationSVD(Method):
    """Activation-aware SVD, ``min E ||W x - W_hat x||^2`` at each rank: the SVD of ``W S`` with ``S S^T = E[x x^T]``.

    No root and no inverse is taken: the left singular vectors of ``W S`` are the eigenvectors of the output moment
    ``E[y y^T]``, so rank-deficient calibration data is harmless. Ranks: the least common relative output error that
    the budget allows, which is the plan's level.

    Args:
        samples: calibration examples used, >= 1.
        damping: share of white inputs mixed into the moment, >= 0; what calibration never excites then counts a little.

    Raises:
        ArgumentError: a value out of range.

    Source: the optimum is that of Zhang et al. 2015 (arXiv 1411.4229, equation 4) without the mean; as a weighted SVD
    Wang et al. 2024 (SVD-LLM, arXiv 2403.07378). The min-max rank rule is ours.
    """

    samples: int = 1024
    damping: float = 1e-3

    name: ClassVar[str] = "activation-svd"
    needs_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the ranges."""
        check(is_count(self.samples), "samples", "an integer >= 1", self.samples)
        check(is_share(self.damping), "damping", "a number >= 0", self.damping)

    def choose(self, problem: Problem, budget: Budget | None) -> Plan:
        """Choose the ranks of the least common output error within ``budget``, and their factors."""
        assert budget is not None
        moments = problem.moments(samples=self.samples)
        bases = {}
        for site in problem.sites:
            w = site.matrices()[:, 0].cpu()
            bases[site.name] = OutputBasis(*output_basis(damped(moments[site.name].second, w, self.damping)))
        tables = output_candidates(problem, bases)
        found = allocate(tables, problem.limits(budget))
        choice, level = (None, None) if found is None else (found.choice, found.level)
        factors = factors_of(problem, bases, tables, choice)
        return as_plan(problem, self.name, tables, choice, budget, measure="output", level=level, factors=factors)
