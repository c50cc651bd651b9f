"""The work of ``tenfold compress``: three ways to a plan, then the model, its batch norm, and its recovery."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any, cast

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tenfold.bench.budget_search import Probe, smallest_budget
from tenfold.bench.latency import Comparison, benchmark
from tenfold.cli import parse, runs
from tenfold.cli.figures import Stage
from tenfold.cli.opening import Opened
from tenfold.cli.option_names import renamed
from tenfold.cli.progress import Steps
from tenfold.errors import ArgumentError, PlanError, TenfoldError, check
from tenfold.files import read_text
from tenfold.layers.norm_choice import NormChoice, Norms, settle_norms_
from tenfold.layers.refit import refit_
from tenfold.methods.contract.method import Method
from tenfold.methods.contract.own import record
from tenfold.methods.dense import Dense
from tenfold.optim.label_free import distill
from tenfold.plans.apply import Result, build
from tenfold.plans.budget import Budget
from tenfold.plans.plan import Plan
from tenfold.plans.problem import Problem, survey
from tenfold.plans.refit_result import SAMPLES, Refit, check_refit, norms_after, refitted
from tenfold.train import Epoch, Recipe, fit

_ROUNDS = 9
"""Turns of each network whose median tells which is faster."""


@dataclass(frozen=True)
class Timed:
    """The way in which a budget on latency is measured.

    Args:
        runtime: see `tenfold.plan`.
        threads: that it may use.
        batch: inputs in the batch; None: the network's example inputs.
    """

    runtime: str = "eager"
    threads: int = 1
    batch: int | None = None


@dataclass(frozen=True)
class PlanSource:
    """The source of a plan: a method within a budget or a guard, or a plan that was written before.

    Args:
        record: of the method, for ``run.json``.
        method: None with a plan.
        budget: None with a guard or a plan, or where the method chooses ranks itself.
        guard: points of accuracy that may be lost, <= 0; None for none.
        resolution: of the guard, as a share of the parameters.
        plan: to be built as written; None with a method.
        refit: which factors are refitted; None for none.
        steps: without labels, afterwards.
        runtime: that a budget on latency is measured in.
        threads: that it may use.
        batch: inputs in the batch that latency is measured for; None: the network's example inputs.
        align: see `tenfold.plan`.
    """

    record: dict[str, Any]
    method: Method | None = None
    budget: Budget | None = None
    guard: float | None = None
    resolution: float = 0.01
    plan: Plan | None = None
    refit: Refit | None = None
    steps: int = 0
    runtime: str = "eager"
    threads: int = 1
    batch: int | None = None
    align: int | None = None

    @property
    def label_free(self) -> str | None:
        """The option that asks for work without labels; None where none does."""
        return f"--refit {self.refit}" if self.refit else f"--distill-steps {self.steps}" if self.steps else None


@dataclass(frozen=True)
class CompressionOutcome:
    """The outcome of ``tenfold compress``.

    Args:
        stages: accuracy or score at each stage.
        result: plan, built model and report.
        model: the final model, after any recovery.
        history: the epochs of the recovery; empty without one.
        seconds: wall time of the recovery.
        probes: the budgets that a guard tried; empty without one.
        least: the lowest score that the guard allows; None without one.
        kept_norms: whether batch norm kept its old statistics, for want of inputs.
        latency: of the network before and of the final model, both made ready for inference; why it was not measured;
            None without inputs, or where nothing was compressed.
    """

    stages: list[Stage]
    result: Result
    model: nn.Module
    history: list[Epoch]
    seconds: float
    probes: Sequence[Probe]
    least: float | None
    kept_norms: bool
    latency: Comparison | str | None


def way_to(
    *,
    method: str | None,
    default: Method,
    fields: Sequence[str],
    budget: Sequence[str],
    guard: float | None,
    resolution: float,
    plan: Path | None,
    selecting: bool,
    refit: str | None,
    steps: int,
    timed: Timed | None = None,
    align: int | None = None,
) -> PlanSource:
    """Read the options that say where the plan comes from, before any work.

    Args:
        method: name or reference; None without.
        default: the method, where neither that nor a plan is given.
        fields: of the method, "FIELD=VALUE".
        budget: limits, "params=0.25".
        guard: points of accuracy that may be lost, <= 0; None without.
        resolution: of the guard, as a share of the parameters.
        plan: file of a plan to build; None without.
        selecting: whether layers are selected, which a plan excludes.
        refit: which factors are refitted; None without.
        steps: without labels, >= 0.
        timed: how a budget on latency is measured; None: as it is by default.
        align: see `tenfold.plan`.

    Raises:
        ArgumentError: options that exclude one another, or out of their range.
        PlanError: a file that holds no plan.
    """
    check_refit(refit, ())
    after: dict[str, Any] = {"refit": cast("Refit | None", refit), "steps": steps}
    if plan is not None:
        others = {"--method": method, "--set": fields, "--budget": budget, "--guard": guard is not None}
        others |= {"--target and --exclude": selecting}
        given = [name for name, value in others.items() if value]
        if given:
            raise ArgumentError(f"`--plan` says all that {given[0]} would: give one or the other.")
        written = _read(plan)
        return PlanSource({"method": written.method}, plan=written, **after)
    made, limits = parse.method_or(default, method, fields), parse.budget(budget)
    after |= asdict(checked(timed or Timed(), limits)) | {"align": align}
    if guard is None:
        parse.require_budget(made, limits)
        return PlanSource(record(made), made, limits, **after)
    check(not budget, "--guard", "given without --budget, which it finds", list(budget))
    check(-100 < guard <= 0, "--guard", "points of accuracy to lose, in (-100, 0]", guard, "-1.0 allows one point.")
    check(0.0001 <= resolution <= 0.5, "--resolution", "in [0.0001, 0.5]", resolution)
    return PlanSource(record(made), made, None, guard, resolution, **after)


def checked(timed: Timed, budget: Budget | None) -> Timed:
    """Raise `ArgumentError` where it is said how to measure latency, and no budget asks for it."""
    asked = budget is not None and "latency" in budget.costs
    names = ("runtime", "threads", "latency-batch")
    for option, value, default in zip(names, astuple(timed), astuple(Timed()), strict=True):
        rule = "given with a budget on latency, e.g. --budget latency=0.5"
        check(asked or value == default, f"--{option}", rule, value)
    return timed


def _read(file: Path) -> Plan:
    if file.is_dir():
        raise ArgumentError(f"`--plan` must be a file; got the folder '{file}'. A run's own is model/plan.json in it.")
    try:
        return Plan.from_json(read_text(file))
    except (OSError, ValueError) as error:
        raise ArgumentError(f"`--plan` must be a file that can be read; got '{file}': {error}.") from error
    except PlanError as error:
        raise PlanError(f"`--plan` must be a plan; in '{file}', {error}") from error


def needed(way: PlanSource) -> tuple[list[str], str]:
    """The needs of this way that a user's own network must bring, of "inputs" and "score", and the reason."""
    if way.guard is not None:
        return (["inputs"] if _calibrates(way) or way.label_free else []) + ["score"], "for --guard"
    if _calibrates(way):
        return ["inputs"], f"for {way.record['method']}, which looks at data"
    if way.label_free:
        return ["inputs"], f"for {way.label_free}, which looks at data"
    costs = [name for name in (way.budget.costs if way.budget is not None else ()) if name != "params"]
    return (["inputs"], f"for a budget on {costs[0]}") if costs else ([], "")


