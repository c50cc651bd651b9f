"""A method that is watched while it trains: how far it is, and which ranks its layers have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.optim import Optimizer

from tenfold.bench.compare.findings import Evolution
from tenfold.methods.contract.method import Goal, Method
from tenfold.optim.hooks import State, hook_steps
from tenfold.optim.present_ranks import present_ranks

STATE = "evolution"
"""Where the ranks so far are, so that checkpoints carry them: ``optimizer.param_groups[0][STATE]``."""


@dataclass(frozen=True)
class Watched:
    """A method that records ranks and progress while it trains; the training is the same.

    Args:
        method: does the work.
        tell: called after each step with the epochs done.
    """

    method: Method
    tell: Callable[[float], None] = field(repr=False, compare=False)
    _made: list[Optimizer] = field(default_factory=list, repr=False, compare=False)

    @property
    def needs_closure(self) -> bool:
        """Whether the method needs a closure."""
        return self.method.needs_closure

    def begin(self, model: nn.Module, *, goal: Goal | None = None) -> nn.Module:
        """The method's model."""
        return self.method.begin(model, goal=goal)

    def optimizer(self, model: nn.Module, *, goal: Goal | None = None, **hyper: Any) -> Optimizer:
        """The method's optimizer, watched."""
        made = self.method.optimizer(model, goal=goal, **hyper)
        steps = goal.steps_per_epoch if goal is not None else None
        assert steps is not None  # fit says it

        def after(state: State) -> None:
            done = state["steps"] / steps
            self.tell(done)
            if done == int(done):
                state["epochs"].append(int(done))
                state["seen"].append(present_ranks(model, made))

        hook_steps(made, STATE, {"epochs": [], "seen": []}, after=after)
        self._made.append(made)
        return made

    @property
    def evolution(self) -> Evolution | None:
        """The ranks of each layer after each epoch; None where there never were any."""
        state = self._made[-1].param_groups[0][STATE]
        names = dict.fromkeys(name for seen in state["seen"] for name in seen)
        if not names:
            return None
        return Evolution(list(state["epochs"]), {name: [seen.get(name) for seen in state["seen"]] for name in names})
