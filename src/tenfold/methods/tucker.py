"""Tucker: convolutions become three, with a rank for their outputs and one for their inputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from tenfold.errors import check
from tenfold.methods.contract.output_measured import OutputMeasured
from tenfold.plans.budget import Budget
from tenfold.plans.minmax_plan import minmax_plan
from tenfold.plans.plan import Plan
from tenfold.plans.problem import Problem
from tenfold.plans.tucker_candidates import tucker_candidates


@dataclass(frozen=True)
class Tucker(OutputMeasured):
    """Tucker-2 decomposition ``W ~ C x_1 U_out x_2 U_in`` with the least common relative error within the budget.

    A kernel with spatial axes becomes a pointwise convolution to ``r_in`` channels, one with the kernel to ``r_out``,
    and a pointwise one; a linear or pointwise layer, whose kernel is a matrix, becomes two. Of all pairs of ranks (on
    a grid where a mode is larger than 64) each layer takes the cheapest whose error

        ||W - W_hat||_F / ||W||_F

    is below the level; what is left of the budget then lowers the largest errors. No data is needed. The factors are a
    higher-order SVD improved by a sweep of orthogonal iteration; errors in the plan are those of the former.

    Args:
        measure: of the errors: ``"fro"``, or with data ``"output"``, ``sqrt(E |y - y_hat|^2 / E |y - E y|^2)`` of what
            the layer puts out, for which core and bases are made, too; a layer without bias gets one, and it is
            counted.
        negligible: in [0, 1): the smallest layers that together hold at most this share of every limited cost stay
            dense; 0: as published. See `Sparing`.
        ends: any of "first" and "last": these layers stay dense. See `Sparing`.
        samples: with ``measure="output"``, calibration examples used, >= 1; they are kept in memory.
        memory: then, for moments, in bytes, >= 1, or as much as one layer takes; see `tenfold.layers.input_moments`.

    Raises:
        ArgumentError: a value out of range.

    Source: the format for convolutions is Kim et al. 2016 (arXiv 1511.06530), "Tucker-2". Deviations: ranks by min-max
    allocation in place of VBMF on each unfolding, which no budget moves; the sweep is always run; ``measure="output"``
    is ours.
    """

    measure: Literal["fro", "output"] = field(default="fro", kw_only=True)

    name: ClassVar[str] = "tucker"

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        check(self.measure in ("fro", "output"), "measure", '"fro" or "output"', self.measure)

    def choose(self, problem: Problem, budget: Budget | None) -> Plan:
        """Choose the rank pairs of the least common relative error within ``budget``."""
        assert budget is not None
        outputs = self.outputs(problem, budget, tucker=True)
        tables = tucker_candidates(problem) if outputs is None else outputs.tables
        left = self.spared(problem, budget, tables)
        return minmax_plan(problem, self.name, tables, budget, left, measure=self.measure, outputs=outputs)
