"""What the tests of training share: the smallest methods that satisfy the loop's contract."""

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch


@dataclass(frozen=True)
class Plain:
    """SGD on a copy."""

    needs_closure: ClassVar[bool] = False
    name: str = "plain"

    def begin(self, model, *, goal=None):
        return copy.deepcopy(model)

    def optimizer(self, model, *, goal, lr, momentum, weight_decay):
        return torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)


class Counting(torch.optim.SGD):
    """SGD that records the rate and the closure of each step, and fails where it is told to."""

    def __init__(self, parameters, *, fail_at=None, error=KeyboardInterrupt, **hyper):
        super().__init__(parameters, **hyper)
        self.rates, self.closures, self.fail_at, self.error = [], [], fail_at, error

    def step(self, closure=None):
        if len(self.rates) == self.fail_at:
            raise self.error
        self.rates.append(self.param_groups[0]["lr"])
        self.closures.append(closure is not None)
        if closure is not None:
            with torch.no_grad():  # an optimizer of one's own need not switch gradients on again
                closure()
        return super().step()


class Recorder(Plain):
    """A method whose optimizer is `Counting`, kept at hand."""

    def __init__(self, needs_closure=False, fail_at=None):
        super().__init__()
        object.__setattr__(self, "needs_closure", needs_closure)
        object.__setattr__(self, "fail_at", fail_at)

    def optimizer(self, model, *, goal, lr, momentum, weight_decay):
        made = Counting(model.parameters(), fail_at=self.fail_at, lr=lr, momentum=momentum, weight_decay=weight_decay)
        object.__setattr__(self, "made", made)
        object.__setattr__(self, "goal", goal)
        return made

    def __repr__(self):
        return "Plain(name='plain')"
