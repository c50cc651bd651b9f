"""A checkpoint of a run that changed its form: model and optimizer take the form that is loaded into them."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from tenfold.errors import ArgumentError, CheckpointError
from tenfold.layers.decomposed import Decomposed
from tenfold.layers.spec import LayerSpec, build_dense, spec_of
from tenfold.layers.swap import planned
from tenfold.layers.tucker_training import TrainedTucker
from tenfold.linalg.fold import Fold, folds_for
from tenfold.optim.factorise import LayerForm, factorise_, forms_in, unfactorise_
from tenfold.optim.hooks import stepped


def follow_checkpoints(model: nn.Module, optimizer: Optimizer, name: str) -> None:
    """Have a model and its optimizer take the form that a checkpoint has, whichever of them is loaded first.

    The optimizer's state says which layers are factorised; the model's is read by the shapes in it.

    Args:
        model: in training.
        optimizer: of its parameters.
        name: key of the method's state in ``optimizer.param_groups[0]``; its "forms" are those of the layers.
    """
    optimizer = stepped(optimizer)
    follows = _Follows(model, optimizer)
    model.register_load_state_dict_pre_hook(follows)

    def ahead(_: Optimizer, state: dict[str, Any]) -> None:
        held = state["param_groups"][0].get(name, {})
        follows.take({layer: LayerForm(*form) for layer, form in (held.get("forms") or {}).items()})

    optimizer.register_load_state_dict_pre_hook(ahead)


class _Follows:
    """The hook of a model; in a copy of the model, and in a pickled one, it does nothing."""

    def __init__(self, model: nn.Module | None = None, optimizer: Optimizer | None = None) -> None:
        self._model = (lambda: None) if model is None else weakref.ref(model)
        self._optimizer = (lambda: None) if optimizer is None else weakref.ref(optimizer)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Follows, ()

    def __call__(self, module: nn.Module, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
        if module is not self._model():
            return
        now = forms_in(module)
        stays = {layer: form for layer, form in now.items() if f"{prefix}{layer}.weight" not in state}
        self.take(stays | read_forms(module, state, prefix))

    def take(self, forms: Mapping[str, LayerForm]) -> None:
        """Give the model these forms, and no others; what fits in both forms keeps its numbers.

        Shapes do not tell all: the folds of a pointwise kernel differ by their strides alone.
        """
        model, optimizer = self._model(), self._optimizer()
        if model is None or forms_in(model) == dict(forms):
            return
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        unfactorise_(model, optimizer)
        if forms:
            factorise_(model, forms, optimizer)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if name in before and before[name].shape == p.shape:
                    p.copy_(before[name])


def read_forms(model: nn.Module, state: Mapping[str, Any], prefix: str = "") -> dict[str, LayerForm]:
    """The forms of the layers whose factors ``state`` holds, from names and shapes alone.

    Args:
        model: in either form.
        state: from a model's `state_dict`.
        prefix: of its names.

    Raises:
        CheckpointError: factors of a shape that no layer of the model can have.
    """
    found, present = dict[str, LayerForm](), forms_in(model)
    for name, module in model.named_modules():
        start = f"{prefix}{name}."
        modes = sum(f"{start}basis_{i}" in state for i in range(5)) if f"{start}core" in state else 0
        if modes:
            found[name] = LayerForm(TrainedTucker.decomposition, modes, 1, None)
            continue
        if f"{start}encoder.weight" not in state or f"{start}decoder.weight" not in state:
            continue
        spec = module.spec if isinstance(module, Decomposed) else spec_of(module)
        if spec is None:
            continue
        own = [present[name]] if name in present else []  # of forms of the same shapes the one that is there
        form = next((f for f in (*own, *_possible(start, state, spec)) if _fits(f, spec, start, state)), None)
        if form is None:
            shapes = [tuple(state[f"{start}{part}.weight"].shape) for part in ("encoder", "decoder")]
            raise CheckpointError(f"factors of '{name}' have shapes that its layer cannot have: {shapes}.")
        found[name] = form
    return found


def _possible(start: str, state: Mapping[str, Any], spec: LayerSpec) -> Iterator[LayerForm]:
    """The forms whose encoder might have as many outputs as the one in ``state``: its first axis, or the second."""
    bias = f"{start}decoder.bias" in state and not spec.bias
    first, second, *_ = state[f"{start}encoder.weight"].shape
    if f"{start}core.weight" in state:
        outer, inner, *_ = state[f"{start}core.weight"].shape
        own = (inner // spec.groups, outer) if spec.transposed else (outer // spec.groups, inner)
        yield LayerForm("tucker", own[::-1] if spec.transposed else own, 1, None, bias)
        return
    for fold in folds_for(len(spec.kernel_size)):
        made = Fold(spec.shape, spec.groups, 1, fold)
        for inner in (first, second * made.encoder_groups):
            if inner % made.batch == 0:
                yield LayerForm("low-rank", inner // made.batch, 1, fold, bias)


def _fits(form: LayerForm, spec: LayerSpec, start: str, state: Mapping[str, Any]) -> bool:
    """Whether a layer of this form has weights of the shapes in ``state``."""
    try:
        made = planned(build_dense(spec, "meta", torch.float32), replace(spec, bias=False), form, empty=True)
    except ArgumentError:
        return False
    return all(start + name in state and state[start + name].shape == p.shape for name, p in made.named_parameters())
