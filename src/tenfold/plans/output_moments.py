"""Second moments of layer outputs, and of the loss gradient there, on calibration data.

Streamed in float64, one ``p x p`` matrix per group and layer, p the smaller of a group's outputs and its inputs (kernel
entries included): where there are more outputs than inputs, the outputs ``y = W x`` lie in the column space of W, and
are recorded in coordinates there. Memory grows neither with the data nor with a batch: outputs are taken in blocks.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from tenfold.errors import DataError, TenfoldWarning
from tenfold.layers.calibration_batches import calibration_batches
from tenfold.layers.calibration_runs import EMPTY
from tenfold.layers.copy_model import duplicate
from tenfold.layers.spec import LayerSpec, to_kernel
from tenfold.linalg.fold import Fold
from tenfold.linalg.output_aware import column_basis
from tenfold.plans.loss_gradients import Loss, total_loss

_NUMBERS = 1 << 20
"""Outputs taken at a time: 8 MiB in float64."""


@dataclass
class Moments:
    """Moments of one layer's outputs ``y = W x`` (the bias not included), every output position a sample.

    All but ``basis`` is of the coordinates ``z`` of ``y = Q z``, where Q is the basis; of y itself where there is none.

    Args:
        samples: images (or sequences) seen.
        positions: output positions seen, all samples together.
        total: ``sum z``, ``(g, p)``.
        outer: ``sum z z^T``, ``(g, p, p)``.
        gradient: ``sum (dL/dz)(dL/dz)^T``, ``(g, p, p)``; None where no gradients were asked for.
        trace: ``sum |dL/dy|^2``, ``(g,)``; None likewise.
        basis: Q, orthonormal, ``(g, f', p)``, of a layer with fewer inputs than outputs; None for the others.
    """

    samples: int
    positions: int
    total: Float64[Tensor, "g p"]
    outer: Float64[Tensor, "g p p"]
    gradient: Float64[Tensor, "g p p"] | None = None
    trace: Float64[Tensor, " g"] | None = None
    basis: Float64[Tensor, "g f p"] | None = None

    @property
    def mean(self) -> Float64[Tensor, "g p"]:
        """``E[z]`` over positions."""
        return self.total / self.positions

    @property
    def second(self) -> Float64[Tensor, "g p p"]:
        """``E[z z^T]`` over positions."""
        return self.outer / self.positions

    @property
    def covariance(self) -> Float64[Tensor, "g p p"]:
        """``E[(z - E z)(z - E z)^T]`` over positions."""
        return self.second - self.mean[..., :, None] * self.mean[..., None, :]

    @property
    def fisher(self) -> Float64[Tensor, "g p p"]:
        """``E[(dL/dz)(dL/dz)^T]`` over positions, for the loss of one sample."""
        assert self.gradient is not None
        return self.gradient / self.positions

    @property
    def fisher_mean(self) -> Float64[Tensor, " g"]:
        """``E (dL/dy)^2`` of an output, over positions and the outputs of a group, for the loss of one sample."""
        assert self.trace is not None
        outputs = self.total.shape[1] if self.basis is None else self.basis.shape[1]
        return self.trace / (self.positions * outputs)

    def coordinates(self, w: Tensor) -> Float64[Tensor, "g p n"]:
        """The weight ``(g, f', n)`` that computes ``z = Q^T W x``, in float64."""
        w = w.detach().cpu().double()
        return w if self.basis is None else self.basis.mT @ w

    @property
    def bytes(self) -> int:
        """Memory that these moments take."""
        return bytes_of(self.total, self.outer, self.gradient, self.trace, self.basis)


def bytes_of(*tensors: Tensor | None) -> int:
    """Memory that tensors take."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def block_bytes(moments: Moments) -> int:
    """Memory that a block of a layer's outputs takes while it is added: itself, its coordinates, their products."""
    outputs = moments.total.numel() if moments.basis is None else moments.basis.shape[0] * moments.basis.shape[1]
    rows = min(moments.positions, max(1, _NUMBERS // outputs))
    coordinates = 0 if moments.basis is None else moments.total.numel()
    return 8 * rows * (outputs + coordinates) + bytes_of(moments.outer)


def collect(
    model: nn.Module,
    layers: Mapping[str, tuple[LayerSpec, Sequence[str]]],
    data: Iterable[Any],
    *,
    samples: int,
    gradients: bool = False,
    seed: int = 0,
    loss: Loss | None = None,
) -> dict[str, Moments]:
    """Collect output moments of layers over the first ``samples`` examples of ``data``, in eval mode.

    Args:
        model: untouched; a copy is run, on its device.
        layers: by name, the options and every module name that uses the weight.
        data: batches, see `tenfold.layers.calibration_batches`.
        samples: examples to use, >= 1.
        gradients: also the second moment of the loss gradient; see `tenfold.plans.loss_gradients`. By default, the loss
            is a classifier's with labels drawn from its own logits: the Fisher information, which needs no labels.
        seed: of those labels.
        loss: another loss, ``(output, target) -> scalar``, the mean over a batch.

    Raises:
        DataError: no example at all; a batch that the model does not run on; entries or outputs that are not finite; a
            layer that is never used; or gradients without a loss, of a model whose outputs are not certainly logits.

    Warns:
        TenfoldWarning: layers that put out no more vectors than these have numbers: their moments are of a space that
            the data does not fill.
    """
    model = duplicate(model).eval().requires_grad_(False)
    device = next(model.parameters()).device
    found = {name: _empty(model.get_submodule(names[0]), spec, gradients) for name, (spec, names) in layers.items()}
    batches = calibration_batches(model, data)  # before there are hooks: it may try the model
    handles = [
        model.get_submodule(used).register_forward_hook(_recorder(name, found[name], spec, gradients))
        for name, (spec, names) in layers.items()
        for used in names
    ]
    generator = torch.Generator().manual_seed(seed)
    seen = 0
    try:
        for whole in batches:
            batch = whole.first(samples - seen).to(device)
            del whole  # no batch is kept alive while the next one is made
            with torch.set_grad_enabled(gradients):
                output = batch.run(model)
                if gradients:
                    total_loss(output, batch, loss, generator).backward()
            seen += len(batch)
            del batch, output
            if seen >= samples:
                break
    finally:
        for handle in handles:
            handle.remove()
    if seen == 0:
        raise DataError(EMPTY)
    for name, moments in found.items():
        moments.samples = seen
        if moments.positions == 0:
            raise DataError(f"`data` never reaches the layer '{name}' of the model. Name it in `exclude_modules`.")
        if moments.gradient is not None and not torch.isfinite(moments.gradient).all():
            raise DataError(f"the loss gradient in the outputs of '{name}' is NaN or infinite on `data`.")
    _say_few(found)
    return found


def _say_few(found: Mapping[str, Moments]) -> None:
    few = {name: m for name, m in found.items() if m.positions <= m.total.shape[1]}
    if not few:
        return
    name, worst = min(few.items(), key=lambda item: item[1].positions / item[1].total.shape[1])
    more = f" and {len(few) - 1} more layers likewise" if len(few) > 1 else ""
    warnings.warn(
        f"`data` has too few examples: '{name}' puts out {worst.positions:,} vectors on it, of "
        f"{worst.total.shape[1]:,} numbers each{more}. What no example shows is cut by guess. Give more examples.",
        TenfoldWarning,
        stacklevel=2,
    )


def _empty(module: nn.Module, spec: LayerSpec, gradients: bool) -> Moments:
    g, f, n = spec.groups, spec.out_channels // spec.groups, spec.params // spec.out_channels
    p, basis = min(f, n), None
    if f > n:
        basis = column_basis(Fold(spec.shape, g, 1, "channel").matrices(to_kernel(spec, cast("Tensor", module.weight))))
    zero = torch.zeros(g, p, p, dtype=torch.float64)
    gradient = (torch.zeros_like(zero), torch.zeros(g, dtype=torch.float64)) if gradients else (None, None)
    return Moments(0, 0, torch.zeros(g, p, dtype=torch.float64), zero, *gradient, basis)


def _blocks(spec: LayerSpec, values: Tensor) -> Iterator[Tensor]:
    """Copies ``(g, positions, f')`` in float64, of so many positions at a time that no block is large."""
    values = values.detach()
    axes = len(spec.kernel_size)
    rows = (values if spec.linear or values.ndim == axes + 2 else values[None]).movedim(-1 if spec.linear else 1, -1)
    rows = rows.reshape(-1, spec.out_channels) if spec.linear else rows.flatten(1, -2)  # a view in the usual layouts
    few = max(1, _NUMBERS // spec.out_channels)
    examples = 1 if spec.linear else max(1, few // rows.shape[1])
    for part in rows.split(few) if spec.linear else (p for e in rows.split(examples) for p in e.split(few, 1)):
        own = part.to("cpu", torch.float64, copy=True, memory_format=torch.contiguous_format)
        yield own.reshape(-1, spec.groups, spec.out_channels // spec.groups).movedim(1, 0)


def _recorder(name: str, moments: Moments, spec: LayerSpec, gradients: bool) -> Callable[..., Tensor]:
    def coordinates(rows: Tensor) -> Tensor:
        return rows if moments.basis is None else rows @ moments.basis

    def keep_gradient(gradient: Tensor) -> None:
        assert moments.gradient is not None
        assert moments.trace is not None
        for rows in _blocks(spec, gradient):
            moments.trace += torch.linalg.vector_norm(rows, dim=(1, 2)).square()
            g = coordinates(rows)
            moments.gradient += g.mT @ g

    def record(module: nn.Module, _: Any, output: Tensor) -> Tensor:
        if gradients:
            # The weights are frozen: the graph starts at the first layer that is looked at. A clone of that leaf goes
            # on, as an activation that works in place may not write to a leaf.
            if not output.requires_grad:
                with torch.enable_grad():
                    output = output.requires_grad_().clone()
            output.register_hook(keep_gradient)
        bias = cast("Tensor | None", module.bias)
        for rows in _blocks(spec, output):
            if not torch.isfinite(rows).all():
                raise DataError(f"the outputs of '{name}' on `data` are NaN or infinite, though its weight is finite.")
            if bias is not None:
                rows.sub_(bias.detach().cpu().double().reshape(spec.groups, 1, -1))
            z = coordinates(rows)
            moments.positions += z.shape[1]
            moments.total += z.sum(1)
            moments.outer += z.mT @ z
        return output

    return record
