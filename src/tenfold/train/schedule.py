"""Learning-rate schedules: pure functions from the time in epochs, a float >= 0, to a factor of the base rate.

``torch.optim.lr_scheduler.LambdaLR`` turns one into a scheduler; see `scheduler`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from tenfold.errors import check

Schedule = Callable[[float], float]

SCHEDULES = ("constant", "cosine", "linear", "multistep")


def constant() -> Schedule:
    """Constant schedule ``f(t) = 1``."""
    return lambda t: 1.0


def cosine(total: float) -> Schedule:
    """Cosine schedule ``f(t) = (1 + cos(pi t / total)) / 2``, and 0 after ``total`` epochs."""
    return lambda t: (1 + math.cos(math.pi * min(t / total, 1.0))) / 2


def linear(total: float) -> Schedule:
    """Linear schedule ``f(t) = 1 - t / total``, and 0 after ``total`` epochs."""
    return lambda t: max(1 - t / total, 0.0)


def multistep(milestones: Sequence[float], gamma: float) -> Schedule:
    """Step schedule ``f(t) = gamma ** (number of milestones <= t)``; milestones in epochs."""
    return lambda t: gamma ** sum(m <= t for m in milestones)


def warm_up(schedule: Schedule, epochs: float) -> Schedule:
    """Linear warm-up over the first ``epochs``: ``f(t) = schedule(t) min(1, t / epochs)``; 0 epochs for none."""
    return lambda t: schedule(t) * (min(1.0, t / epochs) if epochs > 0 else 1.0)


def window(schedule: Schedule, total: float, last: float) -> Schedule:
    """Learning-rate rewinding: the last ``last`` of ``total`` epochs, ``f(t) = schedule(total - last + t)``.

    Retraining after compression goes through the end of the schedule once more: the rate is rewound, not the weights.

    Args:
        schedule: the schedule of the whole training.
        total: its length in epochs.
        last: length of the retraining in epochs, in [0, total].

    Raises:
        ArgumentError: a window longer than the schedule.
    """
    check(0 <= last <= total, "last", f"in [0, {total}], the epochs of the schedule", last)
    return lambda t: schedule(total - last + t)


def make_schedule(name: str, total: float, *, warmup: float, milestones: Sequence[float], gamma: float) -> Schedule:
    """Make a schedule by its name, with warm-up; see the functions of this module.

    Args:
        name: "constant", "cosine", "linear" or "multistep".
        total: length in epochs, > 0.
        warmup: epochs of linear climb, >= 0.
        milestones: of "multistep", in epochs.
        gamma: of "multistep": the factor at each milestone.

    Raises:
        ArgumentError: an unknown name.
    """
    makers: dict[str, Callable[[], Schedule]] = {
        "constant": constant,
        "cosine": lambda: cosine(total),
        "linear": lambda: linear(total),
        "multistep": lambda: multistep(milestones, gamma),
    }
    check(name in makers, "schedule", f"one of {', '.join(makers)}", name)
    return warm_up(makers[name](), warmup)


def scheduler(optimizer: Optimizer, schedule: Schedule, steps_per_epoch: int) -> LambdaLR:
    """A torch scheduler of ``schedule`` for an optimizer, to be stepped after each of its steps.

    Step ``i`` (from 0) uses the middle of its interval, ``t = (i + 1/2) / steps_per_epoch``: neither the first step of
    a warm-up nor the last of a cosine is spent at rate 0, and milestones fall between two steps, clear of rounding.
    """
    return LambdaLR(optimizer, lambda step: schedule((step + 0.5) / steps_per_epoch))
