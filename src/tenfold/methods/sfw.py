"""SFW: weights that stay in a norm ball, moved toward its vertices, which are sparse in filters or low-rank.

Zimmer, Spiegel, Pokutta, "Compression-aware Training of Neural Networks using Frank-Wolfe", arXiv 2205.11921.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tenfold.errors import ArgumentError, TenfoldWarning, check, is_share
from tenfold.layers.find import find
from tenfold.layers.spec import CONVS, TRANSPOSED, LayerSpec
from tenfold.layers.usable import refuse_without_numbers
from tenfold.linalg import balls
from tenfold.linalg.balls import L2, Ball, Spectral, SpectralKSupport
from tenfold.linalg.balls.norms import how_many
from tenfold.linalg.frank_wolfe import RESCALINGS
from tenfold.methods.contract.method import Goal, Method
from tenfold.optim.dtensor import whole
from tenfold.optim.frank_wolfe.optimizer import FrankWolfe
from tenfold.optim.frank_wolfe.param_groups import kernel_shape
from tenfold.optim.frank_wolfe.statistics import outlook
from tenfold.optim.hooks import State, hook_steps
from tenfold.plans.budget import Budget
from tenfold.plans.plan import Plan
from tenfold.plans.problem import Problem
from tenfold.plans.uniform_plan import uniform_plan

_DEVIATIONS = 2.5
"""Five standard deviations of the norm of n uniform numbers, over its mean, times ``sqrt(n)``: ``5 sqrt(0.2)``."""

STATE = "sfw"
"""Where the count of steps is: ``optimizer.param_groups[0][STATE]``, where the length of the run is known."""
_LOOKED_AT = 40
"""The least number of steps in all at which an early look at them tells anything."""

_HYPER = ("lr", "momentum", "dampening", "weight_decay")
"""What SFW's optimizer can be told; all else is the method's own fields."""

_PAPER = SpectralKSupport(k=0.1)


@dataclass(frozen=True)
class Assignment:
    """The constraint set of one parameter.

    Args:
        name: of the parameter.
        constraint: the set; None for plain SGD.
        radius: of the set.
        k: how many filters, values or entries a vertex has, for the sets that have a k.
        swapped: see `FrankWolfe`.
        note: why it is not what the method's fields would say, or where its scale comes from.
    """

    name: str
    constraint: Ball | None
    radius: float | None = None
    k: int | None = None
    swapped: int = 0
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for tables and JSON."""
        name = "SGD" if self.constraint is None else type(self.constraint).__name__
        return {"parameter": self.name, "set": name, "k": self.k, "radius": self.radius, "note": self.note}


