"""Weight decay of a product in place of its factors.

Decay of the factors, ``lambda (L, R)``, shrinks the nuclear norm of ``L R`` and lets whole directions die; what decays
the weight of a dense layer is ``lambda W``, whose pull on the factors is the gradient of ``lambda / 2 |L R|^2``.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.optim import Optimizer

from tenfold.layers.decomposed import Decomposed
from tenfold.optim.factorise import gradients
from tenfold.optim.hooks import gradient_scale, stepped


@torch.no_grad()
def decay_products_(layers: Iterable[Decomposed], optimizer: Optimizer) -> None:
    """Have the coming step of ``optimizer`` decay the products of factors, by its own ``weight_decay``.

    ``L' = L - lr lambda (L R) R^T``, ``R' = R - lr lambda L^T (L R)`` beside what the loss does. Decay that goes
    through the gradient (SGD, Adam) is replaced there; decoupled decay (AdamW), which multiplies by ``1 - lr lambda``,
    is made up for beforehand. Factors without a gradient, and groups without decay, are left alone.

    Args:
        layers: with their gradients.
        optimizer: of their factors, about to step.

    Source: Khodak, Tenenholtz, Mackey, Fusi 2021 (arXiv 2105.01029), Frobenius decay.
    """
    optimizer = stepped(optimizer)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    seen: set[int] = set()
    for layer in layers:
        factors = layer.factors
        if id(factors[0]) in seen or not any(groups.get(id(p), {}).get("weight_decay") for p in factors):
            continue
        seen.add(id(factors[0]))
        pulls = gradients(layer, layer._product().detach())
        for p, pull in zip(factors, pulls, strict=True):
            group = groups.get(id(p), {})
            decay = group.get("weight_decay", 0)
            if not decay or p.grad is None:
                continue
            if group.get("decoupled_weight_decay"):
                p.sub_(pull, alpha=float(group["lr"]) * decay).div_(1 - float(group["lr"]) * decay)
            else:
                sign = -1 if group.get("maximize") else 1
                p.grad.add_(pull - p, alpha=sign * decay * gradient_scale(optimizer))
