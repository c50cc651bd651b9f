"""Find the layers that can be decomposed, put factorised ones in their place, and put dense ones back.

Modules are found by what they are and replaced by name: no tracing, nothing per architecture. What cannot be replaced
exactly is left dense and listed with its reason.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tenfold.errors import ArgumentError, PlanError, UnsupportedLayer
from tenfold.layers.matrix import LowRank, low_rank_class
from tenfold.layers.spec import LayerSpec, spec_of, to_kernel

Selection = str | Sequence[str] | None
"""PEFT's convention: a string is a regular expression for the whole name, a list holds names or name endings."""


class Structure(Protocol):
    """What a layer is to become."""

    @property
    def decomposition(self) -> str: ...  # noqa: D102
    @property
    def rank(self) -> int | tuple[int, ...] | None: ...  # noqa: D102
    @property
    def groups(self) -> int: ...  # noqa: D102
    @property
    def fold(self) -> str | None: ...  # noqa: D102


@dataclass(frozen=True)
class Target:
    """One weight of a model that could be decomposed, or the reason why it stays dense.

    Args:
        name: of the module that holds it (the first, in module order).
        aliases: of further modules that hold the same weight, or further names of the same module.
        spec: the options of the layer; None where tenfold does not know its kind.
        reason: why it stays dense; None where it can be decomposed.
        params: numbers in the weight.
    """

    name: str
    aliases: tuple[str, ...]
    spec: LayerSpec | None
    reason: str | None
    params: int


def find(model: nn.Module, target_modules: Selection = None, exclude_modules: Selection = None) -> list[Target]:
    """Every module with a weight matrix or kernel of its own, in module order.

    Args:
        model: any module.
        target_modules: only these may be decomposed; None: all.
        exclude_modules: these stay dense.

    Raises:
        ArgumentError: a selection that matches no module; the message names near misses.
        UnsupportedLayer: a layer named in full by ``target_modules`` that cannot be decomposed.
    """
    refuse_wrapped(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    chosen = _select(target_modules, "target_modules", modules)
    excluded = _select(exclude_modules, "exclude_modules", modules) or set()
    holders: dict[int, list[str]] = defaultdict(list)
    for name, module in modules.items():
        for parameter in _matrices(module):
            holders[id(parameter)].append(name)
    targets, seen = [], set()
    for name, module in modules.items():
        for parameter in _matrices(module):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            names = holders[id(parameter)]
            reason = _why_not(names, modules, parameter)
            if reason is None and chosen is not None and not chosen.intersection(names):
                reason = "not in target_modules"
            if reason is None and excluded.intersection(names):
                reason = "in exclude_modules"
            targets.append(Target(name, tuple(names[1:]), spec_of(module), reason, parameter.numel()))
    _refuse_named(target_modules, targets)
    return targets


def apply(model: nn.Module, structures: Mapping[str, Structure]) -> nn.Module:
    """A new model in which each named layer has become what its structure says; ``model`` is untouched.

    The weights that are replaced are never copied. Layers that shared a weight share its factors.

    Args:
        model: the dense model.
        structures: by module name; ``"dense"`` ones are left as they are.

    Raises:
        PlanError: a name that the model lacks, or a structure that its layer cannot take.
    """
    return _replace(model, structures, empty=False)


def skeleton(model: nn.Module, structures: Mapping[str, Structure]) -> nn.Module:
    """As `apply`, with uninitialised factors: for loading saved weights into."""
    return _replace(model, structures, empty=True)


def to_dense(model: nn.Module) -> nn.Module:
    """A new model in which every factorised layer is one plain dense layer again, its factors multiplied."""
    factorised = {name: m for name, m in model.named_modules(remove_duplicate=False) if isinstance(m, LowRank)}
    memo: dict[int, Any] = {}
    dense: dict[tuple[int, int], nn.Parameter] = {}
    for layer in factorised.values():
        if id(layer) in memo:
            continue
        new = layer.to_layer()
        pair = (id(layer.encoder.weight), id(layer.decoder.weight))
        new.weight = dense.setdefault(pair, cast("nn.Parameter", new.weight))
        if layer.bias is not None:
            new.bias = memo.setdefault(
                id(layer.bias), nn.Parameter(layer.bias.detach().clone(), layer.bias.requires_grad)
            )
        memo[id(layer)] = new
    return copy.deepcopy(model, memo)


def refuse_wrapped(model: nn.Module) -> None:
    """Raise `ArgumentError` for a model inside a wrapper whose copies of the parameters would go stale."""
    wrappers = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    for module in model.modules():
        if isinstance(module, wrappers) or type(module).__name__ == "OptimizedModule":
            raise ArgumentError(
                f"`model` must not be wrapped in {type(module).__name__}. Pass the module inside it "
                f"(`.module`, or `._orig_mod` after torch.compile) and wrap the result again."
            )


def structure_of(model: nn.Module) -> dict[str, LowRank]:
    """The factorised layers of a model by name, each once."""
    return {name: m for name, m in model.named_modules() if isinstance(m, LowRank)}


def _replace(model: nn.Module, structures: Mapping[str, Structure], *, empty: bool) -> nn.Module:
    refuse_wrapped(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    todo = {name: s for name, s in structures.items() if s.decomposition != "dense"}
    for name in todo:
        if name not in modules:
            raise PlanError(f"the plan names the layer '{name}', which the model lacks.{_near(name, modules)}")
        if spec_of(modules[name]) is None:
            kind = type(modules[name]).__name__
            raise PlanError(f"the plan decomposes '{name}', a {kind}, which tenfold cannot replace.")
    # Everything but the replaced weights is copied: those are stood in for by empty tensors on the meta device.
    weights = {id(modules[name].weight): modules[name].weight for name in todo}
    stand_ins = {key: nn.Parameter(torch.empty_like(cast("Tensor", w), device="meta")) for key, w in weights.items()}
    small = copy.deepcopy(model, dict(stand_ins))
    built: dict[int, nn.Module] = {}
    factors: dict[int, LowRank] = {}
    for name, structure in todo.items():
        old = modules[name]
        if id(old) not in built:
            new = _build(name, old, structure, factors.get(id(old.weight)), empty=empty)
            factors.setdefault(id(old.weight), new)
            if new.bias is not None:
                cast("nn.Linear", new.decoder).bias = cast("nn.Parameter", small.get_submodule(name).bias)
            built[id(old)] = new
        small = _put(small, name, built[id(old)])
    replaced = {id(p) for p in stand_ins.values()}
    left = [name for name, p in small.named_parameters() if id(p) in replaced]
    if left:
        raise PlanError(
            f"the plan replaces a layer whose weight is shared with '{left[0]}', which stays dense. "
            f"Give both the same entry, or leave both dense."
        )
    return small


def _build(name: str, old: nn.Module, structure: Structure, twin: LowRank | None, *, empty: bool) -> LowRank:
    spec = spec_of(old)
    assert spec is not None
    if structure.decomposition != LowRank.decomposition or not isinstance(structure.rank, int):
        raise PlanError(
            f"'{name}': `decomposition` must be 'dense' or 'low-rank' with one integer `rank`; "
            f"got {structure.decomposition!r} with rank {structure.rank!r}."
        )
    kind, weight = low_rank_class(spec), cast("Tensor", old.weight)
    fold = structure.fold or "channel"
    try:
        if twin is None and not empty:
            return kind.from_layer(old, spec, structure.rank, structure.groups, fold)
        new = kind.empty(spec, structure.rank, structure.groups, fold, weight.device, weight.dtype)
    except ArgumentError as error:
        raise PlanError(f"'{name}' with kernel {spec.shape} cannot be built as planned: {error}") from error
    if twin is not None:
        new.encoder.weight, new.decoder.weight = twin.encoder.weight, twin.decoder.weight
    return new.train(old.training)


def _put(model: nn.Module, name: str, new: nn.Module) -> nn.Module:
    if name == "":
        return new
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new)
    return model


def _matrices(module: nn.Module) -> list[nn.Parameter]:
    """The parameters with two axes or more that ``module`` itself holds."""
    return [p for p in module.parameters(recurse=False) if nn.parameter.is_lazy(p) or p.ndim >= 2]


def _why_not(names: list[str], modules: Mapping[str, nn.Module], weight: nn.Parameter) -> str | None:
    specs = [spec_of(modules[name]) for name in names]
    module = modules[names[0]]
    if nn.parameter.is_lazy(weight):
        return "not initialised yet: run the model once first"
    if isinstance(module, parametrize.ParametrizationList):
        return "parametrized: remove the parametrization first"
    if any(_hooked(modules[name]) for name in names):
        return "carries hooks (weight norm, or a user's), which a replacement would lose"
    for name, spec in zip(names, specs, strict=True):
        if spec is None or modules[name].weight is not weight:
            kind = type(modules[name]).__name__
            return f"tied to '{name}', a {kind}" if name != names[0] else f"a {kind}, which tenfold does not decompose"
    if len({_options(spec) for spec in specs if spec}) > 1:
        return f"tied to '{names[1]}', a layer with other options"
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return "read directly by nn.MultiheadAttention, which multiplies by its dense weight"
    if not weight.dtype.is_floating_point:
        return f"its weight is {weight.dtype}"
    if type(weight.data) is not Tensor:
        return f"its weight is a {type(weight.data).__name__}, not a plain tensor"
    return None


def _options(spec: LayerSpec) -> tuple[Any, ...]:
    return (spec.kind, spec.shape, spec.groups)


def _hooked(module: nn.Module) -> bool:
    return any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks))


