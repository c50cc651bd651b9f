"""Run folders: what ``train`` and ``compress`` write and every other verb reads.

::

    run.json         what was done, enough to do it again: data, network, method, budget, recipe
    model/           plan.json and model.safetensors, as tenfold.save writes them: complete runs have it
    results.json     the figures
    checkpoint/      of a training, after its last whole epoch
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tenfold.bench.environment import place
from tenfold.cli.option_names import renamed
from tenfold.errors import ArgumentError, CheckpointError, DataError
from tenfold.files import atomic_folder, write_json
from tenfold.layers.swap import structure_of, to_dense
from tenfold.plans.plan import Plan
from tenfold.plans.serialization import load, read_plan, save
from tenfold.train import Data, Recipe, build_model, load_data

FORMAT = "tenfold-run/1"
RUN, RESULTS, MODEL, CHECKPOINT = "run.json", "results.json", "model", "checkpoint"


@dataclass(frozen=True)
class Settings:
    """What makes a run, as JSON holds it.

    Args:
        command: "train" or "compress".
        data: name, root (a folder or None) and checksum of the data set.
        network: as `build_model` takes it.
        method: `Method.to_dict`.
        budget: limits by name; empty for none.
        recipe: of the training that the run descends from; recovery rewinds its schedule.
        target: as `tenfold.plan` takes it.
        exclude: as `tenfold.plan` takes it.
        source: the run that was compressed; None for a training.
        finetune: epochs of recovery.
        recovery: the recipe of the recovery; empty where there was none.
        guard: points of accuracy that might be lost; None where a budget or a plan was given.
        plan: file of the plan that was built as written; None where it was made here.
    """

    command: str
    data: dict[str, Any]
    network: str
    method: dict[str, Any]
    budget: dict[str, float | int]
    recipe: dict[str, Any]
    target: str | list[str] | None = None
    exclude: str | list[str] | None = None
    source: str | None = None
    finetune: int = 0
    recovery: dict[str, Any] = field(default_factory=dict)
    guard: float | None = None
    plan: str | None = None
    tenfold: str = field(default_factory=lambda: version("tenfold"))
    torch: str = torch.__version__

    def write(self, folder: Path) -> None:
        """Write ``folder/run.json``."""
        write_json(folder / RUN, {"format": FORMAT} | asdict(self))


@dataclass(frozen=True)
class Run:
    """A complete run, in memory: its settings, data, plan, and the model as it was saved."""

    folder: Path
    settings: Settings
    data: Data
    plan: Plan
    model: nn.Module

    @property
    def example(self) -> torch.Tensor:
        """One image of zeros, on the model's device: MACs are counted for it."""
        device = next(self.model.parameters()).device
        return torch.zeros(1, self.data.channels, self.data.size, self.data.size, device=device)


def read_settings(folder: Path) -> Settings:
    """The settings of the run in ``folder``, complete or not.

    Raises:
        CheckpointError: no run there, or a ``run.json`` that is damaged or of another format.
    """
    file = folder / RUN
    if not file.is_file():
        what = "it has no run.json" if folder.is_dir() else "there is no such folder"
        raise CheckpointError(f"no run at '{folder}': {what}. Pass a folder that tenfold train or compress wrote.")
    try:
        body = json.loads(file.read_text(encoding="utf-8"))
        found = body.pop("format", None)
        if found != FORMAT:
            raise CheckpointError(f"'{file}' has format {found!r}, not {FORMAT!r}: pass the folder of the whole run.")
        settings = Settings(**body)
        parts = (settings.data, settings.method, settings.budget, settings.recipe)
        if not all(isinstance(part, dict) for part in parts) or not {"name", "root", "checksum"} <= set(settings.data):
            raise ValueError("a part of it is missing or of another type")
        return settings
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"'{file}' is damaged or truncated: {error}. Train or compress again.") from error


