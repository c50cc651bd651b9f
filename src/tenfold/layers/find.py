"""Find the layers that can be decomposed: by what they are, no tracing, nothing per architecture.

What cannot be replaced exactly is left dense and listed with its reason.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tenfold.errors import UnsupportedLayer
from tenfold.layers.cost import Call, LayerCost, layer_cost
from tenfold.layers.open_recurrent import why_closed
from tenfold.layers.recurrent import Recurrent
from tenfold.layers.recurrent_matrices import listened
from tenfold.layers.select import Selection, select
from tenfold.layers.spec import CONVS, TRANSPOSED, LayerSpec, spec_of, to_kernel
from tenfold.layers.usable import refuse_unusable
from tenfold.linalg.fold import Fold

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class FoundLayer:
    """One weight of a model: where it is, how its layer computes with it, and whether it may be decomposed.

    The matrices of a module that holds several, as a recurrent layer does, count as one weight. Where another module
    shares some of them, these are found apart.

    Args:
        name: of the module that holds it (the first, in module order).
        aliases: of further modules that hold the same weight, or further names of the same module.
        module: the first module.
        spec: the options of the layer; None where tenfold does not know its kind or cannot read its numbers.
        reason: why it stays dense; None where it can be decomposed.
        params: numbers in the weight, or in all matrices; a lazy one counts as 0.
        calls: how all modules that hold the weight are used in one forward pass; None where that is unknown.
    """

    name: str
    aliases: tuple[str, ...]
    module: nn.Module
    spec: LayerSpec | None
    reason: str | None
    params: int
    calls: tuple[Call, ...] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all modules that hold the weight, the first one's first."""
        return (self.name, *self.aliases)

    @property
    def options(self) -> LayerSpec:
        """``spec`` where it is known not to be None: every layer that may be decomposed has one."""
        assert self.spec is not None
        return self.spec

    @property
    def weight(self) -> Tensor:
        """The weight parameter itself."""
        return cast("Tensor", self.module.weight)

    @property
    def kernel(self) -> Tensor:
        """The kernel ``(out, in / groups, *k)``, detached; a view of the layer's own weight."""
        return to_kernel(self.options, self.weight.detach())

    @property
    def cost(self) -> LayerCost:
        """The cost model of the weight, over all layers that use it."""
        return layer_cost(self.options, self.calls)

    def matrices(self, fold: str = "channel", slices: int = 1) -> Tensor:
        """The kernel's slices ``(g, k, rows, columns)`` in a fold; decoupled: ``(f, 1, rows, columns)``."""
        f = Fold(self.options.shape, self.options.groups, slices, fold)
        return f.matrices(self.kernel).unflatten(0, (-1, slices))


def find(
    model: nn.Module, target_modules: Selection = None, exclude_modules: Selection = None, *, replaced: bool = True
) -> list[FoundLayer]:
    """Find every module with a weight matrix or kernel of its own, in module order.

    Args:
        model: any module.
        target_modules: only these may be decomposed; None: all.
        exclude_modules: these stay dense.
        replaced: whether the layers are to be replaced. Their weights alone may be sharded, and the layers have hooks.

    Raises:
        ArgumentError: a wrapped model; a selection that matches no layer, and the message names near misses.
        UnsupportedLayer: a layer named in full by ``target_modules`` that cannot be decomposed.
    """
    refuse_unusable(model, only_read=True)
    modules = dict(model.named_modules(remove_duplicate=False))
    matrices = _by_holders(modules)
    wholes = {name: m for name, m in modules.items() if isinstance(m, Recurrent)}
    layers = dict.fromkeys([*(name for names in matrices for name in names), *wholes])
    chosen = _with_parts(select(target_modules, "target_modules", layers, modules), wholes)
    excluded = _with_parts(select(exclude_modules, "exclude_modules", layers, modules), wholes) or set()
    found = []
    for names, weights in matrices.items():
        weight = max(weights, key=nn.parameter.is_lazy)  # one lazy matrix leaves the whole module for later
        reason = _why_not(names, modules, weight, replaced)
        if reason is None and chosen is not None and not chosen.intersection(names):
            reason = "not in target_modules"
        if reason is None and excluded.intersection(names):
            reason = "in exclude_modules"
        lazy = nn.parameter.is_lazy(weight)
        spec = None if lazy or weight.dtype not in _DTYPES else spec_of(modules[names[0]])
        size = sum(0 if nn.parameter.is_lazy(w) else w.numel() for w in weights)
        found.append(FoundLayer(names[0], names[1:], modules[names[0]], spec, reason, size))
    _refuse_named(target_modules, found)
    return found


