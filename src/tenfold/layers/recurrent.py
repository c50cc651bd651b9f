"""Recurrent layers whose matrices are linear layers of their own, so that each of them can be found and factorised.

`Recurrent` computes what an `nn.LSTM`, `nn.GRU` or `nn.RNN` computes. Its input matrices work on whole sequences at
once. With ``W_ih = L R`` a layer is ``R`` in front of a torch layer of the input size r whose input matrix is ``L``,
and its recurrence stays with torch's fused kernel. A recurrence ``W_hh = L R`` has no such form. It runs step by step
through its factors on the CPU, where that saves enough. Else, on accelerators, and where a graph is captured (ONNX has
a node for recurrent layers), the factors are multiplied once in each pass, and the fused kernel is given the product.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from tenfold.errors import check
from tenfold.layers.recurrent_matrices import Matrix, Way, captured, listened
from tenfold.layers.recurrent_steps import (
    Cell,
    Sequences,
    State,
    gru_cell,
    lstm_cell,
    relu_cell,
    run_steps,
    tanh_cell,
)

OPTIONS = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional", "proj_size")
_KERNELS: dict[str, tuple[type[nn.RNNBase], Cell, Any]] = {
    "LSTM": (nn.LSTM, lstm_cell, torch.lstm),
    "GRU": (nn.GRU, gru_cell, torch.gru),
    "RNN_TANH": (nn.RNN, tanh_cell, torch.rnn_tanh),
    "RNN_RELU": (nn.RNN, relu_cell, torch.rnn_relu),
}


class Recurrent(nn.Module):
    """A recurrent layer made of linear ones: ``weight_ih_l0``, ``weight_hh_l0`` and on, as torch names its matrices.

    They hold the biases, too; ``weight_hr_l0`` is the projection of an LSTM with ``proj_size``. Inputs, initial states
    and outputs are those of the torch layer: padded, packed or of one sequence.

    Args:
        layer: an `nn.LSTM`, `nn.GRU` or `nn.RNN`, whose parameters it takes.
    """

    flatten_parameters: ClassVar[Any] = staticmethod(lambda: None)
    """Of torch's layers, which hosts call: there is nothing to flatten."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.mode, self.batch_first, self.bidirectional = layer.mode, layer.batch_first, layer.bidirectional
        self.input_size, self.hidden_size, self.proj_size = layer.input_size, layer.hidden_size, layer.proj_size
        self.num_layers, self.dropout, self.bias = layer.num_layers, layer.dropout, layer.bias
        for name, parameter in layer.named_parameters(recurse=False):
            if name.startswith("weight"):
                made = nn.Linear(*reversed(parameter.shape), bias=False, device="meta")
                made.weight = cast("nn.Parameter", parameter)
                made.bias = cast("Any", layer._parameters.get(name.replace("weight", "bias")))
                self.add_module(name, made)
        self.train(layer.training)

    def to_layer(self) -> nn.RNNBase | None:
        """The torch layer with the same parameters; None while a matrix is anything but a plain linear layer.

        Neither is there one where some have a bias and others have none, or a projection has one.
        """
        matrices = {name: m for name, m in self.named_children() if type(m) is nn.Linear and not listened(m)}
        biases = {m.bias is not None for name, m in matrices.items() if not name.startswith("weight_hr_")}
        projects = any(m.bias is not None for name, m in matrices.items() if name.startswith("weight_hr_"))
        if len(matrices) < len(self._modules) or len(biases) > 1 or projects:
            return None
        options: dict[str, Any] = {name: getattr(self, name) for name in OPTIONS} | {"bias": biases.pop()}
        if not self.proj_size:  # which layers of other kinds do not take
            del options["proj_size"]
        if self.mode.startswith("RNN"):
            options["nonlinearity"] = self.mode.removeprefix("RNN_").lower()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # dropout with one layer: whoever made the first one was told
            made = _KERNELS[self.mode][0](**options, device="meta")
        for name, linear in matrices.items():
            setattr(made, name, linear.weight)
            if linear.bias is not None:
                setattr(made, name.replace("weight", "bias"), linear.bias)
        return made.train(self.training)

    def forward(self, input: Tensor | PackedSequence, hx: Any = None) -> tuple[Any, Any]:
        """Run the layer on sequences: outputs and last states, as of the torch layer.

        Args:
            input: ``(T, N, in)``, with ``batch_first`` ``(N, T, in)``; one sequence ``(T, in)``; or packed.
            hx: the first states, ``(layers directions, N, h)``, of an LSTM a pair; None: zeros.

        Raises:
            ArgumentError: inputs or states of another shape.
        """
        order = restored = None
        single, swapped = False, False
        if isinstance(input, PackedSequence):
            x, order, restored = Sequences(input.data, input.batch_sizes), input.sorted_indices, input.unsorted_indices
        else:
            check(input.dim() in (2, 3), "input", "of 2 or 3 axes", tuple(input.shape))
            single = input.dim() == 2
            swapped = self.batch_first and not single
            x = Sequences(input.unsqueeze(1) if single else input.transpose(0, 1) if swapped else input)
        width = x.data.shape[-1]
        check(width == self.input_size, "input", f"of {self.input_size} features", width)
        state = self._state(x, hx, single, order)
        last: list[State] = []
        for k in range(self.num_layers):
            ways = 2 if self.bidirectional else 1
            first = tuple(s[k * ways : (k + 1) * ways] for s in state)
            y, end = self._layer(k, x, first)
            last.append(end)
            x = x.of(F.dropout(y, self.dropout, self.training)) if k + 1 < self.num_layers else x.of(y)
        ends = tuple(torch.cat(parts) for parts in zip(*last, strict=True))
        if restored is not None:
            ends = tuple(s.index_select(1, restored) for s in ends)
        if single:
            ends = tuple(s.squeeze(1) for s in ends)
        out: Any = x.data
        if isinstance(input, PackedSequence):
            out = PackedSequence(out, input.batch_sizes, order, restored)
        else:
            out = out.squeeze(1) if single else out.transpose(0, 1) if swapped else out
        return out, ends if self.mode == "LSTM" else ends[0]

    def _state(self, x: Sequences, hx: Any, single: bool, order: Tensor | None) -> State:
        """The first states of all layers and directions, ``(layers directions, N, h)`` each."""
        rows = self.num_layers * (2 if self.bidirectional else 1)
        widths = [self.proj_size or self.hidden_size, self.hidden_size][: 2 if self.mode == "LSTM" else 1]
        shapes = [(rows, x.count, width) for width in widths]
        if hx is None:
            return tuple(x.data.new_zeros(shape) for shape in shapes)
        given = tuple(hx) if self.mode == "LSTM" else (hx,)
        if single:
            given = tuple(s.unsqueeze(1) if s.dim() == 2 else s for s in given)
        found = [tuple(s.shape) for s in given]
        check(found == shapes, "hx", f"of the shapes {shapes}", found)
        return given if order is None else tuple(s.index_select(1, order) for s in given)

    def _layer(self, k: int, x: Sequences, state: State) -> tuple[Tensor, State]:
        """One layer in all its directions."""
        ways = [self._way(k, reverse) for reverse in ((False, True) if self.bidirectional else (False,))]
        if len(ways) > 1 and all(way.input.plain and way.shift is None and way.fuses(x) for way in ways):
            return self._fused(x, state, ways, [way.input.matrix for way in ways])
        found = [self._direction(x, tuple(s[d] for s in state), way, reverse=d > 0) for d, way in enumerate(ways)]
        outputs = [y for y, _ in found]
        ends = zip(*(end for _, end in found), strict=True)
        return torch.cat(outputs, -1) if len(found) > 1 else outputs[0], tuple(torch.stack(each) for each in ends)

    def _direction(self, x: Sequences, state: State, way: Way, *, reverse: bool) -> tuple[Tensor, State]:
        if not way.fuses(x):
            gates = x.of(way.input.module(x.data)).flat()
            y, end = run_steps(self._cell(way), gates, way.hidden.module, state, x.sizes, reverse=reverse)
            return x.like(y).data, end
        inputs, matrix = way.input.split(x.data)
        shift = way.shift
        if shift is not None:  # h = u + shift, where u is what a layer without that bias puts out
            state = (state[0] - shift, *state[1:])
        seen = x.of(inputs).reversed() if reverse else x.of(inputs)
        y, end = self._fused(seen, tuple(s[None] for s in state), [way], [matrix])
        if shift is not None:
            y, end = y + shift, (end[0] + shift, *end[1:])
        return (x.of(y).reversed().data if reverse else y), tuple(s[0] for s in end)

    def _cell(self, way: Way) -> Cell:
        cell, projection = _KERNELS[self.mode][1], way.projection
        if projection is None:
            return cell

        def projected(x: Tensor, hidden: Tensor, state: State) -> State:
            h, c = cell(x, hidden, state)
            return projection.module(h), c

        return projected

    def _fused(self, x: Sequences, state: State, ways: list[Way], inputs: list[Tensor]) -> tuple[Tensor, State]:
        """One layer by torch's kernel, with the product of the factors of its recurrence."""
        kernel = _KERNELS[self.mode][2]
        biases = [way.biases() for way in ways]
        biased = any(b is not None for each in biases for b in each)
        weights: list[Tensor] = []
        for way, matrix, both in zip(ways, inputs, biases, strict=True):
            weights += [matrix, way.hidden.matrix]
            if biased:
                weights += [matrix.new_zeros(len(matrix)) if b is None else b for b in both]
            if way.projection is not None:
                weights.append(way.projection.matrix)
        kind = inputs[0].dtype  # under autocast products come in another
        weights = [w.to(kind) for w in weights]
        data, state = x.data.to(kind), tuple(s.to(kind) for s in state)
        hx = state if self.mode == "LSTM" else state[0]
        about = (weights, biased, 1, 0.0, self.training, len(ways) > 1)
        with _unflattened(data):
            if x.batch_sizes is None:
                y, *end = kernel(data, hx, *about, False)
            else:
                y, *end = kernel(data, x.batch_sizes, hx, *about)
        return y, tuple(end)

    def _way(self, k: int, reverse: bool) -> Way:
        suffix = f"_l{k}" + "_reverse" * reverse
        projection = self._modules.get(f"weight_hr{suffix}")
        return Way(
            Matrix(self.get_submodule(f"weight_ih{suffix}")),
            Matrix(self.get_submodule(f"weight_hh{suffix}")),
            None if projection is None else Matrix(projection),
        )

    def extra_repr(self) -> str:
        """The options, for ``print(model)``."""
        return ", ".join([self.mode, *(f"{name}={getattr(self, name)}" for name in OPTIONS)])


@contextmanager
def _unflattened(x: Tensor) -> Iterator[None]:
    """Without cuDNN's warning that weights are not in one piece: products of factors cannot be."""
    if x.device.type == "cpu" or captured():
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous chunk")
        yield
