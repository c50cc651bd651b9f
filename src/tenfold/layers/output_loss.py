"""How far a compressed network's outputs are from the dense network's, without labels and whatever they put out.

For declared logits (see `tenfold.layers.logits`) it is the divergence at temperature 2 of the distributions that they
stand for; else the squared error relative to the dense outputs, the mean over all tensors that are put out; or the
user's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.errors import ArgumentError, DataError, check, shortened
from tenfold.layers.calibration_batches import Batch
from tenfold.layers.calibration_runs import device_of, evaluating
from tenfold.layers.logits import IGNORED, class_axes, declared_logits
from tenfold.layers.model_outputs import logits_of, output_tensors

OutputLoss = Callable[[Any, Any], Any] | Literal["logits"]
"""``(outputs, dense outputs) -> scalar``, the mean over examples; or the word that the outputs are logits."""
TEMPERATURE = 2.0


def check_output_loss(loss: Any) -> None:
    """Raise `ArgumentError` for what is no loss between outputs."""
    fits = loss is None or loss == "logits" or callable(loss)
    check(fits, "loss", 'a function (outputs, dense outputs) -> scalar, "logits", or None', loss)


def output_loss(outputs: Any, wanted: Any, batch: Batch, loss: OutputLoss | None = None) -> Tensor:
    """The mean loss of ``outputs`` over the examples of a batch, where the dense network puts out ``wanted``.

    Args:
        outputs: of the compressed network.
        wanted: of the dense network on the same batch; it decides what the outputs are.
        batch: where labels may be: they tell that outputs are logits, and which positions do not count.
        loss: the user's own; "logits": what is put out, or called ``logits`` there, is logits. None: see above.

    Raises:
        ArgumentError: ``loss="logits"`` for outputs whose axis of classes is not certain.
        DataError: outputs that do not fit to each other, or a loss that is no scalar tensor.
    """
    if callable(loss):
        value = loss(outputs, wanted)
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise DataError(f"`loss` must return a scalar tensor; got {got}.")
        return value.sum()
    axis = declared_logits(wanted, batch) if loss is None else _axis(wanted, batch)
    return _squared(outputs, wanted) if axis is None else _divergence(outputs, wanted, axis, batch)


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``T^2 KL(softmax(t / T) || softmax(z / T))``, the mean over the batch, in nats.

    Args:
        student: logits ``z (n, classes)``.
        teacher: logits ``t (n, classes)``.
        temperature: ``T > 0``.

    Raises:
        ArgumentError: logits of different shapes.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, section 2.
    """
    same = teacher.shape == student.shape
    check(same, "teacher", f"a model with outputs {tuple(student.shape)}, as the student's", tuple(teacher.shape))
    kind = torch.promote_types(student.dtype, torch.float32)
    soft, wanted = (F.log_softmax(z / temperature, 1, dtype=kind) for z in (student, teacher))
    return temperature**2 * F.kl_div(soft, wanted, reduction="batchmean", log_target=True)


@torch.no_grad()
def mean_output_loss(
    small: nn.Module, dense: nn.Module, batches: Iterable[Batch], loss: OutputLoss | None = None
) -> float:
    """The mean of `output_loss` over all examples of some batches, both networks in eval mode; modes are put back.

    Args:
        small: the compressed network.
        dense: the network that it was made from.
        batches: at least one.
        loss: see `output_loss`.

    Raises:
        DataError: no batch.
    """
    total, seen = 0.0, 0
    with evaluating(small, dense):
        for batch in batches:
            wanted = batch.to(device_of(dense)).run(dense)
            outputs = batch.to(device_of(small)).run(small)
            total += len(batch) * float(output_loss(outputs, wanted, batch, loss))
            seen += len(batch)
    if not seen:
        raise DataError("`data` must hold at least one batch to compare outputs on; it is empty.")
    return total / seen


def _axis(wanted: Any, batch: Batch) -> int:
    logits = logits_of(wanted)
    axes = [] if logits is None or logits.ndim < 2 else class_axes(logits, batch)
    if len(axes) != 1:
        got = type(wanted).__name__ if logits is None else f"outputs {tuple(logits.shape)}"
        raise ArgumentError(
            f'`loss` must be a function for this network: "logits" needs an axis of classes that is certain; got {got}.'
        )
    return axes[0]


def _divergence(outputs: Any, wanted: Any, axis: int, batch: Batch) -> Tensor:
    student, teacher = logits_of(outputs), logits_of(wanted)
    assert teacher is not None
    if student is None or student.shape != teacher.shape:
        raise DataError(_unlike(outputs, wanted))
    z, t = (x.movedim(axis, -1).flatten(0, -2) for x in (student, teacher.to(student.device)))
    labels = batch.target
    if isinstance(labels, Tensor) and labels.numel() == len(z):
        counted = labels.to(z.device).flatten() != IGNORED
        z, t = z[counted], t[counted]
    return distillation(z, t, TEMPERATURE)


def _squared(outputs: Any, wanted: Any) -> Tensor:
    pairs = [[t for t in output_tensors(x) if t.is_floating_point()] for x in (outputs, wanted)]
    if not pairs[1] or [t.shape for t in pairs[0]] != [t.shape for t in pairs[1]]:
        raise DataError(_unlike(outputs, wanted))
    terms = []
    for a, b in zip(*pairs, strict=True):
        kind = torch.promote_types(b.dtype, torch.float32)
        target = b.to(a.device, kind)
        size = target.square().sum()
        terms.append((a.to(kind) - target).square().sum() / torch.where(size > 0, size, torch.ones_like(size)))
    return torch.stack([t.to(terms[0].device, terms[0].dtype) for t in terms]).mean()


def _unlike(outputs: Any, wanted: Any) -> str:
    shapes = [[tuple(t.shape) for t in output_tensors(x)] for x in (outputs, wanted)]
    return (
        f"outputs must be tensors, of the same shapes in both networks, to be compared: the compressed one's are "
        f"{shortened(shapes[0])}, the dense one's {shortened(shapes[1])}. Pass `loss`, a function of both."
    )
