"""What each layer is given in one forward pass: shapes and types of its inputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from tenfold.layers.calibration_runs import evaluating
from tenfold.layers.cost import call_arguments

Uses = Counter[tuple[tuple[int, ...], torch.dtype]]
"""How often inputs of which shape and type come."""


def layer_inputs(model: nn.Module, layers: Mapping[str, Sequence[str]], inputs: Any) -> dict[str, Uses]:
    """Count how often each layer meets inputs of which shape and type in one forward pass, in evaluation mode.

    Args:
        model: left as it is.
        layers: the modules that share a layer's weight, by its name; their uses add up.
        inputs: a tensor, a tuple of positional or a dict of keyword arguments.
    """
    uses: dict[str, Uses] = {name: Counter() for name in layers}

    def recorder(seen: Uses) -> Callable[..., None]:
        def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            value = args[0] if args else next(iter(kwargs.values()))
            seen[tuple(value.shape), value.dtype] += 1

        return record

    args, kwargs = call_arguments(inputs)
    handles = []
    with evaluating(model), torch.no_grad():
        try:
            for name, modules in layers.items():
                each = {id(m): m for m in map(model.get_submodule, modules)}
                handles += [m.register_forward_pre_hook(recorder(uses[name]), with_kwargs=True) for m in each.values()]
            model(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
    return uses
