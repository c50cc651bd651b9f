"""The state of a run, and one optimizer step of it."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from tenfold.errors import TenfoldError
from tenfold.layers.output_loss import distillation
from tenfold.train.checkpoint import Parts
from tenfold.train.recipe import Recipe

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer


@dataclass(frozen=True)
class Run:
    """The state of a training run: model, optimizer and schedule.

    Args:
        recipe: the hyper-parameters.
        accelerator: precision and loss scaling.
        model: on its device, and never wrapped.
        optimizer: the method's, wrapped by Accelerate.
        rates: its learning-rate scheduler, stepped with it.
        closure: the optimizer computes the gradient itself.
        teacher: frozen, on the same device; None where the recipe distills nothing.
    """

    recipe: Recipe
    accelerator: Accelerator
    model: nn.Module
    optimizer: AcceleratedOptimizer
    rates: LambdaLR
    closure: bool
    teacher: nn.Module | None = None

    @property
    def parts(self) -> Parts:
        """The objects whose state a checkpoint of the run holds."""
        others: dict[str, Any] = {"optimizer": self.optimizer, "rates": self.rates}
        if self.accelerator.scaler is not None:
            others["scaler"] = self.accelerator.scaler
        return Parts(self.model, others)

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return float(self.rates.get_last_lr()[0])

    def step(self, x: torch.Tensor, y: torch.Tensor, where: str) -> tuple[float, int]:
        """Take one optimizer step on a batch.

        A step that the gradient scaler skips does not advance the schedule.

        Args:
            x: images ``(n, channels, size, size)``, normalised.
            y: labels ``(n,)``.
            where: the place in the run, for errors.

        Returns:
            The mean loss and the number of correct predictions, before the step.

        Raises:
            TenfoldError: the loss is not finite; the model is as it was before the step.
        """
        seen: list[tuple[float, int]] = []

        def compute() -> float:
            self.optimizer.zero_grad()
            seen.append(self._gradient(x, y, where))
            return seen[-1][0]

        if self.closure:
            self.optimizer.step(compute)
        else:
            compute()
            self.optimizer.step()
        if not self.optimizer.step_was_skipped:
            self.rates.step()
        return seen[0]

    @torch.enable_grad()
    def _gradient(self, x: torch.Tensor, y: torch.Tensor, where: str) -> tuple[float, int]:
        """Leave the gradient of the mean loss over the batch in the parameters, computed in parts."""
        recipe, loss, correct = self.recipe, 0.0, 0
        for part_x, part_y in zip(x.chunk(recipe.accumulate), y.chunk(recipe.accumulate), strict=True):
            with self.accelerator.autocast():
                logits = self.model(part_x)
                mean = self._loss(part_x, part_y, logits)
            share = mean * (len(part_y) / len(y))
            loss += float(share.detach())
            check_finite(loss, where)
            correct += int((logits.detach().argmax(1) == part_y).sum())
            self.accelerator.backward(share)
        if recipe.clip_norm is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), recipe.clip_norm)
        return loss, correct

    def _loss(self, x: torch.Tensor, y: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """The mean over a part of the batch: cross-entropy, and the teacher's share."""
        recipe = self.recipe
        hard = F.cross_entropy(logits, y, label_smoothing=recipe.label_smoothing)
        if self.teacher is None:
            return hard
        with torch.no_grad():
            taught = self.teacher(x)
        soft = distillation(logits, taught, recipe.temperature)
        return (1 - recipe.distill) * hard + recipe.distill * soft


def stream(seed: int, *purpose: object) -> int:
    """Derive a seed for one purpose, a hash of the run's seed and the ``purpose``; none needs to be stored."""
    digest = hashlib.blake2b(repr((seed, *purpose)).encode(), digest_size=7)
    return int.from_bytes(digest.digest(), "little")


def check_finite(loss: float, where: str) -> None:
    """Raise `TenfoldError`, naming the place, unless ``loss`` is a number."""
    if not math.isfinite(loss):
        raise TenfoldError(
            f"The loss is {loss} in {where}. The last checkpoint stands; train with a smaller `lr`, a `warmup` or a "
            "`clip_norm`, and look for non-finite values in the data and the initial weights."
        )
