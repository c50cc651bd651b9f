"""What a norm ball is: a symmetric norm of the magnitudes that a tensor splits into.

Every set here is ``C(r) = {x : gauge(x) <= r}`` with ``gauge(x) = N(z(x))``. The *split* takes a tensor apart into
magnitudes ``z``: of its entries, the lengths of its filters, or its singular values. The norm ``N`` sees neither signs
nor order. All that is asked of the set then happens on magnitudes and goes back along the same directions::

    support(g) = N*(z(g))            max of <g, x> over C(1), the dual norm
    lmo(g, r)  = -r rebuild(t)       t maximises <z(g), t> over N(t) <= 1
    project    = rebuild(t)          t nearest to z(x) with N(t) <= r

Source: von Neumann 1937, Lewis 1995 for singular values; Zimmer, Spiegel, Pokutta 2022 (arXiv 2205.11921) for the sets.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tenfold.errors import TenfoldError, check
from tenfold.linalg.balls.norms import Norm, SparseNorm, SupportNorm, check_k, how_many
from tenfold.linalg.svd import like, working

Rebuild = Callable[[Tensor], Tensor]
Radius = float | Tensor


_EXPONENTS = {torch.float32: (torch.int32, 0x7F8 << 20), torch.float64: (torch.int64, 0x7FF << 52)}
"""The bits of the exponent."""


class Grouping(ABC):
    """A decomposition of tensors ``(b, *shape)`` into magnitudes ``(b, n)`` and directions."""

    @abstractmethod
    def count(self, shape: Sequence[int]) -> int:
        """The number of magnitudes ``n`` of one tensor of this shape."""

    @abstractmethod
    def magnitudes(self, x: Float[Tensor, "b *shape"]) -> Float[Tensor, "b n"]:
        """The magnitudes ``z(x)``."""

    @abstractmethod
    def apart(self, x: Float[Tensor, "b *shape"]) -> tuple[Float[Tensor, "b n"], Rebuild]:
        """The magnitudes ``z(x)``, and a function that puts other magnitudes along the same directions."""


@dataclass(frozen=True)
class Ball(ABC):
    """A norm ball of tensors; the radius is an argument of its methods. Plain data, see `to_dict` and `from_dict`.

    A set is given for *one* tensor, whatever its shape: filters stand in its first dimension, and its matrix is
    ``x.flatten(1)``. With ``stacked=True`` the first dimension counts tensors of one shape instead, all results are one
    per tensor, and a radius may be a tensor with one value for each. Nothing here waits for the device except
    singular values, and nothing draws random numbers.
    """

    split: ClassVar[Grouping]
    projects: ClassVar[bool] = True
    """Whether `project` knows the Euclidean projection."""
    powers: ClassVar[tuple[float, float] | None] = None
    """p and q where the gauge is the Lp norm of the entries, the support their Lq norm: those of a tensor in parts are
    the norms of its parts' norms."""

    @abstractmethod
    def norm(self, n: int) -> Norm:
        """The norm of ``n`` magnitudes."""

    def lmo(self, g: Float[Tensor, "*shape"], radius: Radius, *, stacked: bool = False) -> Float[Tensor, "*shape"]:
        """Linear minimisation oracle, ``argmin <g, v>`` over the set: a vertex, whatever the scale of ``g``.

        Args:
            g: the gradient, any shape, any floating dtype; half types are worked on in float32.
            radius: > 0.
            stacked: ``g`` is a stack ``(b, *shape)``.

        Returns:
            a new tensor like ``g``: finite and in the set for every finite ``g``, the least and the largest numbers of
            its type included; 0 for ``g = 0``, NaN throughout for a ``g`` with NaN or infinite entries. Among tied
            entries some are taken, never more than the set allows.

        Raises:
            ArgumentError: the radius is a number and not > 0.
        """
        x = g.detach() if stacked else g.detach()[None]
        if x.numel() == 0:
            return g.detach().clone()
        x = x.float() if x.element_size() < 4 else x
        unit, scale = unit_scale(x)
        v = self._vertex(unit, torch.where(scale.isnan(), torch.nan, radius_like(radius, x))).to(g.dtype)
        return v if stacked else v[0]

    def gauge(self, x: Float[Tensor, "*shape"], *, stacked: bool = False) -> Float[Tensor, "..."]:
        """The norm of ``x``: the smallest radius of a set that contains it, float64; NaN where ``x`` is not finite."""
        return self._measure(x, stacked, lambda z: self.norm(z.shape[-1]).gauge(z))

    def support(self, g: Float[Tensor, "*shape"], *, stacked: bool = False) -> Float[Tensor, "..."]:
        """The dual norm of ``g``: ``max <g, x>`` over the set at radius 1, float64; NaN where ``g`` is not finite."""
        return self._measure(g, stacked, lambda z: self.norm(z.shape[-1]).dual(z))

    def contains(
        self, x: Float[Tensor, "*shape"], radius: Radius, tolerance: float = 1e-5, *, stacked: bool = False
    ) -> Bool[Tensor, "..."]:
        """Whether ``gauge(x) <= radius (1 + tolerance)``, on the device; False where ``x`` is not finite.

        Args:
            x: any shape, any floating dtype.
            radius: > 0.
            tolerance: relative, >= 0.
            stacked: ``x`` is a stack ``(b, *shape)``.
        """
        gauge = self.gauge(x, stacked=stacked)
        return gauge <= radius_like(radius, gauge) * (1 + tolerance)

    def pull_in(self, x: Float[Tensor, "*shape"], radius: Radius, *, stacked: bool = False) -> Float[Tensor, "*shape"]:
        """Scale ``x`` into the set, ``x min(1, radius / gauge(x))``; a point of the set stays bit for bit.

        Args:
            x: any shape, any floating dtype.
            radius: > 0.
            stacked: ``x`` is a stack ``(b, *shape)``.
        """
        gauge = self.gauge(x, stacked=stacked)
        scale = radius_like(radius, gauge) / gauge
        scale = torch.where(scale < 1, scale, 1.0)  # 0 / 0 and NaN leave x as it is
        return like(_spread(scale, x) * working(x), x)

    def project(self, x: Float[Tensor, "*shape"], radius: Radius, *, stacked: bool = False) -> Float[Tensor, "*shape"]:
        """Euclidean projection of ``x`` onto the set; a point of the set stays bit for bit.

        Args:
            x: any shape, any floating dtype.
            radius: > 0.
            stacked: ``x`` is a stack ``(b, *shape)``.

        Raises:
            ArgumentError: the radius is a number and not > 0.
            TenfoldError: the projection onto this set is not known: `projects` is False.
        """
        if not self.projects:
            raise TenfoldError(f"the projection onto {self!r} is not known (`projects` is False). Use `pull_in`.")
        stack = x if stacked else x[None]
        if stack.numel() == 0:
            return x.clone()
        unit, scale = unit_scale(working(stack))
        z, rebuild = self.split.apart(unit)
        norm, limit = self.norm(z.shape[-1]), radius_like(radius, unit) / scale
        outside = norm.gauge(z) > limit
        # Where z lies inside, project the zero vector instead: its result is not used, and no case is special.
        near = rebuild(norm.project(torch.where(outside[:, None], z, 0.0), limit))
        found = like(near * _spread(scale, near), x)
        new = torch.where(_spread(outside.to(x.device), stack), found, stack)
        return new if stacked else new[0]

    def diameter(self, radius: float, shape: Sequence[int]) -> float:
        """The largest L2 distance between two points of the set, for a tensor of this shape."""
        n = self.split.count(shape)
        return 2 * radius * self.norm(n).reach(n)

    def radius(self, diameter: float, shape: Sequence[int]) -> float:
        """The radius at which the set has this diameter."""
        return diameter / self.diameter(1.0, shape)

    def to_dict(self) -> dict[str, Any]:
        """The name of the class and its fields, for JSON; `from_dict` reads it."""
        return {"ball": type(self).__name__} | asdict(self)

    def _vertex(self, x: Float[Tensor, "b *shape"], radius: Float[Tensor, "b"]) -> Float[Tensor, "b *shape"]:
        """`lmo` of a stack in single or double precision, as `unit_scale` makes it; a radius of NaN gives NaN."""
        z, rebuild = self.split.apart(x)
        top = z.amax(-1)
        t = self.norm(z.shape[-1]).vertex(z / torch.where(top > 0, top, 1.0)[:, None])
        return rebuild(t * radius.to(t.dtype)[:, None]).neg_()

    def _measure(self, x: Tensor, stacked: bool, measure: Callable[[Tensor], Tensor]) -> Tensor:
        stack = x if stacked else x[None]
        if stack.numel() == 0:
            found = torch.zeros(len(stack), dtype=torch.float64, device=x.device)
        else:
            unit, scale = unit_scale(working(stack))
            found = (scale * measure(self.split.magnitudes(unit))).to(x.device)
        return found if stacked else found[0]