def work(
    source: Opened, way: PlanSource, settings: runs.Settings, recovery: Recipe, norms: Norms = "auto"
) -> CompressionOutcome:
    """Compress an opened network: plan, build, refit, choose batch-norm statistics, recover; measured after each stage.

    Args:
        source: the network, with its data or inputs.
        way: where the plan comes from, and what is done without labels.
        settings: of the run that is written.
        recovery: the recipe of the recovery.
        norms: what becomes of batch-norm statistics.
    """
    epochs, batches = settings.finetune, source.calibration(recovery)
    has_norms = any(isinstance(module, _BatchNorm) for module in source.model.modules())
    fitted = way.label_free is not None or (way.method is not None and way.method.keeps_norms)
    norms = norms_after(norms, fitted=fitted)
    settles = has_norms and batches is not None and norms != "keep"
    steps = Steps(4 + 2 * (settles + bool(way.refit) + bool(way.steps) + bool(epochs)))
    stages: list[Stage] = []

    def measure(name: str, model: nn.Module) -> None:
        with steps.step("evaluating"):
            if source.score is not None:
                stages.append(source.score.stage(name, model))

    measure("before", source.model)
    least, probes = None, ()
    with steps.step("compressing" if way.guard is None else "searching"):
        clock = time.perf_counter()
        problem = survey(
            source.model,
            example_inputs=source.example if way.batch is None else source.batch(way.batch),
            data=batches if _calibrates(way) else None,
            target_modules=settings.target,
            exclude_modules=settings.exclude,
            runtime=way.runtime,
            threads=way.threads,
            align=way.align,
        )
        if way.guard is not None:
            least = stages[0].value + way.guard / 100
            plan, probes = _search(source, problem, way, batches, norms, least, steps)
        else:
            plan = way.plan or _chosen(problem, way)
        seconds = {"plan": time.perf_counter() - clock}
        result = build(problem, plan, way.budget)
        result = replace(result, report=replace(result.report, seconds=seconds | result.report.seconds))
    model, history, recovering = result.model, [], 0.0
    measure("right after compression", model)
    if way.label_free:
        assert batches is not None
        result = _without_labels(source, problem.model, result, way, batches, steps, measure)
    if settles and plan.compresses:
        with steps.step("re-estimating batch norm"):
            settled = _settle(model, source, batches, norms)
        result = replace(result, report=replace(result.report, norms=settled))
        if settled is not None and settled.reestimated:
            measure("batch norm re-estimated", model)
    if epochs:
        assert source.data is not None
        with steps.step("recovering", shows_itself=True):
            trained = fit(model, Dense(), source.data, recovery, teacher=source.model if recovery.distill else None)
        model, history, recovering = trained.model, trained.history, trained.seconds
        measure(f"recovered ({epochs} epoch{'s' * (epochs > 1)})", model)
    kept_norms = has_norms and batches is None
    latency = None
    with steps.step("timing"):
        if problem.example_inputs is not None and result.plan.compresses:
            latency = _latency(problem.model, model, problem.example_inputs, way)
    return CompressionOutcome(stages, result, model, history, recovering, probes, least, kept_norms, latency)


