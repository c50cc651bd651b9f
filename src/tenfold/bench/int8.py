"""Exported graphs in int8, and what that costs and gains: outputs on held-out examples, bytes, milliseconds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tenfold.errors import DataError
from tenfold.layers.calibration_batches import Batch, calibration_batches
from tenfold.layers.cost import call_arguments
from tenfold.layers.logits import declared_logits
from tenfold.layers.model_outputs import logits_of
from tenfold.runtimes.foreign import foreign_errors
from tenfold.runtimes.onnx_capture import CAPTURE_REMEDY, open_session
from tenfold.runtimes.onnx_int8 import STATIC, Feed, int8_model
from tenfold.runtimes.onnx_runtime import OnnxRuntime
from tenfold.runtimes.runtime import torch_tensors
from tenfold.runtimes.timing import turns, undisturbed_clock

EXAMPLES = 512
"""That are read of the data: three quarters for the ranges of activations, the last quarter to measure the error on."""
_ROUNDS = 15


@dataclass(frozen=True)
class Quantized:
    """An exported graph in int8, beside the same graph in float.

    Args:
        kind: "static" or "dynamic".
        float_bytes: size of the float file.
        float_ms: milliseconds of a pass of the float file on the example inputs, one thread, median.
        int8_ms: of the int8 file, in turns with it.
        calibrated: examples that the ranges of activations were taken from; 0 for "dynamic".
        measured: other examples, that the outputs were compared on.
        random: whether these are random numbers, as no data were given.
        error: of the outputs, relative: the norm of the difference over that of the float outputs.
        same_top: share of predictions that have the same most likely class; None where outputs are not known to be
            logits.
    """

    kind: str
    float_bytes: int
    float_ms: float
    int8_ms: float
    calibrated: int
    measured: int
    random: bool
    error: float
    same_top: float | None


def quantized(
    content: bytes, kind: str, model: nn.Module, inputs: Any, data: Iterable[Any] | None, examples: Any
) -> tuple[bytes, int, Quantized]:
    """Quantise an exported graph and measure what came of it: the new file, its opset, and the figures.

    Args:
        content: of the ONNX file.
        kind: "static" or "dynamic".
        model: that the file was made of, in eval mode on the CPU.
        inputs: that it was captured with; timed.
        data: batches; the first 512 examples are read. May be None for "dynamic".
        examples: inputs of random numbers, which are measured on without data.

    Raises:
        DataError: too few examples, or other inputs than ``inputs``.
        TenfoldError: the quantiser fails, or ONNX Runtime does not run what it made.
    """
    args, kwargs = call_arguments(inputs)
    if data is None:
        fit, held = [], [Batch(0, *call_arguments(examples))]
    else:
        read = _read(model, data)
        fit, held = _divided(read) if kind == STATIC else ([], read)
    session = open_session(content)
    names = [value.name for value in session.get_inputs()]
    feeds = [_feed(batch, names, args, kwargs) for batch in (*fit, *held)]
    new, opset = int8_model(content, kind, feeds[: len(fit)])
    error, same = _compared(session, open_session(new), model, held, feeds[len(fit) :])
    (before, _), (after, _) = timed_files([content, new], inputs, threads=1, rounds=_ROUNDS)
    counts = sum(map(len, fit)), sum(map(len, held))
    return new, opset, Quantized(kind, len(content), before, after, *counts, data is None, error, same)


def timed_files(contents: Sequence[bytes], inputs: Any, *, threads: int, rounds: int) -> list[tuple[float, float]]:
    """Time ONNX files in turns: median milliseconds of each, and how many times as fast as the first.

    Args:
        contents: of the files, which take the same inputs.
        inputs: of one pass, on the CPU: a tensor, a tuple of positional or a dict of keyword arguments.
        threads: that may be used, >= 1; the processor time of a single one counts.
        rounds: turns of each file; medians count, of the times and of the ratios of neighbouring turns.

    Raises:
        ArgumentError: a number out of its range, inputs elsewhere.
        TenfoldError: ONNX Runtime does not take a file.
    """
    runtime, tensors = OnnxRuntime(), torch_tensors(call_arguments(inputs))
    calls = [runtime.prepare_graph(each, tensors, threads=threads) for each in contents]
    found = turns(calls, inputs, threads=threads, rounds=rounds, clock=undisturbed_clock(inputs, threads))
    median = statistics.median
    return [
        (1e3 * median(row[i] for row in found), median(row[0] / row[i] for row in found)) for i in range(len(calls))
    ]


class FileModel(nn.Module):
    """An ONNX file of one input as a module, to be evaluated: a tensor -> its first output.

    Args:
        content: of the file.
        threads: that ONNX Runtime may use, >= 1.

    Raises:
        TenfoldError: ONNX Runtime does not take the file.
    """

    def __init__(self, content: bytes, threads: int) -> None:
        super().__init__()
        self._session = open_session(content, threads=threads)
        self._name = self._session.get_inputs()[0].name

    def forward(self, x: Tensor) -> Tensor:
        """The first output for ``x``, on the CPU."""
        return torch.as_tensor(self._session.run(None, {self._name: x.detach().cpu().numpy()})[0])


def _read(model: nn.Module, data: Iterable[Any]) -> list[Batch]:
    """The first batches, as many examples as are used; the last batch is cut where that can be done."""
    found: list[Batch] = []
    left = EXAMPLES
    for batch in calibration_batches(model, data):
        found.append(batch.to("cpu").first(left))
        left -= len(found[-1])
        if left <= 0:
            break
    if not found:
        raise DataError("`data` must hold at least one batch.")
    return found


def _divided(batches: Sequence[Batch]) -> tuple[list[Batch], list[Batch]]:
    """The first three quarters of the examples, and the others.

    Raises:
        DataError: one of the two would be empty.
    """
    count = sum(map(len, batches))
    left = count - max(count // 4, 1)
    fit: list[Batch] = []
    held: list[Batch] = []
    for batch in batches:
        if left > 0:
            first, rest = batch.split(left)
            fit.append(first)
            held += [] if rest is None else [rest]
            left -= len(first)
        else:
            held.append(batch)
    if not fit or not held:
        raise DataError(
            f"`data` must hold two examples or more that can be told apart, to calibrate on and to measure on; got "
            f"{count} in {len(batches)} batch(es)."
        )
    return fit, held


def _feed(batch: Batch, names: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Feed:
    """A batch as the graph takes it: in the order of the inputs that it was captured with."""
    alike = len(batch.args) == len(args) and set(batch.kwargs) == set(kwargs)
    values = torch_tensors((batch.args, {key: batch.kwargs[key] for key in kwargs})) if alike else []
    if not alike or len(values) != len(names):
        raise DataError(
            f"`data` must hold the inputs that `example_inputs` are, {', '.join(names)}; batch {batch.number} has "
            f"{len(batch.args)} positional ones and {', '.join(batch.kwargs) or 'none'} by keyword."
        )
    return {name: value.detach().numpy() for name, value in zip(names, values, strict=True)}


def _compared(
    before: Any, after: Any, model: nn.Module, batches: Sequence[Batch], feeds: Sequence[Feed]
) -> tuple[float, float | None]:
    """The relative error of the outputs, and the share of predictions that stay; None without logits."""
    gap = size = same = count = 0.0
    find = _logits(model, batches[0])
    for feed in feeds:
        with foreign_errors("the quantised model cannot be run: ONNX Runtime", CAPTURE_REMEDY):
            exact, found = ([torch.as_tensor(y) for y in each.run(None, feed)] for each in (before, after))
        for a, b in zip(exact, found, strict=True):
            if a.is_floating_point():
                gap, size = (
                    gap + float((a.double() - b.double()).square().sum()),
                    size + float(a.double().square().sum()),
                )
        if find is not None:
            equal = find(exact) == find(found)
            same, count = same + float(equal.sum()), count + equal.numel()
    error = (gap / size) ** 0.5 if size else gap**0.5
    return error, same / count if count else None


def _logits(model: nn.Module, batch: Batch) -> Callable[[list[Tensor]], Tensor] | None:
    """What reads predictions out of the outputs of a graph; None where it is not certain that they are logits."""
    output = batch.run(model)
    axis, logits = declared_logits(output, batch), logits_of(output)
    if axis is None:
        return None
    at = next(i for i, t in enumerate(torch_tensors(output)) if t is logits)
    return lambda outputs: outputs[at].argmax(axis)
