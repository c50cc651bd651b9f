"""PCA: keep the principal subspace of each layer's outputs.

Zhang, Zou, He, Sun, "Accelerating Very Deep Convolutional Networks for Classification and Detection", TPAMI 2016,
arXiv 1505.06798. The linear case: their correction for the ReLU that follows is not included. Their asymmetric
reconstruction, on what the compressed layers before put out, is `tenfold.refit_`, without the nonlinearity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tenfold.errors import check, is_count, is_share
from tenfold.linalg.output_aware import damped, output_basis
from tenfold.methods.contract.method import Method
from tenfold.plans.budget import Budget
from tenfold.plans.candidates import as_plan
from tenfold.plans.output_candidates import OutputBasis, kept_product, outputs_of
from tenfold.plans.output_moments import Moments
from tenfold.plans.plan import Plan
from tenfold.plans.problem import Problem
from tenfold.ranks.lagrange import allocate


@dataclass(frozen=True)
class PCA(Method):
    """PCA of layer outputs: ``y -> mean + P P^T (y - mean)``, P the top eigenvectors of their covariance.

    In the weights that is ``W -> P (P^T W)``, ``b -> b + (I - P P^T) E[W x]``: a layer without bias gets one, and it is
    counted. Ranks maximise ``prod_l (energy kept in layer l)`` under the budget; the plan's level is the multiplier.

    Args:
        samples: calibration examples used, >= 1.
        damping: share of white inputs mixed into the covariance, >= 0: without them, what calibration never excites
            would be cut as if nothing were lost, all of it where there are fewer output vectors than outputs.
        spend: what the rule leaves of the budget is spent, by an integer programme; False: as published.

    Raises:
        ArgumentError: a value out of range.

    Source: arXiv 1505.06798, equations 2 to 4 and section 3.3 (rank selection). Deviations: the greedy rule there is
    followed along the lower convex hull of each layer, so that what cannot save is passed over; damping and
    `spend` are ours (0 and False: as published).
    """

    samples: int = 1024
    damping: float = 1e-3
    spend: bool = True

    name: ClassVar[str] = "pca"
    needs_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the ranges."""
        check(is_count(self.samples), "samples", "an integer >= 1", self.samples)
        check(is_share(self.damping), "damping", "a number >= 0", self.damping)
        check(isinstance(self.spend, bool), "spend", "True or False", self.spend)

    def choose(self, problem: Problem, budget: Budget | None) -> Plan:
        """Choose the ranks of most kept energy within ``budget``, and their factors."""
        assert budget is not None
        outputs = outputs_of(problem, self, problem.moments(samples=self.samples), self._basis)
        tables = outputs.tables
        found = allocate(tables, kept_product(tables), problem.limits(budget), spend=self.spend)
        choice, level, gap = found or (None, None, None)
        made = outputs.made(choice)
        return as_plan(problem, self.name, tables, choice, budget, measure="output", level=level, gap=gap, **made)

    def _basis(self, moments: Moments, w: Tensor) -> OutputBasis:
        return OutputBasis(*output_basis(damped(moments.covariance, w, self.damping)), moments.mean)
