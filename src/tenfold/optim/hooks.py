"""Work in the step of any optimizer, counted so that it survives a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

State = dict[str, Any]
Act = Callable[[State], None]


def hook_steps(optimizer: Optimizer, name: str, state: State, *, before: Act | None = None, after: Act) -> None:
    """Call ``before`` ahead of each step of ``optimizer`` and ``after`` behind it, with the state as it is then.

    The state lives in ``optimizer.param_groups[0][name]``: it is saved and loaded with the optimizer's, which is why
    it must be read there each time. ``state["steps"]`` counts the steps that happened: those that a gradient scaler
    skips do not count, accumulated gradients make one step.

    Args:
        optimizer: any.
        name: key of the state.
        state: what it starts with, beside the count.
        before: sees the gradients as the optimizer will: where ``step`` is given a closure, after each call of it.
        after: sees the new weights.
    """
    optimizer.param_groups[0].setdefault(name, {"steps": 0} | state)

    def ahead(_: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | None:
        if before is None:
            return None
        act: Act = before
        me, *rest = args  # the optimizer itself comes first
        closure = rest[0] if rest else kwargs.get("closure")
        if closure is None:
            act(optimizer.param_groups[0][name])
            return None

        def anew() -> Any:
            loss = closure()
            with torch.no_grad():
                act(optimizer.param_groups[0][name])
            return loss

        return (me, anew, *rest[1:]), {key: x for key, x in kwargs.items() if key != "closure"}

    def behind(*_: Any) -> None:
        # Fused optimizers are stepped by the scaler even where it found an overflow, and skip by themselves.
        overflow = getattr(optimizer, "found_inf", None)
        if overflow is None or not bool(overflow):
            state = optimizer.param_groups[0][name]
            state["steps"] += 1
            after(state)

    optimizer.register_step_pre_hook(ahead)
    optimizer.register_step_post_hook(behind)


def gradient_scale(optimizer: Optimizer) -> float:
    """What the gradients are multiplied by as a step begins: fused optimizers unscale them inside."""
    scale = getattr(optimizer, "grad_scale", None)
    return 1.0 if scale is None else float(scale)


def trained_by(optimizer: Optimizer) -> set[int]:
    """Identities of the tensors that ``optimizer`` changes: those of its that require a gradient by now."""
    return {id(p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
