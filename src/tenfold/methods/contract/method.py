"""The contract of a method: what its author writes.

A method is a frozen dataclass: its fields *are* its configuration, and run state lives in the model and the optimizer.
Whatever a method does while a network trains happens inside ``optimizer.step()``, so it works in any loop. The same
three calls serve every method; `tenfold.begin` makes them for the user::

    model = method.begin(model, goal=goal)                 # what is trained: a copy, dense or factorised
    optimizer = method.optimizer(model, goal=goal, lr=0.1)   # or method.attach(model, your_optimizer, goal=goal)
    result = method.finish(model, budget)                  # the compressed model, its plan, its report

A post-training method overrides only `choose`.
"""

from __future__ import annotations

import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, get_args

import torch
from torch import nn
from torch.optim import Optimizer

from tenfold.errors import ArgumentError, BudgetError, TenfoldWarning, check, is_count, shortened
from tenfold.layers.copy_model import duplicate
from tenfold.layers.cost import Cost
from tenfold.layers.norm_choice import Norms, settle_norms_
from tenfold.layers.select import Selection
from tenfold.plans.apply import Result, build
from tenfold.plans.budget import Budget
from tenfold.plans.plan import Plan
from tenfold.plans.problem import Problem, survey
from tenfold.plans.refit_result import Refit, check_refit, norms_after, refitted
from tenfold.plans.within_latency import with_times, within_latency


@dataclass(frozen=True)
class Goal:
    """The target of a training run, as methods see it: budget, selection, inputs and length. All of it may be left out.

    `tenfold.begin` makes it and tells it to everyone; who calls a method's own `begin` and `optimizer` gives both the
    same one, and `finish` its budget, inputs and selection.

    Args:
        budget: what may be kept in the end; methods that choose ranks while training aim at it.
        example_inputs: needed for a budget on MACs; see `tenfold.plan`.
        target_modules: see `tenfold.plan`.
        exclude_modules: see `tenfold.plan`.
        steps_per_epoch: optimizer steps of one epoch, >= 1; for methods that act by epoch.
        steps: of the whole run, >= 1; for methods that act in a part of it only.
        runtime: that a budget on latency is measured in; see `tenfold.plan`.
        threads: that it may use.

    Raises:
        ArgumentError: a number below 1.
    """

    budget: Budget | None = None
    example_inputs: Any = None
    target_modules: Selection = None
    exclude_modules: Selection = None
    steps_per_epoch: int | None = None
    steps: int | None = None
    runtime: str = "eager"
    threads: int = 1

    def __post_init__(self) -> None:
        """Check types and ranges."""
        check_budget(self.budget)
        for name in ("steps_per_epoch", "steps"):
            value = getattr(self, name)
            check(value is None or is_count(value), name, "an integer >= 1, or None", value)


