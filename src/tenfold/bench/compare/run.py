"""One run of a comparison: train, compress, recover, measure."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tenfold.bench.compare.cuts import curve
from tenfold.bench.compare.experiment import AFTER, DENSE, Experiment, Row
from tenfold.bench.compare.findings import Accuracy, Curve, CutCurve, Verdict
from tenfold.bench.compare.in_int8 import in_int8
from tenfold.bench.compare.measure import became, finite, price, sampled_spectra, speed
from tenfold.bench.compare.rank_history import Watched
from tenfold.bench.compare.results import Failure, Place, RunResult
from tenfold.bench.environment import forget_peak, peak_memory
from tenfold.errors import CheckpointError, TenfoldWarning
from tenfold.layers.batchnorm import reestimate_
from tenfold.layers.norm_choice import settle_norms_
from tenfold.layers.swap import structure_of, to_dense
from tenfold.methods.contract.builder import compress
from tenfold.methods.contract.method import Goal, Method
from tenfold.methods.dense import Dense
from tenfold.plans.apply import Result
from tenfold.plans.budget import Budget
from tenfold.plans.refit_result import refitted
from tenfold.plans.serialization import save
from tenfold.train import (
    Data,
    Epoch,
    Fit,
    Parts,
    Recipe,
    Score,
    Split,
    build_model,
    evaluate,
    fit,
    load_checkpoint,
    read_record,
)
from tenfold.train.calibration import CalibrationBatches

NETWORKS = "networks"
"""Folder of the networks, where they are kept."""

Tell = Callable[[float], None]
"""Called with the epochs done, while a run goes on."""


@dataclass(frozen=True)
class Setting:
    """The experiment, data and folders that all of its runs share.

    Args:
        experiment: what is compared.
        data: its data set, of the training set only what it uses.
        place: where this process is.
        work: folder in that of the experiment, for what has to outlast a killed process.
    """

    experiment: Experiment
    data: Data
    place: Place
    work: Path

    def example(self, model: nn.Module, images: int = 1) -> torch.Tensor:
        """Images of zeros on the device of ``model``, to count MACs for."""
        data, device = self.data, next(model.parameters()).device
        return torch.zeros(images, data.channels, data.size, data.size, device=device)

    def conditions(self, model: nn.Module, budget: Budget | None) -> dict[str, Any]:
        """Arguments of `compress` that a budget is counted for; one on latency, as results are timed."""
        if budget is None or "latency" not in budget.costs:
            return {"example_inputs": self.example(model)}
        timing = self.experiment.latency
        example = self.example(model, timing.batch)
        return {"example_inputs": example, "runtime": timing.runtime, "threads": torch.get_num_threads()}

    def network(self, seed: int) -> nn.Module:
        """The network with its first weights, a function of the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build_model(self.experiment.model, self.data.classes, self.data.channels, self.data.size)

    def selection(self) -> dict[str, Any]:
        """The layers that may be compressed."""
        return {"target_modules": self.experiment.target, "exclude_modules": self.experiment.exclude}

    def calibration(self, seed: int) -> CalibrationBatches:
        """Training images for what looks at data: re-estimated batch norm, and methods that need it."""
        return CalibrationBatches(self.data.part(self.experiment.calibration), self.experiment.whole(seed))

    def score(self, model: nn.Module, split: Split) -> Score:
        """Loss and accuracy of ``model`` on ``split``, in the precision of the training."""
        kind = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[self.experiment.recipe.precision]
        device = next(model.parameters()).device.type
        with torch.autocast(device, kind, enabled=kind is not None):
            return evaluate(model, split)

    def base(self, seed: int) -> Path:
        """The folder of the dense training that all compressions with this seed start from."""
        return self.work / f"base-s{seed}"


@dataclass(frozen=True)
class _Training:
    """One call of `fit`."""

    model: nn.Module
    method: Method
    recipe: Recipe
    folder: Path
    budget: Budget | None = None
    teacher: nn.Module | None = None


