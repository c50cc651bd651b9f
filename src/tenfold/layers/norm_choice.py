"""Batch norm after a compression: its statistics kept or estimated again, whichever is nearer to the dense network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tenfold.layers.batchnorm import reestimate_from_, running_norms
from tenfold.layers.calibration_batches import Batch
from tenfold.layers.calibration_runs import Source, device_of, evaluating
from tenfold.layers.model_outputs import output_tensors
from tenfold.linalg.svd import working

Norms = Literal["auto", "keep", "reestimate"]
"""What becomes of batch-norm statistics after a compression; see `tenfold.compress`."""
NORM_EXAMPLES = 1024
"""Examples of the data, the first so many, that statistics are estimated from, those that are held out included."""
FEW = 128
"""Examples below which a report says that statistics from them may be worse than the old ones."""
_SHARE = 4
"""One in so many examples is held out."""


@dataclass(frozen=True)
class NormChoice:
    """The choice between kept and re-estimated batch-norm statistics, and the distances that decided it.

    Args:
        reestimated: whether they were estimated again; otherwise they are those of the dense network.
        examples: that they are, or would have been, estimated from.
        held_out: others, that decided; 0 where nothing was measured.
        kept_distance: of the outputs from the dense network's on these, with the old statistics: ``sum |s - d|^2 / (|s|
            |d|)``, 0 for the same, 2 for unrelated outputs of one size, more where one of them dies; the mean over the
            tensors that the network puts out. None where it was not measured.
        reestimated_distance: with the new ones.
    """

    reestimated: bool
    examples: int
    held_out: int = 0
    kept_distance: float | None = None
    reestimated_distance: float | None = None

    @property
    def sentence(self) -> str:
        """In words, with both figures where there are some."""
        done = f"re-estimated from {self.examples:,} examples" if self.reestimated else "kept"
        few = self.examples + self.held_out < FEW
        if self.kept_distance is None or self.reestimated_distance is None:
            why = " (too few examples, or outputs that cannot be compared, to measure what is better)"
            why = "" if self.reestimated else why
        else:
            why = (
                f": on {self.held_out:,} others the outputs are {self.kept_distance:.3g} from the dense network's with "
                f"the old statistics, {self.reestimated_distance:.3g} with new ones"
            )
        return f"Batch norm {done}{why}." + (f" Examples are few: give {FEW} or more." if few else "")


@torch.no_grad()
def settle_norms_(small: nn.Module, dense: nn.Module, data: Iterable[Any], norms: Norms) -> NormChoice | None:
    """Keep the batch-norm statistics of ``small``, or estimate them again, as ``norms`` says.

    "auto" holds out one example in four, estimates from the others, and keeps what is nearer to the dense network on
    those held out: the old statistics where it is the same or cannot be measured. Labels are not used.

    Args:
        small: the compressed network; its statistics may change, its modes do not.
        dense: the network that it was made from; left as it is.
        data: batches, see `tenfold.layers.calibration_batches`; gone through once. The first `NORM_EXAMPLES` count:
            let them be a fair sample.
        norms: "auto", "keep" or "reestimate".

    Returns:
        what was done; None where there is no batch norm with statistics, or they are kept unasked.

    Raises:
        DataError: no batch at all, or one that a network does not run on. The statistics then stay as they were.
    """
    held = running_norms(small)
    if norms == "keep" or not held:
        return None
    split = _Split(Source(data, NORM_EXAMPLES).batches(small), holding=norms == "auto")
    old = [b.clone() for norm in held for b in norm.buffers(recurse=False)]
    reestimate_from_(small, split)
    if norms == "reestimate":
        return NormChoice(True, split.used)
    new = [b.clone() for norm in held for b in norm.buffers(recurse=False)]
    _put_(held, old)
    try:
        found = _distances(small, dense, split.held, lambda which: _put_(held, (old, new)[which]))
    finally:
        _put_(held, old)
    if found is None:
        return NormChoice(False, split.used)
    kept, new_one = found
    better = new_one < kept or (math.isnan(kept) and not math.isnan(new_one))
    if better:
        _put_(held, new)
    return NormChoice(better, split.used, sum(map(len, split.held)), *found)


class _Split:
    """Batches to estimate from, as they are asked for; one example in four is put aside in ``held``."""

    def __init__(self, batches: Iterator[Batch], *, holding: bool) -> None:
        self.batches, self.holding = batches, holding
        self.held: list[Batch] = []
        self.used = 0

    def __iter__(self) -> Iterator[Batch]:
        aside = 0
        for batch in self.batches:
            count = len(batch)
            wanted = (self.used + aside + count) // _SHARE - aside if self.holding else 0
            mine, rest = batch, None
            if 0 < wanted <= count - 2:  # of a single example no statistics can be made
                mine, rest = batch.split(count - wanted)
            if rest is None and 0 < count <= 2 * wanted:
                mine, rest = None, batch
            if rest is not None:
                self.held.append(rest)
                aside += len(rest)
            if mine is not None:
                self.used += len(mine)
                yield mine


def _put_(norms: Sequence[nn.Module], values: Sequence[Tensor]) -> None:
    buffers = [b for norm in norms for b in norm.buffers(recurse=False)]
    for buffer, value in zip(buffers, values, strict=True):
        buffer.copy_(value)


def _distances(
    small: nn.Module, dense: nn.Module, batches: Sequence[Batch], put: Callable[[int], None]
) -> tuple[float, float] | None:
    """Of the outputs with the old statistics and with the new ones from the dense network's; None: no comparison."""
    with evaluating(small, dense):
        sums: dict[tuple[int, int], Tensor] = {}  # |s - d|^2, |s|^2, |d|^2 by statistics and output
        for batch in batches:
            wanted = _floating(batch.to(device_of(dense)).run(dense))
            for which in (0, 1):
                put(which)
                found = _floating(batch.to(device_of(small)).run(small))
                if [t.shape for t in found] != [t.shape for t in wanted]:
                    return None  # as many boxes as are found, say
                for i, (s, d) in enumerate(zip(found, wanted, strict=True)):
                    parts = torch.stack([(s - d.to(s)).square().sum(), s.square().sum(), d.to(s).square().sum()])
                    sums[which, i] = sums.get((which, i), 0) + parts
    outputs = sorted({i for _, i in sums})
    if not outputs:
        return None
    kept, new = (math.fsum(distance(*sums[which, i].tolist()) for i in outputs) / len(outputs) for which in (0, 1))
    return kept, new


def distance(apart: float, mine: float, other: float) -> float:
    """``|s - d|^2 / (|s| |d|)`` from the three squared norms; 0 where both are zero, infinite where one is."""
    if apart == 0:
        return 0.0
    return apart / math.sqrt(mine * other) if mine * other > 0 else math.nan if math.isnan(apart) else math.inf


def _floating(output: Any) -> list[Tensor]:
    return [working(t) for t in output_tensors(output) if t.is_floating_point()]
