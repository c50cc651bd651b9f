"""Layers in Tucker format grow and are cut while they train, and what an optimizer remembers of them goes along.

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
from tenfold.linalg.change_of_basis import grow, grow_square, leading, tangent_gradient, turn, turn_square
from tenfold.linalg.subspace import fresh_directions
from tenfold.linalg.svd import like
from tenfold.linalg.tucker import Limits, stacked, tucker_cut
from tenfold.optim.distributed import shared

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
    def core(self) -> Tensor:
        """``C`` without padding, detached."""
        return active(self.layer)[0].detach()

    @property
    def bases(self) -> list[Tensor]:
        """``U_i (g n_i, r_i)`` without padding, detached."""
        return [basis.detach() for basis in active(self.layer)[1:]]

    @property
    def work(self) -> float:
        """An estimate, for sharing out."""
        return float(sum(len(u) * u.shape[1] ** 2 for u in self.bases) + self.core.numel())

    def padded(self, x: Tensor) -> Tensor:
        """``x``, shaped like the core, as the layer stores its core."""
        return grow(x, [basis.shape[1] for basis in self.layer.bases], self.layer.groups)

    def most(self, columns: float) -> list[int]:
        """How many columns each basis may get: see `more`, and no more than a static layer has room for."""
        pairs = list(zip(self.layer.bases, self.layer.ranks, strict=True))
        free = [basis.shape[1] - r if self.layer.static else len(basis) for basis, r in pairs]
        return [min(more(r, columns), n) for (_, r), n in zip(pairs, free, strict=True)]

    def fresh_norm(self, x: Tensor, ranks: Sequence[int]) -> float:
        """Frobenius norm of ``x``, shaped like the core, outside its leading block of these ranks."""
        outside = stacked(x.detach().double(), self.layer.groups).clone()
        outside[(slice(None), *(slice(0, r) for r in ranks))] = 0
        return float(outside.norm())


def more(rank: int, columns: float) -> int:
    """By how many columns a basis of this rank grows at most, where ``columns`` is a share of them."""
    return max(1, int(columns * rank))


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
) -> None:
    """Let the bases of every unit grow by the directions of their gradients; the weights stay as they are.

    Args:
        units: what grows.
        grads: of the bases without padding, by name; finite.
        optimizer: what it remembers of the cores is padded.
        columns: new ones of a basis per old one, at most.
        tangent: leave the gradient of the grown core in ``core.grad``, as far as it follows from ``grads``: the
            Riemannian gradient. Otherwise there is no gradient left.
    """

    def fresh(unit: Unit) -> list[Tensor]:
        groups, parts = unit.layer.groups, zip(unit.bases, grads[unit.name], unit.most(columns), strict=True)
        return [fresh_directions(stacked(u, groups), stacked(g, groups), most) for u, g, most in parts]

    found = shared([lambda unit=unit: fresh(unit) for unit in units], [unit.work for unit in units])
    for unit, made in zip(units, found, strict=True):
        layer, groups, core, bases, gradient = unit.layer, unit.layer.groups, unit.core, unit.bases, None
        new = [like(f, u) for f, u in zip(made, bases, strict=True)]
        ranks = [r + f.shape[-1] for r, f in zip(layer.ranks, new, strict=True)]
        if tangent and layer.core.grad is not None:
            own = [stacked(g, groups) for g in grads[unit.name]]
            gradient = tangent_gradient(leading(layer.core.grad, layer.ranks, groups), core, new, own)
        _change_(
            unit,
            optimizer,
            grow(core, ranks, groups),
            [torch.cat([u, f.flatten(0, 1)], -1) for u, f in zip(bases, new, strict=True)],
            lambda m, ranks=ranks, groups=groups: grow(m, ranks, groups),
            lambda v, ranks=ranks, groups=groups: grow_square(v, ranks, groups),
        )
        layer.core.grad = None if gradient is None else unit.padded(gradient)
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
        made = tucker_cut(unit.core, unit.bases, tau, limits=limit, groups=unit.layer.groups, aligned=True)
        about = torch.tensor([made.error, float(made.overridden)], dtype=torch.float64, device=made.core.device)
        return [about, made.core, *made.bases, *made.turns]

    tasks = [lambda unit=unit, limit=limit: cut(unit, limit) for unit, limit in zip(units, limits, strict=True)]
    results = {}
    for unit, (about, core, *rest) in zip(units, shared(tasks, [unit.work for unit in units]), strict=True):
        layer = unit.layer
        bases, turns = rest[: len(layer.bases)], [x.to(layer.core.device) for x in rest[len(layer.bases) :]]
        _change_(
            unit,
            optimizer,
            core,
            bases,
            lambda m, turns=turns: turn(m, turns),
            lambda v, turns=turns: turn_square(v, turns),
            forget=CENTRES,
        )
        layer.augmented.fill_(False)
        results[unit.name] = Result(float(about[0]), bool(about[1]))
    return results


def _change_(
    unit: Unit,
    optimizer: Optimizer,
    core: Tensor,
    bases: Sequence[Tensor],
    moment: Callable[[Tensor], Tensor],
    square: Callable[[Tensor], Tensor],
    forget: Sequence[str] = (),
) -> None:
    """Give a unit new factors, and bring into their coordinates what an optimizer remembers of the core."""
    layer, before, shape = unit.layer, unit.layer.ranks, unit.layer.core.shape
    layer.set_factors(core, *bases)
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
        state[key] = torch.zeros_like(layer.core) if key in forget else unit.padded(new)
