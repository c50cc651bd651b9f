"""Work in the step of any optimizer, counted so that it survives a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
        before: sees the gradients as the optimizer will.
        after: sees the new weights.
    """
    optimizer.param_groups[0].setdefault(name, {"steps": 0} | state)

    def ahead(*_: Any) -> None:
        if before is not None:
            before(optimizer.param_groups[0][name])

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
