"""The matrices of a recurrent layer, as its forward pass meets them: plain linear layers, factorised ones, others."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from tenfold.layers.matrix import LowRankLinear
from tenfold.layers.recurrent_steps import Sequences

_PARTS = {"encoder", "decoder"}
_STEP = 2_000_000
"""MACs on one thread in the time that Python and small operations add to a step outside the kernel: a heuristic, from
measurements at 128 to 512 hidden features and 1 to 32 sequences."""


class Matrix(NamedTuple):
    """A linear layer of a recurrent one, plain or factorised: any module that maps the last axis."""

    module: nn.Module

    @property
    def plain(self) -> bool:
        """Whether it is a linear layer and no more, whose weight is a plain tensor."""
        return type(self.module) is nn.Linear and not is_traceable_wrapper_subclass(self.module.weight)

    @property
    def pair(self) -> tuple[nn.Module, nn.Linear] | None:
        """The two modules of a factor pair, the second a linear layer; None for anything else."""
        module = self.module
        parts = dict(module.named_children())
        known = isinstance(module, LowRankLinear) or (type(module) is nn.Sequential and set(parts) == _PARTS)
        last = parts["decoder"] if known else None
        return (parts["encoder"], last) if isinstance(last, nn.Linear) and Matrix(last).plain else None

    @property
    def known(self) -> bool:
        """Whether its numbers can be given to a kernel: whoever listens to a module wants it to be called."""
        return (self.plain or self.pair is not None) and not any(map(listened, self.module.modules()))

    @property
    def bias(self) -> Tensor | None:
        """The bias of the whole."""
        return cast("nn.Linear", self.module if self.pair is None else self.pair[1]).bias

    @property
    def matrix(self) -> Tensor:
        """The weight, multiplied out."""
        if isinstance(self.module, LowRankLinear):
            return self.module.kernel
        if self.pair is None:
            return cast("Tensor", self.module.weight)
        return self.pair[1].weight @ cast("Tensor", self.pair[0].weight)

    @property
    def saved(self) -> int:
        """MACs that the factors save in each row that they are applied to."""
        if self.pair is None:
            return 0
        first, last = (cast("Tensor", part.weight) for part in self.pair)
        return len(last) * self._width - first.numel() - last.numel()

    @property
    def product(self) -> int:
        """MACs that it takes to multiply the factors."""
        return 0 if self.pair is None else self.pair[1].weight.numel() * self._width

    @property
    def _width(self) -> int:
        first = self.module[0] if isinstance(self.module, nn.Sequential) else self.module
        return cast("nn.Linear | LowRankLinear", first).in_features

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs of the encoder, and the matrix that is left to multiply them with; without one ``x`` itself."""
        if self.pair is None:
            return x, cast("Tensor", self.module.weight)
        encode = self.module.encoded if isinstance(self.module, LowRankLinear) else self.pair[0]
        return encode(x), self.pair[1].weight


class Way(NamedTuple):
    """The matrices of one direction of one layer."""

    input: Matrix
    hidden: Matrix
    projection: Matrix | None

    @property
    def _recurrence(self) -> list[Matrix]:
        return [self.hidden] if self.projection is None else [self.hidden, self.projection]

    @property
    def shift(self) -> Tensor | None:
        """A bias of the projection, which the kernel's have not."""
        return None if self.projection is None else self.projection.bias

    def fuses(self, x: Sequences) -> bool:
        """Whether torch's kernel is to do the steps."""
        if not all(m.known for m in (self.input, *self._recurrence)):
            return False
        if captured():
            return True
        if x.data.is_meta:
            return False
        if x.data.device.type != "cpu" or all(m.plain for m in self._recurrence):
            return True
        steps = len(x.data) if x.batch_sizes is None else len(x.batch_sizes)
        rows = x.data.numel() // x.data.shape[-1]
        saved = sum(rows * m.saved + m.product for m in self._recurrence)
        return saved < _STEP * steps

    def biases(self) -> tuple[Tensor | None, Tensor | None]:
        """Biases of the input and the recurrence as the kernel takes them, whose projections have none."""
        hidden, shift = self.hidden.bias, self.shift
        if shift is not None:
            seen = self.hidden.matrix @ shift
            hidden = seen if hidden is None else hidden + seen
        return self.input.bias, hidden


def captured() -> bool:
    """Whether a graph is captured, which would have every step apart."""
    return torch.compiler.is_compiling() or torch.compiler.is_exporting() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]


def listened(module: nn.Module) -> bool:
    """Whether hooks are to be called when a module is."""
    return any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks))
