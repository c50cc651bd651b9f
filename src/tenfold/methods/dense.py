"""Dense: no compression. The baseline is a method too, so that comparisons need no special case."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tenfold.methods.contract.method import Method
from tenfold.plans.budget import Budget
from tenfold.plans.plan import LayerPlan, Plan
from tenfold.plans.problem import Problem


@dataclass(frozen=True)
class Dense(Method):
    """No compression, the baseline: a budget is ignored, and the report has the cost of the whole model."""

    name: ClassVar[str] = "dense"
    needs_budget: ClassVar[bool] = False
    needs_layers: ClassVar[bool] = False

    def choose(self, problem: Problem, budget: Budget | None) -> Plan:
        """Leave every layer dense."""
        return problem.plan(self.name, [LayerPlan("dense", reason="the method is dense") for _ in problem.sites])
