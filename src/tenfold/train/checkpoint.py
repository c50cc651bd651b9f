"""A run in progress, in a folder that is whole or absent.

``model.safetensors`` holds the weights and buffers, ``state.pt`` what the optimizer and the schedule remember,
``run.json`` everything else, with the checksums of the other two. Random numbers need no place: every epoch seeds its
own generators from the recipe's seed and its number, so that the number of epochs done is the whole position.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tenfold.errors import CheckpointError, shortened
from tenfold.files import atomic_file, atomic_folder, disk_errors, finish_exchange, read_json, write_json
from tenfold.validation import construct

FORMAT = 1
MODEL, STATE, RUN = "model.safetensors", "state.pt", "run.json"


@dataclass(frozen=True)
class Parts:
    """The objects whose state a checkpoint holds.

    Args:
        model: its parameters and buffers; tied ones are stored once.
        others: whatever else has ``state_dict`` and ``load_state_dict``, by name: optimizer, scheduler, scaler.
    """

    model: nn.Module
    others: dict[str, Any]


@dataclass(frozen=True)
class _Record:
    """What `read_record` and `load_checkpoint` need of a record."""

    tied: dict[str, str]
    sha256: dict[str, str]


def save_checkpoint(folder: Path | str, parts: Parts, record: dict[str, Any]) -> None:
    """Write a checkpoint of a run; what stood in ``folder`` is replaced after the new one is complete.

    Args:
        folder: the checkpoint's own folder.
        parts: the objects with a state.
        record: the rest, as JSON: ``epoch``, ``history``, and whatever says which run this is.
    """
    tensors, tied, extra = _split_state(parts.model)
    with atomic_folder(folder) as new, disk_errors(folder):
        with atomic_file(new / MODEL) as file:  # safetensors writes for the owner alone: the user's umask decides
            save_file(tensors, file)
        torch.save({"extra": extra, **{name: part.state_dict() for name, part in parts.others.items()}}, new / STATE)
        checksums = {name: _sha256(new / name) for name in (MODEL, STATE)}
        write_json(new / RUN, {"format": FORMAT, **record, "tied": tied, "sha256": checksums})


def read_record(folder: Path | str) -> dict[str, Any]:
    """Read the JSON record of a checkpoint, after checking that its files are whole.

    Raises:
        CheckpointError: nothing there, something else there, or a file that is truncated or changed.
    """
    folder = Path(folder)
    finish_exchange(folder)
    if not (folder / RUN).is_file():
        raise CheckpointError(f"There is no checkpoint in {folder}: train there without `resume` first.")
    try:
        record = read_json(folder / RUN)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / RUN} is damaged or no record of a run ({error}): start anew.") from error
    found = record.get("format") if isinstance(record, dict) else None
    if found != FORMAT or isinstance(found, bool):
        raise CheckpointError(f"{folder} has format {shortened(found)}; this version of tenfold reads {FORMAT}.")
    needed = {key: record[key] for key in ("tied", "sha256") if key in record}
    checksums = construct(_Record, needed, f"{folder / RUN}", CheckpointError).sha256
    for name in (MODEL, STATE):
        if not (folder / name).is_file() or _sha256(folder / name) != checksums.get(name):
            raise CheckpointError(f"{folder / name} is missing, truncated or changed: restore it, or start anew.")
    return record


def load_checkpoint(folder: Path | str, parts: Parts) -> dict[str, Any]:
    """Load a checkpoint into ``parts``, which must be built as they were when it was saved.

    Returns:
        The record that was saved.

    Raises:
        CheckpointError: see `read_record`; or the checkpoint of another model, optimizer or schedule.
    """
    folder = Path(folder)
    record = read_record(folder)
    try:
        tensors: dict[str, Any] = load_file(folder / MODEL)
        tensors |= {alias: tensors[name] for alias, name in record["tied"].items()}
        state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
        with _as_before_on_failure(parts):
            parts.model.load_state_dict(tensors | state["extra"])
            for name, part in parts.others.items():
                part.load_state_dict(state[name])
    except Exception as error:
        raise CheckpointError(
            f"{folder} does not fit this model, optimizer and schedule ({shortened(str(error), 300)[1:-1]}): "
            "resume with those it was made with, or start anew."
        ) from error
    return record


@contextlib.contextmanager
def _as_before_on_failure(parts: Parts) -> Iterator[None]:
    """Give ``parts`` the state they had, where loading another one fails half-way."""
    everything = {"model": parts.model, **parts.others}
    before = {name: copy.deepcopy(part.state_dict()) for name, part in everything.items()}
    try:
        yield
    except Exception:
        for name, part in everything.items():
            part.load_state_dict(before[name])
        raise


def _split_state(model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, str], dict[str, Any]]:
    """The model's state as tensors of their own, names of tied tensors -> the name that is kept, and the rest."""
    tensors: dict[str, torch.Tensor] = {}
    tied: dict[str, str] = {}
    extra: dict[str, Any] = {}
    kept: dict[int, str] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, torch.Tensor):
            extra[name] = value
        elif id(value) in kept:
            tied[name] = kept[id(value)]
        else:
            kept[id(value)] = name
            tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
    return tensors, tied, extra


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
