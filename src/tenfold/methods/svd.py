"""SVD: the same fraction of the full rank in every layer. The plainest baseline."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from tenfold.errors import check
from tenfold.linalg.fold import NAMES
from tenfold.methods.contract.output_measured import OutputMeasured
from tenfold.plans.budget import Budget
from tenfold.plans.plan import Plan
from tenfold.plans.problem import Problem
from tenfold.plans.uniform_plan import uniform_plan


@dataclass(frozen=True)
class SVD(OutputMeasured):
    """Truncated SVD at the same fraction of the full rank in every layer: ``j_l = max(1, round(a r_l))``.

    ``a`` is the largest that the budget allows. The plan's level is ``a``; its errors are ``s_{j+1} / s_1``.

    Args:
        fold: see `tenfold.linalg.fold`.
        measure: of the errors in the plan: ``"max"``, or with data ``"output"``,
            ``sqrt(E |y - y_hat|^2 / E |y - E y|^2)`` of what the layer puts out, for which the factors are made, too; a
            layer without bias gets one, and it is counted. Not with the decoupled fold.
        negligible: in [0, 1): the smallest layers that together hold at most this share of every limited cost stay
            dense; 0: as published. See `Sparing`.
        ends: any of "first" and "last": these layers stay dense. See `Sparing`.
        samples: with ``measure="output"``, calibration examples used, >= 1; they are kept in memory.
        memory: then, for moments, in bytes, >= 1, or as much as one layer takes; see `tenfold.layers.input_moments`.

    Raises:
        ArgumentError: an unknown fold or measure, or a number out of range.

    Source: the baseline of Liebenwein et al. 2021 (arXiv 2107.11442), section 4; the fold is Denton et al. 2014's
    (arXiv 1404.0736) for ``"channel"``, Jaderberg et al. 2014's (arXiv 1405.3866) for ``"spatial"``;
    ``measure="output"`` is ours.
    """

    fold: str = "channel"
    measure: Literal["max", "output"] = field(default="max", kw_only=True)

    name: ClassVar[str] = "svd"

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        check(self.fold in NAMES, "fold", f"one of {', '.join(NAMES)}", self.fold)
        check(self.measure in ("max", "output"), "measure", '"max" or "output"', self.measure)
        self.require_fold("fold", self.fold)

    def choose(self, problem: Problem, budget: Budget | None) -> Plan:
        """Choose the largest common fraction of the full rank within ``budget``."""
        outputs = self.outputs(problem, budget, folds=(self.fold,))
        return uniform_plan(problem, self.name, budget, self.fold, self.spared, outputs)
