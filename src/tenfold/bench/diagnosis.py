"""The findings of the doctor: what each layer takes, and what forms in its place would."""

from __future__ import annotations

from dataclasses import dataclass

STEP = 1.1
"""How much slower one rank more must be to be called a step: above the noise of a median."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class LayerTiming:
    """The time of a layer at one rank.

    Args:
        rank: per group.
        ms: median milliseconds of all its uses in one forward pass.
        speedup: dense time over this.
        predicted: dense MACs over its MACs.
    """

    rank: int
    ms: float
    speedup: float
    predicted: float


@dataclass(frozen=True)
class PlannedTiming:
    """The time of a layer in the form that a plan gives it.

    Args:
        form: in words.
        ms: median milliseconds of all its uses in one forward pass.
        speedup: dense time over this.
    """

    form: str
    ms: float
    speedup: float


@dataclass(frozen=True)
class Examined:
    """Costs, times and break-even ranks of one layer.

    Args:
        name: of the layer.
        kernel: its shape, ``(out, in / groups, *k)``; None where its kind is unknown.
        params: of the dense kernel.
        macs: of the dense layer; None where unknown.
        ms: median milliseconds of all its uses in one dense forward pass; None where it was not timed.
        share: ``ms`` over the time of the whole model.
        full_rank: the largest rank; None where it was not timed.
        even_params: the largest rank that saves parameters; 0 for none.
        even_macs: the largest rank that saves MACs; 0 for none.
        even_ms: the largest rank timed from which on down every one timed was faster than dense; 0 for none.
        timings: by ascending rank, multiples of `BLOCK` where there is room.
        step: how many times as long one rank above a multiple of `BLOCK` takes; None where it was not measured.
        step_rank: the multiple of `BLOCK` that it was measured above.
        reason: why it cannot pay; None where it can.
        planned: its time in the form that the plan gives it; None where that leaves it dense, or there is no plan.
    """

    name: str
    kernel: Shape | None
    params: int
    macs: int | None = None
    ms: float | None = None
    share: float | None = None
    full_rank: int | None = None
    even_params: int = 0
    even_macs: int = 0
    even_ms: int = 0
    timings: tuple[LayerTiming, ...] = ()
    step: float | None = None
    step_rank: int | None = None
    reason: str | None = None
    planned: PlannedTiming | None = None

    @property
    def uneven(self) -> bool:
        """Whether one rank above a multiple of `BLOCK` was clearly slower."""
        return self.step is not None and self.step > STEP


@dataclass(frozen=True)
class Diagnosis:
    """The result of `diagnose`: the whole model, layer by layer.

    Args:
        ms: median milliseconds of a dense forward pass; where noise makes that less than all layers take, their sum.
        batch: inputs in the batch.
        threads: that torch might use.
        fold: of the factor pairs.
        layers: in module order.
    """

    ms: float
    batch: int
    threads: int
    fold: str
    layers: tuple[Examined, ...]

    @property
    def rest(self) -> float:
        """Share of the time that is spent outside the layers timed: in activations, norms, layers left out."""
        return 1.0 - sum(x.share or 0.0 for x in self.layers)

    @property
    def planned_ms(self) -> float | None:
        """The sum of what all layers take as planned, and of everything else; None without a plan."""
        if not any(x.planned for x in self.layers):
            return None
        return self.ms - sum((x.ms or 0.0) - x.planned.ms for x in self.layers if x.planned)

    @property
    def reachable(self) -> float:
        """The share of the time that is spent in layers that can become faster."""
        return sum(x.share or 0.0 for x in self.layers if x.reason is None)
