"""ALDS: slice the input channels, cut every slice to one rank, choose slices and ranks globally.

Liebenwein, Maalouf, Gal, Feldman, Rus, "Compressing Neural Networks: Towards Determining the Optimal Layer-wise
Decomposition", NeurIPS 2021, arXiv 2107.11442.

The candidates are the authors': every divisor of the input channels competes as a number of slices. Two deviations from
their algorithm: the allocation is solved exactly instead of by alternation from random starts, and the smallest layers
stay dense by default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from tenfold.errors import check
from tenfold.linalg.fold import NAMES
from tenfold.methods.contract.output_measured import OutputMeasured
from tenfold.plans.budget import Budget
from tenfold.plans.candidates import candidates
from tenfold.plans.minmax_plan import minmax_plan
from tenfold.plans.plan import Plan
from tenfold.plans.problem import Problem
from tenfold.ranks.candidates import Candidates
from tenfold.ranks.measures import MEASURES


@dataclass(frozen=True)
class ALDS(OutputMeasured):
    """Automatic layer-wise decomposition selector: slices and ranks of all layers with the smallest largest error.

    ``minimise max_l err_l(k_l, j_l)  subject to  sum_l cost_l(k_l, j_l) <= budget`` over the slices ``k`` and ranks
    ``j`` of every layer.

    Args:
        measure: what a layer's error, in the plan and in its level, is, all relative to the whole layer, unfolded:
            ``"spectral"`` is the true one, ``||W - W_hat||_2 / ||W||_2``, comparable over all numbers of slices, for
            more work; ``"max"``, the largest ``s_{i,j+1} / s_1`` of a slice, is what the authors' code minimises: the
            true one for one slice, and as much as ``sqrt(k)`` times too small for k; ``"rss"`` and ``"bound"`` are
            upper bounds of it, ``"fro"`` is the error in the Frobenius norm. See `tenfold.ranks.measures`.
            ``"output"`` needs data: ``sqrt(E |y - y_hat|^2 / E |y - E y|^2)`` of what the layer puts out, for which
            the factors are made, too; a layer without bias gets one, and it is counted. Not with the decoupled fold.
        slices: candidate numbers of slices, a tuple; None: every divisor of a layer's input channels (per group).
        folds: candidate folds, a tuple; see `tenfold.linalg.fold`. The paper's default is the channel fold.
        negligible: in [0, 1): the smallest layers that together hold at most this share of every limited cost stay
            dense; 0: as published. See `Sparing`.
        ends: any of "first" and "last": these layers stay dense. See `Sparing`.
        samples: with ``measure="output"``, calibration examples used, >= 1; they are kept in memory.
        memory: then, for moments, in bytes, >= 1, or as much as one layer takes; see `tenfold.layers.input_moments`.

    Raises:
        ArgumentError: an unknown measure or fold, or a number out of range.

    Source: arXiv 2107.11442, equations 1 and 2; ``measure="output"`` is ours.
    """

    measure: Literal["max", "spectral", "rss", "bound", "fro", "output"] = "max"
    slices: tuple[int, ...] | None = None
    folds: tuple[str, ...] = ("channel",)

    name: ClassVar[str] = "alds"

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        known = (*MEASURES, "output")
        check(self.measure in known, "measure", f"one of {', '.join(known)}", self.measure)
        some = isinstance(self.folds, tuple) and len(self.folds) > 0 and all(fold in NAMES for fold in self.folds)
        check(some, "folds", f"a tuple of one or more of {', '.join(NAMES)}", self.folds)
        for fold in self.folds:
            self.require_fold("folds", fold)
        if self.slices is not None:
            some = isinstance(self.slices, tuple) and len(self.slices) > 0 and all(type(k) is int for k in self.slices)
            check(some and min(self.slices) >= 1, "slices", "None or a tuple of integers >= 1", self.slices)

    def candidates(self, problem: Problem) -> list[Candidates]:
        """The candidates of every layer, with error and cost."""
        outputs = self.outputs(problem, folds=self.folds, slices=self.slices)
        if outputs is not None:
            return outputs.tables
        return candidates(problem, MEASURES[self.measure], folds=self.folds, slices=self.slices)

    def choose(self, problem: Problem, budget: Budget | None) -> Plan:
        """Choose the min-max optimal slices and ranks within ``budget``; see `tenfold.ranks.minmax`."""
        assert budget is not None
        outputs = self.outputs(problem, budget, folds=self.folds, slices=self.slices)
        tables = self.candidates(problem)
        left = self.spared(problem, budget, tables)
        return minmax_plan(problem, self.name, tables, budget, left, measure=self.measure, outputs=outputs)
