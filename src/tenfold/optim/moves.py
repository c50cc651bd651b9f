"""Layers in Tucker format grow and are cut while they train, and what an optimizer remembers of them goes along.

The mathematics is that of `tenfold.linalg.tucker` and `tenfold.linalg.transport`; this is bookkeeping.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tenfold.errors import TenfoldWarning
from tenfold.layers.factors import Factorised, put_
from tenfold.linalg.subspace import fresh_directions
from tenfold.linalg.svd import like
from tenfold.linalg.transport import grow, grow_square, tangent_gradient, turn, turn_square
from tenfold.linalg.tucker import Limits, stacked, tucker_cut
from tenfold.optim.processes import shared

SQUARES = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "acc_delta", "sum", "exp_inf", "step_size")
"""What torch's optimizers call state that is positive and goes with the square of a coordinate."""
CENTRES = ("grad_avg",)
"""A mean that is subtracted from a mean square: it is forgotten at a cut, where the difference might turn negative."""


@dataclass(frozen=True)
class Unit:
    """One layer in Tucker format.

    Args:
        name: of the module.
        layer: the module.
    """

    name: str
    layer: Factorised

    @property
    def blocks(self) -> list[Tensor]:
        """The bases ``(g, n_i, r_i)``, detached."""
        return [stacked(basis.detach(), self.layer.groups) for basis in self.layer.bases]

    @property
    def work(self) -> float:
        """An estimate, for sharing out."""
        return float(sum(b.shape[-2] * b.shape[-1] ** 2 for b in self.layer.bases) + self.layer.core.numel())

    def fresh_norm(self, x: Tensor, ranks: Sequence[int]) -> float:
        """Frobenius norm of ``x``, shaped like the core, outside its leading block of these ranks."""
        outside = stacked(x.detach().double(), self.layer.groups).clone()
        outside[(slice(None), *(slice(0, r) for r in ranks))] = 0
        return float(outside.norm())


@dataclass(frozen=True)
class Result:
    """What a cut did: realised relative error, and whether limits made it larger than the tolerance."""

    error: float
    overridden: bool


@torch.no_grad()
def augment_(
    units: Sequence[Unit],
    grads: Mapping[str, Sequence[Tensor]],
    optimizer: Optimizer,
    *,
    columns: float,
    tangent: bool,
    scale: float = 1.0,
) -> None:
    """Let the bases of every unit grow by the directions of their gradients; the weights stay as they are.

    Args:
        units: what grows.
        grads: of the bases, by name; finite.
        optimizer: what it remembers of the cores is padded.
        columns: new ones of a basis per old one, at most.
        tangent: leave the gradient of the grown core in ``core.grad``, as far as it follows from ``grads``: the
            Riemannian gradient. Otherwise there is no gradient left.
        scale: of the gradients of the cores over those of the bases, where they differ.
    """

    def fresh(unit: Unit) -> list[Tensor]:
        pairs = zip(unit.blocks, grads[unit.name], strict=True)
        return [
            fresh_directions(u, stacked(g, unit.layer.groups), max(1, int(columns * u.shape[-1]))) for u, g in pairs
        ]

    found = shared([lambda unit=unit: fresh(unit) for unit in units], [unit.work for unit in units])
    for unit, made in zip(units, found, strict=True):
        layer, core = unit.layer, unit.layer.core
        groups, gradient = layer.groups, None
        new = [like(f, basis) for f, basis in zip(made, layer.bases, strict=True)]
        ranks = [r + f.shape[-1] for r, f in zip(layer.ranks, new, strict=True)]
        if tangent and core.grad is not None:
            own = [stacked(g, groups) * scale for g in grads[unit.name]]
            gradient = tangent_gradient(core.grad, core.detach(), new, own)
        _carry_(
            optimizer,
            core,
            lambda m, ranks=ranks, groups=groups: grow(m, ranks, groups),
            lambda v, ranks=ranks, groups=groups: grow_square(v, ranks, groups),
        )
        put_(core, grow(core.detach(), ranks, groups))
        core.grad = gradient
        for basis, block, f in zip(layer.bases, unit.blocks, new, strict=True):
            put_(basis, torch.cat([block, f], -1).flatten(0, 1))
        layer.augmented.fill_(True)


@torch.no_grad()
def cut_(units: Sequence[Unit], limits: Sequence[Limits], tau: float, optimizer: Optimizer) -> dict[str, Result]:
    """Cut the ranks of every unit to ``tau`` within its limits; see `tenfold.linalg.tucker.tucker_cut`.

    The new bases are turned toward the old ones, so that what the optimizer remembers entry by entry stays good.

    Args:
        units: with finite cores.
        limits: of each.
        tau: relative tolerance of each weight.
        optimizer: what it remembers of the cores is brought into the new bases.
    """

    def cut(unit: Unit, limit: Limits) -> list[Tensor]:
        layer = unit.layer
        made = tucker_cut(layer.core, list(layer.bases), tau, limits=limit, groups=layer.groups, aligned=True)
        about = torch.tensor([made.error, float(made.overridden)], dtype=torch.float64, device=made.core.device)
        return [about, made.core, *made.bases, *made.turns]

    tasks = [lambda unit=unit, limit=limit: cut(unit, limit) for unit, limit in zip(units, limits, strict=True)]
    results = {}
    for unit, (about, core, *rest) in zip(units, shared(tasks, [unit.work for unit in units]), strict=True):
        layer = unit.layer
        bases, turns = rest[: len(layer.bases)], [x.to(layer.core.device) for x in rest[len(layer.bases) :]]
        _carry_(
            optimizer,
            layer.core,
            lambda m, turns=turns: turn(m, turns),
            lambda v, turns=turns: turn_square(v, turns),
            forget=CENTRES,
        )
        put_(layer.core, like(core, layer.core))
        for basis, new in zip(layer.bases, bases, strict=True):
            put_(basis, like(new, basis))
        layer.augmented.fill_(False)
        results[unit.name] = Result(float(about[0]), bool(about[1]))
    return results


def _carry_(
    optimizer: Optimizer,
    core: nn.Parameter,
    moment: Callable[[Tensor], Tensor],
    square: Callable[[Tensor], Tensor],
    forget: Sequence[str] = (),
) -> None:
    """Bring into new coordinates what an optimizer remembers of a core."""
    state = optimizer.state.get(core, {})
    for key, value in list(state.items()):
        if not isinstance(value, Tensor) or value.ndim == 0:
            continue
        if value.shape != core.shape:
            warnings.warn(
                f"`base`: {type(optimizer).__name__} keeps {key!r} {tuple(value.shape)} of a core "
                f"{tuple(core.shape)}; it cannot be brought into other bases, and is dropped at each change of them.",
                TenfoldWarning,
                stacklevel=2,
            )
            optimizer.state.pop(core)
            return
        state[key] = (square if key in SQUARES else moment)(value)
        if key in forget:
            state[key].zero_()
