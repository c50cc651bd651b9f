"""What the groups of `tenfold.optim.frank_wolfe.optimizer.FrankWolfe` may be: checked once, when they are added."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from torch import Tensor

from tenfold.errors import TenfoldError, check, is_count, is_share
from tenfold.layers.spec import swap_channels
from tenfold.linalg import balls
from tenfold.linalg.balls import Ball
from tenfold.linalg.frank_wolfe import RESCALINGS
from tenfold.optim.dtensor import layout, like, whole


def ball_of(constraint: Any) -> Ball | None:
    """The ball of a constraint, which is a ball or its `to_dict`; None for no constraint.

    Raises:
        ArgumentError: neither of them.
    """
    if constraint is None or isinstance(constraint, Ball):
        return constraint
    check(isinstance(constraint, Mapping), "constraint", "a ball of tenfold.balls, its to_dict, or None", constraint)
    return balls.from_dict(constraint)


def check_group(group: Mapping[str, Any]) -> None:
    """Raise `ArgumentError` for a value out of its range."""
    lr = group["lr"]
    check(isinstance(lr, Tensor) or is_share(lr), "lr", "a number >= 0", lr)
    momentum, dampening = group["momentum"], group["dampening"]
    check(is_share(momentum) and momentum < 1, "momentum", "in [0, 1)", momentum)
    check(is_share(dampening) and dampening <= 1, "dampening", "in [0, 1]", dampening)
    check(group["rescale"] in RESCALINGS, "rescale", f"one of {', '.join(RESCALINGS)}", group["rescale"])
    check(is_share(group["weight_decay"]), "weight_decay", "a number >= 0", group["weight_decay"])
    check(is_share(group["width"]) and group["width"] > 0, "width", "a number > 0", group["width"])
    check(is_share(group["max_eta"]) and 0 < group["max_eta"] <= 1, "max_eta", "in (0, 1]", group["max_eta"])
    check(is_count(group["swapped"], 0), "swapped", "an integer >= 0", group["swapped"])


def check_tensor(p: Tensor, ball: Ball | None, name: str) -> None:
    """Raise `TenfoldError` for a tensor that is not real, or is sharded in a set that needs all of it."""
    if not p.is_floating_point():
        raise TenfoldError(f"FrankWolfe trains floating-point tensors; got {p.dtype} for '{name}'.")
    where = layout(p)
    if any(placement.is_partial() for placement in where.placements):
        raise TenfoldError(f"FrankWolfe trains tensors, not summands; '{name}' is placed as {where.placements}.")
    if where.split and ball is not None and ball.powers is None:
        raise TenfoldError(
            f"`constraint` of '{name}' must be L1, L2 or LInf, because that tensor is sharded: a vertex of {ball!r} "
            "depends on all of it. Train copies of the model (DistributedDataParallel), or give it no constraint."
        )


def named(groups: Sequence[Mapping[str, Any]], i: int) -> Iterator[tuple[str, Tensor]]:
    """The parameters of group i, by name or by place: "0.3" is the fourth of the first group."""
    group = groups[i]
    places = [f"{i}.{j}" for j in range(len(group["params"]))]
    return zip(group.get("param_names", places), group["params"], strict=True)


def name_all(groups: Sequence[dict[str, Any]], group: dict[str, Any]) -> dict[str, Any]:
    """Complete the names of a group that is added to others: torch wants names for all tensors or for none.

    Args:
        groups: those that there are; their tensors are named by their place where the new one has names.
        group: the new one, as users give it.
    """
    params = group["params"]
    members = [params] if isinstance(params, Tensor) else list(params) if not isinstance(params, set) else params
    bare = all(isinstance(one, Tensor) for one in members)
    if groups and not bare:
        for i, other in enumerate(groups):
            other.setdefault("param_names", [name for name, _ in named(groups, i)])
    elif any("param_names" in other for other in groups):
        members = [(f"{len(groups)}.{j}", p) for j, p in enumerate(members)]
    return group | {"params": members}


def radii(group: Mapping[str, Any], ball: Ball) -> list[float]:
    """One radius per tensor: as given, or from the width and the present norm of the tensor.

    Raises:
        ArgumentError: no positive numbers, another number of them, or none for a tensor of zeros.
    """
    params, given = group["params"], group["radius"]
    if given is None:
        norms = [float(whole(p.detach()).double().norm()) for p in params]
        check(all(norms), "radius", "given for a tensor of zeros", given, "Its norm says nothing of its scale.")
        shapes = [kernel_shape(p.shape, group["swapped"]) for p in params]
        return [ball.radius(2 * group["width"] * n, s) for n, s in zip(norms, shapes, strict=True)]
    found = list(given) if isinstance(given, (list, tuple)) else [given] * len(params)
    good = len(found) == len(params) and all(is_share(r) and r > 0 for r in found)
    check(good, "radius", f"a number > 0, or {len(params)} of them", given)
    return [float(r) for r in found]


def kernel(x: Tensor, swapped: int) -> Tensor:
    """Move the filters to the first dimension, or back; a copy where there are several groups."""
    return swap_channels(x, swapped) if swapped else x


def kernel_shape(shape: Sequence[int], swapped: int) -> Sequence[int]:
    """The shape of `kernel` of a tensor of this shape."""
    return (shape[1] * swapped, shape[0] // swapped, *shape[2:]) if swapped else shape


def gradient(p: Tensor) -> Tensor:
    """The gradient of a parameter that has one, split as the parameter is.

    Raises:
        TenfoldError: a sparse one.
    """
    g = cast("Tensor", p.grad)
    if g.is_sparse:
        raise TenfoldError("FrankWolfe needs dense gradients; got a sparse one. Use nn.Embedding(sparse=False).")
    return like(g, p)
