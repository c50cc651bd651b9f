"""Changing the ranks of layers in Tucker format while they train, with the optimizer state of their factors.

The mathematics is that of `tenfold.linalg.tucker` and `tenfold.linalg.change_of_basis`; this is bookkeeping.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from tenfold.errors import TenfoldWarning
from tenfold.layers.tucker_protocol import Factorised, active
from tenfold.linalg.change_of_basis import (
    grow,
    grow_square,
    leading,
    new_directions,
    tangent_gradient,
    turn,
    turn_square,
)
from tenfold.linalg.svd import like
from tenfold.linalg.tucker import Limits, stacked, tucker_cut
from tenfold.optim.distributed import shared
from tenfold.optim.state_names import CENTRES, SQUARES

_TF32 = 2.0**-10


def more(rank: int, columns: float) -> int:
    """The most new columns of a basis of this rank, where ``columns`` is their number per old column, > 0."""
    return max(1, int(columns * rank))


def fresh_norm(layer: Factorised, x: Tensor, ranks: Sequence[int]) -> float:
    """Frobenius norm of ``x`` outside its leading block of these ranks; ``x`` is shaped like the core of ``layer``."""
    outside = stacked(x.detach().double(), layer.groups).clone()
    outside[(slice(None), *(slice(0, r) for r in ranks))] = 0
    return float(outside.norm())


@dataclass(frozen=True)
class Resized:
    """The result of a cut: realised relative error, and whether limits made it larger than the tolerance."""

    error: float
    overridden: bool


@torch.no_grad()
def augment_(
    layers: Mapping[str, Factorised],
    grads: Mapping[str, Sequence[Tensor]],
    optimizer: Optimizer,
    *,
    columns: float,
    tangent: bool,
) -> None:
    """Augment the bases of every layer by directions of their gradients; the weights stay as they are.

    Args:
        layers: what grows, by name.
        grads: of the bases without padding, by name; finite.
        optimizer: its state of the cores is padded.
        columns: new ones of a basis per old one, at most.
        tangent: leave the gradient of the grown core in ``core.grad``, as far as it follows from ``grads``: the
            Riemannian gradient. Otherwise there is no gradient left.
    """

    def fresh(name: str, layer: Factorised) -> list[Tensor]:
        core, *bases = _factors(layer)
        own, split = ([stacked(x, layer.groups) for x in each] for each in (grads[name], bases))
        return new_directions(core, split, own, _most(layer, columns), rounding=_rounding(layer))

    tasks = [lambda name=name, layer=layer: fresh(name, layer) for name, layer in layers.items()]
    found = shared(tasks, [_work(layer) for layer in layers.values()])
    for (name, layer), made in zip(layers.items(), found, strict=True):
        groups, (core, *bases), gradient = layer.groups, _factors(layer), None
        new = [like(f, u) for f, u in zip(made, bases, strict=True)]
        ranks = [r + f.shape[-1] for r, f in zip(layer.ranks, new, strict=True)]
        if tangent and layer.core.grad is not None:
            own, known = [stacked(g, groups) for g in grads[name]], leading(layer.core.grad, layer.ranks, groups)
            gradient = tangent_gradient(known, core, new, own, rounding=_rounding(layer))
        _change_(
            layer,
            optimizer,
            grow(core, ranks, groups),
            [torch.cat([u, f.flatten(0, 1)], -1) for u, f in zip(bases, new, strict=True)],
            lambda m, ranks=ranks, groups=groups: grow(m, ranks, groups),
            lambda v, ranks=ranks, groups=groups: grow_square(v, ranks, groups),
        )
        layer.core.grad = None if gradient is None else _padded(layer, gradient)
        layer.augmented.fill_(True)


@torch.no_grad()
def cut_(
    layers: Mapping[str, Factorised], limits: Mapping[str, Limits], tau: float, optimizer: Optimizer
) -> dict[str, Resized]:
    """Truncate the ranks of every layer to ``tau`` within its limits; see `tenfold.linalg.tucker.tucker_cut`.

    The new bases are turned toward the old ones, so that what the optimizer remembers entry by entry stays good.

    Args:
        layers: by name, with finite cores.
        limits: of each.
        tau: relative tolerance of each weight.
        optimizer: its state of the cores is transformed to the new bases.
    """

    def cut(layer: Factorised, limit: Limits) -> list[Tensor]:
        core, *bases = _factors(layer)
        made = tucker_cut(core, bases, tau, limits=limit, groups=layer.groups, aligned=True)
        about = torch.tensor([made.error, float(made.overridden)], dtype=torch.float64, device=made.core.device)
        return [about, made.core, *made.bases, *made.turns]

    tasks = [lambda layer=layer, limit=limits[name]: cut(layer, limit) for name, layer in layers.items()]
    made = shared(tasks, [_work(layer) for layer in layers.values()])
    results = {}
    for (name, layer), (about, core, *rest) in zip(layers.items(), made, strict=True):
        bases, turns = rest[: len(layer.bases)], [x.to(layer.core.device) for x in rest[len(layer.bases) :]]
        _change_(
            layer,
            optimizer,
            core,
            bases,
            lambda m, turns=turns: turn(m, turns),
            lambda v, turns=turns: turn_square(v, turns),
            forget=CENTRES,
        )
        layer.augmented.fill_(False)
        results[name] = Resized(float(about[0]), bool(about[1]))
    return results


def _change_(
    layer: Factorised,
    optimizer: Optimizer,
    core: Tensor,
    bases: Sequence[Tensor],
    moment: Callable[[Tensor], Tensor],
    square: Callable[[Tensor], Tensor],
    forget: Sequence[str] = (),
) -> None:
    """Give a layer new factors, and bring into their coordinates what an optimizer remembers of the core.

    Gradients, which are in the old ones, are dropped.
    """
    before, shape = layer.ranks, layer.core.shape
    layer.set_factors(core, *bases)
    for factor in (layer.core, *layer.bases):
        factor.grad = None
    for basis in layer.bases:
        optimizer.state.pop(basis, None)  # some optimizers make state of a parameter that they never step
    state = optimizer.state.get(layer.core, {})
    for key, value in list(state.items()):
        if not isinstance(value, Tensor) or value.ndim == 0:
            continue
        if value.shape != shape:
            warnings.warn(
                f"`base`: {type(optimizer).__name__} keeps {key!r} {tuple(value.shape)} of a core "
                f"{tuple(shape)}; it cannot be brought into other bases, and is dropped at each change of them.",
                TenfoldWarning,
                stacklevel=2,
            )
            optimizer.state.pop(layer.core)
            return
        new = (square if key in SQUARES else moment)(leading(value, before, layer.groups))
        state[key] = torch.zeros_like(layer.core) if key in forget else _padded(layer, new)


def _factors(layer: Factorised) -> tuple[Tensor, ...]:
    """Core and bases without padding, detached."""
    return tuple(factor.detach() for factor in active(layer))


def _work(layer: Factorised) -> float:
    """An estimate of what a factorisation costs, for sharing out."""
    core, *bases = _factors(layer)
    return float(sum(len(u) * u.shape[1] ** 2 for u in bases) + core.numel())


def _padded(layer: Factorised, x: Tensor) -> Tensor:
    """``x``, shaped like the core, as the layer stores its core."""
    return grow(x, [basis.shape[1] for basis in layer.bases], layer.groups)


def _most(layer: Factorised, columns: float) -> list[int]:
    """How many columns each basis may get: see `more`, and no more than a static layer has room for."""
    pairs = list(zip(layer.bases, layer.ranks, strict=True))
    free = [basis.shape[1] - r if layer.static else len(basis) for basis, r in pairs]
    return [min(more(r, columns), n) for (_, r), n in zip(pairs, free, strict=True)]


def _rounding(layer: Factorised) -> float:
    """Relative rounding error of gradients: of the type that the layer multiplied in, or of TF32 on a GPU."""
    rounding = torch.finfo(layer.precision).eps
    if layer.core.is_cuda and (torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32):
        return max(rounding, _TF32)
    return max(rounding, torch.finfo(layer.core.dtype).eps)
