"""A model made ready for inference: the same outputs, by fewer operations, in the forms that are measured fastest here.

Batch norm is folded into the layers before it. Weights of convolutions lie contiguously or with
channels last; the encoders of sliced layers are grouped convolutions or single ones with block-diagonal kernels. Which
is faster depends on the processor, the runtime and the sizes: all are timed in turns, and what is not clearly faster is
left as it is.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tenfold.errors import ArgumentError, TenfoldError
from tenfold.layers.copy_model import duplicate, sharing_copy
from tenfold.layers.fold_batchnorm import fold_batchnorm
from tenfold.layers.layer_inputs import Uses, layer_inputs
from tenfold.layers.matrix import LowRank
from tenfold.layers.pretrained import refuse_save_pretrained_
from tenfold.layers.spec import CONVS, TRANSPOSED
from tenfold.layers.unsliced import sliced, without_slices
from tenfold.linalg.svd import working
from tenfold.runtimes import get_runtime
from tenfold.runtimes.runtime import Runtime, torch_tensors
from tenfold.runtimes.timing import WORTH, fastest, turns, undisturbed_clock

CONTIGUOUS, CHANNELS_LAST = "contiguous", "channels_last"
_FORMS = {4: torch.channels_last, 5: torch.channels_last_3d}
"""By the number of a tensor's axes."""
_ROUNDS = 9
_TOLERANCE = {torch.float16: 2e-2, torch.bfloat16: 2e-2}
_TOLERANCE_ELSE = 1e-3
"""Largest difference of outputs, relative to the largest: far above what rounding does, far below a wrong result."""


@dataclass(frozen=True)
class Optimized:
    """A model as `optimize_for_inference` makes it, and what was chosen.

    Args:
        model: itself, in eval mode.
        runtime: that it was timed in.
        threads: that it was timed with.
        memory_format: of the weights of convolutions, "contiguous" or "channels_last".
        folded: batch norms that are gone.
        joined: sliced layers whose encoder is one convolution with a block-diagonal kernel.
        difference: largest absolute difference of the outputs for the example inputs.
    """

    model: nn.Module
    runtime: str
    threads: int
    memory_format: str
    folded: tuple[str, ...]
    joined: tuple[str, ...]
    difference: float


def optimize_for_inference(
    model: nn.Module, example_inputs: Any, *, runtime: str = "eager", threads: int = 1
) -> nn.Module:
    """Make a model as fast as it can be without changing what it computes: a new one, plain layers, in eval mode.

    Batch norms are folded into the layers before them where that is exact; convolutions get the memory format, and
    layers with slices the form, that are measured faster for these inputs. Outputs for them are within 1e-3 of the
    largest one (2e-2 in half precision), which is checked. Inputs may stay in the format that they have: the first
    convolution converts them. The result runs in any runtime; it is made for the one that it was timed in.

    Args:
        model: dense or compressed; untouched.
        example_inputs: a batch of the size that matters: a tensor, a tuple of positional or a dict of keyword
            arguments.
        runtime: "eager", "compile" or "onnxruntime".
        threads: that a pass may use on the CPU, >= 1.

    Raises:
        ArgumentError: an unknown runtime, a number out of its range, a wrapped model, or inputs that it does not take.
        TenfoldError: the runtime cannot run the model, or lacks a package; the outputs differ, as those of a model
            that draws random numbers in eval mode do.
    """
    return optimized(model, example_inputs, runtime=runtime, threads=threads).model


def optimized(model: nn.Module, example_inputs: Any, *, runtime: str = "eager", threads: int = 1) -> Optimized:
    """As `optimize_for_inference`, with what was chosen; arguments and errors are the same."""
    runs, eager = get_runtime(runtime), get_runtime("eager")
    with torch.random.fork_rng([t.device for t in torch_tensors(example_inputs) if t.is_cuda]):
        before = _outputs(eager, model, example_inputs, threads)
        plain, folded = without_norms(model, example_inputs)
        made = [(form, *_in_form(plain, example_inputs, runs, threads, form)) for form in _formats(plain, runs)]
        calls = [runs.prepare(new, example_inputs, threads=threads) for _, new, _ in made]
        form, new, joined = made[fastest(calls, example_inputs, threads=threads, rounds=_ROUNDS)]
        gap = _difference(before, _outputs(eager, new, example_inputs, threads))
    if folded or joined:
        refuse_save_pretrained_(new)
    return Optimized(new, runs.name, threads, form, folded, joined, gap)


