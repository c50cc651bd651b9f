"""A sum of norms added to the loss, inside the step of any optimizer: by its sub-gradient, or by its proximal map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tenfold.errors import UnsupportedLayer
from tenfold.layers.find import find
from tenfold.layers.folded_weight import FoldedWeight
from tenfold.layers.select import Selection
from tenfold.linalg.fold import Fold
from tenfold.optim.hooks import State, gradient_scale, hook_steps, trained_by


@dataclass(frozen=True)
class Penalty:
    """A penalty ``lambda f`` of each weight, its kernel taken as matrices whose rows are filters.

    Args:
        strength: lambda, >= 0.
        subgradient: of f, matrices to matrices.
        prox: ``(matrices, t) -> argmin_X 1/2 ||X - A||^2 + t f(X)``.
    """

    strength: float
    subgradient: Callable[[Tensor], Tensor]
    prox: Callable[[Tensor, float], Tensor]


def folded_weights(
    model: nn.Module, *, linear: bool, target_modules: Selection = None, exclude_modules: Selection = None
) -> list[FoldedWeight]:
    """The weights that a penalty is put on, each as the matrices of the channel fold.

    Args:
        model: dense.
        linear: whether linear layers count; those that are named in ``target_modules`` do anyway.
        target_modules: see `tenfold.plan`.
        exclude_modules: see `tenfold.plan`.

    Raises:
        UnsupportedLayer: a weight that is no plain tensor, as sharded ones are: a part does not have the whole's norm.
    """
    weights = []
    for target in find(model, target_modules, exclude_modules, replaced=False):
        spec = target.spec
        if target.reason is None and spec is not None and (linear or target_modules is not None or not spec.linear):
            fold = Fold(spec.shape, spec.groups, 1, "channel")
            folded = FoldedWeight(target.name, model.get_submodule(target.name), spec, fold, fold.full_rank)
            kind = type(folded.weight.data)
            if kind is not Tensor:
                raise UnsupportedLayer(
                    f"the weight of '{folded.name}' is a {kind.__name__}, not a plain tensor: the norm of a part is "
                    "not that of the whole. Exclude the layer, or keep it whole."
                )
            weights.append(folded)
    return weights


def hook_penalty(
    optimizer: Optimizer, name: str, weights: Sequence[FoldedWeight], penalty: Penalty, *, proximal: bool, every: int
) -> None:
    """Hook a penalty onto ``optimizer``; its state is saved and loaded with the optimizer's.

    By the sub-gradient: ``lambda G`` is added to the gradient before each step, G made anew every ``every`` steps and
    held in between. By the proximal map: every ``every`` steps, after the step, with ``t = lambda sum lr`` over the
    steps since the last time, which is the forward-backward splitting's.

    Args:
        optimizer: any.
        name: key of the state.
        weights: the weights.
        penalty: what is put on them.
        proximal: by the proximal map.
        every: in steps, >= 1.
    """

    def rates() -> dict[int, float]:
        return {id(p): float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}

    def before(state: State) -> None:
        if state["steps"] % every == 0:
            state["held"] = {s.name: s.as_weight(penalty.subgradient(s.matrices)) for s in weights}
        scale, mine = penalty.strength * gradient_scale(optimizer), trained_by(optimizer)
        for folded in weights:
            if (
                folded.weight.grad is not None and id(folded.weight) in mine
            ):  # others' gradients are another optimizer's
                folded.weight.grad.add_(state["held"][folded.name].to(folded.weight), alpha=scale)

    @torch.no_grad()
    def shrink(state: State) -> None:
        lr, due = rates(), state["due"]
        for folded in weights:
            if folded.weight.grad is not None:
                due[folded.name] = due.get(folded.name, 0.0) + lr.get(id(folded.weight), 0.0)
            if state["steps"] % every == 0 and due.get(folded.name):
                folded.put_(penalty.prox(folded.matrices, penalty.strength * due.pop(folded.name)))

    def nothing(_: State) -> None: ...

    if proximal:
        hook_steps(optimizer, name, {"due": {}}, after=shrink)
    else:
        hook_steps(optimizer, name, {"held": {}}, before=before, after=nothing)
