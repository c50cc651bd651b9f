"""The norms of magnitudes that all balls are made of: k-sparse, k-support, Lp.

Two families hold all but Lp. With k = 1 both are the L1 norm; with k = n they are LInf and L2.

=========  ==========================  ============================  ==============
norm       unit ball: convex hull of   dual norm                     diameter
=========  ==========================  ============================  ==============
k-sparse   ``+-1`` on k entries        sum of the k largest          ``2 sqrt(k)``
k-support  k entries, L2 norm 1        L2 norm of the k largest      2
=========  ==========================  ============================  ==============

Source: Argyriou, Foygel, Srebro 2012 (arXiv 1204.5043) for the k-support norm; the projections onto both are derived.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tenfold.errors import check, is_count

_HALVINGS = 64
"""Of an interval of float64 numbers: nothing is left between its ends."""

_RUN = 4096
"""How many squares are added up before their sum is put by."""


class Norm(ABC):
    """A norm of magnitudes ``z (b, n) >= 0`` that does not depend on their order."""

    @abstractmethod
    def gauge(self, z: Float[Tensor, "b n"]) -> Float[Tensor, "b"]:
        """The norm ``N(z)``."""

    @abstractmethod
    def dual(self, z: Float[Tensor, "b n"]) -> Float[Tensor, "b"]:
        """The dual norm ``max <z, t>`` over ``N(t) <= 1``."""

    @abstractmethod
    def vertex(self, z: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
        """A vertex ``t >= 0`` that attains the dual norm; 0 where ``z`` is 0. ``z`` is at most 1."""

    @abstractmethod
    def project(self, z: Float[Tensor, "b n"], radius: Float[Tensor, "b"]) -> Float[Tensor, "b n"]:
        """Euclidean projection of ``z``, which is outside, onto ``N(t) <= radius``."""

    @abstractmethod
    def reach(self, n: int) -> float:
        """Half the L2 diameter of the unit ball of ``n`` magnitudes, ``max ||t||_2`` over ``N(t) <= 1``."""


@dataclass(frozen=True)
class SparseNorm(Norm):
    """The k-sparse norm ``max(max z, sum z / k)``; its unit ball has the vertices with ``+-1`` on k entries."""

    k: int

    def gauge(self, z: Float[Tensor, "b n"]) -> Float[Tensor, "b"]:
        """``max(max z, sum z / k)``."""
        return torch.maximum(z.amax(-1), z.sum(-1) / self.k)

    def dual(self, z: Float[Tensor, "b n"]) -> Float[Tensor, "b"]:
        """The sum of the k largest."""
        return z.topk(min(self.k, z.shape[-1]), dim=-1, sorted=False).values.sum(-1)

    def vertex(self, z: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
        """1 on the k largest."""
        return _largest(z, self.k).sign()

    def project(self, z: Float[Tensor, "b n"], radius: Float[Tensor, "b"]) -> Float[Tensor, "b n"]:
        """``clip(z - l, 0, r)`` with the smallest ``l >= 0`` at which its sum is ``r k`` at most."""
        r = radius[:, None]

        def cut(level: Tensor) -> Tensor:
            return torch.minimum((z - level[:, None]).clamp(min=0), r)

        top = z.amax(-1)
        level = _halve(lambda x: cut(x).sum(-1) > self.k * radius, torch.zeros_like(top), top)
        return cut(level)

    def reach(self, n: int) -> float:
        """``sqrt(k)``."""
        return math.sqrt(min(self.k, n))


@dataclass(frozen=True)
class SupportNorm(Norm):
    """The k-support norm; its unit ball is the hull of the vectors with k entries and L2 norm 1.

    ``N(z)^2 = min sum z_i^2 / t_i`` over ``0 <= t <= 1, sum t <= k``. With ``z`` descending the best t is 1 on the
    ``h`` largest and proportional to z on the rest, for some ``h < k``.
    """

    k: int

    def gauge(self, z: Float[Tensor, "b n"]) -> Float[Tensor, "b"]:
        """The least over h of ``sum_{<=h} z^2 + (sum_{>h} z)^2 / (k - h)``, rooted; z descending, t at most 1."""
        k = min(self.k, z.shape[-1])
        s = z.sort(-1, descending=True).values
        rest = s.flip(-1).cumsum(-1).flip(-1)[:, :k]
        head = s.square().cumsum(-1)[:, :k] - s[:, :k].square()
        left = torch.arange(k, 0, -1, dtype=z.dtype, device=z.device)  # k - h
        # Each h whose t is at most 1 gives a bound; the best of them is the norm, and ties do not matter.
        allowed = s[:, :k] * left <= rest
        allowed[:, -1] = True
        return torch.where(allowed, head + rest.square() / left, torch.inf).amin(-1).sqrt()

    def dual(self, z: Float[Tensor, "b n"]) -> Float[Tensor, "b"]:
        """The L2 norm of the k largest."""
        return z.topk(min(self.k, z.shape[-1]), dim=-1, sorted=False).values.norm(dim=-1)

    def vertex(self, z: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
        """The k largest, at L2 norm 1."""
        kept = _largest(z, self.k)
        return kept / length(kept)[:, None].clamp(min=torch.finfo(z.dtype).tiny)

    def project(self, z: Float[Tensor, "b n"], radius: Float[Tensor, "b"]) -> Float[Tensor, "b n"]:
        """``z t / (t + l)`` with ``t = clip(c z - l, 0, 1)``, ``sum t = min(k, nonzeros)``, and l such that ``N = r``.

        From ``min ||x - z||^2 + l sum x_i^2 / t_i`` over x and t. Both searches look at sorted sums only.
        """
        ramp = _Ramp.of(z, self.k)
        most = (self.gauge(z) / radius - 1).clamp(min=0)  # N(x) <= N(z) / (1 + l)
        l = _halve(lambda x: ramp.norm(x) > radius, torch.zeros_like(most), most)  # noqa: E741
        t = (ramp.slope(l)[:, None] * z - l[:, None]).clamp(0, 1)
        x = z * t / (t + l[:, None]).clamp(min=torch.finfo(z.dtype).tiny)
        return x * (radius / self.gauge(x).clamp(min=torch.finfo(z.dtype).tiny)).clamp(max=1)[:, None]

    def reach(self, n: int) -> float:
        """1, the L2 norm of every vertex."""
        return 1.0


@dataclass(frozen=True)
class PowerNorm(Norm):
    """The Lp norm ``(sum z^p)^(1/p)`` for ``1 < p < inf``; its dual is the Lq norm, ``q = p / (p - 1)``."""

    p: float

    @property
    def q(self) -> float:
        """The exponent of the dual norm."""
        return self.p / (self.p - 1)

    def gauge(self, z: Float[Tensor, "b n"]) -> Float[Tensor, "b"]:
        """The Lp norm."""
        return _power(z, self.p)

    def dual(self, z: Float[Tensor, "b n"]) -> Float[Tensor, "b"]:
        """The Lq norm."""
        return _power(z, self.q)

    def vertex(self, z: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
        """``z^(q-1)`` at Lp norm 1.

        Not by the Lq norm of z: near p = 1 its rounding to the power q - 1 would leave the set.
        """
        t = torch.where(z > 0, z.pow(1 / (self.p - 1)), 0.0)
        return t / _power(t, self.p).clamp(min=torch.finfo(t.dtype).tiny)[:, None]

    def project(self, z: Float[Tensor, "b n"], radius: Float[Tensor, "b"]) -> Float[Tensor, "b n"]:
        """Not known: `Ball.project` refuses it by name."""
        raise NotImplementedError

    def reach(self, n: int) -> float:
        """``n^(1/2 - 1/p)`` for p > 2, else 1."""
        return float(n) ** max(0.0, 0.5 - 1 / self.p)


@dataclass(frozen=True)
class _Ramp:
    """Sorted magnitudes ``(b, n)`` and running sums: a sum over ``t = clip(c z - l, 0, 1)`` takes a few look-ups."""

    ascending: Tensor
    sums: Tensor
    squares: Tensor
    wanted: Tensor

    @classmethod
    def of(cls, z: Tensor, k: int) -> _Ramp:
        s = z.sort(-1).values
        zero = torch.zeros_like(s[:, :1])
        sums, squares = (torch.cat([zero, x.cumsum(-1)], -1) for x in (s, s.square()))
        return cls(s, sums, squares, (s > 0).sum(-1).clamp(max=k).to(s.dtype))

    def slope(self, l: Tensor) -> Tensor:  # noqa: E741
        """The ``c`` at which ``sum t`` is ``wanted``: linear between those z that get to 0 and to 1 there."""
        top = self.ascending.shape[-1] - 1
        full = self._leading(lambda z: self._parts((1 + l) / z, l)[0] <= self.wanted)
        some = self._leading(lambda z: self._parts(l / z, l)[0] < self.wanted)
        between = self._above(self.sums, some) - self._above(self.sums, full)
        last = self.ascending.gather(-1, (top + 1 - full).clamp(0, top)[:, None])[:, 0]
        c = (self.wanted - full + l * (some - full)) / between
        return torch.where(between > 0, c, (1 + l) / torch.where(last > 0, last, 1.0))

    def norm(self, l: Tensor) -> Tensor:  # noqa: E741
        """``N(z t / (t + l))``."""
        return self._parts(self.slope(l), l)[1].clamp(min=0).sqrt()

    def _leading(self, holds: Callable[[Tensor], Tensor]) -> Tensor:
        """For how many of the z, from the largest on, it holds; never for a zero."""
        n = self.ascending.shape[-1]
        low, high = torch.zeros_like(self.wanted).long(), torch.full_like(self.wanted, n).long()
        for _ in range(n.bit_length()):
            middle = (low + high + 1) // 2
            z = self.ascending.gather(-1, (n - middle).clamp(max=n - 1)[:, None])[:, 0]
            up = holds(torch.where(z > 0, z, 1.0)) & (z > 0) & (middle > low)
            low, high = torch.where(up, middle, low), torch.where(up, high, torch.maximum(middle - 1, low))
        return low

    def _above(self, sums: Tensor, many: Tensor) -> Tensor:
        """The sum over that many of the largest."""
        return sums[:, -1] - sums.gather(-1, (self.ascending.shape[-1] - many)[:, None])[:, 0]

    def _parts(self, c: Tensor, l: Tensor) -> tuple[Tensor, Tensor]:  # noqa: E741
        """``sum t`` and ``sum z^2 t / (t + l)^2``: t is 1 from ``one`` on, and ``c z - l`` from ``some`` to there."""
        some, one = (torch.searchsorted(self.ascending, x[:, None]) for x in (l / c, (1 + l) / c))
        linear = (self.sums.gather(-1, one) - self.sums.gather(-1, some))[:, 0]
        square = (self.squares[:, -1:] - self.squares.gather(-1, one))[:, 0]
        total = c * linear - l * (one - some)[:, 0]
        return self.ascending.shape[-1] - one[:, 0] + total, square / (1 + l).square() + total / c.square()


def length(x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    """The L2 norm in the dtype of ``x``, true to its last digits or so: by sums of a few thousand squares at a time.

    Millions of squares added up in float32 one after the other lose up to four digits of seven.
    """
    if x.shape[-1] <= _RUN:
        return torch.linalg.vector_norm(x, dim=-1)
    runs = x.shape[-1] // _RUN
    whole, rest = x[..., : runs * _RUN].unflatten(-1, (runs, _RUN)), x[..., None, runs * _RUN :]
    parts = [torch.linalg.vector_norm(part, dim=-1) for part in (whole, rest)]
    return torch.linalg.vector_norm(torch.cat(parts, -1), dim=-1)


def how_many(k: float, n: int) -> int:
    """The number that ``k`` means of ``n``: an int counts, n at most; a float is a fraction, rounded up."""
    return min(k, n) if isinstance(k, int) else max(1, min(n, math.ceil(k * n - 1e-9)))  # 0.07 * 100 > 7


def check_k(k: float) -> None:
    """Raise `ArgumentError` unless ``k`` is an int >= 1 or a float in (0, 1]."""
    good = is_count(k) or (isinstance(k, float) and 0 < k <= 1)
    check(good, "k", "an int >= 1 (that many) or a float in (0, 1] (a share)", k)


def precise(x: Tensor) -> torch.dtype:
    """The dtype to square ``x`` in: float64 where the device has it."""
    return x.dtype if x.device.type == "mps" else torch.float64


def _largest(z: Float[Tensor, "b n"], k: int) -> Float[Tensor, "b n"]:
    """``z`` with all but its k largest entries 0: k of them by index, so that ties never keep more; one: the first."""
    if k >= z.shape[-1]:
        return z
    index = z.argmax(-1, keepdim=True) if k == 1 else z.topk(k, dim=-1, sorted=False).indices
    return torch.zeros_like(z).scatter_(-1, index, z.gather(-1, index))


def _power(z: Float[Tensor, "b n"], p: float) -> Float[Tensor, "b"]:
    """The Lp norm by its largest entry: no power overflows or loses all."""
    top = z.amax(-1)
    safe = torch.where(top > 0, top, 1.0)
    return top * (z / safe[:, None]).pow(p).sum(-1).pow(1 / p)


def _halve(
    too_low: Callable[[Float[Tensor, "b"]], Tensor], low: Float[Tensor, "b"], high: Float[Tensor, "b"]
) -> Float[Tensor, "b"]:
    """The smallest value in ``[low, high]`` that is not too low, to the last digit, each entry for itself."""
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        up = too_low(middle)
        low, high = torch.where(up, middle, low), torch.where(up, high, middle)
    return high
