"""Put factorised layers in the place of dense ones, by name, and put dense ones back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from tenfold.errors import ArgumentError, PlanError
from tenfold.layers.copy_model import duplicate
from tenfold.layers.decomposed import Decomposed
from tenfold.layers.find import FoundLayer, find, kind_of
from tenfold.layers.fused_encoder import keep_off_fused_paths_
from tenfold.layers.matrix import LowRank, low_rank_class
from tenfold.layers.open_recurrent import closed
from tenfold.layers.pretrained import join_save_pretrained_
from tenfold.layers.select import near
from tenfold.layers.spec import LayerSpec, spec_of
from tenfold.layers.tucker import TuckerConv
from tenfold.layers.usable import refuse_unusable
from tenfold.linalg.svd import require_finite


class Structure(Protocol):
    """The structure that a layer is to get: decomposition, rank, slices and fold."""

    @property
    def decomposition(self) -> str: ...  # noqa: D102
    @property
    def rank(self) -> int | tuple[int, ...] | None: ...  # noqa: D102
    @property
    def slices(self) -> int: ...  # noqa: D102
    @property
    def fold(self) -> str | None: ...  # noqa: D102
    @property
    def bias(self) -> bool: ...  # noqa: D102


Given = Mapping[str, tuple[tuple[Tensor, ...], Tensor | None]]
"""Factors in place of the best ones for the weight, as the layer's ``set_factors`` takes them; and what is added to the
bias, or None."""


class Make(Protocol):
    """Builds a factorised layer of a structure: with the factors of the weight, or with uninitialised ones."""

    def __call__(self, old: nn.Module, spec: LayerSpec, structure: Structure, /, *, empty: bool) -> Decomposed: ...  # noqa: D102


def apply(
    model: nn.Module,
    structures: Mapping[str, Structure],
    factors: Given | None = None,
    found: Sequence[FoundLayer] | None = None,
) -> nn.Module:
    """A new model in which each named layer is replaced by one of the given structure; ``model`` is untouched.

    The weights that are replaced are never copied. Layers that shared a weight share its factors.

    Args:
        model: the dense model.
        structures: by module name; ``"dense"`` ones are left as they are.
        factors: by module name, where they are not to be the best ones for the weight.
        found: the layers of ``model``, where they have been found already.

    Raises:
        PlanError: a name that the model lacks, a layer that has to stay dense, a structure that it cannot take, or
            different ones for one weight.
        TenfoldError: a weight with NaN or infinite entries, by name.
        ArgumentError: a wrapped model.
    """
    return rebuild(model, structures, planned, factors, found)


def skeleton(model: nn.Module, structures: Mapping[str, Structure]) -> nn.Module:
    """As `apply`, with uninitialised factors, to load saved weights into. Raises what `apply` raises."""
    return rebuild(model, structures, lambda *about, empty: planned(*about, empty=True))


@torch.inference_mode(False)
def to_dense(model: nn.Module) -> nn.Module:
    """A new model in which every factorised layer is one plain dense layer again, its factors multiplied.

    It computes what the factorised model computes: a bias that was added, as `PCA` adds one, stays.

    Raises:
        ArgumentError: a wrapped model.
    """
    refuse_unusable(model)
    return _multiplied(model)


def multiplied_back(model: nn.Module) -> nn.Module:
    """`to_dense` of a model with factorised layers; one without any as it is, not copied."""
    return _multiplied(model) if structure_of(model) else model


def _multiplied(model: nn.Module) -> nn.Module:
    memo: dict[int, Any] = {}
    weights: dict[tuple[int, ...], Any] = {}
    for layer in structure_of(model).values():
        new = layer.to_layer()
        new.weight = weights.setdefault(tuple(map(id, layer.factors)), new.weight)
        bias = layer.held_bias
        if bias is not None:
            new.bias = memo.setdefault(id(bias), nn.Parameter(bias.detach().clone(), bias.requires_grad))
        memo[id(layer)] = new
    return _copied(model, memo)


def _copied(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A copy in which what ``memo`` holds stands in the place of the old, ready to be used and saved as what it is."""
    return ready_(closed(duplicate(model, memo)))


def ready_(model: nn.Module) -> nn.Module:
    """Have what uses and saves ``model`` know what its layers are by now; whoever replaces layers calls it."""
    return join_save_pretrained_(keep_off_fused_paths_(model))


@torch.inference_mode(False)
def replace_(model: nn.Module, structures: Mapping[str, Structure]) -> None:
    """As `skeleton`, in ``model`` itself: for a host that builds a model, keeps it, and loads saved weights into it.

    Biases stay the parameters that they are. The model may be on the meta device. Raises what `apply` raises.

    Args:
        model: the dense model.
        structures: see `apply`.
    """
    made = _made(model, structures, lambda *about, empty: planned(*about, empty=True))
    for name, old in list(model.named_modules(remove_duplicate=False)):
        new = made.get(id(old))
        if new is None:
            continue
        if old.bias is not None:
            new.tie_bias_(old.bias)
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, new)
    ready_(model)


def structure_of(model: nn.Module) -> dict[str, Decomposed]:
    """The factorised layers of a model by name, each once."""
    return {name: m for name, m in model.named_modules() if isinstance(m, Decomposed)}


