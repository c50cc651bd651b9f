"""Batch norm around factorised layers: which norm follows which layer, and its statistics estimated again."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tenfold.errors import ArgumentError, DataError
from tenfold.layers.calibration_batches import Batch, calibration_batches
from tenfold.layers.copy_model import meta_copy
from tenfold.layers.decomposed import Decomposed
from tenfold.layers.recurrent import Recurrent
from tenfold.layers.spec import CONVS, TRANSPOSED, spec_of
from tenfold.layers.usable import refuse_unwritable
from tenfold.linalg.svd import working

_LAYERS = (*CONVS, *TRANSPOSED, nn.Linear, Decomposed)


def norm_after(model: nn.Module, given: Mapping[str, str] | None = None) -> dict[str, str]:
    """Find the batch norm that directly follows each layer: ``{"conv1": "bn1", ...}``.

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
    """Replace the running statistics of every batch norm by mean and variance over all of ``data``; weights stay.

    The norms normalise by the batch at hand while the data passes, so that each sees what it would see in training;
    everything else, dropout above all, is in eval mode. Batches of different sizes count by their sizes, and the
    variance is that of all values together (unbiased, as torch's): averages over batches, which
    `torch.optim.swa_utils.update_bn` takes, would leave out how far the batches' means lie apart.

    Args:
        model: changed in place, its train or eval modes kept.
        data: batches, at least one; see `tenfold.layers.calibration_batches`.
        device: where the model is; None: the device of its first batch norm.

    Raises:
        DataError: no batch at all, or one that the model does not run on. Whatever is raised, by ``data`` or the model,
            the statistics stay as they were.
        ArgumentError: a model made under `torch.inference_mode`.
    """
    if running_norms(model):
        refuse_unwritable(model)
        reestimate_from_(model, calibration_batches(model, data), device)


def running_norms(model: nn.Module) -> list[_BatchNorm]:
    """The batch norms that have running statistics."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


def reestimate_from_(model: nn.Module, read: Iterable[Batch], device: torch.device | str | None = None) -> None:
    """Re-estimate batch norm from batches that have been read; see `reestimate_`.

    Raises:
        DataError: no batch at all.
    """
    norms = running_norms(model)
    modes = {module: module.training for module in model.modules()}
    kept = {norm: [b.clone() for b in norm.buffers(recurse=False)] for norm in norms}
    seen = {norm: _Moments() for norm in norms}
    hooks = [norm.register_forward_pre_hook(seen[norm], with_kwargs=True) for norm in norms]
    try:
        model.eval()
        for norm in norms:
            norm.train()
        batches = _pass(model, read, device or cast("Tensor", norms[0].running_mean).device)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
        for norm, buffers in kept.items():
            for buffer, old in zip(norm.buffers(recurse=False), buffers, strict=True):
                buffer.copy_(old)
    if batches == 0:
        raise DataError("`data` must hold at least one batch to re-estimate batch norm from; it is empty.")
    for norm, moments in seen.items():
        moments.write_(norm, batches)


@torch.no_grad()
def _pass(model: nn.Module, batches: Iterable[Batch], device: torch.device | str) -> int:
    count = 0
    for count, batch in enumerate(batches, start=1):  # noqa: B007 - the number is what is returned
        batch.to(device).run(model)
    return count


class _Moments:
    """Count, mean and summed squared deviations per channel of all that a norm has been given; a forward pre-hook.

    Source: Chan, Golub, LeVeque 1983, the pairwise update: no difference of large sums.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean: Any = 0.0
        self.squares: Any = 0.0

    def __call__(self, _: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        x = working(args[0] if args else kwargs["input"]).movedim(1, 0).flatten(1)
        count, mean = x.shape[1], x.mean(1)
        if count:
            shift, total = mean - self.mean, self.count + count
            self.squares = (
                self.squares + (x - mean[:, None]).square().sum(1) + shift.square() * self.count * count / total
            )
            self.mean = self.mean + shift * count / total
            self.count = total

    def write_(self, norm: _BatchNorm, batches: int) -> None:
        """Write mean and variance into the buffers of ``norm``, unless it was never used."""
        if self.count:
            cast("Tensor", norm.running_mean).copy_(self.mean)
            cast("Tensor", norm.running_var).copy_(self.squares / max(self.count - 1, 1))
            cast("Tensor", norm.num_batches_tracked).fill_(batches)


def _by_graph(model: nn.Module, modules: Mapping[str, nn.Module]) -> dict[str, str] | None:
    """The pairs of layer and norm in a symbolic trace; None where the model has none."""

    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return isinstance(m, (Decomposed, Recurrent)) or super().is_leaf_module(m, module_qualified_name)

    try:
        graph = Tracer().trace(meta_copy(model))  # a copy: tracing runs the forward, which may write to the module
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
        if len(used.get(follower, ())) == 1 and isinstance(modules[follower], _BatchNorm):
            pairs[name] = follower
    return pairs


def _by_order(modules: Mapping[str, nn.Module]) -> dict[str, str]:
    pairs = {}
    for parent, module in modules.items():
        if isinstance(module, Decomposed):
            continue
        children = list(module.named_children())
        for (name, layer), (follower, norm) in itertools.pairwise(children):
            fits = isinstance(norm, _BatchNorm) and isinstance(layer, _LAYERS)
            if fits and norm.num_features == _outputs(layer):
                prefix = f"{parent}." if parent else ""
                pairs[prefix + name] = prefix + follower
    return pairs


def _outputs(layer: nn.Module) -> int:
    spec = layer.spec if isinstance(layer, Decomposed) else spec_of(layer)
    return spec.out_channels if spec is not None else 0
