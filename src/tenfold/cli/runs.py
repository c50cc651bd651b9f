"""Run folders: what ``train`` and ``compress`` write and every other verb reads.

::

    run.json         what was done, enough to do it again: data, network, method, budget, recipe
    model/           plan.json and model.safetensors, as tenfold.save writes them: complete runs have it
    results.json     the figures
    checkpoint/      of a training, after its last whole epoch
"""

from __future__ import annotations

import contextlib
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
from tenfold.errors import ArgumentError, CheckpointError, TenfoldError, shortened
from tenfold.files import atomic_folder, beside, finish_exchange, is_litter, read_json, write_json
from tenfold.plans.plan import Plan
from tenfold.plans.serialization import save
from tenfold.train import Data, Recipe, build_model, load_data
from tenfold.train.data import data_names
from tenfold.train.models.external import EXTERNAL
from tenfold.train.models.own import own_network
from tenfold.validation import construct

FORMAT = "tenfold-run/1"
RUN, RESULTS, MODEL, CHECKPOINT = "run.json", "results.json", "model", "checkpoint"


@dataclass(frozen=True)
class Settings:
    """The settings of a run, as ``run.json`` holds them.

    Args:
        command: "train" or "compress".
        data: name, root (a folder or None) and checksum of the data set; empty for a network without one.
        network: as `build_model` takes it.
        method: `Method.to_dict`.
        budget: limits by name; empty for none.
        recipe: of the training that the run descends from; recovery rewinds its schedule.
        target: as `tenfold.plan` takes it.
        exclude: as `tenfold.plan` takes it.
        source: the run that was compressed; None for a training, or a network that came without a run.
        finetune: epochs of recovery.
        recovery: the recipe of the recovery; empty where there was none.
        guard: points of accuracy that might be lost; None where a budget or a plan was given.
        refit: which factors were refitted; None where none were.
        distill_steps: steps without labels.
        plan: file of the plan that was built as written; None where it was made here.
        inputs: reference to the user's batches; None without any.
        score: reference to the user's function of a model; None without one.
        weights: of a network that came without a run: ``file`` (None: as the factory made it) and ``checksum``,
            SHA-256 over the names, types and bytes of its state before it was compressed.
        probe: what was measured to choose precision and memory format; empty where the user gave both.
        tenfold: version of tenfold.
        torch: version of torch.
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
    refit: str | None = None
    distill_steps: int = 0
    inputs: str | None = None
    score: str | None = None
    weights: dict[str, Any] = field(default_factory=dict)
    probe: dict[str, Any] = field(default_factory=dict)
    tenfold: str = field(default_factory=lambda: version("tenfold"))
    torch: str = torch.__version__

    def write(self, folder: Path) -> None:
        """Write ``folder/run.json``."""
        write_json(folder / RUN, {"format": FORMAT} | asdict(self))


@dataclass(frozen=True)
class _DataRecord:
    """The keys and types of `Settings.data`."""

    name: str
    root: str | None
    checksum: str


def read_settings(folder: Path) -> Settings:
    """Read the settings of the run in ``folder``, complete or not.

    Raises:
        CheckpointError: no run there, or a ``run.json`` that is damaged or of another format.
    """
    _finish_exchange(folder)
    file = folder / RUN
    if not file.is_file():
        what = "it has no run.json" if folder.is_dir() else "there is no such folder"
        raise CheckpointError(f"no run at '{folder}': {what}. Pass a folder that tenfold train or compress wrote.")
    try:
        body = read_json(file)
        found = body.pop("format", None) if isinstance(body, dict) else None
        if found != FORMAT:
            raise CheckpointError(
                f"'{file}' has format {shortened(found)}, not {FORMAT!r}: pass the folder of the whole run."
            )
        settings = construct(Settings, body, "the record", ArgumentError)
        if settings.data:
            construct(_DataRecord, settings.data, "its 'data'", ArgumentError)
        return settings
    except (OSError, ValueError) as error:
        why = str(error).replace("`", "'").rstrip(".")  # keys of a file, not options
        raise CheckpointError(f"'{file}' is damaged or truncated: {why}. Train or compress again.") from error


def network(settings: Settings, data: Data | None) -> nn.Module:
    """Make the run's network for ``data``, with weights from torch's global generator; without data, a user's."""
    with renamed(name="--model"):
        if data is None:
            return own_network(settings.network)
        return build_model(settings.network, data.classes, data.channels, data.size)


def is_own_network(name: str) -> bool:
    """Whether a network's name is a reference to code of the user's."""
    library, colon, _ = name.partition(":")
    return bool(colon) and library not in EXTERNAL


