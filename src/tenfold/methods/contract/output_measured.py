"""What methods share whose layer errors are those of the weights, or with data those of the layers' outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from tenfold.errors import check, is_count
from tenfold.methods.contract.sparing import Sparing
from tenfold.plans.budget import Budget
from tenfold.plans.judged_forms import JudgedForms, judged_forms
from tenfold.plans.problem import Problem


@dataclass(frozen=True)
class OutputMeasured(Sparing):
    """Base class of methods that take ``measure="output"`` and then need data. Abstract; fields by name.

    Args:
        measure: what the error of a layer is; ``"output"``: ``sqrt(E |y - y_hat|^2 / E |y - E y|^2)`` of what it puts
            out on calibration data, for which the factors are made, too. A layer without bias gets one, and it is
            counted.
        samples: calibration examples used, >= 1; kept in memory.
        memory: for moments, in bytes, >= 1; see `tenfold.layers.input_moments`.
        negligible: see `Sparing`.
        ends: see `Sparing`.

    Raises:
        ArgumentError: a value out of range.
    """

    measure: str = field(default="fro", kw_only=True)
    samples: int = field(default=1024, kw_only=True)
    memory: int = field(default=1 << 30, kw_only=True)

    data_remedy: ClassVar[str] = "Pass data=[x, ...], or leave `measure` as it is by default, which needs none."

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        check(is_count(self.samples), "samples", "an integer >= 1", self.samples)
        check(is_count(self.memory), "memory", "a number of bytes >= 1", self.memory)

    @property
    def needs_data(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride] - depends on a field here
        """Whether errors are those of outputs."""
        return self.measure == "output"

    def require_fold(self, name: str, fold: str) -> None:
        """Raise `ArgumentError` for a fold whose options outputs do not tell, by the name of the field."""
        allowed = fold != "decoupled" or not self.needs_data
        remedy = "Each of its outputs has an encoder of its own."
        check(allowed, name, 'any but the decoupled one with measure="output"', fold, remedy)

    def outputs(
        self,
        problem: Problem,
        budget: Budget | None = None,
        *,
        folds: Sequence[str] = ("channel",),
        slices: Sequence[int] | None = (1,),
        tucker: bool = False,
    ) -> JudgedForms | None:
        """The options judged by outputs; None with another measure. For the arguments see `judged_forms`."""
        if not self.needs_data:
            return None
        limits = {"samples": self.samples, "memory": self.memory}
        return judged_forms(problem, budget, folds=folds, slices=slices, tucker=tucker, **limits)
