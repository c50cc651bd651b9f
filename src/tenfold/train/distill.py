"""Knowledge distillation: the dense network teaches the compressed one.

With logits ``z`` of the student and ``t`` of the teacher, labels ``y`` and a temperature ``T``::

    loss = (1 - a) CE(z, y) + a T^2 KL(softmax(t / T) || softmax(z / T))

The factor ``T^2`` keeps the gradient of the second part, ``a T (softmax(z / T) - softmax(t / T))`` per example, of one
size whatever the temperature.

**Source:** Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, section 2.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from tenfold.layers.copy_model import duplicate


def frozen(teacher: nn.Module, device: torch.device | str) -> nn.Module:
    """A copy of ``teacher`` on ``device``, in eval mode, without gradients."""
    return duplicate(teacher).to(device).eval().requires_grad_(False)


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over the names, types and bytes of a model's parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
