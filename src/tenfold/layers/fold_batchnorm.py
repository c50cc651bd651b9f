"""Batch norm folded into the layer before it: one operation less at inference, and the same numbers.

In eval mode a batch norm is an affine map per channel, with its running statistics ``m, v`` and its own ``g, b``::

    norm(W x + c) = s (W x + c - m) + b = (s W) x + (s (c - m) + b)        s = g / sqrt(v + eps)

So ``s`` goes into the rows of the kernel, dense or the decoder of a factor pair, and the rest into the bias. It is
exact whatever stride, padding, dilation, groups or transposition: all of them act on the input's side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from tenfold.errors import ArgumentError
from tenfold.layers.batchnorm import norm_after
from tenfold.layers.copy_model import duplicate, meta_copy
from tenfold.layers.decomposed import Decomposed
from tenfold.layers.matrix import LowRank
from tenfold.layers.pretrained import refuse_save_pretrained_
from tenfold.layers.recurrent import Recurrent
from tenfold.layers.spec import spec_of, to_kernel, to_weight
from tenfold.layers.tucker import TuckerConv
from tenfold.layers.usable import refuse_unusable
from tenfold.linalg.svd import working

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_TOLERANCE = 1e-3
"""Relative; what rounding in half precision may do in a deep network, far below what a wrong pair does."""


@dataclass(frozen=True)
class NormFold:
    """One batch norm, and the layer that it can be folded into or the reason why not.

    Args:
        norm: its name.
        layer: that it goes into; None where there is none.
        reason: why it stays; None where it is folded.
    """

    norm: str
    layer: str | None
    reason: str | None


def norm_folds(model: nn.Module, given: Mapping[str, str] | None = None, example_inputs: Any = None) -> list[NormFold]:
    """Find the layer that each batch norm of ``model`` can be folded into, or the reason why it stays.

    Args:
        model: any module; untouched.
        given: the user's own pairs, layer -> norm; see `tenfold.norm_after`.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments. One pass with them proves what
            the graph cannot: pairs in a model that cannot be traced, and norms after a `Linear`.

    Raises:
        ArgumentError: a wrapped model, or pairs in ``given`` that are none.
    """
    refuse_unusable(model)
    layers = {norm: layer for layer, norm in norm_after(model, given).items()}
    seen = None if example_inputs is None else _watch(model, layers, example_inputs)
    traced = set(given or ()) if seen is None and not _traceable(model) else None
    holders = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    modules = dict(model.named_modules())
    found = []
    for name, norm in modules.items():
        if isinstance(norm, _BatchNorm):
            layer = layers.get(name)
            reason = _why_not(norm, None if layer is None else modules[layer], holders)
            if reason is None and layer is not None:
                reason = _unproven(layer, modules[layer], traced, seen)
            found.append(NormFold(name, layer, reason))
    return found


def fold_batchnorm(
    model: nn.Module, given: Mapping[str, str] | None = None, *, example_inputs: Any = None
) -> nn.Module:
    """Fold batch norms into the layers before them: a new model, in eval mode, with an `Identity` for each norm.

    What `norm_folds` gives a reason for stays. The result is for inference: it computes what the given model computes
    in eval mode, and it has other parameters, so that `tenfold.load` cannot put its weights into the dense class.

    Args:
        model: dense or compressed; untouched.
        given: the user's own pairs, layer -> norm; see `tenfold.norm_after`.
        example_inputs: see `norm_folds`; the outputs for them are compared as well.

    Raises:
        ArgumentError: a wrapped model; pairs in ``given`` that are none; outputs that differ, because an untraceable
            model uses a layer's output twice.
    """
    pairs = [(f.layer, f.norm) for f in norm_folds(model, given, example_inputs) if f.reason is None and f.layer]
    new = duplicate(model).eval()
    for layer, norm in pairs:
        _fold_(new.get_submodule(layer), cast("_BatchNorm", new.get_submodule(norm)))
        parent, _, own = norm.rpartition(".")
        setattr(new.get_submodule(parent), own, nn.Identity().eval())
    if example_inputs is not None:
        _compare(model, new, example_inputs)
    return refuse_save_pretrained_(new) if pairs else new


@torch.no_grad()
def _fold_(layer: nn.Module, norm: _BatchNorm) -> None:
    """Put ``norm`` into the output side of ``layer``, as new parameters."""
    part = _last(layer)
    spec, weight = spec_of(part), cast("Tensor", part.weight)
    assert spec is not None
    mean, variance = working(cast("Tensor", norm.running_mean)), working(cast("Tensor", norm.running_var))
    scale = (variance + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * working(norm.weight)
    bias = -mean if part.bias is None else working(cast("Tensor", part.bias)) - mean
    bias = scale * bias + (0.0 if norm.bias is None else working(norm.bias))
    kernel = working(to_kernel(spec, weight))
    scaled = torch.empty_like(weight)  # keeps the memory format
    scaled.copy_(to_weight(spec, kernel * scale.reshape(-1, *[1] * (kernel.ndim - 1))))
    part.weight = nn.Parameter(scaled, weight.requires_grad)
    part.bias = nn.Parameter(bias.to(weight.dtype), weight.requires_grad)
    if isinstance(layer, Decomposed):
        layer.added_bias = layer.added_bias or not layer.spec.bias
        layer.spec = replace(layer.spec, bias=True)


def _why_not(norm: _BatchNorm, layer: nn.Module | None, holders: Mapping[int, int]) -> str | None:
    """What the modules themselves say against it."""
    if type(norm) not in _NORMS:
        return f"a {type(norm).__name__}, which may compute something else"
    if norm.running_mean is None or norm.running_var is None:
        return "it normalises by the batch at hand: it tracks no statistics"
    if layer is None:
        return "no layer stands directly before it that feeds it alone"
    part = _last(layer)
    if (spec := spec_of(part)) is None:
        return f"the layer before it is a {type(part).__name__} with more than a plain layer has"
    if spec.out_channels != norm.num_features:
        return f"it has {norm.num_features} channels, the layer before it {spec.out_channels}"
    if any(m._forward_hooks or m._forward_pre_hooks for m in (norm, layer, part)):
        return "it or the layer before it carries hooks, which would see other numbers"
    if holders[id(part.weight)] > 1:
        return "the layer before it shares its weight with another"
    return None


def _unproven(name: str, layer: nn.Module, traced: set[str] | None, seen: set[str] | None) -> str | None:
    """What speaks against the pair itself.

    Args:
        name: of the layer.
        layer: itself.
        traced: the pairs that are certain where the model has no graph; None where it has one.
        seen: the pairs that a pass proved; None without one.
    """
    if seen is not None:
        return None if name in seen else f"the example inputs do not bear out that it follows '{name}' alone"
    if traced is not None and name not in traced:
        return f"nothing proves that it follows '{name}': the model cannot be traced. Pass `example_inputs`"
    spec = spec_of(_last(layer))
    if spec is not None and spec.linear:
        return "after a linear layer the axis it normalises depends on the input. Pass `example_inputs`"
    return None


@torch.no_grad()
def _watch(model: nn.Module, layers: Mapping[str, str], inputs: Any) -> set[str]:
    """The layers whose one output in a pass was the one input of their norm, with its channels on axis 1."""
    used: Counter[str] = Counter()
    outputs: dict[str, Any] = {}
    proved: set[str] = set()
    handles = []

    def watch(layer: str, norm: str) -> None:
        spec = spec_of(_last(model.get_submodule(layer)))
        linear = spec is not None and spec.linear

        def after(_: nn.Module, args: Any, output: Any) -> None:
            used[layer] += 1
            outputs[layer] = output

        def before(_: nn.Module, args: Any) -> None:
            used[norm] += 1
            if args and args[0] is outputs.get(layer) and not (linear and args[0].ndim > 2):
                proved.add(layer)

        handles.append(model.get_submodule(layer).register_forward_hook(after))
        handles.append(model.get_submodule(norm).register_forward_pre_hook(before))

    try:
        for norm, layer in layers.items():
            watch(layer, norm)
        _run(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {layer for norm, layer in layers.items() if layer in proved and used[layer] == used[norm] == 1}


def _last(layer: nn.Module) -> nn.Module:
    """The plain layer that puts out what ``layer`` does."""
    return layer.decoder if isinstance(layer, (LowRank, TuckerConv)) else layer


def _compare(model: nn.Module, new: nn.Module, inputs: Any) -> None:
    """Refuse a result that computes something else; an output that is not finite says nothing."""
    before, after = (
        [t for t in tree_leaves(_run(m, inputs)) if isinstance(t, Tensor) and t.numel()] for m in (model, new)
    )
    for a, b in zip(before, after, strict=True):
        size, gap = float(working(a).abs().max()), float((working(a) - working(b)).abs().max())
        if gap > _TOLERANCE * max(size, 1e-6):
            raise ArgumentError(
                f"`model` cannot be folded: the outputs differ by {gap:.3g}, beside a largest one of {size:.3g}. "
                f"It uses the output of a layer before a batch norm elsewhere too; fold fewer, by `given`."
            )


def _numbers(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.numel() > 0


@torch.no_grad()
def _run(model: nn.Module, inputs: Any) -> Any:
    """The outputs in eval mode; the modes are put back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        if isinstance(inputs, Mapping):
            return model(**inputs)
        return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)
    finally:
        for module, mode in modes.items():
            module.training = mode


def _traceable(model: nn.Module) -> bool:
    """Whether `norm_after` had a graph to read."""

    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return isinstance(m, (Decomposed, Recurrent)) or super().is_leaf_module(m, module_qualified_name)

    try:
        Tracer().trace(meta_copy(model))
    except Exception:  # noqa: BLE001 - tracing runs foreign code: whatever it raises, the model has no graph
        return False
    return True
