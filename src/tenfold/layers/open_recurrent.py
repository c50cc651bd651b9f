"""Recurrent layers of a model opened, so that their matrices are layers that can be found, and closed again."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn

from tenfold.layers.copy_model import duplicate
from tenfold.layers.recurrent import Recurrent

_KINDS = (nn.LSTM, nn.GRU, nn.RNN)


def is_recurrence(model: nn.Module, name: str) -> bool:
    """Whether a module is a matrix that a recurrent layer multiplies its hidden state with, step after step.

    Args:
        model: the whole.
        name: of the module.
    """
    parent, _, own = name.rpartition(".")
    return own.startswith(("weight_hh_", "weight_hr_")) and isinstance(model.get_submodule(parent), Recurrent)


def why_closed(layer: nn.RNNBase) -> str | None:
    """The reason why a torch layer cannot be made a `Recurrent` without losing something; None where it can."""
    if type(layer) not in _KINDS:
        return "with more than a plain layer has"
    extra = vars(layer).keys() - vars(_plain()).keys()
    names = {name for each in layer._all_weights for name in each}
    hooks = any(value for key, value in vars(layer).items() if key.endswith(("_hooks", "_with_kwargs")))
    odd = [p for p in layer._parameters.values() if p is None or nn.parameter.is_lazy(p)]
    if extra or hooks or odd or layer._modules or layer._buffers or names != layer._parameters.keys():
        return "with more than a plain layer has"
    return None


@cache
def _plain() -> nn.RNNBase:
    return nn.RNN(1, 1, device="meta")


def opened(model: nn.Module) -> nn.Module:
    """A model whose recurrent layers are `Recurrent` ones with the same parameters; itself where there are none.

    It shares parameters and buffers with ``model``, which is left as it is. Layers with hooks, and subclasses, stay.
    """
    found = [m for m in model.modules() if isinstance(m, nn.RNNBase) and why_closed(m) is None]
    return _exchanged(model, {id(layer): Recurrent(layer) for layer in found})


def closed(model: nn.Module) -> nn.Module:
    """A model whose `Recurrent` layers are torch's again where all their matrices are plain; itself where none is.

    It shares parameters and buffers with ``model``.
    """
    made = {id(m): m.to_layer() for m in model.modules() if isinstance(m, Recurrent)}
    return _exchanged(model, {key: layer for key, layer in made.items() if layer is not None})


def _exchanged(model: nn.Module, new: dict[int, Any]) -> nn.Module:
    if not new:
        return model
    kept = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return duplicate(model, kept | new)