@torch.inference_mode(False)
def rebuild(
    model: nn.Module,
    structures: Mapping[str, Structure],
    make: Make,
    factors: Given | None = None,
    found: Sequence[FoundLayer] | None = None,
) -> nn.Module:
    """As `apply`, with layers built by ``make``; those in ``factors`` are asked for empty.

    Args:
        model: see `apply`.
        structures: see `apply`.
        make: builds each layer.
        factors: see `apply`.
        found: see `apply`.
    """
    return _copied(model, _made(model, structures, make, factors, found))


def _made(
    model: nn.Module,
    structures: Mapping[str, Structure],
    make: Make,
    factors: Given | None = None,
    found: Sequence[FoundLayer] | None = None,
) -> dict[int, Any]:
    """The new layers and their biases, by the ids of those whose places they take: a memo for a copy of the model."""
    factors = factors or {}
    modules = dict(model.named_modules(remove_duplicate=False))
    todo = {name: s for name, s in structures.items() if s.decomposition != "dense"}
    _check(find(model) if found is None else found, modules, todo)
    # What a copy finds in `memo` it takes as it is: the layers that are replaced are never copied.
    memo: dict[int, Any] = {}
    twins: dict[int, Decomposed] = {}
    for name, structure in todo.items():
        old = modules[name]
        if id(old) in memo:
            continue
        twin = twins.get(id(old.weight))
        new = _build(name, old, structure, partial(make, empty=twin is not None or name in factors))
        if twin is not None:
            new.share_(twin)
        if name in factors:
            tensors, shift = factors[name]
            cast("LowRank | TuckerConv", new).set_factors(*tensors)
            if shift is not None and new.held_bias is not None:
                _refuse_shared_bias(name, old, modules)
                new.held_bias.data += shift.to(new.held_bias)
        twins.setdefault(id(old.weight), new)
        if old.bias is not None and new.held_bias is not None:
            new.tie_bias_(memo.setdefault(id(old.bias), new.held_bias))
        memo[id(old)] = new
    return memo


def _check(found: Sequence[FoundLayer], modules: Mapping[str, nn.Module], todo: Mapping[str, Structure]) -> None:
    """Raise `PlanError` unless every layer in ``todo`` can be replaced, and every weight by one structure."""
    holders = {name: layer for layer in found for name in layer.names}
    for name, wanted in todo.items():
        if name not in modules:
            raise PlanError(f"the plan names the layer '{name}', which the model lacks.{near(name, modules)}")
        if name not in holders:
            raise PlanError(f"the plan decomposes '{name}', {kind_of(modules[name])}, which has no weight matrix.")
        layer = holders[name]
        if layer.reason is not None:
            raise PlanError(f"the plan decomposes '{name}', which has to stay dense: {layer.reason}.")
        for other in layer.names:
            twin = todo.get(other)
            if twin is None or _written(twin) != _written(wanted):
                raise PlanError(
                    f"'{name}' and '{other}' share one weight, but the plan has different entries for them. "
                    f"Give both the same entry, or leave both dense."
                )


def _refuse_shared_bias(name: str, old: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """A bias that is to change must not be that of a layer with another weight as well."""
    for other, module in modules.items():
        own = module._parameters
        if old.bias is not None and own.get("bias") is old.bias and own.get("weight") is not old.weight:
            raise PlanError(
                f"'{name}' and '{other}' share a bias but no weight, and the plan changes the bias of '{name}'. "
                f"Name both in `exclude_modules`."
            )


def _build(name: str, old: nn.Module, structure: Structure, make: Callable[..., Decomposed]) -> Decomposed:
    spec = spec_of(old)
    assert spec is not None
    weight = cast("Tensor", old.weight)
    if not weight.is_meta:
        require_finite(weight, f"the weight of '{name}'")
    try:
        return make(old, replace(spec, bias=spec.bias or structure.bias), structure)
    except ArgumentError as error:
        raise PlanError(f"'{name}' with kernel {spec.shape} cannot be built as planned: {error}") from error


def planned(old: nn.Module, spec: LayerSpec, structure: Structure, *, empty: bool) -> Decomposed:
    """Build the factorised layer of a structure: a `LowRank` or a `TuckerConv`.

    Args:
        old: the dense layer.
        spec: its options.
        structure: what it becomes.
        empty: leave the factors uninitialised.

    Raises:
        ArgumentError: no such decomposition; a rank that the layer cannot have.
    """
    rank = structure.rank
    if structure.decomposition == TuckerConv.decomposition and isinstance(rank, tuple):
        return TuckerConv.like(old, spec, rank) if empty else TuckerConv.from_layer(old, spec, rank)
    if structure.decomposition == LowRank.decomposition and isinstance(rank, int):
        kind = low_rank_class(spec)
        return (kind.like if empty else kind.from_layer)(old, spec, rank, structure.slices, structure.fold or "channel")
    raise ArgumentError(
        f"`decomposition` must be 'dense', 'low-rank' with one integer `rank`, or 'tucker' with one for each mode; "
        f"got {structure.decomposition!r} with rank {rank!r}."
    )


def _written(structure: Structure) -> tuple[Any, ...]:
    return (structure.decomposition, structure.rank, structure.slices, structure.fold)
