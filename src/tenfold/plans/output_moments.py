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
from tenfold.layers.copy_model import duplicate
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
        DataError: no example at all; entries or outputs that are not finite; a layer that is never used; or gradients
            of a model whose output is no tensor of logits.
    """
    if isinstance(data, Tensor):
        raise DataError(f"`data` must be batches, not one tensor {tuple(data.shape)}. Pass [x], or a DataLoader.")
    model = duplicate(model).eval().requires_grad_(False)
    device = next(model.parameters()).device
    found = {name: _empty(spec) for name, (spec, _) in layers.items()}
    handles = [
        model.get_submodule(used).register_forward_hook(_recorder(name, found[name], spec, gradients))
        for name, (spec, names) in layers.items()
        for used in names
    ]
    generator = torch.Generator().manual_seed(seed)
    seen = 0
    try:
        for number, batch in enumerate(data):
            x = _inputs(batch, number)[: samples - seen].to(device)
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
        raise DataError(
            "`data` must hold at least one batch to calibrate on; it is empty. A generator is so once it has been gone "
            "through: pass a list or a DataLoader."
        )
    for name, moments in found.items():
        moments.samples = seen
        if moments.positions == 0:
            raise DataError(f"`data` never reaches the layer '{name}' of the model. Name it in `exclude_modules`.")
        if not torch.isfinite(moments.gradient).all():
            raise DataError(f"the loss gradient in the outputs of '{name}' is NaN or infinite on `data`.")
    return found


def _empty(spec: LayerSpec) -> Moments:
    g, f = spec.groups, spec.out_channels // spec.groups
    zero = torch.zeros(g, f, f, dtype=torch.float64)
    return Moments(0, 0, torch.zeros(g, f, dtype=torch.float64), zero, zero.clone())


def _inputs(batch: Any, number: int) -> Tensor:
    x = batch[0] if isinstance(batch, (tuple, list)) else batch
    if not isinstance(x, Tensor):
        raise DataError(f"`data` must hold batches x or (x, y) of tensors; batch {number} is a {type(x).__name__}.")
    if not torch.isfinite(x).all():
        raise DataError(f"`data` has NaN or infinite entries in batch {number}, shape {tuple(x.shape)}.")
    return x


def _recorder(name: str, moments: Moments, spec: LayerSpec, gradients: bool) -> Callable[..., Tensor]:
    def rows(values: Tensor) -> Tensor:
        """``(g, positions, f')`` in float64."""
        axis = -1 if spec.linear else values.ndim - 1 - len(spec.kernel_size)
        flat = values.detach().movedim(axis, -1).reshape(-1, spec.groups, spec.out_channels // spec.groups)
        return flat.movedim(1, 0).double().cpu()

    def keep_gradient(gradient: Tensor) -> None:
        g = rows(gradient)
        moments.gradient += g.mT @ g

    def record(module: nn.Module, _: Any, output: Tensor) -> Tensor:
        if gradients:
            # The weights are frozen: the graph starts at the first layer that is looked at. A clone of that leaf goes
            # on, as an activation that works in place may not write to a leaf.
            if not output.requires_grad:
                with torch.enable_grad():
                    output = output.requires_grad_().clone()
            output.register_hook(keep_gradient)
        y = rows(output)
        if not torch.isfinite(y).all():
            raise DataError(f"the outputs of '{name}' on `data` are NaN or infinite, though its weight is finite.")
        bias = cast("Tensor | None", module.bias)
        if bias is not None:
            y = y - bias.detach().double().cpu().reshape(spec.groups, 1, -1)
        moments.positions += y.shape[1]
        moments.total += y.sum(1)
        moments.outer += y.mT @ y
        return output

    return record


def _backward(logits: Any, generator: torch.Generator) -> None:
    if not isinstance(logits, Tensor) or logits.ndim < 2 or logits.shape[-1] < 2 or not logits.requires_grad:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise DataError(
            f"loss gradients need a model whose output is logits (n, ..., classes), two classes or more; this one's is "
            f"{shape}."
        )
    flat = logits.float().flatten(0, -2)
    drawn = torch.multinomial(flat.detach().softmax(1).cpu(), 1, generator=generator)[:, 0]
    F.cross_entropy(flat, drawn.to(flat.device), reduction="sum").backward()