@dataclass(frozen=True)
class SFW(Method):
    """Stochastic Frank-Wolfe over norm balls: one dense training, robust to a range of compressions after it.

    ::

        m <- mu m + g,   v = argmin_{v in C} <m, v>,   theta <- (1 - eta) theta + eta v

    see `tenfold.linalg.frank_wolfe`. The set of a kernel acts on the matrix ``c_out x (c_in kh kw)``; its L2 diameter
    is ``2 w rho``, rho the L2 norm that the tensor is expected to have at initialisation. `describe` tells which tensor
    gets which set. What matters is that the start is forgotten, ``F = prod (1 - eta) ~ 0``, and that the learning rate
    falls to about 0; see `FrankWolfe.stats`, and the page docs/methods/sfw.md for how to choose.

    `plan` takes the same fraction of the rank in every layer, the largest that the budget allows, as the paper does;
    without a budget every layer stays dense. For filters see `tenfold.prune_filters`.

    Args:
        constraint: a ball of `tenfold.balls`, its `to_dict`, or text: "spectral-k-support:k=0.1".
            SpectralKSupport for low rank, GroupKSupport for filters.
        width: w, > 0: how wide the sets are, in norms at initialisation.
        rescale: of the step size: "none", "diameter", "gradient" or "radius".
        max_eta: largest step size, in (0, 1]; below 1 no step lands on a vertex.
        linear: whether the set is put on linear layers too; those named in ``target_modules`` have it anyway.
        vectors: biases, norms, whatever has one axis: "sgd" trains them plainly, "l2" puts an L2 ball of the same w on
            them as on every other tensor outside the set; the paper's preset.

    Raises:
        ArgumentError: a value out of range.
        TenfoldError: by `optimizer`, for a sharded tensor in another set than L1, L2 and LInf.

    Source: the paper; the step from Pokutta, Spiegel, Zimmer 2020 (arXiv 2010.07243). Deviations: rho in closed form,
    where the authors draw the live model anew to measure it; biases and norms by SGD unless asked otherwise; batch norm
    re-estimated after compression; a tensor of zeros has no scale and is trained by SGD.
    """

    constraint: Ball | str | Mapping[str, Any] = _PAPER
    width: float = 10.0
    rescale: Literal["none", "diameter", "gradient", "radius"] = "gradient"
    max_eta: float = 1.0
    linear: bool = False
    vectors: Literal["sgd", "l2"] = "sgd"

    name: ClassVar[str] = "sfw"
    needs_budget: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        object.__setattr__(self, "constraint", read_ball(self.constraint))
        check(is_share(self.width) and self.width > 0, "width", "a number > 0", self.width)
        check(self.rescale in RESCALINGS, "rescale", f"one of {', '.join(RESCALINGS)}", self.rescale)
        check(is_share(self.max_eta) and 0 < self.max_eta <= 1, "max_eta", "in (0, 1]", self.max_eta)
        check(isinstance(self.linear, bool), "linear", "True or False", self.linear)
        check(self.vectors in ("sgd", "l2"), "vectors", '"sgd" or "l2"', self.vectors)

    def optimizer(
        self,
        model: nn.Module,
        *,
        base: type[Optimizer] = torch.optim.SGD,
        goal: Goal | None = None,
        **hyper: Any,
    ) -> Optimizer:
        """Make a `FrankWolfe` optimizer of all parameters, frozen ones too. No weight changes before its first step.

        Args:
            model: from `begin`.
            base: SGD; there is no other.
            goal: its selection says where the set is put; its ``steps`` when to look: after a quarter of them, for a
                rate that falls linearly or by a cosine, a warning tells of settings that lead to nothing.
            hyper: ``lr``, ``momentum``, ``dampening``; ``weight_decay`` for what has no set.

        Raises:
            ArgumentError: another base, another argument, or a value out of range.
        """
        check(base is torch.optim.SGD, "base", "left out: SFW is an optimizer of its own", base)
        unknown = next((name for name in hyper if name not in _HYPER), None)
        if unknown is not None or "lr" not in hyper:
            found = "no `lr`" if unknown is None else f"`{unknown}`"
            raise ArgumentError(f"`hyper` of SFW must have lr, and may have {', '.join(_HYPER[1:])}; got {found}.")
        parameters = dict(model.named_parameters())
        groups: dict[Any, dict[str, Any]] = {}
        for one in self.assignments(model, goal):
            empty = {"params": [], "constraint": one.constraint, "radius": [], "swapped": one.swapped}
            group = groups.setdefault((one.constraint, one.swapped), empty)
            group["params"].append((one.name, parameters[one.name]))
            group["radius"].append(one.radius)
        made = FrankWolfe(groups.values(), rescale=self.rescale, max_eta=self.max_eta, **hyper)
        if goal is not None and goal.steps is not None and goal.steps >= _LOOKED_AT:
            self._look_early(made, goal.steps // 4)
        return made

    def attach(self, model: nn.Module, optimizer: Optimizer, *, goal: Goal | None = None) -> Optimizer:
        """Refused: the step is a Frank-Wolfe step, not a gradient step with something added. See `Method.attach`.

        Raises:
            ArgumentError: always.
        """
        raise ArgumentError(
            f"`optimizer` must be SFW's own, a {type(optimizer).__name__} cannot take its steps. "
            "Use optimizer = method.optimizer(model, lr=..., momentum=0.9) in its place."
        )

    def describe(self, model: nn.Module, goal: Goal | None = None) -> list[dict[str, Any]]:
        """A table of the constraint set of each parameter."""
        return [one.to_dict() for one in self.assignments(model, goal)]

    def assignments(self, model: nn.Module, goal: Goal | None = None) -> list[Assignment]:
        """The constraint set of each parameter, each once, in the model's order.

        Args:
            model: not wrapped; it is only looked at.
            goal: its selection says where the set is put.
        """
        refuse_without_numbers(model)
        goal = goal or Goal()
        targets = {
            f"{t.name}.weight".lstrip("."): t.spec
            for t in find(model, goal.target_modules, goal.exclude_modules, replaced=False)
            if t.reason is None and t.spec is not None
        }
        everywhere = self.linear or goal.target_modules is not None
        chosen = {name: spec for name, spec in targets.items() if everywhere or not spec.linear}
        modules = dict(model.named_modules())
        made = []
        for name, p in model.named_parameters():
            module = modules[name.rpartition(".")[0]]
            bare = self._set_of(name, p, chosen.get(name))
            made.append(bare if bare.constraint is None else self._sized(bare, bare.constraint, module, p))
        return made

    def choose(self, problem: Problem, budget: Budget | None) -> Plan:
        """Choose the largest common fraction of the full rank within ``budget``."""
        return uniform_plan(problem, self.name, budget)

    def to_dict(self) -> dict[str, Any]:
        """The name and the fields, for JSON; the ball as plain data."""
        return {"method": self.name} | asdict(self) | {"constraint": read_ball(self.constraint).to_dict()}

    def _look_early(self, optimizer: FrankWolfe, step: int) -> None:
        """Warn after ``step`` steps, a quarter of the run, where they lead to nothing that can be cut."""
        kept_in = read_ball(self.constraint).to_dict()

        def look(state: State) -> None:
            if state["steps"] == step:
                groups = optimizer.param_groups
                inside = {name for g in groups if g["constraint"] == kept_in for name in g["param_names"]}
                said = outlook([track for track in optimizer.stats() if track.name in inside])
                if said:
                    warnings.warn(f"SFW after {step} steps, a quarter of them: {said}", TenfoldWarning, stacklevel=2)

        hook_steps(optimizer, STATE, {}, after=look)

    def _set_of(self, name: str, p: Tensor, spec: LayerSpec | None) -> Assignment:
        """The set of one parameter, without its size. ``spec``: of a layer that is to have the structured one."""
        ball = read_ball(self.constraint)
        if spec is not None:
            swapped = spec.groups if spec.transposed else int(spec.kind == "conv1d_gpt2")
            if isinstance(ball, Spectral) and spec.groups > 1 and spec.shape[1] == 1:
                return Assignment(name, L2(), swapped=swapped, note="depthwise: it has no rank to lose")
            return Assignment(name, ball, swapped=swapped)
        if p.ndim < 2 and self.vectors == "sgd":
            return Assignment(name, None)
        return Assignment(name, L2())

    def _sized(self, one: Assignment, ball: Ball, module: nn.Module, p: Tensor) -> Assignment:
        """The same with its radius and k."""
        norm, default = expected_norm(module, p)
        if norm == 0:
            return replace(one, constraint=None, swapped=0, note="all zeros: no scale for a radius")
        shape = kernel_shape(p.shape, one.swapped)
        k = ball.to_dict().get("k")
        note = one.note or ("" if default else "radius from its present norm: not torch's default initialisation")
        return replace(
            one,
            radius=ball.radius(2 * self.width * norm, shape),
            k=None if k is None else how_many(k, ball.split.count(shape)),
            note=note,
        )


def expected_norm(module: nn.Module, p: Tensor) -> tuple[float, bool]:
    """The L2 norm rho that a tensor is expected to have at initialisation, and whether that is in closed form.

    Torch draws weights and biases of linear layers and convolutions uniformly from ``+-1 / sqrt(fan_in)``: ``rho^2 =
    n / (3 fan_in)`` for n numbers, which is ``c_out / 3`` for a weight. A tensor counts as drawn so if it keeps within
    those bounds and its norm within five standard deviations; the norm of any other is what it is now.

    Args:
        module: that holds the tensor.
        p: the tensor.
    """
    p = whole(p.detach())
    norm = float(p.double().norm())
    if p.numel() == 0:
        return 0.0, True  # a layer without outputs: nothing is kept anywhere
    if isinstance(module, (nn.Linear, *CONVS, *TRANSPOSED)):
        bound = 1 / math.sqrt(math.prod(module.weight.shape[1:]))
        rho = bound * math.sqrt(p.numel() / 3)
        inside = float(p.abs().max()) <= bound * (1 + 1e-3)  # half types round up
        if inside and abs(norm / rho - 1) <= _DEVIATIONS / math.sqrt(p.numel()):
            return rho, True
    return norm, False


def read_ball(value: Any) -> Ball:
    """A ball from itself, from its `to_dict`, or from text: "spectral-k-support:k=0.1", "lp:p=1.5", "l2".

    Raises:
        ArgumentError: nothing of these.
    """
    if isinstance(value, Ball):
        return value
    known = {name.lower(): name for name in balls.SETS}
    fields = dict(value) if isinstance(value, Mapping) else {}
    if isinstance(value, str):
        kind, _, rest = value.partition(":")
        fields = {"ball": kind} | dict(_number(part) for part in rest.split(",") if part)
    name = known.get(str(fields.get("ball")).replace("-", "").lower())
    rule = 'a ball of tenfold.balls, or text like "spectral-k-support:k=0.1"'
    check(name is not None, "constraint", rule, value, f"There are: {', '.join(balls.SETS)}.")
    try:
        return balls.from_dict(fields | {"ball": name})
    except TypeError as error:
        raise ArgumentError(f"`constraint` must have all fields of {name}, and no others; got {value!r}.") from error


def _number(part: str) -> tuple[str, Any]:
    """A name and a number from "k=0.1": an int without a point."""
    name, _, text = part.partition("=")
    try:
        return name.strip(), int(text) if text.strip().lstrip("-").isdigit() else float(text)
    except ValueError:
        raise ArgumentError(f"`constraint` must have numbers as in k=0.1; got {part!r}.") from None
