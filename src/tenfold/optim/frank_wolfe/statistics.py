"""Statistics of Frank-Wolfe training per tensor: what is left of the start, and how many steps were clamped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from tenfold.linalg.frank_wolfe import forgotten

STATISTICS = ("log_kept", "eta", "clamped", "steps", "skipped")
"""What is counted; see `Track`."""
SPENT = 7 / 16
"""The share of all learning rates that lies in the first quarter of a run whose rate falls linearly to 0."""
REMEMBERED = 0.3
"""What may be foretold to be left of the start at the end of a run: where it is more, nothing can be removed."""
JUMPING = 0.5
"""The share of clipped steps above which weights jump from vertex to vertex."""


@dataclass(frozen=True)
class Track:
    """Step statistics of one constrained tensor.

    Args:
        name: where the optimizer was given names, else its place: "0.3" is the fourth of the first group.
        eta: the last step size.
        clamped: share of the steps whose size was clipped at ``max_eta``.
        gauge: of the tensor, over the radius: 1 on the boundary.
        kept: the forgetting factor ``F = prod (1 - eta)``: how much of the start is left. Structure shows once it is
            small.
        steps: number of steps taken.
        skipped: number of steps not taken, because a gradient was not finite.
    """

    name: str
    eta: float
    clamped: float
    gauge: float
    kept: float
    steps: int
    skipped: int

    @classmethod
    def of(cls, name: str, statistics: Tensor, gauge: float) -> Track:
        """The statistics in a row that `advance` updates."""
        log_kept, eta, clamped, steps, skipped = statistics.tolist()
        share = clamped / max(steps, 1.0)
        return cls(name, eta, share, gauge, math.exp(log_kept), int(steps), int(skipped))

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for JSON."""
        return asdict(self)


def advance(statistics: Tensor, eta: Tensor, clamped: Tensor, good: Tensor) -> Tensor:
    """Update the rows of statistics after a step.

    Args:
        statistics: before.
        eta: the step sizes.
        clamped: whether they were clipped.
        good: whether a step was taken.
    """
    log_kept, _, clips, steps, skipped = statistics.unbind(1)
    moved = torch.stack([forgotten(log_kept, eta.float()), eta.float(), clips + clamped, steps + 1, skipped], 1)
    still = torch.cat([statistics[:, :4], statistics[:, 4:] + 1], 1)
    return torch.where(good[:, None], moved, still)


def outlook(tracks: Sequence[Track], spent: float = SPENT) -> str:
    """Predict from early statistics whether structure will appear by the end of a run; a warning, or empty.

    ``F`` is a product over steps whose sizes follow the learning rate, so that ``log F`` in the end is about the one
    now over the share of all learning rates that is spent.

    Args:
        tracks: of the tensors in structured sets.
        spent: that share, in (0, 1].

    Source: ours; the forgetting factor decides whether structure appears, see docs/methods/sfw.md.
    """
    ends = [track.kept ** (1 / spent) for track in tracks]
    slow = [(track.name, end) for track, end in zip(tracks, ends, strict=True) if end > REMEMBERED]
    wild = [(track.name, track.clamped) for track in tracks if track.clamped > JUMPING]
    parts = []
    if slow:
        name, end = max(slow, key=lambda pair: pair[1])
        parts.append(
            f"{len(slow)} of {len(tracks)} tensors forget their start too slowly: about {end:.2g} of it will be left "
            f"in '{name}', and what is left of a start has no structure to cut by. Raise `lr`, lower `width`, or train "
            "longer; where the loss does not fall either, the gradients are too small: normalise the activations"
        )
    if wild:
        name, share = max(wild, key=lambda pair: pair[1])
        parts.append(
            f"{len(wild)} of {len(tracks)} tensors jump between vertices: {share:.0%} of the steps of '{name}' were "
            "clipped. Lower `lr`, raise `width`, or set `max_eta` below 1"
        )
    return "".join(f"{part}. " for part in parts).rstrip()