@dataclass(frozen=True)
class Counted(Ball):
    """A ball whose vertices have at most k non-zero magnitudes. Abstract."""

    k: int | float

    of: ClassVar[type[SparseNorm | SupportNorm]]
    """The family of norms."""

    def __post_init__(self) -> None:
        check_k(self.k)

    def count(self, n: int) -> int:
        """The number of non-zero magnitudes of a vertex, of ``n``; see `how_many`."""
        return how_many(self.k, n)

    def norm(self, n: int) -> Norm:
        """The norm whose vertices have `count` of ``n`` magnitudes."""
        return type(self).of(self.count(n))


def radius_like(radius: Radius, x: Tensor) -> Tensor:
    """The radius as a tensor on the device and in the dtype of ``x``, without a device sync.

    Raises:
        ArgumentError: a number that is not > 0.
    """
    if isinstance(radius, Tensor):
        return radius.to(x)
    check(radius > 0, "radius", "> 0", radius)
    return torch.full((), radius, dtype=x.dtype, device=x.device)


def unit_scale(x: Float[Tensor, "b *shape"]) -> tuple[Float[Tensor, "b *shape"], Float[Tensor, "b"]]:
    """Scale each tensor of a stack to a largest entry near 1; returns the tensors and their scales.

    Tensors that are not finite become zeros, with the scale NaN.

    A scale is the power of two below the largest entry, so that no digit is lost, and no square overflows or vanishes.

    Args:
        x: a stack, float32 or float64.
    """
    if x.numel() == 0:
        return x, x.new_ones(len(x))
    top = x.abs().flatten(1).amax(1) if x.ndim > 1 else x.abs()
    bits, exponent = _EXPONENTS[x.dtype]
    power = (top.view(bits) & exponent).view(x.dtype)
    scale = torch.where(power > 0, power, torch.where(top > 0, top, 1.0))  # subnormal numbers have no power
    finite = torch.isfinite(top)
    unit = torch.where(_spread(finite, x), x / _spread(scale, x), 0.0)
    return unit, torch.where(finite, scale, torch.nan)


def _spread(value: Tensor, x: Tensor) -> Tensor:
    """One value per tensor of a stack, broadcast over it; one value for all where it is a scalar."""
    return value.reshape(-1, *[1] * (x.ndim - 1)) if value.ndim else value
