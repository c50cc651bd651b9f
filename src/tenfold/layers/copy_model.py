"""Copies of models: as they are, with the same parameters, or as shapes without numbers."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


def duplicate(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy of a model; ``memo`` maps ids of objects to what stands in their place, as in `copy.deepcopy`.

    Tensors that a forward pass left behind as plain attributes (a stored activation, the weight that the old
    ``torch.nn.utils.weight_norm`` computes) are copied without their history: torch refuses to copy it.
    """
    memo = {} if memo is None else memo
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo.setdefault(id(value), value.detach().clone())
    return copy.deepcopy(model, memo)


def sharing_copy(model: nn.Module) -> nn.Module:
    """A deep copy that shares the parameters, and has modes, buffers and attributes of its own; no weight is copied."""
    return duplicate(model, {id(p): p for p in model.parameters()})


def meta_copy(model: nn.Module) -> nn.Module:
    """A deep copy whose parameters and buffers are on the meta device; no weight is copied."""
    memo: dict[int, Any] = {}
    for p in model.parameters():
        memo[id(p)] = nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
    for b in model.buffers():
        memo[id(b)] = torch.empty_like(b, device="meta")
    return duplicate(model, memo)
