"""One step of stochastic Frank-Wolfe: a convex combination of the weight with a vertex of the set that it lives in.

::

    m     <- mu m + (1 - d) g               heavy ball for d = 0, a running mean for d = mu
    v      = argmin_{v in C} <m, v>         the ball's linear minimisation oracle
    eta    = clip(lr * factor, 0, eta_max)
    theta <- (1 - eta) theta + eta v

The factor makes one learning rate fit tensors and sets of any size:

======== =============================== =========================================================
none     1                               the step of the textbook
diameter ``1 / D``                       D the L2 diameter of C
gradient ``||m|| / ||theta - v||``       unclamped, a step of SGD's length toward the vertex
radius   ``||m|| / (D / 2)``
======== =============================== =========================================================

Source: Pokutta, Spiegel, Zimmer 2020 (arXiv 2010.07243), the step and the rescalings; Zimmer, Spiegel, Pokutta 2022
(arXiv 2205.11921), ``gradient`` as the default.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

Numbers = Float[Tensor, "*batch"]


@dataclass(frozen=True)
class Lengths:
    """What a rescaling may look at; one number for each tensor of a batch.

    Args:
        momentum: ``||m||_2``.
        distance: ``||theta - v||_2``.
        diameter: the L2 diameter of the set.
    """

    momentum: Numbers
    distance: Numbers
    diameter: Numbers


Rescaling = Callable[[Lengths], Numbers]

RESCALINGS: Mapping[str, Rescaling] = {
    "none": lambda x: torch.ones_like(x.momentum),
    "diameter": lambda x: 1 / x.diameter,
    "gradient": lambda x: x.momentum / x.distance,
    "radius": lambda x: 2 * x.momentum / x.diameter,
}
"""The factor of each rescaling."""


def blend(m: Float[Tensor, "*shape"], g: Float[Tensor, "*shape"], mu: float, dampening: float = 0.0) -> Tensor:
    """``mu m + (1 - dampening) g``: the momentum of the step.

    The two conventions in use differ by a factor ``1 / (1 - mu)`` in the effective learning rate of the rescalings by
    ``||m||``: heavy ball (dampening 0, the 2022 code), running mean (dampening ``mu``, the 2020 code).

    Args:
        m: the momentum so far, zeros at first.
        g: the gradient.
        mu: in [0, 1).
        dampening: in [0, 1].
    """
    return torch.add(mu * m, g, alpha=1 - dampening)


def step_size(
    rescaling: Rescaling, lr: float | Tensor, lengths: Lengths, max_eta: float = 1.0
) -> tuple[Tensor, Tensor]:
    """``eta = clip(lr * factor, 0, max_eta)`` for each tensor of a batch, and whether it was clipped.

    Where the momentum is zero, or the weight stands on the vertex already, ``eta = 0``: there is nowhere to go.

    Args:
        rescaling: one of `RESCALINGS`.
        lr: >= 0.
        lengths: of the tensors.
        max_eta: in (0, 1]. Below 1 no step lands on a vertex.
    """
    wanted = torch.nan_to_num(lr * rescaling(lengths), nan=0.0, posinf=torch.inf)
    idle = (lengths.momentum == 0) | (lengths.distance == 0)
    wanted = torch.where(idle, 0.0, wanted)
    return wanted.clamp(0, max_eta), wanted > max_eta


def toward(
    theta: Float[Tensor, "b *shape"], vertex: Float[Tensor, "b *shape"], eta: Shaped[Tensor, " b"]
) -> Float[Tensor, "b *shape"]:
    """``(1 - eta) theta + eta v``, exactly ``theta`` at ``eta = 0`` and exactly ``v`` at ``eta = 1``.

    Args:
        theta: a batch of weights.
        vertex: of the sets that they live in.
        eta: one step size for each.
    """
    return torch.lerp(theta, vertex, eta.reshape(-1, *[1] * (theta.ndim - 1)).to(theta))


def forgotten(log_kept: Float[Tensor, "*batch"], eta: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """``log F`` after a step: ``theta_T = F theta_0 + sum_t w_t v_t`` with ``F = prod_t (1 - eta_t)``.

    Args:
        log_kept: ``log F`` before; 0 at the start, ``-inf`` once a step has landed on a vertex.
        eta: of the step.

    Source: ours; from the recursion of the step.
    """
    return log_kept + torch.log1p(-eta)


def usable(lengths: Lengths) -> Bool[Tensor, "*batch"]:
    """Whether the momentum of each tensor is finite: no step is taken where it is not."""
    return torch.isfinite(lengths.momentum)
