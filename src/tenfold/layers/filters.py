"""Filters removed for good: convolutions get fewer output channels, and all that depends on them shrinks along.

Which layers depend on which, through residual sums, concatenations and norms, is `torch-pruning`'s dependency graph; it
is found by running the model once. A filter's score is the L1 or L2 norm of its weights. Filters that are tied to each
other, by a residual sum, say, stand or fall together: their score is the norm of all of them as one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tenfold.errors import ArgumentError, TenfoldError, check, is_share
from tenfold.layers.copy_model import duplicate
from tenfold.layers.cost import call_arguments
from tenfold.layers.matrix import LowRank
from tenfold.layers.select import Selection, select
from tenfold.layers.spec import CONVS, TRANSPOSED, spec_of, to_kernel
from tenfold.layers.usable import refuse_unusable
from tenfold.linalg.svd import require_finite, working

_FILTERS = (*CONVS, *TRANSPOSED)


@dataclass(frozen=True, eq=False)
class Bundle:
    """Filters that can only be removed together, channel by channel.

    Args:
        root: the layer whose channels they are numbered by.
        layers: the names of all layers that have them.
        scores: the norm of each channel's weights in all of these layers, ``(channels,)``, float64.
    """

    root: str
    layers: tuple[str, ...]
    scores: Tensor

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class Filters:
    """The filters of one model that can be removed.

    Args:
        model: as it was given; it must not change while this is used.
        bundles: of filters, in the order of their roots.
        left: layers whose filters all stay, with the reason.
        example: inputs that the model runs on.
    """

    model: nn.Module
    bundles: tuple[Bundle, ...]
    left: Mapping[str, str]
    example: Any = field(repr=False)

    def steps(self, *, together: bool) -> list[float]:
        """The shares at which one more filter goes, ascending, from 0."""
        if together:
            total = sum(map(len, self.bundles))
            return [i / total for i in range(total)]
        return sorted({i / len(b) for b in self.bundles for i in range(len(b))} | {0.0})

    def weakest(self, share: float, *, together: bool) -> dict[str, list[int]]:
        """The channels of least score by root: of each bundle, or of all bundles together; one always stays.

        Ties go by index. Scores of different bundles are compared relative to the root mean square of their own.
        """
        if not together:
            return {b.root: _least(b.scores, _count(share, len(b), len(b) - 1)) for b in self.bundles}
        scaled = [b.scores / b.scores.square().mean().sqrt().clamp(min=1e-300) for b in self.bundles]
        for scores in scaled:
            scores[scores.argmax()] = torch.inf
        owner = [b.root for b in self.bundles for _ in range(len(b))]
        inside = [i for b in self.bundles for i in range(len(b))]
        free = len(owner) - len(self.bundles)
        gone: dict[str, list[int]] = {b.root: [] for b in self.bundles}
        for i in _least(torch.cat(scaled), _count(share, len(owner), free)) if scaled else ():
            gone[owner[i]].append(inside[i])
        return gone

    def without(self, gone: Mapping[str, Sequence[int]]) -> nn.Module:
        """A copy of the model without these channels of the bundles.

        Raises:
            TenfoldError: `torch-pruning` is missing.
        """
        copy = duplicate(self.model)
        _remove(copy, self.example, gone)
        return copy


def find_filters(
    model: nn.Module,
    example_inputs: Any,
    *,
    norm: float = 2,
    target_modules: Selection = None,
    exclude_modules: Selection = None,
) -> Filters:
    """The filters of ``model`` that can be removed, with their scores. The model is untouched.

    Layers whose channels are the model's output stay as they are, and so do grouped convolutions that are not
    depthwise, and what is tied to either.

    Args:
        model: any module that runs on ``example_inputs``.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments.
        norm: 1 or 2, of a filter's weights.
        target_modules: only the filters of these layers; see `tenfold.plan`.
        exclude_modules: never those of these.

    Raises:
        ArgumentError: another norm, a wrapped model, or inputs that it does not run on.
        TenfoldError: `torch-pruning` is missing; a weight that is not finite.
    """
    check(norm in (1, 2), "norm", "1 or 2", norm)
    refuse_unusable(model)
    if any(isinstance(m, LowRank) for m in model.modules()):
        raise ArgumentError("`model` must be dense to lose filters; this one is factorised. See tenfold.to_dense.")
    copy = duplicate(model)
    graph = _graph(copy, example_inputs)
    names = {m: name for name, m in copy.named_modules()}
    layers = {name: None for m, name in names.items() if isinstance(m, _FILTERS)}
    modules = dict(copy.named_modules(remove_duplicate=False))
    chosen = select(target_modules, "target_modules", layers, modules)
    excluded = select(exclude_modules, "exclude_modules", layers, modules) or set()
    bundles: list[Bundle] = []
    left: dict[str, str] = {}
    for group in graph.get_all_groups(root_module_types=list(_FILTERS)):
        members = [dep.target.module for dep, _ in group if graph.is_out_channel_pruning_fn(dep.handler)]
        found = tuple(names[m] for m in members if isinstance(m, _FILTERS))
        touched = [dep.target.module for dep, _ in group if dep.target.module in names]
        reason = _why_not(found, touched, names, chosen, excluded)
        if reason is None:
            bundles.append(Bundle(found[0], found, _scores(group, graph, names, norm)))
        else:
            left |= dict.fromkeys(found, reason)
    # One run tells that no bundle is the output, as is usual; only if some are each has to be tried.
    if _changes_output(model, example_inputs, [b.root for b in bundles]):
        fixed = [b for b in bundles if _changes_output(model, example_inputs, [b.root])]
        bundles = [b for b in bundles if b not in fixed]
        left |= {name: "its channels are the model's output" for b in fixed for name in b.layers}
    return Filters(model, tuple(bundles), left, example_inputs)


def _why_not(
    found: tuple[str, ...],
    touched: Sequence[nn.Module],
    names: Mapping[nn.Module, str],
    chosen: set[str] | None,
    excluded: set[str],
) -> str | None:
    """Why filters stay: nobody asked for them, or a layer that puts out or takes in their channels cannot shrink."""
    if chosen is not None and not chosen.intersection(found):
        return "not in target_modules"
    if excluded.intersection(found):
        return "in exclude_modules" + ("" if len(found) == 1 else f", or tied to one that is: {', '.join(found)}")
    for module in touched:
        spec = spec_of(module)
        if isinstance(module, (*_FILTERS, nn.Linear)) and spec is None:
            return f"'{names[module]}' is a {type(module).__name__} with more than a plain layer has"
        if spec is not None and spec.groups > 1 and spec.groups != spec.in_channels:
            return f"'{names[module]}' has groups of channels, which have to stay of one size"
    return None


def _scores(group: Any, graph: Any, names: Mapping[nn.Module, str], norm: float) -> Tensor:
    """``||(w_{l,f})_l||`` of each channel f over the layers l that put it out; depthwise ones count too."""
    total: Tensor | float = 0.0
    for dep, indices in group:
        module = dep.target.module
        if isinstance(module, _FILTERS) and graph.is_out_channel_pruning_fn(dep.handler):
            spec = spec_of(module)
            assert spec is not None
            weight = cast("Tensor", module.weight)
            require_finite(weight, f"the weight of '{names[module]}'")
            filters = working(to_kernel(spec, weight)).flatten(1)[list(indices)]
            total = total + filters.abs().pow(norm).sum(1).cpu()
    return torch.as_tensor(total).pow(1 / norm)


def _changes_output(model: nn.Module, inputs: Any, roots: Sequence[str]) -> bool:
    """Whether the model puts out another shape, or nothing at all, without one channel of each of ``roots``."""
    copy = duplicate(model)
    before = _shapes(copy, inputs)
    _remove(copy, inputs, {root: [0] for root in roots})
    try:
        return _shapes(copy, inputs) != before
    except RuntimeError:  # a reshape, or an operation that the graph does not know, holds on to the number of channels
        return True


@torch.no_grad()
def _shapes(model: nn.Module, inputs: Any) -> Any:
    args, kwargs = call_arguments(inputs)
    out = model.eval()(*args, **kwargs)
    return [x.shape for x in tree_leaves(out) if isinstance(x, Tensor)]


def _remove(model: nn.Module, inputs: Any, gone: Mapping[str, Sequence[int]]) -> None:
    import_pruning()
    if not any(gone.values()):
        return
    modes = {m: m.training for m in model.modules()}
    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    graph = _graph(model, inputs)
    for root, channels in gone.items():
        if channels:
            layer = model.get_submodule(root)
            pruner = graph.get_pruner_of_module(layer)
            graph.get_pruning_group(layer, pruner.prune_out_channels, list(channels)).prune()
    for module, training in modes.items():
        module.training = training
    for name, p in model.named_parameters():  # narrower ones are new, and would all be trained
        p.requires_grad_(trained[name])


def _graph(model: nn.Module, inputs: Any) -> Any:
    """The dependency graph, from one run in eval mode."""
    pruning = import_pruning()
    args, kwargs = call_arguments(inputs)
    try:
        model.eval()(*args, **kwargs)
    except Exception as error:
        raise ArgumentError(
            f"`example_inputs` must be inputs that the model accepts; its forward pass failed with "
            f"{type(error).__name__}: {error}."
        ) from error
    given = kwargs if kwargs else args
    # A graph needs gradients: parameters that are frozen have none, and their layers would be missing.
    frozen = [p for p in model.parameters() if not p.requires_grad]
    for p in frozen:
        p.requires_grad_(True)
    graph = pruning.DependencyGraph().build_dependency(model, given, verbose=False)
    for p in frozen:
        p.requires_grad_(False)
    return graph


def import_pruning() -> Any:
    """The package `torch-pruning`.

    Raises:
        TenfoldError: it is not installed.
    """
    try:
        import torch_pruning
    except ImportError as error:
        raise TenfoldError("removing filters needs torch-pruning: pip install 'tenfold[prune]'.") from error
    return torch_pruning


def _least(scores: Tensor, count: int) -> list[int]:
    return sorted(torch.argsort(scores, stable=True)[:count].tolist())


def _count(share: float, whole: int, most: int) -> int:
    check(is_share(share) and share < 1, "share", "in [0, 1)", share)
    return min(math.floor(share * whole + 1e-9), most)
