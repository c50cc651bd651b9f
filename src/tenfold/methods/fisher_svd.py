"""Fisher SVD: cut what the loss notices least, all layers in the same unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from tenfold.errors import check, is_count, is_share
from tenfold.linalg.output_aware import damped, output_basis
from tenfold.methods.contract.method import Method
from tenfold.plans.candidates import settle
from tenfold.plans.output_candidates import OutputBasis, factors_of, kept_product, output_candidates
from tenfold.plans.plan import Budget, Plan
from tenfold.plans.problem import Problem
from tenfold.ranks.lagrange import allocate


@dataclass(frozen=True)
class FisherSVD(Method):
    """Least ``e_l = E sum_positions ||G_l^{1/2} (y - y_hat)||^2`` in each layer's outputs, ``G = E[g g^T]``.

    ``g`` is the loss gradient in the layer's outputs, with labels drawn from the model: G is the Fisher information
    there, and ``sum_l e_l / 2`` the second-order estimate of how much the loss rises, position by position, in nats.
    The bias keeps the mean, as PCA's does: ``y_hat = mean + A_r B_r^T (y - mean)``; a layer without one gets one, and
    it is counted. No labels are needed. The model must put out logits ``(n, ..., classes)``.

    Args:
        samples: calibration examples used, >= 1.
        damping: share of white inputs mixed into the outputs' covariance, >= 0.
        isotropic: share of the identity (of equal trace) mixed into G, >= 0. G is known from few samples and near the
            trained weights only: the further the budget is from 1, the less it is worth. From about 100 on PCA is left.
        rule: "product" divides the budget by the shares that layers keep, most ``prod_l (1 - lost_l / all_l)``, as PCA
            does by output energy; "sum" by the estimated loss. The plan's level is the multiplier of either.
        seed: of the drawn labels.

    Raises:
        ArgumentError: a value out of range.

    Source: ours; the metric is a Kronecker-factored Fisher (Martens & Grosse 2015, arXiv 1503.05671; Grosse & Martens
    2016, arXiv 1602.01407, for convolutions), the weighting of a low-rank factorisation by Fisher information is
    Hsu et al. 2022's (arXiv 2207.00112), who use one weight per row.
    """

    samples: int = 1024
    damping: float = 1e-3
    isotropic: float = 1.0
    rule: Literal["sum", "product"] = "product"
    seed: int = 0

    name: ClassVar[str] = "fisher-svd"
    needs_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the ranges."""
        check(is_count(self.samples), "samples", "an integer >= 1", self.samples)
        check(is_share(self.damping), "damping", "a number >= 0", self.damping)
        check(is_share(self.isotropic), "isotropic", "a number >= 0", self.isotropic)
        check(self.rule in ("sum", "product"), "rule", '"sum" or "product"', self.rule)
        check(is_count(self.seed, 0), "seed", "an integer >= 0", self.seed)

    def choose(self, problem: Problem, budget: Budget | None) -> Plan:
        """The ranks that the rule prefers within ``budget``, and their factors."""
        assert budget is not None
        seen = problem.moments(samples=self.samples, gradients=True, seed=self.seed)
        bases = {}
        for site in problem.sites:
            moments, w = seen[site.name], site.matrices()[:, 0].cpu()
            metric = moments.fisher * (moments.positions / moments.samples)  # a sample's loss sums over its positions
            mean = metric.diagonal(dim1=-2, dim2=-1).mean(-1).clamp(min=1e-30)  # what the loss never sees: its outputs
            metric = metric.clone()
            metric.diagonal(dim1=-2, dim2=-1).add_(self.isotropic * mean[:, None])
            spread = damped(moments.covariance, w, self.damping)
            bases[site.name] = OutputBasis(*output_basis(spread, metric), moments.mean)
        tables = output_candidates(problem, bases)
        if self.rule == "sum":
            losses = [t.error**2 * bases[t.name].lost()[0] / 2 for t in tables]
        else:
            losses = kept_product(tables)
        choice, multiplier = allocate(tables, losses, problem.limits(budget)) or (None, None)
        factors = factors_of(problem, bases, tables, choice)
        return settle(problem, self.name, tables, choice, budget, measure="loss", level=multiplier, factors=factors)
