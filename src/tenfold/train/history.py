"""What a training leaves: the figures of each epoch, and the model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from tenfold.train.recipe import Recipe


@dataclass(frozen=True)
class Epoch:
    """The figures of one epoch.

    Args:
        epoch: its number, from 1.
        lr: learning rate of its last step.
        loss: mean training loss, as it was minimised (with label smoothing).
        accuracy: on the training batches while they were trained on, in [0, 1].
        validation_loss: mean cross-entropy after the epoch.
        validation_accuracy: after the epoch, in [0, 1].
        seconds: of training, without the validation.
        throughput: training examples per second.
    """

    epoch: int
    lr: float
    loss: float
    accuracy: float
    validation_loss: float
    validation_accuracy: float
    seconds: float
    throughput: float


@dataclass(frozen=True)
class Fit:
    """A finished training.

    Args:
        model: as the last step left it (in the method's training form; ``method.finish`` compresses it).
        history: one `Epoch` per epoch, those before a resume included.
        seconds: of training, all epochs together.
        recipe: as it was trained by: with what a probe chose in place of "auto".
    """

    model: nn.Module
    history: list[Epoch]
    seconds: float
    recipe: Recipe