def train_base(setting: Setting, seed: int, tell: Tell) -> None:
    """Train the dense network that the compressions with this seed start from; its last checkpoint stays."""
    recipe = setting.experiment.shortened(seed)
    _fitted(setting, _Training(setting.network(seed), Dense(), recipe, setting.base(seed)), tell)


def run(setting: Setting, row: Row, tell: Tell) -> tuple[RunResult, Exception | None]:
    """Do one run: its result, and the error that stopped it, which is part of the result.

    Raises:
        OSError: the disk is full, say, which is no property of a method.
    """
    blank = _blank(setting, row)
    forget_peak()
    found: dict[str, Any] = {}
    try:
        _work(setting, row, tell, found)
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - a failure is a result
        sentence = " ".join(str(error).split())
        return replace(blank, **found, failure=Failure(type(error).__name__, sentence)), error
    return replace(blank, **found, peak_memory=peak_memory()), None


def failed(setting: Setting, row: Row, why: Failure) -> RunResult:
    """The result of a run that could not begin."""
    return replace(_blank(setting, row), failure=why)


def _blank(setting: Setting, row: Row) -> RunResult:
    """What is known of a run before it begins."""
    experiment, entry = setting.experiment, row.entry
    recovery = experiment.recovery if entry.kind == AFTER else 0
    method = entry.method.to_dict()
    recipe = replace(experiment.recipe, **entry.recipe, seed=row.seed)
    return RunResult(
        id=row.id,
        label=entry.label,
        method=method.pop("method"),
        fields=json.loads(json.dumps(method, default=repr)),
        kind=entry.kind,
        budget=row.budget.limits if row.budget else {},
        seed=row.seed,
        model=experiment.model,
        data=experiment.to_dict()["data"] | {"train": len(setting.data.train), "checksum": setting.data.checksum},
        recipe=asdict(recipe) | {"milestones": list(recipe.milestones)},
        epochs={"training": experiment.recipe.epochs - recovery, "recovery": recovery},
        place=setting.place,
    )


def _work(setting: Setting, row: Row, tell: Tell, found: dict[str, Any]) -> None:
    """Fill ``found``, stage by stage, with the fields of a `RunResult`."""
    experiment = setting.experiment
    if row.entry.kind == AFTER:
        trained, history = _base(setting, row.seed)
    else:
        whole = experiment.whole(row.seed, row.entry)
        training = _Training(setting.network(row.seed), row.entry.method, whole, setting.work / row.id, row.budget)
        fitted, watched = _fitted(setting, training, tell)
        trained, history = fitted.model, fitted.history
        found["evolution"] = watched.evolution
    found["curves"] = [Curve("training", history)]
    found["seconds"] = {"training": sum(epoch.seconds for epoch in history)}
    found["accuracy"] = Accuracy(history[-1].validation_accuracy)
    if row.entry.kind != AFTER:
        found["cuts"] = _cut(setting, row, trained)
    result = _compressed(setting, row, trained)
    found["layers"] = [became(name, layer) for name, layer in result.plan.layers.items()]
    found["level"] = finite(result.plan.level)
    found["seconds"] |= result.report.seconds
    small = result.model
    if row.entry.kind != DENSE:
        small = _mended(setting, row, trained, result, found, tell)
    example, timing = setting.example(small), experiment.latency
    found["price"] = price(result.report, small, setting.conditions(small, row.budget)["example_inputs"])
    found["spectra"] = sampled_spectra(trained, small, **setting.selection())
    found["latency"] = speed(small, example, batch=timing.batch, rounds=timing.rounds, runtime=timing.runtime)
    score = setting.score(small, setting.data.test)
    found["test"] = Verdict(score.accuracy, finite(score.loss))
    if experiment.int8 is not None:
        test, images = setting.data.test, setting.calibration(row.seed)
        images = replace(images, recipe=replace(images.recipe, augment="none"))  # as inference sees them
        batch = setting.example(small, timing.batch)
        found["int8"] = in_int8(
            small, batch, experiment.int8, images, lambda file: evaluate(file, test).accuracy, rounds=timing.rounds
        )
    if experiment.keep:
        save(small, setting.work.parent / NETWORKS / row.id, result.plan)


