"""``tenfold train``: a network from its first weights, by any method."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

from tenfold.cli import figures, parse, runs, tables
from tenfold.cli.command import Outcome, console, verb
from tenfold.cli.figures import ByAccuracy, Stage
from tenfold.cli.network_options import Trust
from tenfold.cli.options import (
    METHODS,
    DataRoot,
    Exclude,
    Fields,
    Force,
    Limits,
    Out,
    Target,
    recipe_options,
    with_default,
)
from tenfold.cli.progress import Steps
from tenfold.cli.source import require_word
from tenfold.errors import CheckpointError
from tenfold.files import finish_exchange, only_writer
from tenfold.layers.cost import Cost
from tenfold.layers.norm_choice import settle_norms_
from tenfold.layers.swap import structure_of
from tenfold.methods.contract.builder import plan as make_plan
from tenfold.methods.contract.method import Goal, Method
from tenfold.methods.contract.own import record
from tenfold.own_code import absolute
from tenfold.plans.apply import Result
from tenfold.plans.budget import Budget
from tenfold.train import Fit, Recipe, fit
from tenfold.train.calibration import CalibrationBatches
from tenfold.train.data import Data
from tenfold.train.probe import Probed, settled
from tenfold.train.recipe import AUTO

NAME = "train"
EXAMPLES = (
    "Examples:\n\n"
    "tenfold train --data digits --model cnn --epochs 10 --out runs/a\n\n"
    "tenfold train --data fashion-mnist --model resnet20 --schedule multistep --milestones 15,20 --out runs/b\n\n"
    "tenfold train --data digits --model my_file.py:make_net --method alds --budget params=0.25 --out runs/c\n\n"
    "tenfold train --out runs/b --resume"
)
_DEFAULTS: dict[str, Any] = {"data": "digits", "network": "cnn", "method": "dense"}
_LEFT_OPEN = {"precision": AUTO, "memory_format": AUTO}
_RECIPE = [name for name in Recipe.__dataclass_fields__ if name not in ("total", "distill", "temperature")]


@verb
@recipe_options(_RECIPE, panel="Recipe", own=_LEFT_OPEN)
def command(
    *,
    out: Out,
    data: Annotated[
        str | None, typer.Option(help=with_default("digits, npz:FILE, ... or FILE.py:FUNCTION.", "digits"))
    ] = None,
    data_root: DataRoot = None,
    model: Annotated[
        str | None, typer.Option(help=with_default("cnn, lenet5, resnet20, ... or FILE.py:FACTORY.", "cnn"))
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help=with_default(METHODS, "dense"), rich_help_panel="Compression"),
    ] = None,
    fields: Fields = None,
    budget: Limits = None,
    target: Target = None,
    exclude: Exclude = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on after the last whole epoch; what is not given is as it was.")
    ] = False,
    trust: Trust = False,
    force: Force = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write scalars to FOLDER/tensorboard.")] = False,
    recipe: dict[str, Any],
) -> Outcome:
    """Train a network. By a method that compresses, the compressed one is saved.

    The folder gets a checkpoint after every epoch: after Ctrl-C, --resume goes on from there.
    """
    model, data = (None if name is None else absolute(name) for name in (model, data))
    old = runs.read_settings(out) if resume else None
    if old is not None:
        typed = {"model": model, "data": data, "method": None if method is None else absolute(method)}
        require_word(old, out, typed, trust=trust)
    settings = _settings(
        old,
        recipe,
        data={"name": data, "root": None if data_root is None else str(data_root.expanduser().resolve())},
        network=model,
        method=(method, fields or ()),
        budget=parse.budget(budget or ()),
        target=parse.selection(target or ()),
        exclude=parse.selection(exclude or ()),
    )
    with only_writer(out):
        if not resume:
            runs.check_out(out, force=force)
        job, choice = _decided(_prepare(settings))
        with runs.resumed_folder(out) if resume else runs.training_folder(out, job.settings):
            trained = _fit(job, out, resume=resume, tensorboard=tensorboard)
        with Steps().step("compressing and evaluating"):
            result, rows = _finish(job, trained)
        figures = _results(out, job.settings, trained, result, rows)
        figures["probe"] = job.settings.probe or None
        body = runs.write_training(out, job.settings, result.model, result.plan, figures)
    chosen = [] if choice is None else [choice.sentence]
    treated = job.method.describe(job.network, job.goal())
    return Outcome(
        body, [*chosen, *tables.described(job.method.name, treated), *_shown(out, job.settings, trained, result, rows)]
    )


@dataclass(frozen=True)
class _Job:
    """All that a training needs, checked."""

    settings: runs.Settings
    method: Method
    recipe: Recipe
    budget: Budget | None
    data: Data
    network: nn.Module

    def given(self) -> dict[str, Any]:
        """The selection, and training data for the methods that need it."""
        data = CalibrationBatches(self.data, self.recipe) if self.method.needs_data else None
        return {"data": data, "target_modules": self.settings.target, "exclude_modules": self.settings.exclude}

    def goal(self) -> Goal:
        """What the training leads to; the network is on the CPU when it begins."""
        example = self.example(torch.device("cpu"))
        return Goal(self.budget, example, self.settings.target, self.settings.exclude)

    def example(self, device: torch.device) -> torch.Tensor:
        return torch.zeros(1, self.data.channels, self.data.size, self.data.size, device=device)


def _settings(old: runs.Settings | None, recipe: dict[str, Any], **given: Any) -> runs.Settings:
    """What was typed, over what the run was started with, over the defaults."""
    base = old or runs.Settings(
        command=NAME,
        data={"name": _DEFAULTS["data"], "root": None},
        network=_DEFAULTS["network"],
        method=record(parse.method(_DEFAULTS["method"], ())),
        budget={},
        recipe=_LEFT_OPEN,
    )
    if base.command != NAME:
        raise CheckpointError("`--resume` goes on with a training; that folder was written by tenfold compress.")
    changes = {key: given[key] for key in ("network", "target", "exclude") if given[key] is not None}
    name, fields = given["method"]
    if name is not None or fields:
        changes["method"] = record(parse.method(name or base.method["method"], fields))
    if given["budget"] is not None:
        changes["budget"] = given["budget"].limits
    data = base.data | {key: value for key, value in given["data"].items() if value is not None}
    whole = asdict(Recipe(**(base.recipe | recipe)))
    return replace(base, **changes, data=data, recipe=whole)


def _prepare(settings: runs.Settings) -> _Job:
    """Build everything, and plan on the untrained network: what cannot be done is refused before any work."""
    method, recipe = parse.recorded_method(settings.method), runs.recipe_of(settings)
    budget = Budget(**settings.budget) if settings.budget else None
    parse.require_budget(method, budget)
    data = runs.read_data(settings.data["name"], settings.data["root"])
    settings = replace(settings, data=settings.data | {"checksum": data.checksum})
    torch.manual_seed(recipe.seed)
    job = _Job(settings, method, recipe, budget, data, runs.network(settings, data))
    make_plan(job.network, method, budget, example_inputs=job.example(torch.device("cpu")), **job.given())
    return job


def _decided(job: _Job) -> tuple[_Job, Probed | None]:
    """The job with a recipe that leaves nothing open, which is what ``run.json`` has, and the probe that it took."""
    with Steps().step("measuring precision and memory format"):
        recipe, choice = settled(job.recipe, job.network, job.method, job.data.train, job.goal())
    screen = console(stderr=True)
    if choice is not None and screen.is_terminal:
        screen.print(choice.sentence)
    probe = job.settings.probe if choice is None else asdict(choice)
    return replace(job, recipe=recipe, settings=replace(job.settings, recipe=asdict(recipe), probe=probe)), choice


def _fit(job: _Job, out: Path, *, resume: bool, tensorboard: bool) -> Fit:
    checkpoint = out / runs.CHECKPOINT
    finish_exchange(checkpoint)
    resume = resume and checkpoint.exists()  # a run that was stopped before its first epoch was whole starts anew
    try:
        return fit(
            job.network,
            job.method,
            job.data,
            job.recipe,
            goal=job.goal(),
            out=out,
            resume=resume,
            tensorboard=tensorboard,
        )
    except KeyboardInterrupt:
        if not checkpoint.exists():
            raise
        raise KeyboardInterrupt(f"the last whole epoch is kept: tenfold train --out {out} --resume") from None


def _finish(job: _Job, trained: Fit) -> tuple[Result, list[Stage]]:
    """What the method makes of the trained network, and the figures.

    Batch norm is re-estimated where layers changed and that helps; a dense network keeps its own statistics.
    """
    example = job.example(next(trained.model.parameters()).device)
    result = job.method.finish(trained.model, job.budget, example_inputs=example, norms="keep", **job.given())
    measured = ByAccuracy(job.data)
    rows: list[Stage] = [measured.stage("trained", trained.model)]
    if structure_of(result.model):
        settled = settle_norms_(result.model, trained.model, CalibrationBatches(job.data, job.recipe), "auto")
        result = replace(result, report=replace(result.report, norms=settled))
        rows.append(measured.stage("compressed", result.model))
    return result, rows


def _results(out: Path, settings: runs.Settings, trained: Fit, result: Result, rows: list[Stage]) -> dict[str, Any]:
    return {
        "command": NAME,
        "run": str(out),
        "data": settings.data,
        "model": settings.network,
        "method": settings.method,
        "budget": settings.budget,
        "recipe": settings.recipe,
        "norms": None if result.report.norms is None else asdict(result.report.norms),
        "stages": [row.to_dict() for row in rows],
        "cost": tables.cost_dict(result.report.dense, result.report.small),
        "plan": tables.plan_dict(result.plan),
        "history": [asdict(epoch) for epoch in trained.history],
        "seconds": {"train": trained.seconds} | result.report.seconds,
    }


def _shown(out: Path, settings: runs.Settings, trained: Fit, result: Result, rows: list[Stage]) -> list[Any]:
    title = f"{settings.network} on {settings.data['name']} by {settings.method['method']}"
    title += f", {len(trained.history)} epochs in {trained.seconds:.1f} s"
    shown: list[Any] = figures.stages(title, rows)
    small: Cost = result.report.small
    trust = " --trust" if set(runs.own_code(settings)) - {"method"} else ""
    if len(rows) == 1:
        next_verb = f"compress {out}{trust} --budget macs=0.5 --out FOLDER"
        shown.append(f"{small.params:,} parameters, {small.macs or 0:,} MACs per image")
    else:
        next_verb = f"bench {out}{trust}"
        shown += [tables.plan(result.plan), tables.costs(result.report.dense, small)]
        shown += [] if result.report.norms is None else [result.report.norms.sentence]
    return [*shown, f"Saved in {out}. Next: tenfold {next_verb}"]
