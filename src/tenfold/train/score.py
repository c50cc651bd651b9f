"""How good a classifier is on a split."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from tenfold.errors import DataError
from tenfold.train.data.batches import batches
from tenfold.train.data.split import Split


@dataclass(frozen=True)
class Score:
    """The figures of a split.

    Args:
        loss: mean cross-entropy per example, in nats, without label smoothing.
        accuracy: share of examples whose largest logit is the right one, in [0, 1].
    """

    loss: float
    accuracy: float


@torch.no_grad()
def evaluate(model: nn.Module, split: Split, *, batch_size: int = 500) -> Score:
    """Loss and accuracy of ``model`` on ``split``, in evaluation mode; the modes of its modules are put back after.

    Args:
        model: images ``(batch, channels, size, size)`` -> logits ``(batch, classes)``; runs on its own device.
        split: what to measure on, e.g. ``data.test``.
        batch_size: examples in a batch, >= 1; does not change the result beyond rounding.

    Raises:
        DataError: an empty split.
    """
    if len(split) == 0:
        raise DataError("`split` must hold at least one example; got none.")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    modes = {module: module.training for module in model.modules()}
    model.eval()
    loss = torch.zeros((), dtype=torch.float64, device=device)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    try:
        for x, y in batches(split.to(device), batch_size):
            logits = model(x).float()
            loss += F.cross_entropy(logits, y, reduction="sum")
            correct += (logits.argmax(1) == y).sum()
    finally:
        for module, mode in modes.items():
            module.training = mode
    return Score(float(loss) / len(split), int(correct) / len(split))