def _select(selection: Selection, argument: str, modules: Mapping[str, nn.Module]) -> set[str] | None:
    if selection is None:
        return None
    if isinstance(selection, str):
        try:
            pattern = re.compile(selection)
        except re.error as error:
            raise ArgumentError(f"`{argument}` is no regular expression: {selection!r} ({error}).") from error
        found = {name for name in modules if pattern.fullmatch(name)}
        if not found:
            raise ArgumentError(f"`{argument}` matches no module: {selection!r}.{_near(selection, modules)}")
        return found
    found = set()
    for wanted in selection:
        hits = {name for name in modules if name == wanted or name.endswith("." + wanted)}
        if not hits:
            raise ArgumentError(f"`{argument}` names no module: {wanted!r}.{_near(wanted, modules)}")
        found |= hits
    return found


def _near(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, [n for n in names if n], n=3, cutoff=0.5)
    return f" Nearest: {', '.join(close)}." if close else ""


def _refuse_named(selection: Selection, targets: list[Target]) -> None:
    """A layer that the user spelled out in full must not be left dense silently."""
    if selection is None or isinstance(selection, str):
        return
    for target in targets:
        if target.reason not in (None, "in exclude_modules") and {target.name, *target.aliases} & set(selection):
            raise UnsupportedLayer(f"`target_modules` names '{target.name}', which stays dense: {target.reason}.")


def kernel_of(model: nn.Module, target: Target) -> Tensor:
    """The kernel ``(out, in / groups, *k)`` of a target, detached; a view of the layer's own weight."""
    assert target.spec is not None
    return to_kernel(target.spec, cast("Tensor", model.get_submodule(target.name).weight).detach())
