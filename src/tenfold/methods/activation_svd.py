"""Activation-aware SVD: the smallest error in what each layer puts out, not in its weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tenfold.errors import check, is_count, is_share
from tenfold.linalg.output_aware import damped, output_basis
from tenfold.methods.contract.sparing import Sparing
from tenfold.plans.budget import Budget
from tenfold.plans.minmax_plan import minmax_plan
from tenfold.plans.output_candidates import OutputBasis, outputs_of
from tenfold.plans.output_moments import Moments
from tenfold.plans.plan import Plan
from tenfold.plans.problem import Problem


@dataclass(frozen=True)
class ActivationSVD(Sparing):
    """Activation-aware SVD, ``min E ||W x - W_hat x||^2`` at each rank: the SVD of ``W S`` with ``S S^T = E[x x^T]``.

    No root and no inverse is taken: the left singular vectors of ``W S`` are the eigenvectors of the output moment
    ``E[y y^T]``, so rank-deficient calibration data is no special case. Ranks: the least common relative output error
    that the budget allows, which is the plan's level.

    Args:
        samples: calibration examples used, >= 1.
        damping: share of white inputs mixed into the moment, >= 0; what calibration never excites then counts a little.
        negligible: in [0, 1): the smallest layers that together hold at most this share of every limited cost stay
            dense; 0: as published. See `Sparing`.
        ends: any of "first" and "last": these layers stay dense. See `Sparing`.

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
        super().__post_init__()
        check(is_count(self.samples), "samples", "an integer >= 1", self.samples)
        check(is_share(self.damping), "damping", "a number >= 0", self.damping)

    def choose(self, problem: Problem, budget: Budget | None) -> Plan:
        """Choose the ranks of the least common output error within ``budget``, and their factors."""
        assert budget is not None
        outputs = outputs_of(problem, self, problem.moments(samples=self.samples), self._basis)
        left = self.spared(problem, budget, outputs.tables)
        return minmax_plan(problem, self.name, outputs.tables, budget, left, measure="output", outputs=outputs)

    def _basis(self, moments: Moments, w: Tensor) -> OutputBasis:
        return OutputBasis(*output_basis(damped(moments.second, w, self.damping)))