def _base(setting: Setting, seed: int) -> tuple[nn.Module, list[Epoch]]:
    """The network that the compressions with this seed start from, and how it was trained."""
    model = setting.network(seed)
    record = load_checkpoint(setting.base(seed) / "checkpoint", Parts(model, {}))
    return model.to(setting.place.device), [Epoch(**row) for row in record["history"]]


def _compressed(setting: Setting, row: Row, trained: nn.Module) -> Result:
    """What the method makes of a trained network, before batch norm is re-estimated."""
    method, conditions = row.entry.method, setting.conditions(trained, row.budget)
    data = setting.calibration(row.seed) if method.needs_data else None
    selection = setting.selection()
    with warnings.catch_warnings():  # an experiment without budgets means it
        warnings.filterwarnings("ignore", ".*`budget` was not given.*", TenfoldWarning)
        return compress(trained, method, row.budget, data=data, norms="keep", align=1, **conditions, **selection)


def _cut(setting: Setting, row: Row, trained: nn.Module) -> list[CutCurve]:
    """What the cuts of the experiment leave of a trained network, on the validation set."""
    return [
        curve(
            cuts,
            trained,
            lambda small: setting.score(small, setting.data.validation).accuracy,
            data=setting.calibration(row.seed),
            example=setting.example(trained),
        )
        for cuts in setting.experiment.cuts
    ]


def _mended(
    setting: Setting, row: Row, trained: nn.Module, result: Result, found: dict[str, Any], tell: Tell
) -> nn.Module:
    """The compressed network refitted, its batch norm as the experiment wants it, and recovered after a compression."""
    experiment, small, held = setting.experiment, result.model, setting.data.validation
    found["accuracy"] = replace(found["accuracy"], right_after=setting.score(small, held).accuracy)
    if row.entry.refit:
        dense = to_dense(trained) if structure_of(trained) else trained
        found["seconds"] |= refitted(result, dense, setting.calibration(row.seed), row.entry.refit).report.seconds
    fits = row.entry.refit is not None or row.entry.method.keeps_norms
    norms = "keep" if fits else experiment.norms
    if result.plan.compresses and norms != "keep":
        clock = time.perf_counter()
        if norms == "auto":
            settle_norms_(small, trained, setting.calibration(row.seed), "auto")
        else:
            reestimate_(small, setting.calibration(row.seed))
        found["seconds"] |= {"reestimate": time.perf_counter() - clock}
    found["accuracy"] = replace(found["accuracy"], reestimated=setting.score(small, held).accuracy)
    if row.entry.kind != AFTER or not experiment.recovery:
        return small
    recipe = experiment.recovering(row.seed)
    fitted, _ = _fitted(setting, _Training(small, Dense(), recipe, setting.work / row.id, teacher=trained), tell)
    before = experiment.recipe.epochs - experiment.recovery
    epochs = [replace(epoch, epoch=epoch.epoch + before) for epoch in fitted.history]
    found["curves"] = [*found["curves"], Curve("recovery", epochs)]
    found["seconds"] |= {"recovery": fitted.seconds}
    found["accuracy"] = replace(found["accuracy"], recovered=epochs[-1].validation_accuracy)
    return fitted.model


def _fitted(setting: Setting, training: _Training, tell: Tell) -> tuple[Fit, Watched]:
    """The training, from its last checkpoint on; a checkpoint that does not fit (another version's) is dropped."""
    watched = Watched(training.method, tell)
    conditions = setting.conditions(training.model, training.budget)
    goal = Goal(training.budget, **conditions, **setting.selection())

    def go(resume: bool) -> Fit:
        return fit(
            training.model,
            watched,
            setting.data,
            training.recipe,
            goal=goal,
            teacher=training.teacher if training.recipe.distill else None,
            out=training.folder,
            resume=resume,
            progress=False,
        )

    with warnings.catch_warnings(), contextlib.suppress(CheckpointError):
        warnings.filterwarnings("ignore", ".*is a finished run.*", TenfoldWarning)
        read_record(training.folder / "checkpoint")
        return go(resume=True), watched
    shutil.rmtree(training.folder, ignore_errors=True)
    return go(resume=False), watched
