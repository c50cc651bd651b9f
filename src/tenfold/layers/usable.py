"""Which models tenfold can work on: one sentence for each kind that it cannot."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tenfold.errors import ArgumentError, shortened

_WRAPPERS = ("DistributedDataParallel", "DataParallel", "OptimizedModule", "FullyShardedDataParallel")


def refuse_unusable(model: Any) -> None:
    """Raise `ArgumentError` unless ``model`` is a plain module: no class or name, not scripted, compiled or wrapped.

    The copies of the parameters that a wrapper keeps would go stale.
    """
    if isinstance(model, type):
        raise ArgumentError(
            f"`model` must be a module; got the class {model.__name__}. Make one: {model.__name__}(...)."
        )
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"`model` must be a torch.nn.Module; got {shortened(model)}.")
    if isinstance(model, torch.jit.ScriptModule):
        raise ArgumentError(
            f"`model` must be a plain module; got a scripted one ({type(model).__name__}), whose layers cannot be "
            "replaced. Compress the module that it was made of, and script the result."
        )
    for module in model.modules():
        if type(module).__name__ in _WRAPPERS:
            raise ArgumentError(
                f"`model` must not be wrapped in {type(module).__name__}. Pass the module inside it "
                f"(`.module`, or `._orig_mod` after torch.compile) and wrap the result again."
            )


def refuse_without_numbers(model: nn.Module) -> None:
    """Raise `ArgumentError` for a model some of whose weights are on the meta device: shapes without numbers."""
    name = next((name for name, p in model.named_parameters() if p.is_meta), None)
    if name is not None:
        raise ArgumentError(
            f"`model` must have its weights; '{name}' is on the meta device, a shape without numbers. "
            "Load them first, e.g. by model.load_state_dict(..., assign=True)."
        )
