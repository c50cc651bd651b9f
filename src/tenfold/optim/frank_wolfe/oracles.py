"""The vertices and lengths that a Frank-Wolfe step takes, for many tensors at once, whole or in parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tenfold.linalg import balls
from tenfold.linalg.balls import Ball
from tenfold.linalg.balls.norms import length
from tenfold.optim.dtensor import Layout, layout, local
from tenfold.optim.frank_wolfe.param_groups import kernel


def gauge(ball: Ball, x: Tensor, swapped: int) -> tuple[Tensor, Tensor]:
    """The norm of a tensor, and of the part that this process has of it."""
    own = ball.gauge(kernel(local(x), swapped))
    return (own if ball.powers is None else layout(x).norm(own, ball.powers[0])), own


def gap(x: Tensor, g: Tensor, ball: Ball, radius: float, swapped: int) -> float:
    """The Frank-Wolfe gap ``max_{v in C} <g, x - v>`` of one tensor.

    Args:
        x: the tensor.
        g: its gradient.
        ball: the set C.
        radius: of the set.
        swapped: see `FrankWolfe`.
    """
    where, slope = layout(x), kernel(local(g), swapped).double()
    own = ball.support(slope)
    support = own if ball.powers is None else where.norm(own, ball.powers[1])
    return float(where.sum((slope * kernel(local(x), swapped).double()).sum()) + radius * support)


def alike(params: Iterable[Tensor]) -> list[list[Tensor]]:
    """Group tensors by layout, dtype and device."""
    kinds: dict[Any, list[Tensor]] = {}
    for p in params:
        kinds.setdefault((layout(p), p.dtype, p.device), []).append(p)
    return list(kinds.values())


def finite(gradients: Mapping[Tensor, Tensor]) -> Tensor:
    """Whether all gradients, and their norms, are finite: one flag on the device, the same in every process."""
    flags = [
        torch.isfinite(lengths([local(gradients[p]) for p in params], layout(params[0]))).all()
        for params in alike(gradients)
    ]
    return torch.stack([flag.to(flags[0].device) for flag in flags]).all() if flags else torch.tensor(True)


def lengths(tensors: Iterable[Tensor], where: Layout) -> Tensor:
    """The L2 norms of whole tensors from the parts that this process has."""
    return where.norm(torch.stack([length(x.reshape(-1)) for x in tensors]), 2)


def vertices(
    ball: Ball,
    params: Sequence[Tensor],
    states: Sequence[dict[str, Any]],
    momentum: Tensor,
    good: Tensor,
    swapped: int,
) -> tuple[list[Tensor], Tensor]:
    """Linear minimisation for many parameters: a tensor for each, and the factor that makes it the vertex.

    Args:
        ball: the set.
        params: of one layout.
        states: of each, with finite momenta m.
        momentum: ``||m||`` of each; where it is not finite, any vertex will do.
        good: whether each takes a step; the bases of the others stay.
        swapped: see `FrankWolfe`.
    """
    m, radius = [local(s["momentum_buffer"]) for s in states], torch.stack([s["radius"] for s in states])
    if isinstance(ball, balls.L2):
        return m, -torch.nan_to_num(radius / momentum, nan=0.0)  # finite, and never past the vertex
    where, shapes = layout(params[0]), dict[Any, list[int]]()
    for i, (p, state) in enumerate(zip(params, states, strict=True)):
        shapes.setdefault((p.shape, "basis" in state), []).append(i)  # not the part's: that differs between processes
    for (shape, _), same in shapes.items():
        stack, size = torch.stack([kernel(m[i], swapped) for i in same]), torch.stack([radius[i] for i in same])
        if isinstance(ball, balls.L1) and where.split:
            size = size * where.first(stack, shape)  # the vertex has one entry: in one process
        ok = torch.stack([good[i] for i in same])
        for i, v in zip(same, _vertex(ball, stack, size, [states[i] for i in same], ok), strict=True):
            m[i] = kernel(v, swapped)
    return m, torch.ones_like(radius)


def _vertex(ball: Ball, m: Tensor, radius: Tensor, states: Sequence[dict[str, Any]], good: Tensor) -> Tensor:
    """Of tensors of one shape; the bases of spectral sets move along."""
    if not isinstance(ball, balls.Spectral):
        return ball.lmo(m, radius, stacked=True)
    old = torch.stack([s["basis"] for s in states]) if "basis" in states[0] else None
    warm = ball.warm(m, radius, old)
    bases = warm.basis if old is None else torch.where(good[:, None, None], warm.basis, old)
    for state, basis in zip(states, bases, strict=True):
        state["basis"] = basis
    return warm.vertex
