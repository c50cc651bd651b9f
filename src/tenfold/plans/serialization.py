"""Save a compressed model as JSON and safetensors, and build it again from the *dense* class: nothing is pickled."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tenfold.errors import CheckpointError, PlanError, TenfoldWarning, shortened
from tenfold.files import atomic_file, atomic_folder, disk_errors, finish_exchange, is_litter, parse_json, read_text
from tenfold.layers import swap
from tenfold.layers.open_recurrent import opened
from tenfold.layers.usable import refuse_quantized, refuse_unusable, refuse_without_numbers
from tenfold.plans.apply import check_fits, matches, plan_of
from tenfold.plans.plan import Plan

PLAN, WEIGHTS = "plan.json", "model.safetensors"


def save(model: nn.Module, path: Path | str, plan: Plan | None = None) -> None:
    """Save a model as ``path/plan.json`` and ``path/model.safetensors``, both or neither; nothing is pickled.

    Args:
        model: dense or compressed, wherever it is.
        path: a folder that is new, empty, or was written by `save`, which is then replaced as a whole.
        plan: the plan it was built from, to keep its errors and reasons; None: read off the model.

    Raises:
        PlanError: ``plan`` is not what the model is built to.
        CheckpointError: ``path`` holds something else, or the model has state that is no tensor.
        ArgumentError: no module, or a wrapped, sharded or quantized one, or one without numbers.
    """
    refuse_unusable(model)
    refuse_quantized(model)
    refuse_without_numbers(model)
    path = Path(path).resolve()  # the name of "." is needed to write beside it
    there = [] if path.is_file() else [p.name for p in path.glob("*") if not is_litter(p.name)]
    foreign = [path.name] if path.is_file() else sorted({*there} - {PLAN, WEIGHTS})
    if foreign:
        raise CheckpointError(
            f"`path` must be a new or empty folder, or one written by tenfold.save, whose place the new one takes; "
            f"'{path}' holds {', '.join(foreign[:3])}."
        )
    if plan is not None and not matches(model, plan):
        raise PlanError("`plan` must be the plan that `model` was built from; its layers differ. Leave it out.")
    with atomic_folder(path) as folder:
        (folder / PLAN).write_text((plan or plan_of(model)).to_json(), encoding="utf-8")
        write_weights(model, folder / WEIGHTS)


def load(path: Path | str, model: nn.Module) -> nn.Module:
    """Load a model that `save` wrote, given its dense architecture.

    Args:
        path: a folder that `save` wrote.
        model: the dense model, trained or fresh: its structure is used, not its weights. Untouched.

    Returns:
        a new model with the saved weights, on the device of ``model``.

    Raises:
        CheckpointError: a file is missing, truncated, or does not fit the model.
        PlanError: the plan is malformed or for another model.
        ArgumentError: ``model`` is wrapped in DataParallel or the like.
    """
    refuse_unusable(model)
    return load_planned(Path(path), model)[0]


def load_planned(folder: Path, model: nn.Module) -> tuple[nn.Module, Plan]:
    """Load a model and its plan; see `load`."""
    plan, model = read_plan(folder), opened(model)
    check_fits(model, plan)
    small = swap.skeleton(model, plan.layers)
    read_weights(small, folder / WEIGHTS)
    return small, plan


def read_plan(folder: Path | str) -> Plan:
    """Read the plan from a folder that `save` wrote.

    Raises:
        CheckpointError: no such folder, or a file that is no text.
        PlanError: text that is no plan.
    """
    finish_exchange(Path(folder).resolve())
    file = Path(folder) / PLAN
    if not file.is_file():
        raise CheckpointError(f"no saved model at '{folder}': it has no {PLAN}. Pass a folder written by tenfold.save.")
    try:
        text = read_text(file)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"'{file}' is damaged: {error}. Save the model again.") from error
    return Plan.from_json(text)


def write_weights(model: nn.Module, file: Path | str) -> None:
    """Write parameters and buffers as safetensors; tensors that share memory once, with the other names noted.

    Raises:
        CheckpointError: a module's extra state is no tensor; writing it would take pickle.
    """
    owner: dict[tuple[object, ...], str] = {}
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"`model` must have a state of tensors to be saved without pickle; '{name}' is a "
                f"{type(tensor).__name__}. Keep it apart, or register it as a buffer."
            )
        _refuse_unwritable(name, tensor)
        key = (
            tensor.device,
            tensor.untyped_storage().data_ptr(),
            tensor.storage_offset(),
            tensor.shape,
            tensor.stride(),
        )
        first = owner.setdefault(key, name) if tensor.numel() else name
        if first != name:
            aliases[name] = first
        else:
            # Strides are kept by loading into the model's own tensors; views of one storage are written apart.
            tensors[name] = tensor.detach().to("cpu").contiguous().clone()
    odd = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not _is_finite(tensor)]
    if odd:
        warnings.warn(
            f"`model` is saved with values that are not finite, in {len(odd)} tensors: {shortened(odd[:3], 200)}.",
            TenfoldWarning,
            stacklevel=3,
        )
    with (
        disk_errors(file),
        atomic_file(file) as temporary,
    ):  # safetensors makes files that only their owner can read; this one does not
        save_file(tensors, str(temporary), metadata={"aliases": json.dumps(aliases), "sha256": _digest(tensors)})


def _is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are finite; types of eight bits are looked at in a wider one, which torch can ask."""
    wide = tensor.float() if tensor.is_floating_point() and tensor.element_size() == 1 else tensor
    return bool(wide.isfinite().all())


