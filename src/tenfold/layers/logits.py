"""Which outputs are certainly the logits of classes, and along which axis: labels, tokens or their name tell."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tenfold.layers.calibration_batches import Batch
from tenfold.layers.model_outputs import logits_of

IGNORED = -100
"""The label that torch's losses leave out."""


def class_axes(logits: Tensor, batch: Batch) -> list[int]:
    """The axes of ``logits`` that labels or tokens allow to have the classes: one where it is certain.

    With labels ``(n, ...)`` the logits are ``(n, classes, ...)``, torch's convention, or ``(n, ..., classes)``, that of
    language models. Without any, ``(n, classes)`` is taken at its word, and for integer inputs ``(n, tokens)`` so is
    ``(n, tokens, classes)``; of all else nothing is known.
    """
    shape, labels = tuple(logits.shape), batch.target
    if isinstance(labels, Tensor):
        if len(shape) == 2 and labels.shape == (shape[0], 1):
            labels = labels[:, 0]
        axes = {1: shape[:1] + shape[2:], len(shape) - 1: shape[:-1]}
        return [
            axis for axis, rest in axes.items() if tuple(labels.shape) == rest and _are_classes(labels, shape[axis])
        ]
    if len(shape) == 2:
        return [1]
    ids = next((v for v in (*batch.args, *batch.kwargs.values()) if isinstance(v, Tensor)), None)
    tokens = ids is not None and not ids.is_floating_point() and tuple(ids.shape) == shape[:-1]
    return [len(shape) - 1] if tokens and shape[1] != shape[-1] else []


def declared_logits(output: Any, batch: Batch) -> int | None:
    """The axis of classes where ``output`` is declared to be logits of two classes or more; else None.

    Declared are ``logits`` by that name in a dict or a dataclass, and a tensor beside which the batch has integer
    labels that fit; probabilities, rows >= 0 with sum 1, are none. A tensor alone may be anything.
    """
    logits, labels = logits_of(output), batch.target
    named = not isinstance(output, Tensor)
    labelled = isinstance(labels, Tensor) and not labels.is_floating_point() and not labels.is_complex()
    if logits is None or logits.ndim < 2 or not logits.is_floating_point() or not (named or labelled):
        return None
    axes = class_axes(logits, batch)
    if len(axes) != 1 or logits.shape[axes[0]] < 2 or are_probabilities(logits, axes[0]):
        return None
    return axes[0]


def are_probabilities(logits: Tensor, axis: int) -> bool:
    """Whether all numbers are >= 0 and sum to 1 along the axis: the outputs of a softmax."""
    flat = logits.detach().movedim(axis, -1).flatten(0, -2).float()
    return bool((flat >= 0).all()) and torch.allclose(flat.sum(1), torch.ones_like(flat[:, 0]), atol=1e-4)


def _are_classes(labels: Tensor, classes: int) -> bool:
    if labels.dtype == torch.bool or labels.is_complex():
        return False
    counted = labels[labels != IGNORED]
    whole = not counted.is_floating_point() or bool((counted == counted.round()).all())
    return whole and bool(((counted >= 0) & (counted < classes)).all())
