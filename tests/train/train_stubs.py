"""What the tests of training share: the smallest methods that satisfy the loop's contract, and tiny data."""

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from tenfold.train import make_data


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


def blobs(n=90, classes=3, size=6, channels=2, seed=0):
    """Noise around one random image per class: easy, small, uint8."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randint(40, 200, (classes, channels, size, size), generator=generator).float()
    y = torch.arange(n) % classes
    x = (centres[y] + 15 * torch.randn(n, channels, size, size, generator=generator)).clamp(0, 255).to(torch.uint8)
    half = n // 3
    return make_data("blobs", (x[half:], y[half:]), (x[:half], y[:half]), validation=0.2)


def tiny(channels=2, classes=3, norm=True, dropout=0.0):
    """A convolution, a norm, dropout, a Linear; known start."""
    torch.manual_seed(7)
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1),
        nn.BatchNorm2d(6) if norm else nn.Identity(),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(24, classes),
    )


def same_state(a, b):
    """Bitwise equality of two state dicts."""
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)
