"""The loss whose gradient in a layer's outputs is measured: the user's own, or the cross-entropy of a classifier."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tenfold.errors import ArgumentError, DataError, check
from tenfold.layers.calibration_batches import Batch
from tenfold.layers.logits import IGNORED, are_probabilities, class_axes
from tenfold.layers.model_outputs import logits_of

Loss = Callable[[Any, Any], Tensor]
"""``(output, target) -> scalar``: the mean over the examples of a batch."""


def total_loss(output: Any, batch: Batch, loss: Loss | None, generator: torch.Generator) -> Tensor:
    """The loss of a model on a batch, summed over the examples.

    Args:
        output: what the model puts out on ``batch``.
        batch: where a target may be.
        loss: ``(output, target) -> scalar``, a mean over examples, as torch's losses are; the inputs are given where
            there is no target. None: the cross-entropy of the model's logits with labels drawn from them, which makes
            the second moment of its gradient the Fisher information.
        generator: of these labels; a CPU generator.

    Raises:
        DataError: a loss that is no scalar with a gradient; or no loss, and outputs that are not certainly logits.
    """
    if loss is None:
        return _drawn(output, batch, generator)
    value = loss(output, batch.described)
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise DataError(f"`loss` must return a scalar tensor that depends on the model's output; got {got}.")
    return value.sum() * len(batch)


def class_axis(logits: Tensor, batch: Batch) -> int:
    """The class axis of ``logits``, found from the labels or the tokens of the batch.

    See `tenfold.layers.logits`; what is not certain is refused.

    Raises:
        DataError: it is not certain.
    """
    axes = class_axes(logits, batch)
    if len(axes) == 1:
        return axes[0]
    shape, labels = tuple(logits.shape), batch.target
    if isinstance(labels, Tensor):
        how = "in one way only" if axes else "that they number from 0"
        raise DataError(
            f"labels {tuple(labels.shape)}, {labels.dtype}, do not make outputs {shape} the logits of classes {how}: "
            f"pass FisherSVD(loss=...), the loss that the network was trained by."
        )
    raise DataError(
        f"outputs {shape} may be the logits of classes along axis 1 or {len(shape) - 1}, or no logits: pass batches "
        f"(x, y) with integer labels, or FisherSVD(loss=...)."
    )


def loss_name(loss: Loss | str) -> str:
    """The name ``"module:name"`` of a loss function at the top of a module.

    Raises:
        ArgumentError: it cannot be found again by such a name.
    """
    if isinstance(loss, str):
        return loss
    name = ":".join(str(getattr(loss, part, "")) for part in ("__module__", "__qualname__"))
    found = find_loss(name) if _well_formed(name) else None
    if found is not loss:
        raise ArgumentError(
            f"`loss` must be a function at the top of a module to be written down; got {loss!r}. Define it by def "
            f"there."
        )
    return name


def find_loss(name: str) -> Loss | str:
    """The loss function called ``"module:name"``; the name itself where its module has not been imported.

    Nothing is imported: a name may come from a file that anyone wrote.

    Raises:
        ArgumentError: it is no such name, or the module has no such function.
    """
    check(_well_formed(name), "loss", 'a function (output, target) -> scalar, or its name "module:function"', name)
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    if found is None:
        return name
    for part in path.split("."):
        found = getattr(found, part, None)
    check(callable(found), "loss", f"a function of the module {module}", name)
    return found


def require_loss(loss: Loss | str | None) -> Loss | None:
    """The loss function itself; a name is looked up.

    Raises:
        ArgumentError: its module has not been imported.
    """
    found = find_loss(loss) if isinstance(loss, str) else loss
    if isinstance(found, str):
        raise ArgumentError(f"`loss` is a function of a module that is not imported: {found!r}. Import it first.")
    return found


def _well_formed(name: str) -> bool:
    module, colon, path = name.partition(":")
    return bool(colon) and all(part.isidentifier() for part in (*module.split("."), *path.split(".")))


def _drawn(output: Any, batch: Batch, generator: torch.Generator) -> Tensor:
    logits = logits_of(output)
    if logits is None or logits.ndim < 2 or not logits.requires_grad or not logits.is_floating_point():
        got = type(output).__name__ if logits is None else f"{tuple(logits.shape)}"
        raise DataError(
            f"loss gradients need a model whose output is logits, or has them as `logits`; this one's is {got}. Pass "
            "FisherSVD(loss=...)."
        )
    axis = class_axis(logits, batch)
    if logits.shape[axis] < 2:
        raise DataError(
            f"loss gradients need a model whose output is logits of two classes or more; this one's is "
            f"{tuple(logits.shape)}. Pass FisherSVD(loss=...)."
        )
    flat = logits.movedim(axis, -1).flatten(0, -2).float()
    probabilities = flat.detach().softmax(1)
    if are_probabilities(logits, axis):
        raise DataError(
            "the model's outputs are probabilities, each row >= 0 with sum 1, and no logits: pass "
            "FisherSVD(loss=...), or "
            "leave the softmax out."
        )
    drawn = torch.multinomial(probabilities.cpu(), 1, generator=generator)[:, 0].to(flat.device)
    labels = batch.target
    if isinstance(labels, Tensor) and labels.numel() == drawn.numel():
        drawn = torch.where(labels.to(flat.device).flatten() == IGNORED, IGNORED, drawn)
    return F.cross_entropy(flat, drawn, reduction="sum", ignore_index=IGNORED)