def own_code(settings: Settings) -> dict[str, str]:
    """The references of a run to a user's own code, by the option that names them."""
    method, data = str(settings.method.get("method", "")), str(settings.data.get("name", ""))
    files = {known.partition(":")[0] for known in data_names() if ":" in known}
    own = {
        "model": settings.network if is_own_network(settings.network) else None,
        "inputs": settings.inputs,
        "score": settings.score,
        "data": data if ":" in data and data.partition(":")[0] not in files else None,
        "method": method if ":" in method else None,
    }
    return {option: reference for option, reference in own.items() if reference is not None}


def read_data(name: str, root: Path | str | None) -> Data:
    """Load a data set by name."""
    with renamed(name="--data"):
        return load_data(name, root)


def recipe_of(settings: Settings) -> Recipe:
    """The recipe that a run records.

    Raises:
        CheckpointError: a recipe of another version, or a damaged one.
    """
    try:
        return construct(Recipe, settings.recipe, "its 'recipe'", CheckpointError)
    except TenfoldError as error:
        raise CheckpointError(f"the run's `recipe` is damaged: {error} Train again.") from error


def device() -> torch.device:
    """The device of models: the GPU if there is one, as in training."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def check_out(out: Path, *, force: bool, source: Path | None = None) -> None:
    """Raise `ArgumentError` for a folder that cannot be written, or that holds something, without ``force``.

    Raises:
        ArgumentError: with the remedy.
    """
    if source is not None and (out.resolve() == source.resolve() or out.resolve() in source.resolve().parents):
        raise ArgumentError(f"`--out` must be another folder than the run that is read; got '{out}'.")
    standing = next((p for p in out.absolute().parents if p.exists()), out.absolute())  # the root has no parents
    writable = standing.is_dir() and os.access(standing, os.W_OK | os.X_OK)
    if not writable or (out.exists() and not out.is_dir()):
        blocked = out if writable else standing
        raise ArgumentError(f"`--out` must be a folder that can be written; got '{out}', and '{blocked}' is none.")
    if out.resolve() in (here := Path.cwd(), *here.parents):
        raise ArgumentError(f"`--out` must be another folder than the one at hand, or one it lies in; got '{out}'.")
    _finish_exchange(out)
    if not out.exists() or all(is_litter(p.name) for p in out.iterdir()):
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
    old = _replaced(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    _finish_exchange(out)
    if old.exists():  # of a training that was killed before its first checkpoint: what it replaced is still the old run
        shutil.rmtree(out, ignore_errors=True)
    elif out.exists():
        out.replace(old)
    try:
        with atomic_folder(out) as new:
            settings.write(new)
        yield
    finally:
        if not (out / CHECKPOINT).exists():
            shutil.rmtree(out, ignore_errors=True)
        _finish_exchange(out)


@contextlib.contextmanager
def resumed_folder(out: Path) -> Iterator[None]:
    """Go on with the training in ``out``; with its first checkpoint the run that it replaces goes."""
    try:
        yield
    finally:
        _finish_exchange(out)


def _replaced(out: Path) -> Path:
    return beside(out, "replaced")


def _finish_exchange(out: Path) -> None:
    """Finish what a killed process left of ``out``: the run that a training replaces stays until its first checkpoint.

    A new training that was killed before it stays beside the old run; it may be gone on with.
    """
    finish_exchange(out)
    finish_exchange(out / CHECKPOINT)
    old = _replaced(out)
    if not old.exists():
        return
    if (out / CHECKPOINT).exists():
        shutil.rmtree(old, ignore_errors=True)
    elif not (out / RUN).is_file():
        shutil.rmtree(out, ignore_errors=True)
        old.replace(out)


def write_training(
    out: Path, settings: Settings, model: nn.Module, plan: Plan, figures: dict[str, Any]
) -> dict[str, Any]:
    """Add the trained model and its results to the folder of a training.

    Args:
        out: the folder.
        settings: of the run.
        model: the trained model.
        plan: that it is built to.
        figures: for ``results.json``; where they were made is added.
    """
    results = figures | {"place": asdict(place())}
    save(model, out / MODEL, plan)
    settings.write(out)
    write_json(out / RESULTS, results)
    return results


def write_run(out: Path, settings: Settings, model: nn.Module, plan: Plan, figures: dict[str, Any]) -> dict[str, Any]:
    """Write a whole run folder, atomically; arguments as in `write_training`."""
    with atomic_folder(out) as new:
        return write_training(new, settings, model, plan, figures)
