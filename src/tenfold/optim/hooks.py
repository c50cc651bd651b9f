"""Work in the step of any optimizer, counted so that it survives a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from tenfold.errors import ArgumentError

State = dict[str, Any]
Act = Callable[[State], None]


def hook_steps(optimizer: Optimizer, name: str, state: State, *, before: Act | None = None, after: Act) -> None:
    """Call ``before`` ahead of each step of ``optimizer`` and ``after`` behind it, with the state as it is then.

    The state lives in ``optimizer.param_groups[0][name]``: it is saved and loaded with the optimizer's, which is why
    it must be read there each time; after a load of a state without it, it starts anew. ``state["steps"]`` counts the
    steps that happened: those that a gradient scaler skips do not count, accumulated gradients make one step.

    Args:
        optimizer: any, see `stepped`.
        name: key of the state.
        state: what it starts with, beside the count.
        before: sees the gradients as the optimizer will: where ``step`` is given a closure, after each call of it.
        after: sees the new weights.

    Raises:
        ArgumentError: see `stepped`.
    """
    optimizer = stepped(optimizer)

    def now() -> State:
        return optimizer.param_groups[0].setdefault(name, {"steps": 0} | deepcopy(state))

    now()

    def ahead(_: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | None:
        if before is None:
            return None
        act: Act = before
        me, *rest = args  # the optimizer itself comes first
        closure = rest[0] if rest else kwargs.get("closure")
        if closure is None:
            act(now())
            return None

        def anew() -> Any:
            loss = closure()
            with torch.no_grad():
                act(now())
            return loss

        return (me, anew, *rest[1:]), {key: x for key, x in kwargs.items() if key != "closure"}

    def behind(*_: Any) -> None:
        # Fused optimizers are stepped by the scaler even where it found an overflow, and skip by themselves.
        overflow = getattr(optimizer, "found_inf", None)
        if overflow is None or not bool(overflow):
            mine = now()
            mine["steps"] += 1
            after(mine)

    optimizer.register_step_pre_hook(ahead)
    optimizer.register_step_post_hook(behind)


def gradient_scale(optimizer: Optimizer) -> float:
    """The factor of the gradients as a step begins, 1 but for fused optimizers, which unscale them inside."""
    scale = getattr(stepped(optimizer), "grad_scale", None)
    return 1.0 if scale is None else float(scale)


def trained_by(optimizer: Optimizer) -> set[int]:
    """The ids of the tensors that ``optimizer`` trains: those of its parameters that require a gradient now."""
    return {id(p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad}


def stepped(optimizer: Optimizer) -> Optimizer:
    """The torch optimizer whose ``step`` can be hooked: ``optimizer``, or the one inside a trainer's wrapper.

    Wrappers such as Accelerate's are optimizers by name only: torch has not made their tables of hooks. What they hold
    as ``optimizer`` is what they step, and what a gradient scaler knows.

    Raises:
        ArgumentError: no torch optimizer, and none inside.
    """
    inner: Any = optimizer
    while inner is not None and "_optimizer_step_pre_hooks" not in vars(inner):
        held = getattr(inner, "optimizer", None)
        inner = None if held is inner or not isinstance(held, Optimizer) else held
    if inner is None:
        raise ArgumentError(
            f"`optimizer` must be a torch.optim.Optimizer, or hold one as `.optimizer`; got a "
            f"{type(optimizer).__name__}. Hook the method onto the optimizer before it is wrapped."
        )
    return inner


def require_trained(optimizer: Optimizer, weights: Iterable[Tensor], name: str) -> None:
    """Raise `ArgumentError` for an optimizer that trains none of ``weights``, as that of another model does.

    Args:
        optimizer: any.
        weights: what the method trains.
        name: of the method.

    Raises:
        ArgumentError: it holds none of them, or none that requires a gradient.
    """
    if trained_by(optimizer).isdisjoint({id(weight) for weight in weights}):
        raise ArgumentError(
            f"`optimizer` must train the layers of `model` that {name} works on; it holds none of them that require a "
            "gradient. Make it of the parameters of the model that `begin` returned."
        )
