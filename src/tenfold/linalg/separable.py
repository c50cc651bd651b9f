"""The Kronecker product nearest to a covariance over two indices: ``S ~ S_F (x) rho``.

A covariance of ``x[F, T]`` has entries ``S[F, T, F', T']``. Rearranged to ``R[(F, F'), (T, T')]`` a Kronecker product
is a matrix of rank one, so the nearest one is the dominant singular pair of ``R``; power steps find it, and every step
maps positive semi-definite matrices to such.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from tenfold.errors import check
from tenfold.linalg.svd import working


def separable_fit(
    s: Float[Tensor, "*batch f t f t"], steps: int = 3
) -> tuple[Float64[Tensor, "*batch f f"], Float64[Tensor, "*batch t t"]]:
    """The Kronecker product ``S_F (x) rho`` nearest to a covariance S in Frobenius norm, by power steps.

    Args:
        s: covariances, symmetric and positive semi-definite as matrices over ``(F, T)``.
        steps: power steps, >= 1, each for ``rho`` and ``S_F``; they start at ``S_F = sum_T S[., T, ., T]``.

    Returns:
        ``S_F (f, f)`` and ``rho (t, t)``, both positive semi-definite, the trace of ``rho`` being ``t``. Where there is
        one T only, ``S_F`` is ``S`` itself.

    Raises:
        ArgumentError: ``steps`` out of range.

    Source: Van Loan & Pitsianis 1993, "Approximation with Kronecker products".
    """
    check(steps >= 1, "steps", ">= 1", steps)
    s, t = working(s), s.shape[-1]
    f_part = torch.einsum("...atbt->...ab", s)
    if t == 1:
        return f_part, torch.ones_like(f_part[..., :1, :1])
    t_part = torch.eye(t, dtype=s.dtype, device=s.device)
    for _ in range(steps):
        t_part = torch.einsum("...atbu,...ab->...tu", s, f_part)
        trace = t_part.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
        flat = torch.eye(t, dtype=s.dtype, device=s.device).expand_as(t_part)  # S = 0: no shape is nearer than another
        t_part = torch.where(trace > 0, t_part * (t / trace.clamp(min=1e-300)), flat)
        f_part = torch.einsum("...atbu,...tu->...ab", s, t_part) / t_part.square().sum((-2, -1))[..., None, None]
    return f_part, t_part
