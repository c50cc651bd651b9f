"""Fisher SVD: cut what the loss notices least, all layers in the same unit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from tenfold.errors import check, is_count, is_share
from tenfold.linalg.output_aware import damped, output_basis
from tenfold.methods.contract.method import Method
from tenfold.plans.budget import Budget
from tenfold.plans.candidates import as_plan
from tenfold.plans.loss_gradients import find_loss, loss_name, require_loss
from tenfold.plans.output_candidates import OutputBasis, kept_product, outputs_of
from tenfold.plans.output_moments import Moments
from tenfold.plans.plan import Plan
from tenfold.plans.problem import Problem
from tenfold.ranks.lagrange import allocate


@dataclass(frozen=True)
class FisherSVD(Method):
    """Low rank by Fisher information: least ``e_l = E sum_positions ||G_l^{1/2} (y - y_hat)||^2``, ``G = E[g g^T]``.

    ``g`` is the loss gradient in a layer's outputs ``y``, with labels drawn from the model: G is the Fisher information
    there, and ``sum_l e_l / 2`` the second-order estimate of how much the loss rises, position by position, in nats.
    The bias keeps the mean, as PCA's does: ``y_hat = mean + A_r B_r^T (y - mean)``; a layer without one gets one, and
    it is counted.

    Without ``loss`` the model must be a classifier, its output logits, alone or as ``logits``: ``(n, classes)``; dense
    prediction ``(n, classes, ...)`` or ``(n, ..., classes)``, which of the two being told by integer labels in
    ``data``; or ``(n, tokens, classes)`` for integer inputs ``(n, tokens)``. Labels tell no more than that. ``(n,
    classes)`` without labels is taken for logits: give a network that is no classifier its ``loss``. What else is not
    certain is refused.

    Args:
        samples: calibration examples used, >= 1.
        damping: share of white inputs mixed into the outputs' covariance, >= 0.
        isotropic: share of the identity (of equal trace) mixed into G, >= 0. G is known from few samples and near the
            trained weights only: the further the budget is from 1, the less it is worth. From about 100 on PCA is left.
        rule: "product" divides the budget by the shares that layers keep, most ``prod_l (1 - lost_l / all_l)``, as PCA
            does by output energy; "sum" by the estimated loss. The plan's level is the multiplier of either.
        seed: of the drawn labels.
        loss: the loss that the network is trained by, ``(output, target) -> scalar``, a mean over the batch: ``target``
            is what stands beside the inputs in ``data``, or the inputs where nothing does. G is then the second moment
            of its gradients. As text, "module:function" of a module that is imported. None: a classifier's, as above.

    Raises:
        ArgumentError: a value out of range; by `to_dict`, a loss that has no name to be found again by.
        DataError: outputs that are not certainly logits, and no ``loss``.

    Source: ours; the metric is a Kronecker-factored Fisher (Martens & Grosse 2015, arXiv 1503.05671; Grosse & Martens
    2016, arXiv 1602.01407, for convolutions), the weighting of a low-rank factorisation by Fisher information is
    Hsu et al. 2022's (arXiv 2207.00112), who use one weight per row.
    """

    samples: int = 1024
    damping: float = 1e-3
    isotropic: float = 1.0
    rule: Literal["sum", "product"] = "product"
    seed: int = 0
    loss: Callable[[Any, Any], Any] | str | None = None

    name: ClassVar[str] = "fisher-svd"
    needs_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the ranges."""
        check(is_count(self.samples), "samples", "an integer >= 1", self.samples)
        check(is_share(self.damping), "damping", "a number >= 0", self.damping)
        check(is_share(self.isotropic), "isotropic", "a number >= 0", self.isotropic)
        check(self.rule in ("sum", "product"), "rule", '"sum" or "product"', self.rule)
        check(is_count(self.seed, 0), "seed", "an integer >= 0", self.seed)
        if isinstance(self.loss, str):
            object.__setattr__(self, "loss", find_loss(self.loss))  # one value, however it is written
        elif self.loss is not None:
            check(callable(self.loss), "loss", "a function (output, target) -> scalar, or None", self.loss)

    def choose(self, problem: Problem, budget: Budget | None) -> Plan:
        """Choose the ranks that the rule prefers within ``budget``, and their factors."""
        assert budget is not None
        loss = require_loss(self.loss)
        seen = problem.moments(samples=self.samples, gradients=True, seed=self.seed, loss=loss)
        outputs = outputs_of(problem, self, seen, self._basis)
        tables = outputs.tables
        if self.rule == "sum":
            losses = [t.error**2 * outputs.bases[t.name].lost()[0] / 2 for t in tables]
        else:
            losses = kept_product(tables)
        found = allocate(tables, losses, problem.limits(budget), spend=True)
        choice, level, gap = found or (None, None, None)
        made = outputs.made(choice)
        return as_plan(problem, self.name, tables, choice, budget, measure="loss", level=level, gap=gap, **made)

    def _basis(self, moments: Moments, w: Tensor) -> OutputBasis:
        each = moments.positions / moments.samples  # a sample's loss sums over its positions
        mean = (moments.fisher_mean * each).clamp(min=1e-30)  # what the loss never sees: its outputs
        metric = moments.fisher * each
        metric.diagonal(dim1=-2, dim2=-1).add_(self.isotropic * mean[:, None])
        spread = damped(moments.covariance, w, self.damping)
        return OutputBasis(*output_basis(spread, metric), moments.mean)

    def to_dict(self) -> dict[str, Any]:
        """The name and the fields, for JSON; a loss as ``"module:function"``.

        Raises:
            ArgumentError: a loss that is no function at the top of a module.
        """
        named = None if self.loss is None else loss_name(self.loss)
        return super().to_dict() | {"loss": named}
