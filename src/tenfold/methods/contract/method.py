"""The contract of a method, and the two verbs that use one: `plan` touches nothing, `compress` builds.

A method is a frozen dataclass: its fields *are* its configuration, and run state lives in the model and the optimizer.
Whatever a method does while a network trains happens inside ``optimizer.step()``, so it works in any loop. The same
three calls serve every method::

    model = method.begin(model)                           # what is trained: a copy, dense or factorised
    optimizer = method.optimizer(model, lr=0.1)           # a torch Optimizer; or method.attach(model, your_optimizer)
    result = method.finish(model, budget)                 # the compressed model, its plan, its report

A post-training method overrides only `choose`.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.optim import Optimizer

from tenfold.errors import ArgumentError, check, is_count
from tenfold.layers.batchnorm import reestimate_
from tenfold.layers.copy_model import duplicate
from tenfold.layers.cost import Cost, cost
from tenfold.layers.select import Selection
from tenfold.plans.apply import Report, Result, apply
from tenfold.plans.plan import Budget, Plan
from tenfold.plans.problem import Problem, survey


@dataclass(frozen=True)
class Goal:
    """What a method may know of the training ahead: where it leads, and how long it is. All of it may be left out.

    Give `Method.begin` and `Method.optimizer` the same one, and `Method.finish` its budget, inputs and selection.

    Args:
        budget: what may be kept in the end; methods that choose ranks while training aim at it.
        example_inputs: needed for a budget on MACs; see `tenfold.plan`.
        target_modules: see `tenfold.plan`.
        exclude_modules: see `tenfold.plan`.
        steps_per_epoch: optimizer steps of one epoch, >= 1; for methods that act by epoch.
        steps: of the whole run, >= 1; for methods that act in a part of it only.

    Raises:
        ArgumentError: a number below 1.
    """

    budget: Budget | None = None
    example_inputs: Any = None
    target_modules: Selection = None
    exclude_modules: Selection = None
    steps_per_epoch: int | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("steps_per_epoch", "steps"):
            value = getattr(self, name)
            check(value is None or is_count(value), name, "an integer >= 1, or None", value)


@dataclass(frozen=True)
class Method(ABC):
    """One published algorithm. Subclasses are final frozen dataclasses that check their ranges in `__post_init__`."""

    name: ClassVar[str]
    """What the command line and the plans call it."""
    needs_data: ClassVar[bool] = False
    """Whether `plan` needs calibration data."""
    needs_layers: ClassVar[bool] = True
    """Whether there must be a layer to decompose."""
    needs_budget: ClassVar[bool] = True
    """Whether `plan` needs a budget; methods that choose ranks themselves do not."""

    @property
    def needs_closure(self) -> bool:
        """Whether ``step`` must be given a closure that computes the loss anew; may depend on the fields."""
        return False

    def begin(self, model: nn.Module, *, goal: Goal | None = None) -> nn.Module:
        """The model to train: a copy; methods that train factors return a factorised one.

        Args:
            model: with its first weights, or trained ones; untouched.
            goal: where the training leads, for methods that build what its budget allows; give `optimizer` the same.
        """
        return duplicate(model)

    def optimizer(
        self,
        model: nn.Module,
        *,
        base: type[Optimizer] = torch.optim.SGD,
        goal: Goal | None = None,
        **hyper: Any,
    ) -> Optimizer:
        """A torch optimizer that does the method's work inside its ``step``.

        Args:
            model: from `begin`.
            base: the optimizer underneath.
            goal: where the training leads and how long it is; None where nobody knows.
            hyper: its arguments: ``lr=0.1, momentum=0.9, weight_decay=1e-4``.
        """
        made = base((p for p in model.parameters() if p.requires_grad), **hyper)
        return self.attach(model, made, goal=goal)

    def attach(self, model: nn.Module, optimizer: Optimizer, *, goal: Goal | None = None) -> Optimizer:
        """The same work hooked onto an optimizer that there is already; returns that optimizer.

        A method that is an optimizer of its own raises `ArgumentError` and says what to do instead.
        """
        return optimizer

    def describe(self, model: nn.Module, goal: Goal | None = None) -> list[dict[str, Any]]:
        """What the method does to which tensor while training, one row each, for people; empty where it is the same."""
        return []

    @abstractmethod
    def choose(self, problem: Problem, budget: Budget | None) -> Plan:
        """What each layer becomes; `plan` has seen to it that all that the method needs is there."""

    def prepare(self, model: nn.Module, plan: Plan) -> nn.Module:
        """The weights that ``plan`` is to be built on: `finish` asks. ``model`` itself where there is nothing to do."""
        return model

    def plan(self, problem: Problem, budget: Budget | None = None) -> Plan:
        """What each layer becomes. Reads the weights, touches nothing.

        Args:
            problem: from `survey`.
            budget: what may be kept; None only where `needs_budget` is False.

        Raises:
            ArgumentError: no budget or no data, where the method needs them.
            UnsupportedLayer: no layer can be decomposed.
            BudgetError: the budget cannot be reached; the message names what can.
        """
        if budget is None and self.needs_budget:
            raise ArgumentError(f"`budget` must be given for {self.name}: e.g. tenfold.Budget(params=0.25).")
        if problem.data is None and self.needs_data:
            raise ArgumentError(f"`data` must be given for {self.name}: calibration batches x or (x, y).")
        if self.needs_layers:
            problem.require_sites()
        return self.choose(problem, budget)

    def finish(
        self,
        model: nn.Module,
        budget: Budget | None = None,
        *,
        data: Iterable[Any] | None = None,
        example_inputs: Any = None,
        target_modules: Selection = None,
        exclude_modules: Selection = None,
    ) -> Result:
        """Compress a model trained by this method, or by anything else.

        Args:
            model: trained; untouched.
            budget: what may be kept.
            data: batches ``x`` or ``(x, y)`` to re-estimate batch norm from, and to calibrate a method that needs it;
                anything that can be gone through twice. None leaves the statistics.
            example_inputs: for MACs only; see `tenfold.plan`.
            target_modules: see `tenfold.plan`.
            exclude_modules: see `tenfold.plan`.
        """
        if self.needs_data and isinstance(data, Iterator):
            kind = type(data).__name__
            raise ArgumentError(f"`data` is gone through twice; got a {kind}. Pass a list of batches or a DataLoader.")
        clock = time.perf_counter()
        problem = survey(
            model,
            example_inputs=example_inputs,
            data=data,
            target_modules=target_modules,
            exclude_modules=exclude_modules,
        )
        made = self.plan(problem, budget)
        planned = time.perf_counter()
        small = apply(self.prepare(problem.model, made), made)
        applied = time.perf_counter()
        if data is not None and made.compresses:
            reestimate_(small, data)
        seconds = {"plan": planned - clock, "apply": applied - planned, "reestimate": time.perf_counter() - applied}
        left = {name: layer.reason or "" for name, layer in made.layers.items() if layer.decomposition == "dense"}
        after = cost(small, example_inputs)
        return Result(small, made, Report(Cost(problem.dense.params, problem.dense.macs), after, seconds, left))

    def to_dict(self) -> dict[str, Any]:
        """The name and the fields, for JSON."""
        return {"method": self.name} | asdict(self)


def plan(
    model: nn.Module,
    method: Method,
    budget: Budget | None = None,
    *,
    example_inputs: Any = None,
    data: Iterable[Any] | None = None,
    target_modules: Selection = None,
    exclude_modules: Selection = None,
) -> Plan:
    """What each layer of ``model`` would become under ``budget``. Touches nothing.

    For several budgets on one model make the `Problem` once: ``problem = tenfold.survey(model)``, then
    ``method.plan(problem, budget)`` for each; the spectra are computed once.

    Args:
        model: any module with finite weights.
        method: e.g. ``tenfold.ALDS()``.
        budget: what may be kept; None where the method chooses ranks itself.
        example_inputs: needed for a budget on MACs, and for MACs in the plan: a tensor, a tuple of positional or a
            dict of keyword arguments.
        data: calibration batches ``x`` or ``(x, y)``; for methods that need them.
        target_modules: only these layers: a regular expression for the whole name, or a list of names or endings.
        exclude_modules: never these.

    Raises:
        BudgetError: the budget cannot be reached; the message names the smallest that can.
        ArgumentError: a selection that matches nothing, or no inputs for a budget on MACs.
        UnsupportedLayer: the model has no layer to decompose.
        TenfoldError: a weight with NaN or infinite entries.
    """
    problem = survey(
        model,
        example_inputs=example_inputs,
        data=data,
        target_modules=target_modules,
        exclude_modules=exclude_modules,
    )
    return method.plan(problem, budget)


def compress(model: nn.Module, method: Method, budget: Budget | None = None, **options: Any) -> Result:
    """`plan` and `apply` in one: ``small, plan, report = tenfold.compress(model, tenfold.ALDS(), budget)``.

    Options are those of `Method.finish`: data, example_inputs, target_modules, exclude_modules.
    """
    return method.finish(model, budget, **options)
