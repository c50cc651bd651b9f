"""Batch norm around factorised layers: which norm follows which layer, and its statistics estimated again."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from tenfold.errors import ArgumentError, DataError
from tenfold.layers.matrix import LowRank
from tenfold.layers.spec import CONVS, TRANSPOSED, spec_of

_LAYERS = (*CONVS, *TRANSPOSED, nn.Linear, LowRank)


def norm_after(model: nn.Module, given: Mapping[str, str] | None = None) -> dict[str, str]:
    """Name of the batch norm that directly follows each layer: ``{"conv1": "bn1", ...}``.

    The graph decides where the model can be traced: the norm must be the layer's *only* consumer, with nothing in
    between. A model that cannot be traced is read by module order: the norm must come right after the layer among
    the children of the same parent, with as many channels as the layer puts out. Layers without such a norm are absent.

    Args:
        model: any module.
        given: the user's own pairs; they win over what is found.

    Raises:
        ArgumentError: a name in ``given`` that the model lacks, or that is no batch norm.
    """
    modules = dict(model.named_modules())
    found = _by_graph(model, modules)
    found = _by_order(modules) if found is None else found
    for layer, norm in (given or {}).items():
        if layer not in modules or not isinstance(modules.get(norm), _BatchNorm):
            raise ArgumentError(f"`given` must map layers to batch norms of the model; got {layer!r}: {norm!r}.")
        found[layer] = norm
    return found


def reestimate_(model: nn.Module, data: Iterable[Any], device: torch.device | str | None = None) -> None:
    """Replace the running statistics of every batch norm by the averages over ``data``; weights stay as they are.

    Args:
        model: changed in place, its train or eval mode kept.
        data: batches ``x`` or ``(x, y)``, at least one.
        device: where the model is; None: the device of its first parameter.

    Raises:
        DataError: no batch at all; the statistics stay as they were.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return
    batches = iter(data)
    first = next(batches, None)
    if first is None:
        raise DataError("`data` must hold at least one batch to re-estimate batch norm from; it is empty.")
    if device is None:
        device = next(model.parameters()).device
    with torch.no_grad():
        update_bn(_chain(first, batches), model, device=torch.device(device))


def _chain(first: Any, rest: Iterable[Any]) -> Iterable[Any]:
    yield first
    yield from rest


def _by_graph(model: nn.Module, modules: Mapping[str, nn.Module]) -> dict[str, str] | None:
    """From a symbolic trace; None where the model has none."""

    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return isinstance(m, LowRank) or super().is_leaf_module(m, module_qualified_name)

    try:
        graph = Tracer().trace(model)
    except Exception:  # noqa: BLE001 - tracing runs foreign code: whatever it raises, the model has no graph
        return None
    used: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            used.setdefault(str(node.target), []).append(node)
    pairs = {}
    for name, nodes in used.items():
        if len(nodes) != 1 or not isinstance(modules[name], _LAYERS) or len(nodes[0].users) != 1:
            continue
        follower = str(next(iter(nodes[0].users)).target)
        if isinstance(modules.get(follower), _BatchNorm) and len(used.get(follower, ())) == 1:
            pairs[name] = follower
    return pairs


def _by_order(modules: Mapping[str, nn.Module]) -> dict[str, str]:
    pairs = {}
    for parent, module in modules.items():
        if isinstance(module, LowRank):
            continue
        children = list(module.named_children())
        for (name, layer), (follower, norm) in itertools.pairwise(children):
            fits = isinstance(norm, _BatchNorm) and isinstance(layer, _LAYERS)
            if fits and norm.num_features == _outputs(layer):
                prefix = f"{parent}." if parent else ""
                pairs[prefix + name] = prefix + follower
    return pairs


def _outputs(layer: nn.Module) -> int:
    spec = layer.spec if isinstance(layer, LowRank) else spec_of(layer)
    return spec.out_channels if spec is not None else 0
