"""What the network's outputs lose when one layer alone errs: measured, so that layers can be compared.

Energies of layers say nothing of each other: one direction that a later norm takes away may hold nearly all of a
layer's. So the loss of a layer at relative output error e is taken to be ``scale * -log(1 - e^2)``, and the scale is
the ratio of what is measured at a few errors to what they sum up to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from tenfold.layers.calibration_batches import Batch
from tenfold.layers.calibration_runs import device_of, evaluating, hooked
from tenfold.layers.copy_model import duplicate
from tenfold.layers.output_loss import OutputLoss, output_loss
from tenfold.layers.spec import LayerSpec, spec_of, to_weight
from tenfold.plans.form_candidates import FormTrial, JudgedLayer
from tenfold.plans.problem import Problem

_RUINED = 1e6
"""In place of a loss that is not finite."""
_WORST = 1e-12
"""Of a layer's energy: a layer that would keep nothing is as bad as can be, not infinitely so."""


def layer_loss(error: Any) -> Any:
    """``-log(1 - e^2)`` of relative errors, an array or a number."""
    return -torch.log((1 - torch.as_tensor(error, dtype=torch.float64).square()).clamp(min=_WORST))


class LossMeter:
    """The loss of the outputs with one layer decomposed, all others dense.

    Args:
        problem: whose model is measured, on a copy.
        batches: on which; what the dense network puts out there is kept.
        loss: see `tenfold.layers.output_loss`.
    """

    @torch.no_grad()
    def __init__(self, problem: Problem, batches: Sequence[Batch], loss: OutputLoss | None) -> None:
        self.problem = problem
        self.loss: OutputLoss | None = loss
        self.model = duplicate(problem.model).requires_grad_(False)
        self.batches = [batch.to(device_of(self.model)) for batch in batches]
        with evaluating(self.model):
            self.wanted = [batch.run(self.model) for batch in self.batches]

    def scale(self, layer: JudgedLayer) -> float:
        """The measured loss over what ``-log(1 - e^2)`` says, both summed over the layer's trials; >= 0, finite."""
        told = sum(float(layer_loss(trial.error)) for trial in layer.trials)
        measured = sum(self.of(layer, trial) for trial in layer.trials)
        measured = max(measured, 0.0) if math.isfinite(measured) else _RUINED
        return measured / told if told > 0 else 1.0

    @torch.no_grad()
    def of(self, layer: JudgedLayer, trial: FormTrial) -> float:
        """The mean loss over the examples."""
        names = self.problem.modules_of(layer.site)
        modules = [self.model.get_submodule(name) for name in names]
        weight = cast("Tensor", modules[0].weight)
        kept = weight.detach().clone()
        total = 0.0
        try:
            weight.copy_(to_weight(layer.site.options, trial.kernel.to(weight)))
            with evaluating(self.model), hooked([m.register_forward_hook(_shifted(m, trial.shift)) for m in modules]):
                for batch, wanted in zip(self.batches, self.wanted, strict=True):
                    total += len(batch) * float(output_loss(batch.run(self.model), wanted, batch, self.loss))
        finally:
            weight.copy_(kept)
        return total / sum(map(len, self.batches))


def _shifted(module: nn.Module, shift: Tensor) -> Callable[..., Tensor]:
    """A hook that adds the shift to the outputs' channels."""
    axes = len(cast("LayerSpec", spec_of(module)).kernel_size)
    return lambda _, __, output: output + shift.to(output).reshape(-1, *[1] * axes)
