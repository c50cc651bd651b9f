"""Sharded tensors (DTensor, as FSDP2 and tensor parallelism make them): norms and values of the whole.

A tensor that is whole, or the same in every process, is a single part, and no message is sent. Elsewhere the
results are the same in every process, and every process has to ask.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, distributed

from tenfold.layers.usable import is_sharded


@dataclass(frozen=True)
class Layout:
    """The sharding of a tensor over processes; tensors of one layout can share messages.

    Args:
        mesh: of processes; None for tensors that are no DTensors.
        placements: what becomes of a tensor along each dimension of the mesh.
    """

    mesh: Any = None
    placements: tuple[Any, ...] = ()

    @property
    def split(self) -> tuple[int, ...]:
        """The dimensions of the mesh along which processes have different parts."""
        return tuple(i for i, placement in enumerate(self.placements) if not placement.is_replicate())

    def sum(self, own: Tensor) -> Tensor:
        """The sum of ``own`` over all parts."""
        return self._all(own, "SUM")

    def norm(self, own: Float[Tensor, "*b"], p: float) -> Float[Tensor, "*b"]:
        """The Lp norms of whole tensors from those of this process' parts; NaN where any of them is."""
        if not self.split:
            return own
        if p < math.inf:
            return self._all(own.double() ** p, "SUM").pow(1 / p).to(own)
        top = self._all(torch.nan_to_num(own, nan=math.inf, posinf=math.inf), "MAX")  # a maximum may pass over NaN
        return torch.where(torch.isinf(top), torch.nan, top)

    def first(self, parts: Float[Tensor, "b *part"], shape: torch.Size) -> Bool[Tensor, "b"]:
        """Whether this process has the entry of largest magnitude; of equal ones the first of the whole counts.

        Args:
            parts: of finite tensors.
            shape: of the whole of each.
        """
        from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

        flat = parts.abs().flatten(1)
        last = torch.full((len(flat),), math.prod(shape), device=flat.device)
        if flat.shape[1]:
            top, at = flat.max(1)
            _, start = compute_local_shape_and_global_offset(shape, self.mesh, self.placements)
            index = torch.zeros_like(at)
            for i, begin, size in zip(torch.unravel_index(at, parts.shape[1:]), start, shape, strict=True):
                index = index * size + i + begin
        else:
            top, index = flat.new_full((len(flat),), -1.0), last
        index = torch.where(top == self._all(top, "MAX"), index, last)
        return (index == self._all(index, "MIN")) & (index < last)

    def _all(self, x: Tensor, operation: str) -> Tensor:
        found = x.clone()
        for i in self.split:
            distributed.all_reduce(found, getattr(distributed.ReduceOp, operation), self.mesh.get_group(i))
        return found


def layout(x: Any) -> Layout:
    """The layout of a tensor."""
    return Layout(x.device_mesh, x.placements) if parted(x) else Layout()


def local(x: Any) -> Tensor:
    """The part of a tensor that this process has; it shares its memory."""
    return x.to_local() if parted(x) else x


def whole(x: Any) -> Tensor:
    """The whole tensor, gathered in every process."""
    return x.full_tensor() if parted(x) else x


def like(x: Any, p: Any) -> Tensor:
    """Reshard ``x`` to the layout of ``p``: gradients may come in another one."""
    return x.redistribute(p.device_mesh, p.placements) if parted(p) and x.placements != p.placements else x


def parted(x: Any) -> bool:
    """Whether a tensor is a DTensor."""
    return is_sharded(x)
