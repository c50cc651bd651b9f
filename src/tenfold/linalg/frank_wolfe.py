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
from jaxtyping import Float, Shaped
from torch import Tensor

Numbers = Float[Tensor, "*batch"]
Tensors = list[Tensor] | tuple[Tensor, ...]


@dataclass(frozen=True)
class Lengths:
    """The L2 norms that a step-size rescaling uses; one number for each tensor of a batch.

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


def blend(m: Tensors, g: Tensors, mu: float, dampening: float = 0.0) -> list[Tensor]:
    """Momentum update ``mu m + (1 - dampening) g``.

    The two conventions in use differ by a factor ``1 / (1 - mu)`` in the effective learning rate of the rescalings by
    ``||m||``: heavy ball (dampening 0, the 2022 code), running mean (dampening ``mu``, the 2020 code).

    Args:
        m: the momenta so far, zeros at first, of any shapes.
        g: the gradients.
        mu: in [0, 1).
        dampening: in [0, 1].
    """
    new = torch._foreach_mul(m, mu)  # pyright: ignore[reportPrivateImportUsage]
    torch._foreach_add_(new, g, alpha=1 - dampening)  # pyright: ignore[reportPrivateImportUsage]
    return list(new)


def step_size(
    rescaling: Rescaling, lr: float | Tensor, lengths: Lengths, max_eta: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The rescaled step size ``eta = clip(lr * factor, 0, max_eta)`` of each tensor, and whether it was clipped.

    Where the momentum is zero, or the weight stands on the vertex already, ``eta = 0``: there is nowhere to go. So it
    is where the momentum is not finite.

    Args:
        rescaling: one of `RESCALINGS`.
        lr: >= 0.
        lengths: of the tensors.
        max_eta: in (0, 1]. Below 1 no step lands on a vertex.
    """
    wanted = torch.nan_to_num(lr * rescaling(lengths), nan=0.0, posinf=torch.inf)
    idle = (lengths.momentum == 0) | (lengths.distance == 0) | ~torch.isfinite(lengths.momentum)
    wanted = torch.where(idle, 0.0, wanted)
    return wanted.clamp(0, max_eta), wanted > max_eta


def toward_(theta: Tensors, vertex: Tensors, eta: Shaped[Tensor, " b"], scale: Shaped[Tensor, " b"]) -> None:
    """Frank-Wolfe step in place, ``theta <- (1 - eta) theta + eta s v``; exact at ``eta = 0`` and ``eta = 1``.

    Args:
        theta: weights of any shapes, changed in place.
        vertex: v, of the sets that they live in; finite.
        eta: one step size for each weight.
        scale: s, one for each: 1, or ``-r / ||m||`` for an L2 ball, whose vertex it makes of m.
    """
    torch._foreach_mul_(theta, (1 - eta).unbind())  # pyright: ignore[reportPrivateImportUsage]
    torch._foreach_addcmul_(theta, vertex, (eta * scale).unbind())  # pyright: ignore[reportPrivateImportUsage]


def forgotten(log_kept: Float[Tensor, "*batch"], eta: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Update the log of the forgetting factor ``F = prod_t (1 - eta_t)``: ``theta_T = F theta_0 + sum_t w_t v_t``.

    Args:
        log_kept: ``log F`` before; 0 at the start, ``-inf`` once a step has landed on a vertex.
        eta: of the step.

    Source: ours; from the recursion of the step.
    """
    return log_kept + torch.log1p(-eta)