def open_run(folder: Path, data_root: Path | None = None) -> Run:
    """The complete run in ``folder``: data and model as they were.

    Raises:
        CheckpointError: no run, an unfinished or a damaged one.
        DataError: the data set is missing, or another than the run was made with.
        PlanError: a plan for another model.
    """
    settings = read_settings(folder)
    if not (folder / MODEL).is_dir():
        resume = f"Go on with: tenfold train --out {folder} --resume."
        raise CheckpointError(f"the training in '{folder}' is not finished. {resume}")
    plan = read_plan(folder / MODEL)
    data = open_data(settings, data_root)
    model = load(folder / MODEL, network(settings, data))
    return Run(folder, settings, data, plan, model.to(device()).eval())


def dense(run: Run) -> nn.Module:
    """The run's model with every factorised layer multiplied back."""
    return to_dense(run.model) if structure_of(run.model) else run.model


def network(settings: Settings, data: Data) -> nn.Module:
    """The run's network for ``data``, with fresh weights from torch's global generator."""
    with renamed(name="--model"):
        return build_model(settings.network, data.classes, data.channels, data.size)


def open_data(settings: Settings, data_root: Path | None = None) -> Data:
    """The data set of a run, from ``data_root`` or where it was then; refused if its contents are others."""
    data = read_data(settings.data["name"], data_root or settings.data["root"])
    if data.checksum != settings.data["checksum"]:
        raise DataError(
            f"the data set '{data.name}' found here has other contents than the one the run was made with: its "
            f"figures would not compare. Point `--data-root` at the same files."
        )
    return data


def read_data(name: str, root: Path | str | None) -> Data:
    """A data set by name."""
    with renamed(name="--data"):
        return load_data(name, root)


def recipe_of(settings: Settings) -> Recipe:
    """The recipe that a run records."""
    try:
        return Recipe(**settings.recipe)
    except TypeError as error:
        raise CheckpointError(f"the run's `recipe` is damaged: {error}. Train again.") from error


def device() -> torch.device:
    """Where models run: the GPU if there is one, as in training."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def check_out(out: Path, *, force: bool, source: Path | None = None) -> None:
    """Refuse a folder that cannot be written, or that holds something that nobody said to replace.

    Raises:
        ArgumentError: with the remedy.
    """
    if source is not None and (out.resolve() == source.resolve() or out.resolve() in source.resolve().parents):
        raise ArgumentError(f"`--out` must be another folder than the run that is read; got '{out}'.")
    standing = next(p for p in out.absolute().parents if p.exists())
    writable = standing.is_dir() and os.access(standing, os.W_OK | os.X_OK)
    if not writable or (out.exists() and not out.is_dir()):
        blocked = out if writable else standing
        raise ArgumentError(f"`--out` must be a folder that can be written; got '{out}', and '{blocked}' is none.")
    if not out.exists() or not any(out.iterdir()):
        return
    if not (out / RUN).is_file():
        raise ArgumentError(f"`--out` must be a new or empty folder; got '{out}', which holds files that are no run.")
    if not force:
        raise ArgumentError(
            f"`--out` must be a new or empty folder; got '{out}', which holds a run. "
            f"Choose another, or replace it with --force."
        )


@contextlib.contextmanager
def training_folder(out: Path, settings: Settings) -> Iterator[None]:
    """Claim ``out`` for a training. Left by an error before the first checkpoint, all is as it was before."""
    old = out.with_name(f".{out.name}.replaced")
    shutil.rmtree(old, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.exists():
        out.replace(old)
    try:
        out.mkdir()
        settings.write(out)
        yield
    finally:
        if not (out / CHECKPOINT).exists():
            shutil.rmtree(out, ignore_errors=True)
            if old.exists():
                old.replace(out)
        shutil.rmtree(old, ignore_errors=True)


def write_training(
    out: Path, settings: Settings, model: nn.Module, plan: Plan, figures: dict[str, Any]
) -> dict[str, Any]:
    """Add the trained model and its results to the folder of a training: the figures, and where they were made."""
    results = figures | {"place": asdict(place())}
    save(model, out / MODEL, plan)
    settings.write(out)
    write_json(out / RESULTS, results)
    return results


def write_run(out: Path, settings: Settings, model: nn.Module, plan: Plan, figures: dict[str, Any]) -> dict[str, Any]:
    """Write a whole run folder, atomically; as `write_training`."""
    with atomic_folder(out) as new:
        return write_training(new, settings, model, plan, figures)
