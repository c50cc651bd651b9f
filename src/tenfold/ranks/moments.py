"""What a layer puts out on calibration data: first and second moments of its outputs, and of the loss gradient there.

Streamed in float64, one ``f x f`` matrix per group and layer whatever the kernel: memory does not grow with the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float64
from torch import Tensor, nn

from tenfold.errors import DataError
from tenfold.layers.copies import duplicate
from tenfold.layers.spec import LayerSpec


@dataclass
class Moments:
    """Of one layer's outputs ``y = W x`` (the bias not included), every output position a sample.

    Args:
        samples: images (or sequences) seen.
        positions: output positions seen, all samples together.
        total: ``sum y``, ``(g, f')``.
        outer: ``sum y y^T``, ``(g, f', f')``.
        gradient: ``sum (dL/dy)(dL/dy)^T``, ``(g, f', f')``; zero where no gradients were asked for.
    """

    samples: int
    positions: int
    total: Float64[Tensor, "g f"]
    outer: Float64[Tensor, "g f f"]
    gradient: Float64[Tensor, "g f f"]

    @property
    def mean(self) -> Float64[Tensor, "g f"]:
        """``E[y]`` over positions."""
        return self.total / self.positions

    @property
    def second(self) -> Float64[Tensor, "g f f"]:
        """``E[y y^T]`` over positions."""
        return self.outer / self.positions

    @property
    def covariance(self) -> Float64[Tensor, "g f f"]:
        """``E[(y - E y)(y - E y)^T]`` over positions."""
        return self.second - self.mean[..., :, None] * self.mean[..., None, :]

    @property
    def fisher(self) -> Float64[Tensor, "g f f"]:
        """``E[(dL/dy)(dL/dy)^T]`` over positions, for the loss of one sample."""
        return self.gradient / self.positions

    @property
    def bytes(self) -> int:
        """Memory that these moments take."""
        return sum(t.numel() * t.element_size() for t in (self.total, self.outer, self.gradient))


def collect(
    model: nn.Module,
    layers: Mapping[str, tuple[LayerSpec, Sequence[str]]],
    data: Iterable[Any],
    *,
    samples: int,
    gradients: bool = False,
    seed: int = 0,
) -> dict[str, Moments]:
    """Moments of the outputs of ``layers`` over the first ``samples`` examples of ``data``, in eval mode.

    Args:
        model: untouched; a copy is run, on its device.
        layers: by name, the options and every module name that uses the weight.
        data: batches ``x`` or ``(x, y)``.
        samples: examples to use, >= 1.
        gradients: also the second moment of the loss gradient. The loss of a sample is the cross-entropy of the model's
            logits ``(n, ..., classes)`` with labels drawn from them: the Fisher information, which needs no labels.
        seed: of those labels.

    Raises:
        DataError: no example at all; or gradients of a model whose output is no tensor of logits.
    """
    model = duplicate(model).eval().requires_grad_(False)
    device = next(model.parameters()).device
    found = {name: _empty(spec) for name, (spec, _) in layers.items()}
    handles = [
        model.get_submodule(used).register_forward_hook(_recorder(found[name], spec, gradients))
        for name, (spec, names) in layers.items()
        for used in names
    ]
    generator = torch.Generator().manual_seed(seed)
    seen = 0
    try:
        for batch in data:
            x = (batch[0] if isinstance(batch, (tuple, list)) else batch)[: samples - seen].to(device)
            with torch.set_grad_enabled(gradients):
                logits = model(x)
            if gradients:
                _backward(logits, generator)
            seen += len(x)
            if seen >= samples:
                break
    finally:
        for handle in handles:
            handle.remove()
    if seen == 0:
        raise DataError("`data` must hold at least one batch to calibrate on; it is empty.")
    for moments in found.values():
        moments.samples = seen
    return found


def _empty(spec: LayerSpec) -> Moments:
    g, f = spec.groups, spec.out_channels // spec.groups
    zero = torch.zeros(g, f, f, dtype=torch.float64)
    return Moments(0, 0, torch.zeros(g, f, dtype=torch.float64), zero, zero.clone())


def _recorder(moments: Moments, spec: LayerSpec, gradients: bool) -> Callable[..., None]:
    def rows(values: Tensor) -> Tensor:
        """``(g, positions, f')`` in float64."""
        axis = -1 if spec.linear else values.ndim - 1 - len(spec.kernel_size)
        flat = values.detach().movedim(axis, -1).reshape(-1, spec.groups, spec.out_channels // spec.groups)
        return flat.movedim(1, 0).double().cpu()

    def keep_gradient(gradient: Tensor) -> None:
        g = rows(gradient)
        moments.gradient += g.mT @ g

    def record(module: nn.Module, _: Any, output: Tensor) -> None:
        if gradients:
            # The weights are frozen: the graph starts at the first layer that is looked at.
            (output if output.requires_grad else output.requires_grad_()).register_hook(keep_gradient)
        y = rows(output)
        bias = cast("Tensor | None", module.bias)
        if bias is not None:
            y = y - bias.detach().double().cpu().reshape(spec.groups, 1, -1)
        moments.positions += y.shape[1]
        moments.total += y.sum(1)
        moments.outer += y.mT @ y

    return record


def _backward(logits: Any, generator: torch.Generator) -> None:
    if not isinstance(logits, Tensor) or logits.ndim < 2 or not logits.requires_grad:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise DataError(f"loss gradients need a model whose output is logits (n, ..., classes); this one's is {shape}.")
    flat = logits.float().flatten(0, -2)
    drawn = torch.multinomial(flat.detach().softmax(1).cpu(), 1, generator=generator)[:, 0]
    F.cross_entropy(flat, drawn.to(flat.device), reduction="sum").backward()
