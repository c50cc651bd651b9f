"""A dense model in training put into factorised form in place, with what its optimizer remembers of the weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tenfold.layers.decomposed import Decomposed
from tenfold.layers.spec import LayerSpec
from tenfold.layers.swap import Structure, planned, ready_, rebuild, structure_of
from tenfold.layers.tucker_model import to_be_loaded
from tenfold.layers.tucker_training import TrainedTucker
from tenfold.optim.hooks import stepped
from tenfold.optim.state_names import MEANS, SQUARES


class LayerForm(NamedTuple):
    """The structure of one layer, as it is kept in the state of an optimizer; a `tenfold.layers.swap.Structure`.

    Args:
        decomposition: "low-rank", "tucker", or "tucker in training".
        rank: as in a plan; in training, where it changes, the number of modes with a basis.
        slices: of the input channels.
        fold: see `tenfold.linalg.fold`; None for "tucker".
        bias: whether the factorised layer has a bias that the dense one lacks.
    """

    decomposition: str
    rank: Any
    slices: int
    fold: str | None
    bias: bool = False


def forms_of(structures: Mapping[str, Structure]) -> dict[str, LayerForm]:
    """The structures of the layers that are not dense, as plain values."""
    dense = {name for name, s in structures.items() if s.decomposition == "dense"}
    return {
        name: LayerForm(s.decomposition, s.rank, s.slices, s.fold, s.bias)
        for name, s in structures.items()
        if name not in dense
    }


def forms_in(model: nn.Module) -> dict[str, LayerForm]:
    """The forms of the factorised layers of a model, by name."""
    forms: dict[str, LayerForm] = {}
    for name, x in structure_of(model).items():
        rank = x.modes if isinstance(x, TrainedTucker) else x.rank
        forms[name] = LayerForm(x.decomposition, rank, x.slices, x.fold, x.added_bias)
    return forms


def factorise_(model: nn.Module, structures: Mapping[str, Structure], optimizer: Optimizer | None = None) -> None:
    """Put layers of ``model`` into factorised form, in place, at the best factors for their weights.

    In the optimizer the factors take the place of the weight in its group, so schedules go on. Momentum is carried
    over by the chain rule: with ``W(L, R)`` the mean gradient ``M`` of the weight becomes ``M . dW/dL`` and
    ``M . dW/dR``, what the optimizer would hold had it trained the factors at their present values. Mean squares become
    those of independent entries, ``sum_ij V_ij (dW_ij/dL)^2`` (in Tucker format without what products of different
    entries of the core add). Counts of steps stay. Other state begins anew.
    Hooks on the layers that are replaced are gone.

    Args:
        model: dense, or partly so; every holder of the model sees its new layers.
        structures: by layer name; ``"dense"`` ones are left as they are.
        optimizer: of its parameters, or None.

    Raises:
        PlanError: see `tenfold.layers.swap.apply`.
        TenfoldError: a weight with NaN or infinite entries, by name.
    """
    take_layers_(model, rebuild(model, structures, _made), optimizer)


def take_layers_(model: nn.Module, made: nn.Module, optimizer: Optimizer | None = None) -> None:
    """Put the factorised layers of ``made`` into ``model``, a dense one of the same names, in place; see `factorise_`.

    Args:
        model: every holder of it sees its new layers.
        made: a factorised copy of ``model``; its layers become those of ``model``.
        optimizer: of the parameters of ``model``, or None.
    """
    _replace(model, dict(structure_of(made)), optimizer)
    ready_(model)


def _made(old: nn.Module, spec: LayerSpec, structure: Structure, /, *, empty: bool) -> Decomposed:
    """`planned`, and layers in Tucker format for training, whose factors are loaded afterwards."""
    if structure.decomposition == TrainedTucker.decomposition and isinstance(structure.rank, int):
        return to_be_loaded(old, spec, structure.rank)
    return planned(old, spec, structure, empty=empty)


def unfactorise_(model: nn.Module, optimizer: Optimizer | None = None) -> None:
    """Make the factorised layers of ``model`` dense again, in place; what an optimizer remembers of them is lost."""
    dense: dict[str, nn.Module] = {}
    weights: dict[tuple[int, ...], nn.Parameter] = {}
    for name, layer in structure_of(model).items():
        new = layer.to_layer()
        new.weight = weights.setdefault(tuple(map(id, layer.factors)), cast("nn.Parameter", new.weight))
        dense[name] = new
    _replace(model, dense, optimizer)
    ready_(model)


def _replace(model: nn.Module, new: Mapping[str, nn.Module], optimizer: Optimizer | None) -> None:
    """Put modules in the place of others, for every name of theirs, with their biases and the optimizer's memory."""
    old = {name: model.get_submodule(name) for name in new}
    place = {id(module): new[name] for name, module in old.items()}
    for holder in list(model.modules()):
        for name, child in holder._modules.items():
            if child is not None and id(child) in place:
                holder._modules[name] = place[id(child)]
    for name, module in new.items():
        before = old[name]
        _tie(module, before.held_bias if isinstance(before, Decomposed) else cast("nn.Parameter | None", before.bias))
    if optimizer is None:
        return
    moves: dict[tuple[int, ...], tuple[nn.Module, nn.Module]] = {}
    for name, module in new.items():
        moves.setdefault(tuple(map(id, _weights(old[name]))), (old[name], module))
    for before, after in moves.values():
        _hand_over(stepped(optimizer), before, after)


