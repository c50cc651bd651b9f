"""Ranks by empirical variational Bayes: how many singular values stand out of the noise, with the noise estimated too.

For ``V (L, M)``, ``L <= M``, ``alpha = L / M``, model ``V = B A^T + noise(sigma^2)``, the global solution is analytic::

    tau(x)  = (x - 1 - alpha + sqrt((x - 1 - alpha)^2 - 4 alpha)) / 2
    tau_0   : the positive root of  Phi(tau) + Phi(tau / alpha) = 0,   Phi(z) = log(z + 1) / z - 1/2
    x_0     = (1 + tau_0) (1 + alpha / tau_0)
    sigma^2 = argmin  sum_h psi_0(x_h) + [x_h > x_0] psi_1(x_h),       x_h = s_h^2 / (M sigma^2)
              psi_0(x) = x - log x
              psi_1(x) = log(tau(x) + 1) + alpha log(tau(x) / alpha + 1) - tau(x)
    rank    = #{h : s_h > sigma sqrt(M x_0)}

Source: Nakajima, Sugiyama, Babacan, Tomioka, "Global analytic solution of fully-observed variational Bayesian matrix
factorization", JMLR 14 (2013), theorems 2 and 4. The threshold is solved for, not approximated by 2.5129 sqrt(alpha).
"""

from __future__ import annotations

import math

import numpy as np
import scipy
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from tenfold.errors import check

_GRID = 200


def vbmf_rank(s: Float[Tensor, " p"], short: int, long: int) -> int:
    """Rank of a matrix by empirical variational Bayes matrix factorisation, from its singular values; may be 0.

    Args:
        s: all singular values, descending, ``p = short``.
        short: the smaller side of the matrix, >= 1.
        long: the larger side.

    Raises:
        ArgumentError: sides that do not fit the spectrum.
    """
    check(
        1 <= short <= long and len(s) == short, "short, long", f"sides of a matrix with {len(s)} values", (short, long)
    )
    power = s.detach().double().cpu().numpy() ** 2
    if power.sum() == 0:
        return 0
    alpha = short / long
    threshold = _threshold(alpha)
    noise = _noise(power, short, long, threshold)
    return int((power > long * noise * threshold).sum())


def _threshold(alpha: float) -> float:
    """``x_0``: below it a component is switched off."""

    def phi(z: float) -> float:
        return math.log1p(z) / z - 0.5

    tau = float(scipy.optimize.brentq(lambda t: phi(t) + phi(t / alpha), 1e-6 * alpha, 10.0, xtol=1e-14))
    return (1 + tau) * (1 + alpha / tau)


def _noise(power: NDArray[np.float64], short: int, long: int, threshold: float) -> float:
    """The noise variance of least free energy, between the bounds of theorem 4 of the source."""
    alpha = short / long
    most = min(math.ceil(short / (1 + alpha)) - 1, short - 1)  # components that can be on at once
    upper = power.sum() / (short * long)
    lower = max(power[most] / (long * threshold), power[most:].mean() / long, 1e-15 * upper)

    def energy(log_noise: float) -> float:
        x = power / (long * math.exp(log_noise))
        total = float(x.sum()) + len(x) * log_noise  # sum psi_0 less a constant, which zeros would make infinite
        on = x[x > threshold]
        shifted = on - (1 + alpha)
        tau = (shifted + np.sqrt(np.maximum(shifted**2 - 4 * alpha, 0))) / 2
        return total + float((np.log1p(tau) + alpha * np.log1p(tau / alpha) - tau).sum())

    if lower >= upper:
        return upper
    grid = np.linspace(math.log(lower), math.log(upper), _GRID)  # several local minima: bracket the best by a grid
    best = int(np.argmin([energy(g) for g in grid]))
    bounds = (grid[max(best - 1, 0)], grid[min(best + 1, _GRID - 1)])
    found = scipy.optimize.minimize_scalar(energy, bounds=bounds, method="bounded", options={"xatol": 1e-10})
    return math.exp(found.x)
