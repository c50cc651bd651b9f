"""Stochastic Frank-Wolfe as a torch optimizer: weights that stay inside norm balls, moved toward their vertices.

The mathematics of a step is `tenfold.linalg.frank_wolfe`'s, the sets are `tenfold.balls`. What is here is bookkeeping:
vertices for tensors of one shape together, momentum and bases between steps.
A step never waits for the device, but for a parameter's first, which looks whether it starts inside its set.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.sgd import sgd

from tenfold.errors import TenfoldError, TenfoldWarning, check
from tenfold.linalg import balls
from tenfold.linalg.balls import Ball
from tenfold.linalg.balls.vectors import Entries
from tenfold.linalg.frank_wolfe import RESCALINGS, Lengths, blend, step_size, toward_
from tenfold.optim.dtensor import layout, local
from tenfold.optim.frank_wolfe.masters import restore_, weight_of, write_back_
from tenfold.optim.frank_wolfe.oracles import alike, finite, gap, gauge, lengths, vertices
from tenfold.optim.frank_wolfe.param_groups import (
    ball_of,
    check_group,
    check_tensor,
    gradient,
    kernel,
    kernel_shape,
    name_all,
    named,
    radii,
)
from tenfold.optim.frank_wolfe.statistics import STATISTICS, Track, advance

TOLERANCE = 1e-5
"""Relative excess of the gauge over the radius that still counts as inside."""


class FrankWolfe(Optimizer):
    """Stochastic Frank-Wolfe optimizer over norm balls; see `tenfold.linalg.frank_wolfe` for the step.

    Every argument but ``params`` can be given per group. Groups without a constraint are trained by torch's SGD, with
    the same learning rate, momentum and dampening, and with weight decay. Learning-rate schedulers, closures, gradient
    clipping and scaling work as with SGD. **The learning rate has to fall to about 0**: at a constant one the iterates
    jump between vertices for ever.

    Args:
        params: tensors, named tensors, or groups.
        lr: > 0 in use; with the rescaling "none" it is the step size itself, 1 at most.
        momentum: mu in [0, 1).
        dampening: in [0, 1]; ``momentum`` makes the momentum a running mean.
        rescale: "none", "diameter", "gradient" or "radius".
        constraint: a ball of `tenfold.balls`, or its `to_dict`; None for no constraint.
        radius: of the ball, > 0: one, or one per tensor. None: ``width`` says.
        width: w > 0: the L2 diameter of the set is ``2 w`` times the norm that a tensor has now.
        weight_decay: of the groups without a constraint; a set takes its place.
        max_eta: in (0, 1]; below 1 no step lands on a vertex.
        swapped: 0: filters stand in the first dimension of a tensor. ``n >= 1``: in the second, in n groups, as in a
            transposed convolution of n groups.

    A tensor that starts outside its set is pulled in at its first step, with a warning. Where one gradient, or its
    norm, is not finite, nothing moves: no tensor, with a set or without, and no momentum; see `stats`. Tensors without
    a gradient are left alone. Half-precision tensors have a float32 copy, see `tenfold.optim.frank_wolfe.masters`.

    Sharded tensors (DTensor: FSDP2's `fully_shard`, tensor parallelism) are trained as if whole, without a constraint
    or in `L1`, `L2` and `LInf`: processes send each other norms, one message a step for all tensors of one layout, two
    for all of a group in a set, and two more for each shape in an L1 ball. All of them have to call `step`, `fw_gap`
    and `stats`.

    Raises:
        ArgumentError: a value out of range; a tensor of zeros without a radius.
        TenfoldError: a sharded tensor in another set, a complex tensor, or a sparse gradient.

    Source: Pokutta, Spiegel, Zimmer 2020 (arXiv 2010.07243); Zimmer, Spiegel, Pokutta 2022 (arXiv 2205.11921).
    Deviations: spectral sets are handled from the basis of the step before instead of a cold power iteration; a step
    along a zero gradient has size 0.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        dampening: float = 0.0,
        rescale: str = "gradient",
        constraint: Ball | Mapping[str, Any] | None = None,
        *,
        radius: float | list[float] | None = None,
        width: float = 10.0,
        weight_decay: float = 0.0,
        max_eta: float = 1.0,
        swapped: int = 0,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "rescale": rescale,
            "constraint": constraint,
            "radius": radius,
            "width": width,
            "weight_decay": weight_decay,
            "max_eta": max_eta,
            "swapped": swapped,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group; its constraint becomes plain data, its radius one number per tensor.

        Tensors that come without a name among such that have one are named by their place.

        Raises:
            ArgumentError: a value out of range, or weight decay in a group with a constraint.
        """
        param_group = name_all(self.param_groups, param_group)
        group = self.defaults | param_group
        ball = ball_of(group["constraint"])
        check_group(group)
        if ball is not None:
            check(not param_group.get("weight_decay"), "weight_decay", "0 where a set holds", group["weight_decay"])
            group["weight_decay"] = 0.0
            group["swapped"] *= not isinstance(ball.split, Entries)  # entries have no order to keep
        super().add_param_group(group)
        group = self.param_groups[-1]
        try:
            for name, p in named(self.param_groups, len(self.param_groups) - 1):
                check_tensor(p, ball, name)
            group["radius"] = None if ball is None else radii(group, ball)
        except TenfoldError:
            self.param_groups.pop()
            raise
        group["constraint"] = None if ball is None else ball.to_dict()

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step. ``closure``, if given, computes the loss and its gradient anew; its loss is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        moving = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        weights = {p: weight_of(p, self.state[p]) for p in moving}
        gradients = {p: gradient(p).to(weights[p].dtype) for p in moving}
        fine = finite(gradients)
        self._start(weights, fine)
        for group in self.param_groups:
            ball = None if group["constraint"] is None else balls.from_dict(group["constraint"])
            for params in alike(p for p in group["params"] if p in weights):
                if ball is None:
                    self._descend(group, params, weights, gradients, fine)
                elif started := [p for p in params if "statistics" in self.state[p]]:
                    self._move(group, ball, started, weights, gradients, fine)
        for p, weight in weights.items():
            write_back_(p, weight)
        return loss

    @torch.no_grad()
    def fw_gap(self) -> float:
        """The Frank-Wolfe gap ``sum_C max_{v in C} <g, theta - v>`` at the present gradients; 0 if stationary."""
        total = 0.0
        for _, p, ball, radius, swapped in self._constrained():
            if p.grad is not None:
                total += gap(p, gradient(p), ball, radius, swapped)
        return total

    @torch.no_grad()
    def stats(self) -> list[Track]:
        """Step statistics of each constrained tensor that has moved."""
        tracks = []
        for name, p, ball, radius, swapped in self._constrained():
            if "statistics" in self.state[p]:
                tracks.append(Track.of(name, self.state[p]["statistics"], float(gauge(ball, p, swapped)[0]) / radius))
        return tracks

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; torch would bring the float32 part of half-precision weights' states into half precision."""
        super().load_state_dict(state_dict)
        order = [i for group in state_dict["param_groups"] for i in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        restore_(self.state, params, state_dict["state"], order)

    def _constrained(self) -> Iterator[tuple[str, Tensor, Ball, float, int]]:
        for i, group in enumerate(self.param_groups):
            if group["constraint"] is not None:
                ball = balls.from_dict(group["constraint"])
                for (name, p), radius in zip(named(self.param_groups, i), group["radius"], strict=True):
                    yield name, p, ball, radius, group["swapped"]

    def _start(self, weights: Mapping[Tensor, Tensor], fine: Tensor) -> None:
        """States for the parameters that have their first gradients; those outside their sets are pulled in."""
        new = [one for one in self._constrained() if one[1] in weights and "statistics" not in self.state[one[1]]]
        if not new or not bool(fine):
            return
        pulled = []
        for name, p, ball, radius, swapped in new:
            weight, state = weights[p], self.state[p]
            state["momentum_buffer"] = torch.zeros_like(weight)
            state["radius"] = torch.tensor(radius, dtype=weight.dtype, device=p.device)
            state["statistics"] = torch.zeros(len(STATISTICS), device=p.device)
            now, own = gauge(ball, weight, swapped)
            if bool(now > radius * (1 + TOLERANCE)):
                part = local(weight)  # shrunk as the whole is
                part.copy_(kernel(ball.pull_in(kernel(part, swapped), radius * own / now), swapped))
                pulled.append(name)
        if pulled:
            names = ", ".join(f"'{name}'" for name in pulled)
            warnings.warn(
                f"{names} started outside the set and has been pulled in. Raise `width` or `radius` to start inside.",
                TenfoldWarning,
                stacklevel=3,
            )

    def _descend(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        weights: Mapping[Tensor, Tensor],
        gradients: Mapping[Tensor, Tensor],
        fine: Tensor,
    ) -> None:
        """SGD, for tensors without a constraint, with a momentum made here: nothing moves unless all is fine."""
        theta, g = [local(weights[p]) for p in params], [local(gradients[p]) for p in params]
        fine = fine.to(theta[0].device)
        if group["weight_decay"]:
            g = list(torch._foreach_add(g, theta, alpha=group["weight_decay"]))  # pyright: ignore[reportPrivateImportUsage]
        if group["momentum"]:
            old = [i for i, p in enumerate(params) if "momentum_buffer" in self.state[p]]  # the first is the gradient
            if old:
                before = [local(self.state[params[i]]["momentum_buffer"]) for i in old]
                after = blend(before, [g[i] for i in old], group["momentum"], group["dampening"])
                for i, one in zip(old, after, strict=True):
                    g[i] = one
            for p, one in zip(params, g, strict=True):
                buffer = local(self.state[p].setdefault("momentum_buffer", torch.zeros_like(weights[p])))
                torch.where(fine, one, buffer, out=buffer)
        g = [torch.where(fine, one, 0.0) for one in g]
        none: list[Tensor | None] = [None] * len(g)
        sgd(theta, g, none, weight_decay=0, momentum=0, lr=group["lr"], dampening=0, nesterov=False, maximize=False)

    def _move(
        self,
        group: dict[str, Any],
        ball: Ball,
        params: list[Tensor],
        weights: Mapping[Tensor, Tensor],
        gradients: Mapping[Tensor, Tensor],
        fine: Tensor,
    ) -> None:
        """One step of tensors of one layout and any shapes."""
        swapped, states, where = group["swapped"], [self.state[p] for p in params], layout(params[0])
        theta, g = [local(weights[p]) for p in params], [local(gradients[p]) for p in params]
        m = [local(s["momentum_buffer"]) for s in states]
        new = blend(m, g, group["momentum"], group["dampening"])
        momentum = lengths(new, where)
        good = torch.isfinite(momentum) & fine.to(momentum.device)
        for old, one, keep in zip(m, new, good, strict=True):
            torch.where(keep, one, old, out=old)
        del new
        ends, scale = vertices(ball, params, states, momentum, good, swapped)
        between = (torch.addcmul(*three) for three in zip(theta, ends, -scale, strict=True))
        distance = lengths(between, where)
        widths = [ball.diameter(1.0, kernel_shape(p.shape, swapped)) for p in params]
        diameter = torch.stack([s["radius"] * width for s, width in zip(states, widths, strict=True)])
        sizes = Lengths(torch.where(good, momentum, torch.nan), distance, diameter)
        eta, clamped = step_size(RESCALINGS[group["rescale"]], group["lr"], sizes, group["max_eta"])
        toward_(theta, ends, eta, scale)
        statistics = advance(torch.stack([s["statistics"] for s in states]), eta, clamped, good)
        for state, row in zip(states, statistics, strict=True):
            state["statistics"] = row
