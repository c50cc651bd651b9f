"""Second moments of layer outputs, and of the loss gradient there, on calibration data.

Streamed in float64, one ``f x f`` matrix per group and layer whatever the kernel: memory does not grow with the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from tenfold.errors import DataError
from tenfold.layers.calibration_batches import calibration_batches
from tenfold.layers.copy_model import duplicate
from tenfold.layers.spec import LayerSpec
from tenfold.plans.loss_gradients import Loss, total_loss


@dataclass
class Moments:
    """Moments of one layer's outputs ``y = W x`` (the bias not included), every output position a sample.

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
        """The mean ``E[y]`` over positions."""
        return self.total / self.positions

    @property
    def second(self) -> Float64[Tensor, "g f f"]:
        """The second moment ``E[y y^T]`` over positions."""
        return self.outer / self.positions

    @property
    def covariance(self) -> Float64[Tensor, "g f f"]:
        """The covariance ``E[(y - E y)(y - E y)^T]`` over positions."""
        return self.second - self.mean[..., :, None] * self.mean[..., None, :]

    @property
    def fisher(self) -> Float64[Tensor, "g f f"]:
        """The gradient moment ``E[(dL/dy)(dL/dy)^T]`` over positions, for the loss of one sample."""
        return self.gradient / self.positions

    @property
    def bytes(self) -> int:
        """The memory that the moments take, in bytes."""
        return sum(t.numel() * t.element_size() for t in (self.total, self.outer, self.gradient))


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
    """
    model = duplicate(model).eval().requires_grad_(False)
    device = next(model.parameters()).device
    found = {name: _empty(spec) for name, (spec, _) in layers.items()}
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
