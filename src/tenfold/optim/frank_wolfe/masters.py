"""What a step updates: the weight itself, or for half precision a float32 copy that small steps add up in.

The weight is the truth, always. Its copy only knows the digits that the weight's type has no room for: it holds as
long as it rounds to the weight, and is made anew of the weight where somebody has set that, cast the model, or loaded a
state of other weights. A weight of float32 or wider has no copy. So weights, their type and the optimizer's state may
be changed between steps in any order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def weight_of(p: Tensor, state: dict[str, Any]) -> Tensor:
    """The tensor that a step updates for ``p``, detached: itself, or its float32 copy; casts ``state`` to its type.

    Args:
        p: a parameter.
        state: of the parameter; its "master" is the float32 copy.
    """
    if p.element_size() >= 4:
        state.pop("master", None)
        weight = p.detach()
    else:
        weight = state.setdefault("master", p.detach().float())
        weight.copy_(torch.where(weight.to(p.dtype) == p, weight, p.float()))
    for key in ("momentum_buffer", "radius"):
        if key in state:
            state[key] = state[key].to(weight.dtype)
    return weight


def write_back_(p: Tensor, weight: Tensor) -> None:
    """Round the updated float32 copy into the parameter, where there is one."""
    if p.element_size() < 4:
        p.copy_(weight)


def restore_(states: dict[Any, Any], params: list[Tensor], saved: dict[int, Any], order: list[int]) -> None:
    """Restore saved states in their own types; torch casts them to the weights' types on loading.

    Args:
        states: of an optimizer that has loaded its state.
        params: all of its parameters.
        saved: the states in what was loaded.
        order: the parameters' numbers there.
    """
    for i, p in zip(order, params, strict=True):
        for key, value in saved.get(i, {}).items():
            states[p][key] = value.detach().to(p.device, copy=True) if isinstance(value, Tensor) else value