def _refuse_unwritable(name: str, tensor: Tensor) -> None:
    """Raise `CheckpointError` for a tensor that safetensors cannot hold, or that could not be loaded into again."""
    why = None
    if tensor.layout != torch.strided:
        why = f"of layout {tensor.layout}"
    elif tensor.dtype == torch.complex128:
        why = "of type complex128"
    elif any(size > 1 and step == 0 for size, step in zip(tensor.shape, tensor.stride(), strict=True)):
        why = "an expanded view, whose entries share their memory"
    if why is not None:
        raise CheckpointError(
            f"`model` must have a state of plain tensors to be saved; '{name}' is {why}. Register a dense, contiguous "
            "copy of it, in a type that safetensors knows."
        )


def read_weights(model: nn.Module, file: Path | str) -> None:
    """Load what `write_weights` wrote into ``model``, in place, after checking that all of it fits.

    Raises:
        CheckpointError: missing or truncated file, or other names, shapes or types than the model's.
    """
    saved = _read(Path(file))
    own = model.state_dict()
    missing, extra = sorted(own.keys() - saved.keys()), sorted(saved.keys() - own.keys())
    wrong = [n for n in own.keys() & saved.keys() if (own[n].shape, own[n].dtype) != (saved[n].shape, saved[n].dtype)]
    if missing or extra or wrong:
        first = wrong[0] if wrong else None
        detail = f" '{first}': {_kind(saved[first])} saved, {_kind(own[first])} here." if first else ""
        raise CheckpointError(
            f"'{file}' is for another model: {len(missing)} tensors missing {shortened(missing[:3], 200)}, "
            f"{len(extra)} unexpected {shortened(extra[:3], 200)}, "
            f"{len(wrong)} of another shape or type {shortened(wrong[:3], 200)}.{detail}"
        )
    model.load_state_dict(saved)


def _read(file: Path) -> Mapping[str, Tensor]:
    if not file.is_file():
        raise CheckpointError(f"no weights at '{file}'. The folder must hold {PLAN} and {WEIGHTS}.")
    try:
        with safe_open(str(file), framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
            notes = opened.metadata() or {}
            aliases = parse_json(notes.get("aliases", "{}"))
    except (SafetensorError, OSError, ValueError, AttributeError, LookupError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"'{file}' is damaged or truncated: {shortened(str(error), 200)[1:-1]}. Save the model again."
        ) from error
    if notes.get("sha256") not in (None, _digest(tensors)):  # older files have none
        raise CheckpointError(
            f"'{file}' is damaged: its numbers are not those that were saved. Restore it, or save the model again."
        )
    owners = aliases.values() if isinstance(aliases, dict) else [aliases]
    lost = [owner for owner in owners if not isinstance(owner, str) or owner not in tensors]
    if lost or not isinstance(aliases, dict):
        raise CheckpointError(
            f"'{file}' is damaged or truncated: its aliases must map names to names of tensors in it; "
            f"got {shortened(lost)}. Save the model again."
        )
    return tensors | {name: tensors[first] for name, first in aliases.items()}


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Over names, types, shapes and bytes."""
    made = hashlib.sha256()
    for name in sorted(tensors):
        made.update(f"{name}:{_kind(tensors[name])}:".encode())
        made.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return made.hexdigest()


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