@dataclass(frozen=True)
class Method(ABC):
    """Base class of compression methods: one published algorithm, its hyper-parameters as fields.

    Subclasses are final frozen dataclasses that check their ranges in `__post_init__`.
    """

    name: ClassVar[str]
    """What the command line and the plans call it."""
    needs_data: ClassVar[bool] = False
    """Whether `plan` needs calibration data. Asked of instances: a method may make it depend on its fields."""
    data_remedy: ClassVar[str] = "Pass data=[x, ...]."
    """What is said to who gives no data where they are needed."""
    needs_layers: ClassVar[bool] = True
    """Whether there must be a layer to decompose."""
    keeps_norms: ClassVar[bool] = False
    """Whether what it makes is fitted for the statistics that batch norm has: then they are not estimated again."""
    times_itself: ClassVar[bool] = False
    """Whether `choose` keeps to a budget on latency by itself: by `within_latency`, where that is cheap."""
    needs_budget: ClassVar[bool] = True
    """Whether `plan` needs a budget; methods that choose ranks themselves do not."""

    @property
    def needs_closure(self) -> bool:
        """Whether ``step`` must be given a closure that computes the loss anew; may depend on the fields."""
        return False

    def begin(self, model: nn.Module, *, goal: Goal | None = None) -> nn.Module:
        """Make the model to train: a copy; methods that train factors return a factorised one.

        Args:
            model: with its first weights, or trained ones; untouched.
            goal: for methods that build what its budget allows; give `optimizer` the same.
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
        """Make a torch optimizer that does the method's work inside its ``step``.

        Args:
            model: from `begin`.
            base: the class of the optimizer underneath.
            goal: budget, selection and length of the training; None where they are not known.
            hyper: the arguments of ``base``: ``lr=0.1, momentum=0.9, weight_decay=1e-4``.
        """
        made = base((p for p in model.parameters() if p.requires_grad), **hyper)
        return self.attach(model, made, goal=goal)

    def attach(self, model: nn.Module, optimizer: Optimizer, *, goal: Goal | None = None) -> Optimizer:
        """Hook the method's work onto an existing optimizer; returns that optimizer.

        A method that is an optimizer of its own raises `ArgumentError` and says what to do instead.

        Args:
            model: from `begin`.
            optimizer: of its parameters.
            goal: as in `optimizer`.
        """
        return optimizer

    def describe(self, model: nn.Module, goal: Goal | None = None) -> list[dict[str, Any]]:
        """A table, one row per tensor, of what the method does to it in training; empty where all are treated alike.

        Args:
            model: from `begin`.
            goal: as in `optimizer`.
        """
        return []

    @abstractmethod
    def choose(self, problem: Problem, budget: Budget | None) -> Plan:
        """Choose the plan; `plan` calls it after checking that all that the method needs is there.

        Args:
            problem: the layers, their costs and spectra.
            budget: what may be kept; None where there is none.
        """

    def plan(self, problem: Problem, budget: Budget | None = None) -> Plan:
        """Choose a decomposition and rank for each layer of ``problem`` within ``budget``. Nothing is changed.

        Args:
            problem: from `survey`.
            budget: what may be kept; None only where `needs_budget` is False.

        Raises:
            ArgumentError: no budget or no data, where the method needs them.
            UnsupportedLayer: no layer can be decomposed.
            BudgetError: the budget cannot be reached; the message names what can.
        """
        check_budget(budget)
        if budget is None and self.needs_budget:
            raise ArgumentError(f"`budget` must be given for {self.name}: e.g. tenfold.Budget(params=0.25).")
        if problem.data is None and self.needs_data:
            raise ArgumentError(
                f"`data` must be given for {self.name}: batches of inputs, or (inputs, target) pairs. "
                f"{self.data_remedy}"
            )
        if self.needs_layers:
            problem.require_sites()
        if budget is not None and "latency" in budget.costs:
            problem = with_times(problem)
            made = self.choose(problem, budget) if self.times_itself else within_latency(problem, budget, self.choose)
        else:
            made = self._chosen(problem, budget)
        check(isinstance(made, Plan), "choose", f"a method of {self.name} that returns a Plan", made)
        over = None if budget is None else budget.exceeded(problem.dense, Cost(made.params, made.macs))
        if over is not None:
            raise BudgetError(f"{self.name} does not keep to `budget`: its plan has {over}. Take another method.")
        return made

    def _chosen(self, problem: Problem, budget: Budget | None) -> Plan:
        """The plan at aligned ranks where the budget can be kept so, else at any."""
        if problem.align == 1 or budget is None:
            return self.choose(problem if problem.align == 1 else replace(problem, align=1, tables={}), budget)
        try:
            return self.choose(problem, budget)
        except BudgetError:
            return self.choose(replace(problem, align=1, tables={}), budget)

    def finish(
        self,
        model: nn.Module,
        budget: Budget | None = None,
        *,
        example_inputs: Any = None,
        data: Iterable[Any] | None = None,
        target_modules: Selection = None,
        exclude_modules: Selection = None,
        refit: Refit | None = None,
        norms: Norms = "auto",
        runtime: str = "eager",
        threads: int = 1,
        align: int | None = 1,
    ) -> Result:
        """Compress a trained model: plan, build, measure, and choose batch-norm statistics; see `tenfold.compress`.

        Args:
            model: trained; untouched.
            budget: what may be kept.
            example_inputs: for MACs only; see `tenfold.plan`.
            data: see `tenfold.compress`. None leaves the statistics.
            target_modules: see `tenfold.plan`.
            exclude_modules: see `tenfold.plan`.
            refit: see `tenfold.compress`.
            norms: see `tenfold.compress`.
            runtime: see `tenfold.plan`.
            threads: see `tenfold.plan`.
            align: see `tenfold.plan`; 1 leaves ranks as they were trained.

        Raises:
            ArgumentError: another word for ``norms``, no data for "reestimate", data that can be gone through once
                only; and what `plan` raises.
        """
        check_refit(refit, data)
        check(norms in get_args(Norms), "norms", f"one of {', '.join(get_args(Norms))}", norms)
        check(norms != "reestimate" or data is not None, "data", 'given for norms="reestimate"', data)
        if (self.needs_data or refit) and isinstance(data, Iterator):
            kind = type(data).__name__
            raise ArgumentError(f"`data` is gone through twice; got a {kind}. Pass a list of batches or a DataLoader.")
        clock = time.perf_counter()
        problem = survey(
            model,
            example_inputs=example_inputs,
            data=data,
            target_modules=target_modules,
            exclude_modules=exclude_modules,
            runtime=runtime,
            threads=threads,
            align=align,
        )
        made = self.plan(problem, budget)
        if budget is None and self.needs_layers and not made.compresses:
            warnings.warn(
                f"`budget` was not given, and without one {self.name} compressed nothing: the model that comes back is "
                "dense. Pass e.g. tenfold.Budget(params=0.25), as often as you like.",
                TenfoldWarning,
                stacklevel=2,
            )
        seconds = {"plan": time.perf_counter() - clock}
        result = build(problem, made, budget)
        if refit is not None and data is not None:
            result = refitted(result, problem.model, data, refit)
        seconds |= result.report.seconds
        clock = time.perf_counter()
        settled = None
        if data is not None and made.compresses:
            norms = norms_after(norms, fitted=refit is not None or self.keeps_norms)
            settled = settle_norms_(result.model, problem.model, data, norms)
        seconds["reestimate"] = time.perf_counter() - clock
        return replace(result, report=replace(result.report, seconds=seconds, norms=settled))

    def to_dict(self) -> dict[str, Any]:
        """The name and the fields, for JSON."""
        return {"method": self.name} | asdict(self)


def epoch_steps(goal: Goal, name: str) -> int:
    """The optimizer steps of one epoch, for the method called ``name``.

    Raises:
        ArgumentError: ``goal`` does not say.
    """
    if goal.steps_per_epoch is None:
        raise ArgumentError(
            f"`goal` must say how many steps an epoch has, for `{name}`: pass "
            f"goal=tenfold.Goal(steps_per_epoch=len(loader)); or give `{name}` in another way."
        )
    return goal.steps_per_epoch


def check_method(method: Any) -> None:
    """Raise `ArgumentError` for what is no method: a name, a class, a model in its place."""
    if isinstance(method, Method):
        return
    if isinstance(method, type) and issubclass(method, Method):
        raise ArgumentError(
            f"`method` must be an instance; got the class {method.__name__}. Make one: {method.__name__}()."
        )
    remedy = ""
    if isinstance(method, str):
        remedy = f" By name: tenfold.get_method({method!r})."
    elif isinstance(method, nn.Module):
        remedy = " The model comes first, then the method: tenfold.plan(model, method, budget)."
    raise ArgumentError(f"`method` must be a tenfold.Method, e.g. tenfold.ALDS(); got {shortened(method)}.{remedy}")


def check_budget(budget: Any) -> None:
    """Raise `ArgumentError` for what is no budget."""
    if budget is None or isinstance(budget, Budget):
        return
    remedy = "Pass e.g. tenfold.Budget(params=0.25), which keeps a quarter."
    if isinstance(budget, (int, float, str)):
        remedy = f"Say of what: tenfold.Budget(params={budget!r}) or tenfold.Budget(macs={budget!r})."
    raise ArgumentError(f"`budget` must be a tenfold.Budget, or None; got {shortened(budget)}. {remedy}")
