"""Covariances of what a model's layers get, unfolded, on calibration data: what output-aware forms are made from.

In blocks of consecutive layers, so that memory is bounded whatever the model: who reads them has made use of one block
before the next one is collected.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from tenfold.errors import DataError, TenfoldWarning, check, is_count
from tenfold.layers.calibration_runs import Source, device_of, evaluating, hooked
from tenfold.layers.positions import ENOUGH, sampled
from tenfold.layers.spec import LayerSpec, spec_of, to_kernel
from tenfold.layers.unfold import chunks, unfold
from tenfold.linalg.fold import Fold
from tenfold.linalg.joint_moments import JointMoments
from tenfold.linalg.svd import working

UNFOLDED_NUMBERS = 1 << 24
"""Unfolded at a time: 128 MiB in float64."""


@dataclass(frozen=True)
class InputSide:
    """Which input moments are collected of one weight.

    Args:
        names: of the modules that hold it; their inputs are pooled.
        slices: None: the covariance of the unfolded inputs, for any fold. A number: that of what so many slices of the
            channel fold put out, ``s f`` numbers in place of ``c prod(k)``; see `OutputForm.of_outputs`.
    """

    names: Sequence[str]
    slices: int | None = None


def input_moments(
    model: nn.Module,
    sides: Mapping[str, InputSide],
    data: Iterable[Any],
    *,
    samples: int,
    memory: int = 1 << 30,
    subsample: bool = True,
    warn: bool = True,
) -> Iterator[tuple[str, JointMoments]]:
    """Collect first and second moments of each layer's unfolded inputs, layer after layer, in eval mode.

    The moments' y is empty. Work: one pass over the data for each block of layers; memory: the moments of a block,
    ``8 g n^2`` bytes for a layer, together at most ``memory`` or as much as one layer takes, and three times that
    while they are added up.

    Args:
        model: left as it is.
        sides: by the name under which the moments are given, in the order in which they are given.
        data: calibration batches; gone through once for each block: a list or a loader, no generator.
        samples: the first so many examples, >= 1.
        memory: in bytes.
        subsample: of maps of 16 positions and more along each axis, take every second one along each, from an offset
            that varies from example to example, wherever that leaves 4 vectors for each of their numbers.
        warn: whether to say that examples are too few.

    Raises:
        ArgumentError: a number out of range.
        DataError: a generator, no example, entries that are not finite, or a layer that no example reaches.

    Warns:
        TenfoldWarning: layers with fewer than 4 vectors for each of their numbers, the worst by name, when all have
            been given: examples are too few.
    """
    check(is_count(samples), "samples", "an integer >= 1", samples)
    check(is_count(memory), "memory", "a number of bytes >= 1", memory)
    if isinstance(data, Iterator):
        raise DataError("`data` must last for several passes; a generator is used up by one. Pass a list or a loader.")
    source, few = Source(data, samples), list[_Collector]()
    for block in _blocks([_Collector(model, name, side, samples, subsample) for name, side in sides.items()], memory):
        with torch.no_grad(), evaluating(model):
            batches = source.batches(model)
            handles = [
                model.get_submodule(used).register_forward_hook(one.hook, with_kwargs=True)
                for one in block
                for used in one.side.names
            ]
            with hooked(handles):
                for batch in batches:
                    for one in block:
                        one.next_batch(len(batch))
                    batch.to(device_of(model)).run(model)
        for one in block:
            yield one.name, one.result()
            if one.few:
                few.append(one)
    if warn:
        _say_few(few)


def _say_few(few: Sequence[_Collector]) -> None:
    if few:
        worst = min(few, key=lambda one: one.count / one.n)
        more = f", and {len(few) - 1} more layers as little" if len(few) > 1 else ""
        warnings.warn(
            f"'{worst.name}' saw {worst.count:,} vectors of {worst.n:,} numbers on `data`{more}; "
            f"{ENOUGH * worst.n:,} tell enough. Give more examples.",
            TenfoldWarning,
            stacklevel=3,
        )


def _blocks(collectors: Iterable[_Collector], memory: int) -> Iterator[list[_Collector]]:
    """Runs of consecutive ones whose moments fit in memory together."""
    block: list[_Collector] = []
    for one in collectors:
        if block and sum(x.bytes for x in (*block, one)) > memory:
            yield block
            block = []
        block.append(one)
    if block:
        yield block


class _Collector:
    """The moments of one weight's inputs."""

    def __init__(self, model: nn.Module, name: str, side: InputSide, samples: int, subsample: bool) -> None:
        module = model.get_submodule(side.names[0])
        spec = spec_of(module)
        assert spec is not None
        self.name, self.side, self.samples, self.subsample = name, side, samples, subsample
        self.n = spec.params // spec.out_channels
        self.matrices: Tensor | None = None
        if side.slices is not None:
            fold = Fold(spec.shape, spec.groups, side.slices, "channel")
            self.matrices = working(fold.matrices(to_kernel(spec, cast("Tensor", module.weight)))).unflatten(
                0, (spec.groups, side.slices)
            )
            self.n = side.slices * fold.rows
        self.bytes = 8 * spec.groups * self.n**2
        self.seen = 0  # examples before the batch at hand
        self.batch = 0
        self.moments: JointMoments | None = None
        self.count = 0  # vectors seen, once all batches are through

    @property
    def few(self) -> bool:
        """Whether what was seen says little."""
        return self.count < ENOUGH * self.n

    def next_batch(self, examples: int) -> None:
        """Set the number of examples of the next batch."""
        self.seen, self.batch = self.seen + self.batch, examples

    def hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> None:
        """Forward hook: add the inputs of one use of a layer."""
        spec = spec_of(module)
        assert spec is not None
        x = cast("Tensor", next(iter((*args, *kwargs.values()))))
        size = kwargs.get("output_size", args[1] if len(args) > 1 else None)
        for examples, outputs, every in self._parts(spec, x, output):
            for part, _ in chunks(spec, examples, outputs, UNFOLDED_NUMBERS):
                self._add(unfold(spec, part, None if size is None else list(size), every=every))

    def _parts(self, spec: LayerSpec, x: Tensor, y: Tensor) -> Iterable[tuple[Tensor, Tensor, tuple[slice, ...]]]:
        if not self.subsample:
            return [(x, y, ())]
        return sampled(spec, x, y, numbers=self.n, first=self.seen, examples=self.samples)

    def _add(self, rows: Tensor) -> None:
        rows = working(rows)
        if self.matrices is not None:
            g, count, _ = rows.shape
            parts = rows.reshape(g, count, self.matrices.shape[1], -1).movedim(2, 1)
            rows = (parts @ self.matrices.mT).movedim(1, 2).reshape(g, count, -1)
        new = JointMoments.of(rows, rows[..., :0])
        if not bool(torch.isfinite(new.mean_x).all()):
            raise DataError(f"the inputs of '{self.name}' on `data` are NaN or infinite.")
        self.moments = new if self.moments is None else self.moments.merged(new)

    def result(self) -> JointMoments:
        """The moments of all batches, which are then released."""
        found, self.moments = self.moments, None
        if found is None:
            raise DataError(f"`data` never reaches the layer '{self.name}' of the model. Name it in `exclude_modules`.")
        self.count = found.count
        return found
