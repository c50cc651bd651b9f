"""How the tensors that Frank-Wolfe keeps in sets fare: counted on the device, one row of `COURSE` for each."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from tenfold.linalg.frank_wolfe import forgotten

COURSE = ("log_kept", "eta", "clamped", "steps", "skipped")
"""What is counted; see `Track`."""


@dataclass(frozen=True)
class Track:
    """How one constrained tensor has fared.

    Args:
        name: where the optimizer was given names, else its place: "0.3" is the fourth of the first group.
        eta: the last step size.
        clamped: share of the steps whose size was clipped at ``max_eta``.
        gauge: of the tensor, over the radius: 1 on the boundary.
        kept: the forgetting factor ``F = prod (1 - eta)``: how much of the start is left. Structure shows once it is
            small.
        steps: taken.
        skipped: not taken, because the gradient was not finite.
    """

    name: str
    eta: float
    clamped: float
    gauge: float
    kept: float
    steps: int
    skipped: int

    @classmethod
    def of(cls, name: str, course: Tensor, gauge: float) -> Track:
        """From a row of what `advance` counts."""
        log_kept, eta, clamped, steps, skipped = course.tolist()
        share = clamped / max(steps, 1.0)
        return cls(name, eta, share, gauge, math.exp(log_kept), int(steps), int(skipped))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def advance(course: Tensor, eta: Tensor, clamped: Tensor, good: Tensor) -> Tensor:
    """The rows after a step.

    Args:
        course: before.
        eta: the step sizes.
        clamped: whether they were clipped.
        good: whether a step was taken.
    """
    log_kept, _, clips, steps, skipped = course.unbind(1)
    moved = torch.stack([forgotten(log_kept, eta.float()), eta.float(), clips + clamped, steps + 1, skipped], 1)
    still = torch.cat([course[:, :4], course[:, 4:] + 1], 1)
    return torch.where(good[:, None], moved, still)