def _with_parts(chosen: set[str] | None, wholes: Mapping[str, nn.Module]) -> set[str] | None:
    """The layers chosen, and the matrices of a recurrent layer whose name is."""
    if chosen is None:
        return None
    parts = {f"{name}.{part}" for name in chosen & wholes.keys() for part in dict(wholes[name].named_children())}
    return chosen | parts


def _by_holders(modules: Mapping[str, nn.Module]) -> dict[tuple[str, ...], list[nn.Parameter]]:
    """All matrices by the names of the modules that hold them, in module order."""
    holders: dict[nn.Parameter, list[str]] = defaultdict(list)
    for name, module in modules.items():
        for parameter in _matrices(module):
            holders[parameter].append(name)
    together: dict[tuple[str, ...], list[nn.Parameter]] = defaultdict(list)
    for parameter, names in holders.items():
        together[tuple(names)].append(parameter)
    return together


def _matrices(module: nn.Module) -> list[nn.Parameter]:
    """The parameters with two axes or more that ``module`` itself holds."""
    return [p for p in module.parameters(recurse=False) if nn.parameter.is_lazy(p) or p.ndim >= 2]


def _why_not(
    names: Sequence[str], modules: Mapping[str, nn.Module], weight: nn.Parameter, replaced: bool
) -> str | None:
    specs = [spec_of(modules[name]) for name in names]
    module = modules[names[0]]
    if nn.parameter.is_lazy(weight):
        return "not initialised yet: run the model once first"
    if isinstance(module, parametrize.ParametrizationList):
        return "parametrized: remove the parametrization first"
    if replaced and any(listened(modules[name]) for name in names):
        return "carries hooks (weight norm, or a user's), which a replacement would lose"
    for name, spec in zip(names, specs, strict=True):
        if spec is None:
            what = kind_of(modules[name])
            recurrent = isinstance(modules[name], nn.RNNBase)
            if recurrent and why_closed(cast("nn.RNNBase", modules[name])) is None:
                return f"{what}, whose matrices are decomposed after training only"
            if recurrent or isinstance(modules[name], (nn.Linear, *CONVS, *TRANSPOSED)):
                what += " with more than a plain layer has"
            return f"tied to '{name}', {what}" if name != names[0] else f"{what}, which tenfold does not decompose"
    if len({_options(spec) for spec in specs if spec}) > 1:
        return f"tied to {', '.join(repr(n) for n in names[1:])}, not all layers of one kind and shape"
    if any(isinstance(modules[name], nn.modules.linear.NonDynamicallyQuantizableLinear) for name in names):
        return "read directly by nn.MultiheadAttention, which multiplies by its dense weight"
    if 0 in weight.shape:
        return "it has no weights: one of its sizes is 0"
    if weight.dtype not in _DTYPES:
        return f"its weight is {weight.dtype}"
    if replaced and type(weight.data) is not Tensor:
        return f"its weight is a {type(weight.data).__name__}, not a plain tensor"
    return None


def _options(spec: LayerSpec) -> tuple[Any, ...]:
    return (spec.kind, spec.shape, spec.groups)


def kind_of(module: nn.Module) -> str:
    """The class of a module with its article, for sentences."""
    kind = type(module).__name__
    spelled = len(kind) > 1 and kind[:2].isupper() and kind[0] in "FHLMNRSX"  # an LSTM
    return f"an {kind}" if kind[0] in "AEIO" or spelled else f"a {kind}"


def _refuse_named(selection: Selection, found: list[FoundLayer]) -> None:
    """A layer that the user spelled out in full must not be left dense silently."""
    if selection is None or isinstance(selection, str):
        return
    for layer in found:
        named = set(layer.names).intersection(selection)
        if named and layer.reason not in (None, "in exclude_modules"):
            raise UnsupportedLayer(f"`target_modules` names '{min(named)}', which stays dense: {layer.reason}.")