def _latency(before: nn.Module, after: nn.Module, inputs: Any, way: PlanSource) -> Comparison | str:
    """The time of both networks as they would serve, in turns; or why there is none, of a network that runs nowhere."""
    try:
        return benchmark(before, after, inputs, runtimes=(way.runtime,), threads=way.threads, rounds=_ROUNDS).best
    except TenfoldError as error:
        return str(error)


def _without_labels(
    source: Opened,
    dense: nn.Module,
    result: Result,
    way: PlanSource,
    batches: Iterable[Any],
    steps: Steps,
    measure: Callable[[str, nn.Module], None],
) -> Result:
    """The refit and the steps that were asked for, in place, and their figures."""
    with _renamed(source):
        if way.refit:
            with steps.step("refitting"):
                result = refitted(
                    result, dense, batches, way.refit, progress=lambda name, at, of: steps.say(f"refitting {name}")
                )
            measure(f"refitted ({way.refit} factors)", result.model)
        if way.steps and result.plan.compresses:
            with steps.step("taking steps"):
                clock = time.perf_counter()
                done = distill(
                    result.model,
                    dense,
                    batches,
                    steps=way.steps,
                    progress=lambda at, of, loss: steps.say(f"step {at} of {of}"),
                )
                seconds = result.report.seconds | {"distill": time.perf_counter() - clock}
            errors = result.report.output_error | {"first batch": done.before, "first batch, distilled": done.after}
            result = replace(result, report=replace(result.report, seconds=seconds, output_error=errors))
            measure(f"{way.steps} steps without labels", result.model)
    return result


def _calibrates(way: PlanSource) -> bool:
    return way.method is not None and way.method.needs_data


def _chosen(problem: Problem, way: PlanSource) -> Plan:
    assert way.method is not None
    return way.method.plan(problem, way.budget)


def _search(
    source: Opened,
    problem: Problem,
    way: PlanSource,
    batches: Iterable[Any] | None,
    norms: Norms,
    least: float,
    steps: Steps,
) -> tuple[Plan, Sequence[Probe]]:
    """The guard: every probe is measured on the validation set, never the test set, mended as in the end."""
    assert way.method is not None
    assert source.score is not None
    score = source.score

    def value(model: nn.Module) -> float:
        if way.refit is not None and batches is not None:
            with _renamed(source):
                refit_(model, problem.model, batches, factors=way.refit, samples=SAMPLES)
        _settle(model, source, batches, norms)
        return score.value(model)

    def report(probe: Probe) -> None:
        verdict = "enough" if probe.enough else "too little"
        steps.say(f"{probe.budget:.1%} of the parameters: {probe.score:.4g}, {verdict}")

    problem.require_sites()
    rounding = 1e-9
    found = smallest_budget(problem, way.method, value, least - rounding, resolution=way.resolution, report=report)
    return found.plan, found.probes


def _settle(model: nn.Module, source: Opened, batches: Iterable[Any] | None, norms: Norms) -> NormChoice | None:
    """Batch norm as `tenfold.compress` leaves it, where there is something to estimate it from."""
    if batches is None:
        return None
    with _renamed(source):
        return settle_norms_(model, source.model, batches, norms)


def _renamed(source: Opened) -> contextlib.AbstractContextManager[None]:
    """Errors name the option that the batches come from."""
    return renamed(data="--inputs" if source.inputs is not None else "--data")
