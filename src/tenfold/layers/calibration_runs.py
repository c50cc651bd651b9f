"""Passes of calibration data through networks that are to be left as they are: batches, modes and hooks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from tenfold.errors import DataError
from tenfold.layers.calibration_batches import Batch, calibration_batches
from tenfold.layers.model_outputs import positions

EMPTY = (
    "`data` must hold at least one batch to calibrate on; it is empty. A generator is so once gone through. "
    "Pass a list or a DataLoader."
)


class Source:
    """Calibration data that can be gone through again, limited to its first examples.

    Args:
        data: calibration batches.
        samples: how many examples; None: all.
    """

    def __init__(self, data: Iterable[Any], samples: int | None) -> None:
        self.data = data
        self.samples = samples

    def batches(self, model: nn.Module) -> Iterator[Batch]:
        """Read the batches from the beginning. The reader may run ``model`` at once: hooks come afterwards.

        Raises:
            DataError: no batch at all, or one that cannot be read.
        """
        return self._cut(calibration_batches(model, self.data))

    def _cut(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        seen = 0
        for batch in batches:
            part = batch if self.samples is None else batch.first(self.samples - seen)
            seen += len(part)
            yield part
            if self.samples is not None and seen >= self.samples:
                return
        if not seen:
            raise DataError(EMPTY)


def kept_batches(model: nn.Module, data: Iterable[Any], samples: int | None) -> list[Any]:
    """The first examples of the data as a list of batches that can be gone through again and again.

    Each is ``(inputs, target)``, the inputs as a tuple or a dict, so that nothing is left to be guessed.

    Args:
        model: whose ``forward`` tells inputs from targets.
        data: calibration batches.
        samples: how many examples; None: all.

    Raises:
        DataError: no batch at all, or one that cannot be read.
    """
    return [_as_given(batch) for batch in Source(data, samples).batches(model)]


def held_out(model: nn.Module, batches: list[Any], examples: int) -> tuple[list[Any], list[Any]]:
    """Batches parted in two: the first examples, and the rest; where all are wanted, all of them twice.

    Args:
        model: whose ``forward`` tells inputs from targets.
        batches: at least one.
        examples: how many are held out, >= 1; more where a batch cannot be parted.
    """
    held: list[Any] = []
    rest: list[Any] = []
    for batch in calibration_batches(model, batches):
        wanted = max(examples, 0)
        if wanted:
            first, other = batch.split(wanted)
            held.append(_as_given(first))
            examples -= len(first)
        else:
            other = batch
        if other is not None:
            rest.append(_as_given(other))
    return held, rest or held


@torch.no_grad()
def positions_in(model: nn.Module, batches: Sequence[Any]) -> int:
    """The positions of an example in the outputs of a model, see `model_outputs.positions`; of the first one."""
    batch = next(iter(calibration_batches(model, batches))).first(1)
    with evaluating(model):
        return positions(batch.to(device_of(model)).run(model))


def _as_given(batch: Batch) -> Any:
    """``(inputs, target)``, with nothing left to be guessed."""
    return dict(batch.kwargs) or batch.args, batch.target


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Put models into eval mode for the block; every module has its own mode again afterwards, whatever is raised."""
    modes = {module: module.training for model in models for module in model.modules()}
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def hooked(handles: Sequence[Any]) -> Iterator[None]:
    """Remove hooks at the end of the block, whatever is raised."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def device_of(model: nn.Module) -> torch.device:
    """The device of the first parameter."""
    return next((t.device for t in model.parameters()), torch.device("cpu"))
