"""A user's own network: a factory by reference, and weights from a file. Nothing is unpickled."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tenfold.errors import ArgumentError, CheckpointError, TenfoldError
from tenfold.layers.usable import refuse_unwritable
from tenfold.own_code import call_own, load_own

_INSIDE = ("state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every name."""


def own_network(reference: str, **sizes: int) -> nn.Module:
    """Make a network by a user's factory; runs its module.

    Args:
        reference: ``module.path:factory`` or ``path/to/file.py:factory``.
        sizes: of those, the factory gets the ones that its signature takes, as keywords.

    Raises:
        ArgumentError: the reference leads to nothing, or the factory fails.
        TenfoldError: a factory that needs other arguments, or returns no module.
    """
    factory = load_own(reference, "name")
    try:
        parameters = inspect.signature(factory).parameters.values()
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        given = {key: value for key, value in sizes.items() if takes_all or key in names}
        inspect.signature(factory).bind(**given)
    except (TypeError, ValueError) as error:
        offered = "classes, channels and size, or of nothing" if sizes else "nothing, as there is no data set"
        raise TenfoldError(f"`name` must lead to a callable of {offered}; {reference!r} is not: {error}.") from error
    made = call_own(factory, "name", reference, **given)
    if not isinstance(made, nn.Module):
        kind = type(made).__name__
        raise TenfoldError(f"`name` must lead to a factory of an nn.Module; {reference!r} returned {kind}.")
    return made


def load_weights_(model: nn.Module, file: Path | str) -> None:
    """Load the weights in ``file`` into ``model``, in place, after checking that all of them fit.

    Args:
        model: changed in place; dtypes and devices stay the model's.
        file: ``.safetensors``, or what `torch.save` wrote of a state dict or of a dict that holds one under
            "state_dict" or "model"; read with ``weights_only=True``. A "module." or "_orig_mod." before every name is
            taken off.

    Raises:
        ArgumentError: there is no such file, or the model was made under `torch.inference_mode`.
        CheckpointError: a file that holds no state dict, or another model's: one sentence names what differs.
    """
    file = Path(file).expanduser()
    if not file.is_file():
        raise ArgumentError(f"`weights` must be a file that there is; got '{file}'.")
    refuse_unwritable(model)
    own = model.state_dict()
    saved = _without_prefix(_read(file), own)
    shared: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        shared.setdefault(id(tensor), []).append(name)
    covered = {name for names in shared.values() if any(n in saved for n in names) for name in names}
    optional = {name for name in own if name.endswith("num_batches_tracked")}
    shapes = [n for n in own if n in saved and saved[n].shape != own[n].shape]
    problems = [
        _some("lacks", [n for n in own if n not in covered and n not in optional]),
        _some("has", [n for n in saved if n not in own], " which the network has not"),
        "" if not shapes else _some("has another shape for", shapes)
        + f" ({tuple(saved[shapes[0]].shape)} in the file, {tuple(own[shapes[0]].shape)} in the network)",
    ]  # fmt: skip
    found = [problem for problem in problems if problem]
    if found:
        raise CheckpointError(f"`weights` must be of this network: '{file}' {', '.join(found)}.")
    model.load_state_dict(saved, strict=False)


def _some(verb: str, names: list[str], after: str = "") -> str:
    """``lacks 'a', 'b' and 3 more``; empty where there is none."""
    if not names:
        return ""
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return f"{verb} {', '.join(map(repr, names[:2]))}{more}{after}"


def _read(file: Path) -> dict[str, Tensor]:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        code = "it holds Python objects beside tensors, whose code would run"
        why = code if isinstance(error, pickle.UnpicklingError) else first[:200].rstrip(".")
        raise CheckpointError(
            f"`weights` must be a .safetensors file, or one that torch.save(model.state_dict(), FILE) wrote; '{file}' "
            f"cannot be read: {why}."
        ) from error
    for key in _INSIDE:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        held = f"keys {', '.join(map(str, list(content)[:4]))}" if isinstance(content, Mapping) else repr(type(content))
        raise CheckpointError(
            f"`weights` must hold a state dict, plain or under {' or '.join(map(repr, _INSIDE))}; '{file}' has {held}."
        )
    return {str(name): value for name, value in content.items()}


def _without_prefix(saved: dict[str, Tensor], own: Mapping[str, Any]) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in saved) and not any(name.startswith(prefix) for name in own):
            saved = {name.removeprefix(prefix): value for name, value in saved.items()}
    return saved
