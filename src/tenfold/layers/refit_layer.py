"""One set of factors on its way through a refit: the layers that hold it, their moments, and the solution."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from tenfold.errors import ArgumentError, DataError
from tenfold.layers.decomposed import Decomposed
from tenfold.layers.matrix import LowRank
from tenfold.layers.positions import sampled
from tenfold.layers.spec import LayerSpec, spec_of, to_kernel, to_weight
from tenfold.layers.tucker import TuckerConv
from tenfold.layers.unfold import chunks, output_rows, unfold
from tenfold.linalg.fold import Fold
from tenfold.linalg.joint_moments import JointMoments, pooled
from tenfold.linalg.refit import refit_both, refit_last, refit_tucker
from tenfold.linalg.svd import working

_NUMBERS = 1 << 24
"""Unfolded at a time: 128 MiB in float64."""


class RefitLayer:
    """The modules that share one set of factors, with the moments of their inputs and wanted outputs.

    Args:
        modules: by name; several where the factors are tied.
        dense: all modules of the dense network, by name.
        holders: which modules of the compressed network hold each parameter, all by id.
        factors: ``"last"`` or ``"both"``.
        memory: what the moments of the whole kernel's inputs may take, in bytes, for both factors to be fitted.

    Raises:
        ArgumentError: a layer that is not made of plain layers.
    """

    def __init__(
        self,
        modules: Mapping[str, Decomposed],
        dense: Mapping[str, nn.Module],
        holders: Mapping[int, set[int]],
        factors: str,
        memory: int,
    ) -> None:
        self.modules = modules
        self.name, layer = next(iter(modules.items()))
        if not isinstance(layer, (LowRank, TuckerConv)):
            raise ArgumentError(
                f"`small` must be made of plain layers; '{self.name}' is in the form in which it is trained. "
                f"Pass tenfold.deploy(model)."
            )
        self.layer: LowRank | TuckerConv = layer
        self.dense = dense[self.name]
        self.factors = "last"
        if factors == "both" and self.layer.fold != "decoupled" and _bytes(layer.spec) <= memory:
            self.factors = "both"
        own = {id(decoder_of(m)) for m in modules.values()}
        # A bias that other layers use as well stays as it is, and what it adds is no part of what is to be fitted.
        self.free = {n: m.held_bias is not None and holders[id(m.held_bias)] <= own for n, m in modules.items()}
        self._moments: dict[int | None, JointMoments] = {}

    def spec_of(self, module: Decomposed) -> LayerSpec:
        """The options of what is fitted in a module: its last factor, or the whole layer.

        Strides may differ between tied modules.
        """
        spec = module.spec if self.factors == "both" else spec_of(decoder_of(module))
        assert spec is not None
        return spec

    @property
    def spec(self) -> LayerSpec:
        """`spec_of` the first module."""
        return self.spec_of(self.layer)

    @property
    def bytes(self) -> int:
        """The memory of its moments in bytes, whatever the number of examples."""
        return _bytes(self.spec) * len({id(m.held_bias) for m in self.modules.values()})

    def source(self, module: Decomposed) -> nn.Module:
        """The module whose inputs are collected: the last factor, or the whole layer."""
        return module if self.factors == "both" else decoder_of(module)

    def add(
        self, name: str, x: Tensor, y: Tensor, output_size: Any = None, *, first: int = 0, examples: int | None = None
    ) -> None:
        """Add the inputs of one use of a module and the dense layer's outputs for it to the moments.

        Args:
            name: of the module.
            x: its inputs in the compressed network.
            y: the outputs of the dense layer.
            output_size: of a transposed convolution, as it was called; None: by default.
            first: examples before this batch.
            examples: in all batches together: of large maps a part of the positions will do, see
                `tenfold.layers.positions`; None: unknown, and all are taken.

        Raises:
            DataError: they do not fit to each other, or are not finite.
        """
        free, module = self.free[name], self.modules[name]
        spec, bias = self.spec_of(module), module.held_bias
        for part, wanted, every in self._parts(spec, x, y, first, examples):
            rows = working(unfold(spec, part, None if output_size is None else list(output_size), every=every))
            if every:
                wanted = wanted[(..., *every)]  # noqa: PLW2901
            target = working(output_rows(spec, wanted)).to(rows.device)
            if rows.shape[:2] != target.shape[:2]:
                raise DataError(f"`data` gives '{name}' another size in the compressed network than in the dense one.")
            if bias is not None and not free:
                target = target - working(bias).reshape(target.shape[0], 1, -1)
            new = JointMoments.of(rows, target)
            if not all(bool(torch.isfinite(t).all()) for t in (new.mean_x, new.mean_y, new.yy)):
                raise DataError(f"the inputs or outputs of '{name}' on `data` are NaN or infinite.")
            key = id(bias) if free else None
            self._moments[key] = self._moments[key].merged(new) if key in self._moments else new

    def _parts(
        self, spec: LayerSpec, x: Tensor, y: Tensor, first: int, examples: int | None
    ) -> Iterator[tuple[Tensor, Tensor, tuple[slice, ...]]]:
        m = spec.in_channels // spec.groups * math.prod(spec.kernel_size)
        whole = [(x, y, ())]
        each = whole if examples is None else sampled(spec, x, y, numbers=m, first=first, examples=examples)
        for inputs, outputs, every in each:
            for part, wanted in chunks(spec, inputs, outputs, _NUMBERS):
                yield part, wanted, every

    @torch.no_grad()
    def solve_(self, ridge: float, rounds: int) -> tuple[float, float]:
        """Fit factors and biases to the moments, which are then released; returns relative errors before and after."""
        before = self._error()
        moments = pooled(m.about_zero() if key is None else m for key, m in self._moments.items())
        if self.factors == "last":
            last = refit_last(moments, self._matrix(), ridge).reshape(self.spec.shape)
            cast("Tensor", decoder_of(self.layer).weight).copy_(to_weight(self.spec, last))
        elif isinstance(self.layer, TuckerConv):
            fold = Fold(self.spec.shape, self.spec.groups, 1, "input")
            parts = self.layer.tensors()
            self.layer.set_factors(
                *refit_tucker(fold, moments, self._dense_kernel(), *parts, ridge=ridge, rounds=rounds)
            )
        else:
            fold = Fold(self.spec.shape, self.spec.groups, self.layer.slices, self.layer.fold or "channel")
            parts = fold.factors(*self.layer.factor_kernels())
            new = refit_both(fold, moments, self._dense_kernel(), *parts, ridge=ridge, rounds=rounds)
            self.layer.set_factors(*new)
        matrix = self._matrix()
        for name, module in self.modules.items():
            bias = module.held_bias
            if bias is not None and self.free[name] and id(bias) in self._moments:
                bias.copy_(self._moments[id(bias)].shift(matrix).flatten())
        after = self._error()
        self._moments.clear()
        return before, after

    def _matrix(self) -> Tensor:
        """What is fitted as ``(g, out / g, m)``, float64, from the parameters as they are."""
        spec, weight = self.spec, cast("Tensor", decoder_of(self.layer).weight)
        kernel = self.layer.kernel if self.factors == "both" else to_kernel(spec, weight)
        return working(kernel).reshape(spec.groups, spec.out_channels // spec.groups, -1)

    def _dense_kernel(self) -> Tensor:
        if isinstance(self.dense, Decomposed):
            return working(self.dense.kernel)
        return working(to_kernel(self.layer.spec, cast("Tensor", self.dense.weight)))

    def _error(self) -> float:
        """Of the parameters as they are: mean squared error over the variance of the outputs that are wanted."""
        matrix, biases = self._matrix(), {id(b): b for m in self.modules.values() if (b := m.held_bias) is not None}
        lost = total = 0.0
        for key, moments in self._moments.items():
            gap = moments.shift(matrix)
            if key is not None:
                gap = gap - working(biases[key]).reshape(gap.shape)
            lost += moments.count * (moments.error(matrix) + float(gap.square().sum()))
            total += float(moments.yy.sum())
        return lost / total if total > 0 else 0.0


def decoder_of(layer: Decomposed) -> nn.Module:
    """The last factor of a layer of plain layers."""
    return cast("LowRank | TuckerConv", layer).decoder


def _bytes(spec: LayerSpec) -> int:
    """Of the moments of a layer's unfolded inputs and its outputs, in float64."""
    m = spec.in_channels // spec.groups * math.prod(spec.kernel_size)
    return 8 * (spec.groups * m * m + spec.out_channels * m)
