"""Which models tenfold can work on: one sentence for each kind that it cannot."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import distributed, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from tenfold.errors import ArgumentError, shortened

_WRAPPERS = ("DistributedDataParallel", "DataParallel", "OptimizedModule", "FullyShardedDataParallel")


def refuse_unusable(model: Any, *, only_read: bool = False) -> None:
    """Raise `ArgumentError` unless ``model`` is a plain module, not scripted, wrapped, sharded or lazy.

    The copies of the parameters that a wrapper keeps would go stale.

    Args:
        model: what was given.
        only_read: what it is made of is looked at, and no layer replaced: parameters may be lazy or sharded.
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
    for name, p in () if only_read else model.named_parameters():
        if nn.parameter.is_lazy(p):
            raise ArgumentError(f"`model` must have all its parameters; '{name}' is lazy. Run the model once first.")
        if is_sharded(p):
            raise ArgumentError(
                f"`model` must not be sharded (fully_shard, tensor parallelism); '{name}' is. Compress the whole model "
                "before it is sharded; a trained one is put together by torch.distributed.checkpoint.state_dict."
                "get_model_state_dict with full_state_dict=True."
            )


def refuse_unwritable(model: nn.Module) -> None:
    """Raise `ArgumentError` for a model that was made under `torch.inference_mode`: it cannot be changed in place."""
    if torch.is_inference_mode_enabled():
        return
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, torch.Tensor) and tensor.is_inference():
            raise ArgumentError(
                f"`model` must be made outside torch.inference_mode to be changed in place; '{name}' was made inside. "
                "Take a copy: copy.deepcopy(model)."
            )


def refuse_quantized(model: nn.Module) -> None:
    """Raise `ArgumentError` for a model with parameters that are no plain tensors, as torchao makes them."""
    for name, p in model.named_parameters():
        if is_traceable_wrapper_subclass(p) and not is_sharded(p):
            raise ArgumentError(
                f"`model` must have plain tensors as parameters; '{name}' is a {type(p).__name__}. Compress and save "
                "the model before it is quantized, and quantize what tenfold.load returns."
            )


def is_sharded(x: Any) -> bool:
    """Whether a tensor is a DTensor, of which each process may have a part."""
    return isinstance(x, _sharded_kinds())


@cache
def _sharded_kinds() -> tuple[type, ...]:
    if not distributed.is_available():
        return ()
    from torch.distributed.tensor import DTensor

    return (DTensor,)


def refuse_without_numbers(model: nn.Module) -> None:
    """Raise `ArgumentError` for a model some of whose weights are on the meta device: shapes without numbers."""
    name = next((name for name, p in model.named_parameters() if p.is_meta), None)
    if name is not None:
        raise ArgumentError(
            f"`model` must have its weights; '{name}' is on the meta device, a shape without numbers. "
            "Load them first, e.g. by model.load_state_dict(..., assign=True)."
        )
