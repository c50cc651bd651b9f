"""The work of ``tenfold compress``: three ways to a plan, then the model, its batch norm, and its recovery."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tenfold.bench.budget_search import Probe, smallest_budget
from tenfold.cli import parse, runs
from tenfold.cli.progress import Stage, Steps, score
from tenfold.errors import ArgumentError, PlanError, check
from tenfold.layers.batchnorm import reestimate_
from tenfold.layers.cost import Cost, cost
from tenfold.methods.contract.builder import plan as make_plan
from tenfold.methods.contract.method import Method
from tenfold.methods.dense import Dense
from tenfold.plans.apply import Report, Result, apply
from tenfold.plans.plan import Budget, Plan
from tenfold.plans.problem import survey
from tenfold.train import Epoch, Recipe, evaluate, fit
from tenfold.train.calibration import calibration


@dataclass(frozen=True)
class PlanSource:
    """How the plan comes about: a method within a budget or a guard, or a plan that was written before.

    Args:
        record: of the method, for ``run.json``.
        method: None with a plan.
        budget: None with a guard or a plan, or where the method chooses ranks itself.
        guard: points of accuracy that may be lost, <= 0; None for none.
        resolution: of the guard, as a share of the parameters.
        plan: to be built as written.
    """

    record: dict[str, Any]
    method: Method | None = None
    budget: Budget | None = None
    guard: float | None = None
    resolution: float = 0.01
    plan: Plan | None = None


@dataclass(frozen=True)
class CompressionOutcome:
    """What the work left: the figures of each stage, the result, the model in the end, the recovery, the search."""

    stages: list[Stage]
    result: Result
    model: nn.Module
    history: list[Epoch]
    seconds: float
    probes: Sequence[Probe]
    least: float | None


def way_to(
    *,
    method: str | None,
    fields: Sequence[str],
    budget: Sequence[str],
    guard: float | None,
    resolution: float,
    plan: Path | None,
    selecting: bool,
) -> PlanSource:
    """The way that the options ask for, before any work.

    Raises:
        ArgumentError: options that exclude one another, or out of their range.
        PlanError: a file that holds no plan.
    """
    if plan is not None:
        others = {"--method": method, "--set": fields, "--budget": budget, "--guard": guard is not None}
        others |= {"--target and --exclude": selecting}
        given = [name for name, value in others.items() if value]
        if given:
            raise ArgumentError(f"`--plan` says all that {given[0]} would: give one or the other.")
        written = _read(plan)
        return PlanSource({"method": written.method}, plan=written)
    made, limits = parse.method(method or "alds", fields), parse.budget(budget)
    if guard is None:
        parse.require_budget(made, limits)
        return PlanSource(made.to_dict(), made, limits)
    check(not budget, "--guard", "given without --budget, which it finds", list(budget))
    check(-100 < guard <= 0, "--guard", "points of accuracy to lose, in (-100, 0]", guard, "-1.0 allows one point.")
    check(0.0001 <= resolution <= 0.5, "--resolution", "in [0.0001, 0.5]", resolution)
    return PlanSource(made.to_dict(), made, None, guard, resolution)


def _read(file: Path) -> Plan:
    if file.is_dir():
        raise ArgumentError(f"`--plan` must be a file; got the folder '{file}'. A run's own is model/plan.json in it.")
    try:
        return Plan.from_json(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"`--plan` must be a file that can be read; got '{file}': {error}.") from error
    except PlanError as error:
        raise PlanError(f"`--plan` must be a plan; in '{file}', {error}") from error


def work(source: runs.Run, way: PlanSource, settings: runs.Settings, recovery: Recipe) -> CompressionOutcome:
    """Plan, build, re-estimate batch norm, recover; and measure after each."""
    data, epochs = source.data, settings.finetune
    norms = any(isinstance(module, _BatchNorm) for module in source.model.modules())
    titles = ["evaluating before", "searching" if way.guard is not None else "compressing", "evaluating"]
    titles += ["re-estimating batch norm", "evaluating"] if norms else []
    steps = Steps(titles + (["recovering", "evaluating"] if epochs else []))

    def renew(model: nn.Module) -> None:
        reestimate_(model, calibration(data, recovery))

    with steps.step():
        stages = [score("before", source.model, data)]
    before, least, probes = stages[0].validation.accuracy, None, ()
    with steps.step():
        clock = time.perf_counter()
        if way.guard is not None:
            least = max(before + way.guard / 100, 0.0)
            plan, probes = _search(source, way, settings, recovery, least, renew, steps)
        else:
            plan = way.plan or _planned(source, way, settings, recovery)
        result = _build(source, plan, time.perf_counter() - clock)
    model, history, seconds = result.model, [], 0.0
    with steps.step():
        stages.append(score("right after compression", model, data))
    if norms:
        with steps.step():
            renew(model)
        with steps.step():
            stages.append(score("batch norm re-estimated", model, data))
    if epochs:
        with steps.step(shows_itself=True):
            fitted = fit(model, Dense(), data, recovery, teacher=source.model if recovery.distill else None)
        model, history, seconds = fitted.model, fitted.history, fitted.seconds
        with steps.step():
            stages.append(score(f"recovered ({epochs} epoch{'s' * (epochs > 1)})", model, data))
    return CompressionOutcome(stages, result, model, history, seconds, probes, least)


def _planned(source: runs.Run, way: PlanSource, settings: runs.Settings, recipe: Recipe) -> Plan:
    assert way.method is not None
    return make_plan(source.model, way.method, way.budget, **_given(source, way, settings, recipe))


def _search(
    source: runs.Run,
    way: PlanSource,
    settings: runs.Settings,
    recipe: Recipe,
    least: float,
    renew: Callable[[nn.Module], None],
    steps: Steps,
) -> tuple[Plan, Sequence[Probe]]:
    """The guard: every probe is measured on the validation set, never the test set, its batch norm re-estimated."""
    assert way.method is not None

    def accuracy(model: nn.Module) -> float:
        renew(model)
        return evaluate(model, source.data.validation).accuracy

    def report(probe: Probe) -> None:
        verdict = "enough" if probe.enough else "too little"
        steps.say(f"{probe.budget:.1%} of the parameters: {probe.accuracy:.2%}, {verdict}")

    problem = survey(source.model, **_given(source, way, settings, recipe))
    problem.require_sites()
    rounding = 1e-9
    floor = max(least - rounding, 0.0)
    found = smallest_budget(problem, way.method, accuracy, floor, resolution=way.resolution, report=report)
    return found.plan, found.probes


def _given(source: runs.Run, way: PlanSource, settings: runs.Settings, recipe: Recipe) -> dict[str, Any]:
    """What surveys take: the example, the selection, and training data for the methods that need it."""
    needed = way.method is not None and way.method.needs_data
    return {
        "example_inputs": source.example,
        "data": calibration(source.data, recipe) if needed else None,
        "target_modules": settings.target,
        "exclude_modules": settings.exclude,
    }


def _build(source: runs.Run, plan: Plan, seconds: float) -> Result:
    """The model, and what came of it."""
    clock = time.perf_counter()
    small = apply(source.model, plan)
    spent = {"plan": seconds, "apply": time.perf_counter() - clock}
    dense = cost(runs.dense(source), source.example)
    left = {name: layer.reason or "" for name, layer in plan.layers.items() if layer.decomposition == "dense"}
    return Result(small, plan, Report(Cost(dense.params, dense.macs), cost(small, source.example), spent, left))
