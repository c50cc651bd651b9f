"""How good a classifier is on a split."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from tenfold.errors import DataError
from tenfold.train.data.batching import batches
from tenfold.train.data.split import Split


@dataclass(frozen=True)
class Score:
    """The loss and accuracy of a classifier on a split.

    Args:
        loss: mean cross-entropy per example, in nats, without label smoothing.
        accuracy: fraction of examples whose largest logit is that of the label, in [0, 1].
    """

    loss: float
    accuracy: float


@torch.no_grad()
def evaluate(model: nn.Module, split: Split, *, batch_size: int = 500) -> Score:
    """Evaluate a classifier on a split: loss and accuracy, in eval mode; the modes of its modules are put back after.

    Args:
        model: images ``(batch, channels, size, size)`` -> logits ``(batch, classes)``; runs on its own device.
        split: what to measure on, e.g. ``data.test``.
        batch_size: examples in a batch, >= 1; does not change the result beyond rounding.

    Raises:
        DataError: an empty split.
    """
    if len(split) == 0:
        raise DataError("`split` must hold at least one example; got none.")
    return score(model, batches(split.to(_device(model)), batch_size))


@torch.no_grad()
def score(model: nn.Module, loader: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> Score:
    """Evaluate a classifier on batches ``(x, y)`` of any sizes; see `evaluate`.

    Args:
        model: as for `evaluate`.
        loader: batches of inputs as the model takes them, and labels.

    Raises:
        DataError: no example at all.
    """
    device = _device(model)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    loss = torch.zeros((), dtype=torch.float64, device=device)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    count = 0
    try:
        for x, y in loader:
            logits, labels = model(x.to(device)).float(), y.to(device)
            loss += F.cross_entropy(logits, labels, reduction="sum")
            correct += (logits.argmax(1) == labels).sum()
            count += len(labels)
    finally:
        for module, mode in modes.items():
            module.training = mode
    if count == 0:
        raise DataError("`loader` must hold at least one example; got none.")
    return Score(float(loss) / count, int(correct) / count)


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))
