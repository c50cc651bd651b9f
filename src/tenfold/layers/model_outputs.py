"""The tensors in what a model puts out: a tensor, or tuples, dicts and dataclasses of them, Hugging Face's included."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor


def output_tensors(output: Any) -> list[Tensor]:
    """All tensors in ``output``, in its own order; whatever else there is, is left out."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        return [t for value in output.values() for t in output_tensors(value)]
    if isinstance(output, (tuple, list)):
        return [t for value in output for t in output_tensors(value)]
    if is_dataclass(output):
        return [t for field in fields(output) for t in output_tensors(getattr(output, field.name))]
    return []


def positions(output: Any) -> int:
    """The positions of one example in the outputs: those of the largest map ``(n, channels, h, w, ...)``, else 1."""
    return max((t[0, 0].numel() for t in output_tensors(output) if t.ndim > 3 and t.shape[0] and t.shape[1]), default=1)


def logits_of(output: Any) -> Tensor | None:
    """The tensor itself, or what is called ``logits`` in a dict or a dataclass; None where there is neither."""
    if isinstance(output, Mapping):
        output = output.get("logits")
    elif is_dataclass(output):
        output = getattr(output, "logits", None)
    return output if isinstance(output, Tensor) else None
