"""What a model and its layers cost: parameters, and MACs for given inputs.

MACs (multiply-adds) are counted by torch's own operator counter on a copy whose tensors live on the meta device: no
data, no arithmetic, and grouped convolutions, attention and recurrent layers are seen as what they are. Biases, norms
and activations cost no MACs. Buffers are no parameters; a tied parameter is one parameter.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from tenfold.errors import ArgumentError
from tenfold.layers.copy_model import duplicate, meta_copy
from tenfold.layers.open_recurrent import opened
from tenfold.layers.recurrent import Recurrent
from tenfold.layers.spec import LayerSpec, spec_of
from tenfold.layers.usable import refuse_unusable
from tenfold.layers.weight_reads import weight_reads
from tenfold.linalg.fold import Fold

Call = tuple[int, tuple[int, ...], tuple[int, ...]]
"""One or more uses of a layer: how many inputs, their spatial size, the output's spatial size."""


@dataclass(frozen=True)
class Cost:
    """The cost of a model or layer.

    Args:
        params: number of parameters.
        macs: multiply-adds of one forward pass; None where no inputs were given.
    """

    params: int
    macs: int | None = None


@dataclass(frozen=True)
class Trace:
    """The record of one forward pass of a model: MACs, and how each layer was used.

    Args:
        macs: multiply-adds of the whole pass.
        calls: the uses of each layer, by name.
        read: layers whose weight was read outside their own forward.
    """

    macs: int
    calls: Mapping[str, tuple[Call, ...]] = field(default_factory=dict)
    read: frozenset[str] = frozenset()


@dataclass(frozen=True)
class LayerCost:
    """The cost model of one layer: weights and MACs when dense, or in any fold and rank; biases not counted.

    Args:
        shape: of the kernel, ``(out, in / groups, *k)``.
        groups: of the layer.
        transposed: whether the convolution is transposed.
        calls: how the layer is used in one forward pass; None where that is unknown, () where it is not used.
    """

    shape: tuple[int, ...]
    groups: int = 1
    transposed: bool = False
    calls: tuple[Call, ...] | None = None

    def dense(self) -> Cost:
        """Cost of the dense layer: ``f c prod(k)`` weights, each used once per output (transposed: input) position."""
        weights = math.prod(self.shape)
        if self.calls is None:
            return Cost(weights)
        uses = sum(n * math.prod(before if self.transposed else after) for n, before, after in self.calls)
        return Cost(weights, uses * weights)

    def low_rank(self, rank: int, slices: int = 1, fold: str = "channel") -> Cost:
        """Cost of a factor pair: in the channel fold ``j (k f + n)`` weights for ``k`` slices at rank ``j``.

        An axis that goes to the decoder has the encoder work at the input's resolution along it.
        """
        per_rank, macs_per_rank = self.per_rank(slices, fold)
        return Cost(per_rank * rank, None if macs_per_rank is None else macs_per_rank * rank)

    def tucker(self, rank: tuple[int, ...]) -> Cost:
        """Cost of a Tucker layer at ranks ``(r_out, r_in)`` per group; see `tucker_terms`."""
        outer, inner = rank
        weights, macs = (
            None if terms is None else terms[0] * inner + terms[1] * outer * inner + terms[2] * outer
            for terms in self.tucker_terms()
        )
        assert weights is not None
        return Cost(weights, macs)

    def tucker_terms(self) -> tuple[tuple[int, int, int], tuple[int, int, int] | None]:
        """Coefficients of ``r_in``, ``r_out r_in`` and ``r_out`` in the weights and in the MACs of a Tucker layer.

        Weights: ``g c``, ``g prod(k)`` and ``f``. The first convolution works at the input's resolution, the last at
        the output's.
        """
        weights = (self.groups * self.shape[1], self.groups * math.prod(self.shape[2:]), self.shape[0])
        if self.calls is None:
            return weights, None
        first = sum(n * math.prod(before) for n, before, _ in self.calls)
        last = sum(n * math.prod(after) for n, _, after in self.calls)
        middle = first if self.transposed else last
        return weights, (weights[0] * first, weights[1] * middle, weights[2] * last)

    def per_rank(self, slices: int = 1, fold: str = "channel") -> tuple[int, int | None]:
        """Weights and MACs of a factor pair per unit of rank; both are proportional to the rank."""
        f = Fold(self.shape, self.groups, slices, fold)
        encoder, decoder = f.encoder_params(1), f.decoder_params(1)
        if self.calls is None:
            return encoder + decoder, None
        macs = 0
        for n, before, after in self.calls:
            middle = tuple(after[a] if a in f.encoder_axes else before[a] for a in range(len(f.kernel_size)))
            first, second = (before, middle) if self.transposed else (middle, after)
            macs += n * (encoder * math.prod(first) + decoder * math.prod(second))
        return encoder + decoder, macs


