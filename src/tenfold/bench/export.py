"""Export: a model as a file that runs without its Python code, checked against the model before the file counts.

What torch cannot capture is not exported, and a file that does not compute what the model computes is not left behind.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from tenfold.bench.int8 import Quantized, quantized
from tenfold.errors import ArgumentError, TenfoldError, check, shortened
from tenfold.files import atomic_file
from tenfold.layers.calibration_runs import evaluating
from tenfold.layers.cost import call_arguments
from tenfold.layers.usable import refuse_unusable, refuse_without_numbers
from tenfold.runtimes.foreign import foreign_errors, silenced
from tenfold.runtimes.onnx_capture import CAPTURE_REMEDY, onnx_model, onnx_runtime, open_session
from tenfold.runtimes.onnx_int8 import KINDS, STATIC
from tenfold.runtimes.runtime import torch_tensors

FORMATS = ("onnx", "torch-export")
BATCHES = (1, 5)
"""Batch sizes that a file is checked on; neither is the one that it is captured with."""
_CAPTURED = 3
_NOISE = 64
"""Random examples that a quantised file is measured on where there are no data."""

_Run = Callable[[Any], list[Tensor]]


@dataclass(frozen=True)
class Exported:
    """An exported file, and how far its outputs are from the model's.

    Args:
        path: of the file.
        format: "onnx" or "torch-export".
        bytes: its size.
        opset: of ONNX; None for torch-export.
        difference: largest absolute difference to the model, by batch size.
        magnitude: largest absolute output of the model in the check.
        int8: what quantisation changed; None without. The check above is of the float file that came before.
    """

    path: Path
    format: str
    bytes: int
    opset: int | None
    magnitude: float
    difference: dict[int, float] = field(default_factory=dict)
    int8: Quantized | None = None


def export(
    model: nn.Module,
    example_inputs: Any,
    path: Path | str,
    *,
    format: str = "onnx",
    opset: int | None = None,
    tolerance: float = 1e-4,
    reference: nn.Module | None = None,
    dynamic: Sequence[str] = (),
    int8: str | None = None,
    data: Iterable[Any] | None = None,
) -> Exported:
    """Export a model, in eval mode, as an ONNX file or a `torch.export` archive of any batch size.

    The file is run on random inputs of two batch sizes, in ONNX Runtime or by torch, and compared with the model; in
    the second of them every axis in ``dynamic`` is twice as long.

    Args:
        model: any module that `torch.export` can capture; untouched. For ONNX on the CPU.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments. The first axis of every tensor
            is the batch, of any size.
        path: of the file; one that stands there is replaced.
        format: "onnx" or "torch-export".
        opset: of ONNX; None: torch's own choice.
        tolerance: largest difference allowed, > 0: absolute, or relative to the largest output where that is above 1.
        reference: what the file is compared with; None: ``model``. The model before its batch norms were folded, say.
        dynamic: further axes of any length: "height" and "width", the last two of tensors with four axes or more;
            "length", the last of those with two or three; or NAME=AXIS, e.g. "length=1", of all that have that axis.
        int8: for ONNX: "static", weights and activations in int8, or "dynamic", weights of linear layers in int8 and
            their inputs rounded in each run. After the check of the float file; outputs change, `Exported.int8` says
            by how much. See `tenfold.runtimes.onnx_int8`.
        data: for ``int8``: batches like those of `compress`, of which 512 examples are read. "static" takes the ranges
            of activations from three quarters of them and is measured on the rest; "dynamic" is measured on all, or on
            random inputs without any.

    Raises:
        ArgumentError: an unknown format, an opset that torch cannot write, a wrapped model, inputs without a batch, an
            axis that no input has; "static" without data.
        DataError: data with too few examples, or of other inputs.
        TenfoldError: a package is missing, the model cannot be captured or quantised, or the outputs differ: nothing
            is written.
    """
    check(format in FORMATS, "format", f"one of {', '.join(FORMATS)}", format)
    check(opset is None or format == "onnx", "opset", "left out for torch-export", opset)
    check(tolerance > 0, "tolerance", "> 0", tolerance)
    check_int8(int8, format, given=data is not None)
    refuse_unusable(model)
    refuse_without_numbers(model)
    if format == "onnx":
        onnx_runtime()
    free = free_axes(dynamic, example_inputs)
    args, kwargs = call_arguments(resized(example_inputs, _CAPTURED, None))
    axes = _axes((args, kwargs), free, named=format == "onnx")
    with evaluating(model, reference or model), torch.no_grad(), silenced():
        if free:  # said before the work
            _expected(reference or model, _longer(example_inputs, free), free)
        if format == "onnx":
            content, opset = onnx_model(model, args, kwargs, shapes=_flat(axes), opset=opset)
        else:
            content = _archive(model, args, kwargs, axes)
        run = _session(content) if format == "onnx" else _open(content)
        found, magnitude = _check(run, reference or model, example_inputs, tolerance, free)
        made = None
        if int8 is not None:
            noise = resized(example_inputs, _NOISE, torch.Generator().manual_seed(0))
            content, opset, made = quantized(content, int8, model, example_inputs, data, noise)
            _check(_session(content), model, example_inputs, math.inf, free)
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)
    return Exported(Path(path), format, len(content), opset, magnitude, found, made)


def check_int8(int8: str | None, format: str, *, given: bool) -> None:
    """Refuse a quantisation that `export` cannot do.

    Args:
        int8: as `export` takes it.
        format: as `export` takes it.
        given: whether there are data.

    Raises:
        ArgumentError: it cannot.
    """
    if int8 is None:
        check(not given, "data", "left out without `int8`, for which alone they are read", "some")
        return
    check(int8 in KINDS, "int8", f"one of {', '.join(KINDS)}", int8)
    check(format == "onnx", "int8", "left out for torch-export", int8)
    check(given or int8 != STATIC, "data", "given for static int8, which takes the ranges of activations from them",
          None, "Or take dynamic.")  # fmt: skip


def _archive(model: nn.Module, args: Any, kwargs: Any, axes: Any) -> bytes:
    file = io.BytesIO()
    with foreign_errors("the model cannot be exported: torch.export", CAPTURE_REMEDY):
        torch.export.save(torch.export.export(model, args, kwargs, dynamic_shapes=_flat(axes)), file)
    return file.getvalue()


def _session(content: bytes) -> _Run:
    """The file in ONNX Runtime; inputs go in by their order."""
    session = open_session(content)
    names = [value.name for value in session.get_inputs()]

    def run(inputs: Any) -> list[Tensor]:
        args, kwargs = call_arguments(inputs)
        tensors = [t.cpu().numpy() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        return [torch.as_tensor(y) for y in session.run(None, dict(zip(names, tensors, strict=True)))]

    return run


def _open(content: bytes) -> _Run:
    module = torch.export.load(io.BytesIO(content)).module()

    def run(inputs: Any) -> list[Tensor]:
        args, kwargs = call_arguments(inputs)
        return torch_tensors(module(*args, **kwargs))

    return run


def _check(run: _Run, model: nn.Module, inputs: Any, tolerance: float, free: Free) -> tuple[dict[int, float], float]:
    """The largest differences by batch size, and the largest output; the free axes are longer in the last batch."""
    generator, found, largest = torch.Generator().manual_seed(0), {}, 0.0
    for n in BATCHES:
        x = resized(_longer(inputs, free) if n == BATCHES[-1] else inputs, n, generator)
        expected = _expected(model, x, free)
        with foreign_errors("the model cannot be exported: the file's own run", CAPTURE_REMEDY):
            got = run(x)
        shapes = ([tuple(t.shape) for t in ts] for ts in (got, expected))
        if len({tuple(s) for s in shapes}) > 1:
            raise TenfoldError(f"the exported file puts out other shapes than the model for a batch of {n}.")
        pairs = [(a.double().cpu(), b.double().cpu()) for a, b in zip(got, expected, strict=True) if b.numel()]
        found[n] = max((float((a - b).abs().max()) for a, b in pairs), default=0.0)
        largest = max(largest, *(float(b.abs().max()) for _, b in pairs), 0.0)
        if not found[n] <= tolerance * max(largest, 1.0):
            raise TenfoldError(
                f"the exported file is off by {found[n]:.3g} for a batch of {n}, beside a largest output of "
                f"{largest:.3g}; `tolerance` allows {tolerance:g} of that. Nothing is written."
            )
    return found, largest


def resized(inputs: Any, n: int, generator: torch.Generator | None) -> Any:
    """Resize the batch of ``inputs`` to ``n``: rows are repeated; with a generator, random numbers or rows.

    Raises:
        ArgumentError: a tensor among them whose first axis is no batch.
    """

    def resize(x: Tensor) -> Tensor:
        check(x.ndim > 0 and len(x) > 0, "example_inputs", "tensors whose first axis is the batch", tuple(x.shape))
        if generator is not None and x.is_floating_point():
            return torch.randn(n, *x.shape[1:], generator=generator).to(x)
        rows = torch.arange(n) if generator is None else torch.randint(len(x), (n,), generator=generator)
        return x[(rows % len(x)).to(x.device)]

    return tree_map_only(Tensor, resize, inputs)


Free = dict[str, int | None]
"""Axes of any length, by name; None: where the name says."""
_NAMED = {"height": (-2, range(4, 99)), "width": (-1, range(4, 99)), "length": (-1, range(2, 4))}
"""Which axis a name means, and of tensors with how many."""


def free_axes(words: Sequence[str], inputs: Any) -> Free:
    """Axes that stay free in an exported model, as the words of `dynamic` name them; see `export`.

    Raises:
        ArgumentError: words that say nothing, or an axis that no tensor among the inputs has.
    """
    free: Free = {}
    for word in words:
        name, equals, axis = word.strip().partition("=")
        known = name.isidentifier() and name != "batch" and name not in free
        known = known and (axis.isdecimal() and int(axis) > 0 if equals else name in _NAMED)
        check(known, "dynamic", f"of {', '.join(_NAMED)}, or NAME=AXIS with an axis from 1, each once", list(words))
        free[name] = int(axis) if equals else None
        there = [named_axes(t, free) for t in tree_leaves(inputs) if isinstance(t, Tensor)]
        check(any(name in axes.values() for axes in there), "dynamic", "of axes that the inputs have", word)
    return free


def _axes(inputs: Any, free: Free, *, named: bool) -> Any:
    """The dynamic shapes of all arguments. Without names torch finds by itself which lengths are possible."""
    kinds: dict[str, Any] = {name: torch.export.Dim(name) if named else torch.export.Dim.DYNAMIC for name in free}
    kinds["batch"] = torch.export.Dim("batch", min=1)
    return tree_map_only(Tensor, lambda t: {axis: kinds[name] for axis, name in named_axes(t, free).items()}, inputs)


def _expected(model: nn.Module, inputs: Any, free: Free) -> list[Tensor]:
    args, kwargs = call_arguments(inputs)
    try:
        return torch_tensors(model(*args, **kwargs))
    except Exception as error:
        if not free:
            raise
        raise ArgumentError(
            f"`dynamic` must be of axes that the model takes at other lengths; with {', '.join(free)} twice as long it "
            f"fails with {type(error).__name__}: {shortened(str(error), 200)[1:-1]}."
        ) from error


def named_axes(t: Tensor, free: Free) -> dict[int, str]:
    """The axes of an input that may have any length: the batch, and those that are free."""
    found = {0: "batch"}
    for name, axis in free.items():
        at, sizes = _NAMED[name] if axis is None else (axis, range(axis + 1, 99))
        if t.ndim in sizes:
            found.setdefault(at % t.ndim, name)
    return found


def _longer(inputs: Any, free: Free) -> Any:
    """The same inputs with free axes twice as long."""

    def stretch(t: Tensor) -> Tensor:
        for axis, name in named_axes(t, free).items():
            t = t if name == "batch" else torch.cat([t, t], axis)
        return t

    return tree_map_only(Tensor, stretch, inputs) if free else inputs


def _flat(axes: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
    """As torch wants it: a tuple, or a dict by name where there are keywords."""
    return axes[1] or axes[0]
