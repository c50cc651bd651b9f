"""The two verbs after training: `plan` touches nothing, `compress` builds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from tenfold.layers.norm_choice import Norms
from tenfold.layers.select import Selection
from tenfold.layers.usable import refuse_unusable
from tenfold.methods.contract.method import Method, check_budget, check_method
from tenfold.plans.apply import Result
from tenfold.plans.budget import Budget
from tenfold.plans.plan import Plan
from tenfold.plans.problem import survey
from tenfold.plans.refit_result import Refit


def plan(
    model: nn.Module,
    method: Method,
    budget: Budget | None = None,
    *,
    example_inputs: Any = None,
    data: Iterable[Any] | None = None,
    target_modules: Selection = None,
    exclude_modules: Selection = None,
    runtime: str = "eager",
    threads: int = 1,
    align: int | None = None,
) -> Plan:
    """Choose a decomposition and rank for each layer of ``model`` within ``budget``. Nothing is changed.

    For several budgets on one model make the `Problem` once: ``problem = tenfold.survey(model, align=None)``, then
    ``method.plan(problem, budget)`` for each; the spectra are computed once.

    Args:
        model: any module with finite weights.
        method: e.g. ``tenfold.ALDS()``.
        budget: what is kept of the whole model; None where the method chooses ranks itself.
        example_inputs: needed for a budget on MACs or latency, and for MACs in the plan: a tensor, a tuple of
            positional or a dict of keyword arguments.
        data: calibration batches, for methods that need them: each what ``example_inputs`` may be, or a pair ``(inputs,
            target)``; see `tenfold.layers.calibration_batches`.
        target_modules: only these layers: a regular expression for the whole name, or a list of names or endings.
        exclude_modules: never these.
        runtime: that a budget on latency is measured in: "eager", "compile" or "onnxruntime".
        threads: that it may use on the CPU, >= 1.
        align: ranks are multiples of it, >= 1, and of half of it in linear layers, where that leaves a layer a dozen
            ranks to choose from; else of a half, a quarter, ... of it; and 1 where the budget cannot be kept otherwise.
            None: with example inputs what their device is fast at (16, 8 on a GPU), without any 1, which leaves ranks
            as the method's source has them. For a latency ranks are always aligned.

    Raises:
        BudgetError: the budget cannot be reached; the message names the smallest that can.
        ArgumentError: a model, method or budget of the wrong type; a selection that matches nothing; no inputs for a
            budget on MACs or latency.
        UnsupportedLayer: the model has no layer to decompose.
        TenfoldError: a weight with NaN or infinite entries.
    """
    check_method(method)
    refuse_unusable(model)
    check_budget(budget)
    problem = survey(
        model,
        example_inputs=example_inputs,
        data=data,
        target_modules=target_modules,
        exclude_modules=exclude_modules,
        runtime=runtime,
        threads=threads,
        align=align,
    )
    return method.plan(problem, budget)


def compress(
    model: nn.Module,
    method: Method,
    budget: Budget | None = None,
    *,
    example_inputs: Any = None,
    data: Iterable[Any] | None = None,
    target_modules: Selection = None,
    exclude_modules: Selection = None,
    refit: Refit | None = None,
    norms: Norms = "auto",
    runtime: str = "eager",
    threads: int = 1,
    align: int | None = None,
) -> Result:
    """Compress a model: choose ranks, build the smaller model, measure it, and choose its batch-norm statistics.

    ::

        small, plan, report = tenfold.compress(model, tenfold.ALDS(), tenfold.Budget(params=0.25))

    Args:
        model: any module with finite weights; untouched.
        method: e.g. ``tenfold.ALDS()``; see `tenfold.list_methods`.
        budget: what is kept of the whole model, never exceeded; None where the method chooses ranks itself.
        example_inputs: needed for a budget on MACs: a tensor, a tuple of positional or a dict of keyword arguments.
        data: batches for batch norm (see ``norms``), to calibrate a method that needs them, and to refit: each what
            ``example_inputs`` may be, or a pair ``(inputs, target)``. A refit, and a method that needs data, go through
            it twice: give them a list or a loader, no generator.
        target_modules: only these layers: a regular expression for the whole name, or a list of names or endings.
        exclude_modules: never these.
        refit: fit the factors that were built, layer after layer, to the dense layers' outputs on ``data``: "last" or
            "both" of each layer; see `tenfold.refit_`. What it does is in the model alone: the plan says ranks, and
            `tenfold.apply` builds them without. The first 1,024 examples are looked at.
        norms: what becomes of batch-norm statistics where there is ``data`` and a layer was compressed: "keep" them,
            "reestimate" them, or "auto": estimate them from three examples in four, and keep what is nearer to the
            dense network's outputs on the others; ``report.norms`` has both figures. The first 1,024 examples of
            ``data`` count, which should be a fair sample: from few, or from the first of sorted ones, statistics may
            become worse. For more call `tenfold.reestimate_`. Where factors were fitted, by ``refit`` or by the method
            (`Method.keeps_norms`), it was for the statistics of the dense network, which "auto" then keeps.
        runtime: see `tenfold.plan`.
        threads: see `tenfold.plan`.
        align: see `tenfold.plan`.

    Returns:
        the compressed model, its plan and its report; unpacks as above.

    Raises:
        BudgetError: the budget cannot be reached, with the smallest that can; or the built model exceeds it.
        ArgumentError: a model, method or budget of the wrong type, and whatever else `plan` refuses.
        UnsupportedLayer: the model has no layer to decompose.
        TenfoldError: a weight with NaN or infinite entries.
    """
    check_method(method)
    refuse_unusable(model)
    check_budget(budget)
    return method.finish(
        model,
        budget,
        example_inputs=example_inputs,
        data=data,
        target_modules=target_modules,
        exclude_modules=exclude_modules,
        refit=refit,
        norms=norms,
        runtime=runtime,
        threads=threads,
        align=align,
    )