def without_norms(model: nn.Module, inputs: Any) -> tuple[nn.Module, tuple[str, ...]]:
    """A copy in eval mode with batch norms folded as far as they can be, and their names."""
    try:
        new = fold_batchnorm(model, example_inputs=inputs)
    except ArgumentError:  # an untraceable model that uses a layer's output twice: the outputs differed
        return duplicate(model).eval(), ()
    norms = [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
    return new, tuple(name for name in norms if not isinstance(new.get_submodule(name), _BatchNorm))


def _formats(model: nn.Module, runtime: Runtime) -> tuple[str, ...]:
    """The memory formats to choose from. An ONNX graph has none: its runtime lays weights out itself."""
    choice = runtime.name != "onnxruntime" and next(_kernels(model), None) is not None
    return (CONTIGUOUS, CHANNELS_LAST) if choice else (CONTIGUOUS,)


def _kernels(model: nn.Module) -> Iterator[nn.Parameter]:
    """The weights of convolutions for which there is a choice."""
    for module in model.modules():
        weight = module.weight if isinstance(module, (*CONVS, *TRANSPOSED)) else None
        if isinstance(weight, nn.Parameter) and weight.ndim in _FORMS:
            yield weight


def _in_form(
    model: nn.Module, inputs: Any, runtime: Runtime, threads: int, form: str
) -> tuple[nn.Module, tuple[str, ...]]:
    """A copy in a memory format, its sliced layers in the form that is faster there, and which were replaced.

    It shares all parameters but those that are laid out anew.
    """
    new = sharing_copy(model)
    laid = {id(w): nn.Parameter(_laid(w.detach(), form), w.requires_grad) for w in _kernels(new)}
    for module in new.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) in laid:
                setattr(module, name, laid[id(parameter)])
    return _joined(new, inputs, runtime, threads, form)


def _laid(x: Tensor, form: str) -> Tensor:
    """``x`` in a memory format, where its number of axes leaves a choice."""
    known = form == CHANNELS_LAST and x.ndim in _FORMS
    return x.contiguous(memory_format=_FORMS[x.ndim] if known else torch.contiguous_format)


def _joined(
    model: nn.Module, inputs: Any, runtime: Runtime, threads: int, form: str
) -> tuple[nn.Module, tuple[str, ...]]:
    """``model``, a copy, with sliced layers replaced where that is faster in a memory format, and their names."""
    known: dict[Any, bool] = {}
    chosen: dict[nn.Module, nn.Module] = {}
    for layer, uses in _uses(model, inputs).items():
        whole = without_slices(layer)
        key = (layer.spec, layer.rank, layer.slices, layer.fold, frozenset(uses.items()))
        if key not in known:
            known[key] = _pays(layer, whole, uses, runtime, threads, form)
        if known[key]:
            chosen[layer] = whole
    found = []
    for name, parent in list(model.named_modules()):
        for own, child in list(parent.named_children()):
            if child in chosen:
                setattr(parent, own, chosen[child])
                found.append(f"{name}.{own}" if name else own)
    return (chosen[model], ("",)) if model in chosen else (model, tuple(found))


def _uses(model: nn.Module, inputs: Any) -> dict[LowRank, Uses]:
    """How often each sliced layer meets which inputs in one pass of a model in eval mode."""
    layers = {name: cast("LowRank", module) for name, module in model.named_modules() if sliced(module)}
    found = layer_inputs(model, {name: [name] for name in layers}, inputs) if layers else {}
    return {layers[name]: uses for name, uses in found.items() if uses}


def _pays(layer: LowRank, whole: nn.Module, uses: Uses, runtime: Runtime, threads: int, form: str) -> bool:
    """Whether ``whole`` is faster than ``layer``, on inputs of all sizes that it meets, in a memory format."""
    grouped = single = 0.0
    for (shape, dtype), count in uses.items():
        x = _laid(torch.ones(shape, dtype=dtype, device=layer.factors[0].device), form)
        calls = [runtime.prepare_layer(each, x, threads=threads) for each in (layer, whole)]
        clock = undisturbed_clock(x, threads)
        found = zip(*turns(calls, x, threads=threads, rounds=_ROUNDS, clock=clock), strict=True)
        first, second = (count * statistics.median(times) for times in found)
        grouped, single = grouped + first, single + second
    return grouped >= WORTH * single


def _difference(before: list[Tensor], after: list[Tensor]) -> float:
    """The largest difference of two lists of outputs, where they are finite.

    Raises:
        TenfoldError: it is more than rounding.
    """
    most = 0.0
    for a, b in zip(before, after, strict=True):
        if a.is_floating_point() and bool((finite := a.isfinite()).any()):
            exact, found = working(a[finite]), working(b[finite])
            gap, size = float((exact - found).abs().max()), float(exact.abs().max())
            most = max(most, gap)
            if not gap <= _TOLERANCE.get(a.dtype, _TOLERANCE_ELSE) * max(size, 1e-6):
                raise TenfoldError(
                    f"the model cannot be optimised: its outputs would differ by {gap:.3g}, beside a largest one of "
                    f"{size:.3g}. It has to compute the same for the same inputs each time it runs in eval mode."
                )
    return most


def _outputs(runtime: Runtime, model: nn.Module, inputs: Any, threads: int) -> list[Tensor]:
    return runtime.outputs(runtime.prepare(model, inputs, threads=threads)())
