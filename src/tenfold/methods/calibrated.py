"""Calibrated: forms and ranks by what layers put out, refitted, the best of several allocations; no labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, cast, get_args

from tenfold.errors import BudgetError, check, is_count
from tenfold.layers.calibration_batches import calibration_batches
from tenfold.layers.calibration_runs import held_out, kept_batches, positions_in
from tenfold.methods.contract.sparing import Sparing
from tenfold.plans.budget import Budget
from tenfold.plans.candidates import as_plan, require_reachable
from tenfold.plans.compared_plans import best_refitted
from tenfold.plans.form_candidates import form_tables, judged_layers, uniform_choice
from tenfold.plans.loss_gradients import find_loss, loss_name, require_loss
from tenfold.plans.measured_loss import LossMeter, layer_loss
from tenfold.plans.plan import Plan
from tenfold.plans.problem import Problem
from tenfold.plans.spared import allotted
from tenfold.plans.within_latency import within_latency
from tenfold.ranks import lagrange, minmax
from tenfold.ranks.candidates import Candidates

Limits = Mapping[str, int]
Chosen = tuple[list[int], dict[str, Any]]
"""A choice of one option per layer, and what is to be said of it in a plan."""
Allocate = Callable[[Problem, list[Candidates], Limits], Chosen | None]
Form = Literal["channel", "spatial", "spatial-t", "input"]
_HELD, _LEAST_FITTED = 128, 8
"""Held-out examples, at most, and one of so many."""
_MEASURED, _LEAST_MEASURED = 64, 2
"""Of the held-out examples, those on which layers are measured one by one; fewer of such as have maps for outputs."""
_ERRORS = (0.02, 0.1)
"""Squared relative errors at which layers are measured: between them lie most layers of a plan that is of use."""


@dataclass(frozen=True)
class Calibrated(Sparing):
    """Low-rank forms of every layer fitted to what the dense layers put out, ranks by measured loss; no labels.

    Of each layer every rank of every form is judged by the relative error e of the layer's outputs, from the
    covariance of its inputs. Ranks minimise ``sum_l c_l * -log(1 - e_l^2)`` under the budget, as an integer programme;
    ``c_l`` is measured: what the network's outputs lose when this layer alone errs. That plan, uniform ranks and the
    least common error are then built, their factors refitted layer after layer, and the plan whose network loses least
    on held-out examples is taken, with the refitted factors: it is never worse there than uniform ranks. A layer
    without bias gets one, and it is counted. Batch norm keeps the statistics of the dense network.

    Args:
        samples: calibration examples used, >= 1, kept in memory; one in eight of them, 128 at most, is held out.
        forms: that compete where kernels have spatial extent: "spatial" and "spatial-t" split it between two
            convolutions, "channel" is a full one and a pointwise one, "input" the reverse. All others are matrices.
        refit: "both" factors of each layer, or the "last".
        loss: between outputs, ``(outputs, dense outputs) -> scalar``, a mean over examples; "logits" where the outputs
            are logits; as text, "module:function" of a module that is imported. None: see `tenfold.distill`.
        memory: for moments, in bytes, >= 1; see `tenfold.refit_`.
        negligible: in [0, 1): the smallest layers that together hold at most this share of every limited cost stay
            dense. See `Sparing`.
        ends: any of "first" and "last": these layers stay dense. See `Sparing`.

    Raises:
        ArgumentError: a value out of range; by `to_dict`, a loss that has no name to be found again by.
        DataError: outputs that cannot be compared, and no ``loss``.

    Source: ours. The forms are those of Zhang et al. 2016 (arXiv 1505.06798) and Jaderberg et al. 2014 (arXiv
    1405.3866), with data in place of weights; layer by layer on what the compressed network puts in is the former's
    asymmetric reconstruction, without its nonlinearity.
    """

    samples: int = 1024
    forms: tuple[Form, ...] = ("spatial", "spatial-t")
    refit: Literal["both", "last"] = "both"
    loss: Callable[[Any, Any], Any] | str | None = None
    memory: int = 1 << 30

    name: ClassVar[str] = "calibrated"
    needs_data: ClassVar[bool] = True
    keeps_norms: ClassVar[bool] = True
    times_itself: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        check(is_count(self.samples), "samples", "an integer >= 1", self.samples)
        some = isinstance(self.forms, tuple) and len(self.forms) > 0 and all(f in get_args(Form) for f in self.forms)
        check(some, "forms", f"a tuple of one or more of {', '.join(get_args(Form))}", self.forms)
        check(self.refit in ("both", "last"), "refit", "'both' or 'last'", self.refit)
        check(is_count(self.memory), "memory", "a number of bytes >= 1", self.memory)
        if isinstance(self.loss, str) and self.loss != "logits":
            object.__setattr__(self, "loss", find_loss(self.loss))  # one value, however it is written
        elif self.loss is not None:
            fits = self.loss == "logits" or callable(self.loss)
            check(fits, "loss", 'a function (outputs, dense outputs) -> scalar, "logits", or None', self.loss)

    def choose(self, problem: Problem, budget: Budget | None) -> Plan:
        """The best of three allocations, refitted."""
        assert budget is not None
        require_reachable(problem, budget, form_tables(problem, self.forms))
        key = (self.name, self.samples, self.forms, self.loss, self.memory)
        if key not in problem.tables:
            problem.tables[key] = self._judged(problem)
        held, fit, tables, scales = problem.tables[key]
        allocations = {
            "measured": partial(_measured, scales),
            "uniform": partial(_uniform, self.forms[0]),
            "min-max": _min_max,
        }
        plans: dict[str, Plan] = {}
        for name, allocate in allocations.items():
            try:
                plans[name] = self._allotted(problem, budget, tables, allocate)
            except BudgetError:
                if not plans:  # the first tells what can be reached where nothing fits
                    raise
        return best_refitted(problem, plans, fit, held, factors=self.refit, loss=self._output_loss, memory=self.memory)

    def to_dict(self) -> dict[str, Any]:
        """The name and the fields, for JSON; a loss as ``"module:function"``.

        Raises:
            ArgumentError: a loss that is no function at the top of a module.
        """
        named = self.loss if self.loss in (None, "logits") else loss_name(self.loss)
        return super().to_dict() | {"loss": named}

    def _allotted(self, problem: Problem, budget: Budget, tables: list[Candidates], allocate: Allocate) -> Plan:
        """The plan of one allocation, with the smallest layers dense; with a limit on latency, as measured."""

        def choose(now: Problem, limited: Budget) -> Plan:
            left, limits = self.spared(now, limited, tables), now.limits(limited)
            found, each, reasons = allotted(self.name, left, tables, lambda those: allocate(now, those, limits))
            choice, about = found or (None, {})
            return as_plan(now, self.name, each, choice, limited, left=reasons, measure="output", **about)

        return within_latency(problem, budget, choose) if problem.times is not None else choose(problem, budget)

    @property
    def _output_loss(self) -> Any:
        return self.loss if self.loss == "logits" else require_loss(self.loss)

    def _judged(self, problem: Problem) -> tuple[list[Any], list[Any], list[Candidates], list[float]]:
        """Batches to compare and to fit on, the options of every layer, and what its errors cost."""
        model, data = problem.model, cast("Any", problem.data)
        batches = kept_batches(model, data, self.samples)
        examples = sum(map(len, calibration_batches(model, batches)))
        held, fit = held_out(model, batches, max(1, min(_HELD, examples // _LEAST_FITTED)))
        each = positions_in(model, held)
        some = calibration_batches(model, held_out(model, held, max(_LEAST_MEASURED, _MEASURED // each))[0])
        meter = LossMeter(problem, list(some), self._output_loss)
        layers = judged_layers(problem, fit, forms=self.forms, errors=_ERRORS, samples=self.samples, memory=self.memory)
        found = [(layer.table, meter.scale(layer)) for layer in layers]
        return held, fit, [table for table, _ in found], [scale for _, scale in found]


def _measured(scales: list[float], problem: Problem, tables: list[Candidates], limits: Limits) -> Chosen | None:
    """The least sum of measured losses; a layer that seems to matter not at all still decides between equals."""
    floor = 1e-6 * max(scales, default=1.0) or 1.0
    losses = [max(c, floor) * layer_loss(t.error).numpy() for t, c in zip(tables, scales, strict=True)]
    found = lagrange.allocate(tables, losses, limits, spend=True)
    return None if found is None else (found.choice, {"gap": found.gap})


def _uniform(form: str, problem: Problem, tables: list[Candidates], limits: Limits) -> Chosen | None:
    """The same share of the full rank everywhere."""
    found = uniform_choice(problem, tables, form, limits)
    return None if found is None else (found[0], {})


def _min_max(problem: Problem, tables: list[Candidates], limits: Limits) -> Chosen | None:
    """The least common error."""
    found = minmax.allocate(tables, limits)
    return None if found is None else (list(found.choice), {"gap": 0.0})
