"""The ranks that a model in training has now, whatever its method keeps of them and where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from tenfold.layers.swap import structure_of
from tenfold.optim.hooks import stepped
from tenfold.optim.tucker.integrator import Integrator


def present_ranks(model: nn.Module, optimizer: Optimizer | None = None) -> dict[str, Any]:
    """The present ranks by layer name: of factorised layers, and those that a method keeps as ``ranks`` in its state.

    Of layers that grow and are cut in cycles: as the last cut left them.

    Args:
        model: in training.
        optimizer: that does the method's work; None where there is none yet.
    """
    found: dict[str, Any] = {name: layer.rank for name, layer in structure_of(model).items()}
    optimizer = None if optimizer is None else stepped(optimizer)
    if isinstance(optimizer, Integrator):
        found |= optimizer.cut_ranks
    for state in () if optimizer is None else optimizer.param_groups[0].values():
        if isinstance(state, Mapping) and isinstance(state.get("ranks"), Mapping):
            found |= state["ranks"]
    return {name: list(rank) if isinstance(rank, (tuple, list)) else int(rank) for name, rank in found.items()}