def _tie(module: nn.Module, bias: nn.Parameter | None) -> None:
    """Have a layer use this parameter as its bias."""
    if not isinstance(module, Decomposed):
        module.register_parameter("bias", bias)
    elif bias is not None:
        module.tie_bias_(bias)


def _weights(module: nn.Module) -> tuple[nn.Parameter, ...]:
    return module.factors if isinstance(module, Decomposed) else (cast("nn.Parameter", module.weight),)


def _hand_over(optimizer: Optimizer, before: nn.Module, after: nn.Module) -> None:
    """Have an optimizer train the weights of ``after`` in the place of those of ``before``."""
    gone, come = _weights(before), _weights(after)
    states = [optimizer.state.pop(p, None) for p in gone]
    for group in optimizer.param_groups:
        places = [i for i, p in enumerate(group["params"]) if any(p is g for g in gone)]
        if not places:
            continue
        kept = [p for p in group["params"] if not any(p is g for g in gone)]
        group["params"] = [*kept[: places[0]], *come, *kept[places[0] :]]
    if isinstance(after, Decomposed) and not isinstance(before, Decomposed) and states[0]:
        for p, state in zip(come, carried(after, states[0]), strict=True):
            optimizer.state[p] = state


def carried(layer: Decomposed, state: Mapping[str, Any]) -> list[dict[str, Any]]:
    """An optimizer's state of a weight as that of the factors of ``layer``; see `factorise_`.

    Args:
        layer: factorised; a product whose every term has each factor once.
        state: of the weight that it stands for.
    """
    shape, factors = layer.spec.weight_shape, layer.factors
    squared = copy.deepcopy(layer)
    with torch.no_grad():
        for factor in squared.factors:
            factor.square_()
    made: list[dict[str, Any]] = [{} for _ in factors]
    for key, value in state.items():
        if not isinstance(value, Tensor) or value.ndim == 0:
            parts = [copy.deepcopy(value) for _ in factors]
        elif tuple(value.shape) != tuple(shape) or key not in (*MEANS, *SQUARES):
            continue
        else:
            parts = gradients(squared if key in SQUARES else layer, value)
        for one, part in zip(made, parts, strict=True):
            one[key] = part
    return made


@torch.enable_grad()
def gradients(layer: Decomposed, value: Tensor) -> list[Tensor]:
    """The gradient of ``<value, W>`` in each factor of ``layer``, of which the weight ``W`` is the product."""
    factors = layer.factors
    tracked = [f.requires_grad for f in factors]
    for f in factors:
        f.requires_grad_(True)
    found = torch.autograd.grad(layer._product(), factors, value.detach())
    for f, was in zip(factors, tracked, strict=True):
        f.requires_grad_(was)
    return [g.detach().to(memory_format=torch.preserve_format) for g in found]
