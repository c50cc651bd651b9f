"""What methods share whose rule treats all layers alike: they leave the smallest layers dense."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import get_args

from tenfold.errors import check, is_share
from tenfold.methods.contract.method import Method
from tenfold.plans.budget import Budget
from tenfold.plans.problem import Problem
from tenfold.plans.spared import End, Spared, spared
from tenfold.ranks.candidates import Candidates


@dataclass(frozen=True)
class Sparing(Method):
    """Base class of methods with one level for all layers, which leave the smallest dense. Abstract; fields by name.

    Args:
        negligible: in [0, 1): the smallest layers that together hold at most this share of every limited cost of the
            model stay dense: to cut them saves nothing to speak of and can cost everything. Layers that the user
            selects (`target_modules`) are cut all the same, and so are all where the budget cannot be kept otherwise,
            with a warning. 0 cuts every layer alike, as published.
        ends: ``("first",)``, ``("last",)`` or both: that layer of those that could be decomposed stays dense, unless
            the user selects it.

    Raises:
        ArgumentError: a value out of range.
    """

    negligible: float = field(default=0.01, kw_only=True)
    ends: tuple[End, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        """Check the ranges."""
        check(is_share(self.negligible) and self.negligible < 1, "negligible", "a share in [0, 1)", self.negligible)
        known = isinstance(self.ends, tuple) and all(end in get_args(End) for end in self.ends)
        check(known, "ends", "a tuple with any of 'first' and 'last'", self.ends)

    def spared(self, problem: Problem, budget: Budget, tables: Sequence[Candidates]) -> Spared:
        """The layers that the fields leave dense."""
        return spared(problem, budget, tables, self.negligible, self.ends)