def layer_cost(spec: LayerSpec, calls: tuple[Call, ...] | None = None) -> LayerCost:
    """The cost model of a layer with these options."""
    return LayerCost(spec.shape, spec.groups, spec.transposed, calls)


def count_params(model: nn.Module) -> int:
    """Number of parameters of a model, a tied one once, buffers not counted.

    Raises:
        ArgumentError: a lazy module that has not seen its first batch: nobody knows its size yet; a quantized one
            (`torch.ao.quantization`), whose weights are packed away.
    """
    refuse_unusable(model)
    for name, module in model.named_modules():
        where = type(module).__module__.split(".")
        if "quantized" in where and "reference" not in where:
            raise ArgumentError(
                f"`model` must be in floating point to be counted; '{name}' is a quantized {type(module).__name__}, "
                "whose weights are no parameters. Count the network that it was made of: it has as many, in more bits."
            )
    return sum(p.numel() for p in model.parameters())


def cost(model: nn.Module, example_inputs: Any = None) -> Cost:
    """Count the parameters of a model, and the MACs of one forward pass for the inputs as given (the whole batch).

    Args:
        model: any module; it is not changed or moved.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments. None: parameters only.

    Raises:
        ArgumentError: a lazy, wrapped, sharded or quantized model, or inputs that the model does not run on.
    """
    return Cost(count_params(model), None if example_inputs is None else trace(model, example_inputs).macs)


def trace(model: nn.Module, example_inputs: Any, names: Sequence[str] = ()) -> Trace:
    """Count the MACs of one forward pass, in eval mode, and record how the layers in ``names`` are used.

    The pass runs on a meta copy. A model that looks at values (``.item()``, data-dependent shapes) cannot run there:
    it is copied and run for real, with the fused kernels that the counter cannot see switched off.

    Args:
        model: any module; untouched.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments.
        names: of layers.

    Raises:
        ArgumentError: the model is wrapped, or does not run on the inputs; the message carries torch's own.
    """
    refuse_unusable(model)
    try:
        return _run(meta_copy(opened(model)), _to_meta(example_inputs), names)
    except Exception as on_meta:  # noqa: BLE001 - whatever a foreign forward raises; the real run decides
        try:
            return _run_for_real(model, example_inputs, names)
        except Exception as error:
            raise ArgumentError(
                f"`example_inputs` must be inputs that the model accepts; its forward pass failed with "
                f"{type(error).__name__}: {error}. Pass a tensor, a tuple of positional or a dict of keyword arguments "
                f"on the model's device (on the meta device: {on_meta})."
            ) from error


def _run(model: nn.Module, inputs: Any, names: Sequence[str]) -> Trace:
    calls: dict[str, Counter[tuple[tuple[int, ...], tuple[int, ...]]]] = {}
    handles = []
    for name in names:
        module = model.get_submodule(name)
        calls[name] = Counter()
        handles.append(module.register_forward_hook(_recorder(calls[name], spec_of(module)), with_kwargs=True))
    for module in model.modules():
        if isinstance(module, Recurrent):  # its steps are counted through its factors, whatever a kernel would do
            handles += [matrix.register_forward_hook(lambda *_: None) for matrix in module.children()]
    args, kwargs = call_arguments(inputs)
    model.eval()
    try:
        with torch.no_grad(), weight_reads(model, names) as read, FlopCounterMode(display=False) as counter:
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    seen = {name: tuple((n, *sizes) for sizes, n in used.items()) for name, used in calls.items()}
    return Trace(counter.get_total_flops() // 2, seen, frozenset(read))


def _run_for_real(model: nn.Module, inputs: Any, names: Sequence[str]) -> Trace:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), sdpa_kernel(SDPBackend.MATH):
            warnings.filterwarnings("ignore", message=".*TF32 acceleration.*")  # setting the flags below says so
            with torch.backends.mkldnn.flags(enabled=False), torch.backends.cudnn.flags(enabled=False):  # pyright: ignore[reportArgumentType]
                return _run(duplicate(model), inputs, names)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _recorder(used: Counter[Any], spec: LayerSpec | None) -> Callable[..., None]:
    axes = len(spec.kernel_size) if spec is not None else 0

    def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        if axes == 0:
            used[(), ()] += math.prod(output.shape[:-1])
        else:
            x = args[0] if args else kwargs["input"]
            batch = output.shape[0] if output.ndim == axes + 2 else 1
            used[tuple(x.shape[-axes:]), tuple(output.shape[-axes:])] += batch

    return record


def _to_meta(inputs: Any) -> Any:
    return tree_map_only(Tensor, lambda t: t.to("meta"), inputs)


def call_arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Example inputs as positional and keyword arguments."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs), {}) if isinstance(inputs, (tuple, list)) else ((inputs,), {})
