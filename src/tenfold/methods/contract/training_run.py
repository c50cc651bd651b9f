"""A training run as one object: what is trained toward is said once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from tenfold.errors import ArgumentError, shortened
from tenfold.layers.norm_choice import Norms
from tenfold.layers.select import Selection
from tenfold.layers.usable import is_sharded, refuse_unusable, refuse_without_numbers
from tenfold.methods.contract.method import Goal, Method, check_budget, check_method
from tenfold.optim.hooks import stepped
from tenfold.optim.present_ranks import present_ranks
from tenfold.plans.apply import Result
from tenfold.plans.budget import Budget
from tenfold.plans.refit_result import Refit


class TrainingRun:
    """A model in training by a method, made by `tenfold.begin`; makes its optimizer, and the compressed model.

    Args:
        method: that trains.
        goal: budget, selection, inputs and length of the training.
        model: what is trained, from the method's `begin`.
    """

    def __init__(self, method: Method, goal: Goal, model: nn.Module) -> None:
        self.method = method
        self.goal = goal
        self.model = model
        self._optimizer: Optimizer | None = None

    def optimizer(self, base: type[Optimizer] = torch.optim.SGD, **hyper: Any) -> Optimizer:
        """Make a torch optimizer that does the method's work inside its ``step``.

        Args:
            base: the class of the optimizer underneath.
            hyper: the arguments of ``base``: ``lr=0.1, momentum=0.9, weight_decay=1e-4``.

        Raises:
            ArgumentError: no class of optimizers, a second optimizer, or arguments that the method refuses.
        """
        if not (isinstance(base, type) and issubclass(base, Optimizer)):
            remedy = " For an optimizer that there is already call attach." if isinstance(base, Optimizer) else ""
            raise ArgumentError(
                f"`base` must be a class of optimizers, e.g. torch.optim.SGD; got {shortened(base)}.{remedy}"
            )
        self._refuse_second()
        self._optimizer = self.method.optimizer(self.model, base=base, goal=self.goal, **hyper)
        _refuse_replaced_later(self.model, self._optimizer)
        return self._optimizer

    def attach(self, optimizer: Optimizer) -> Optimizer:
        """Hook the method's work onto an existing optimizer; returns that optimizer.

        Args:
            optimizer: of the parameters of ``run.model``.

        Raises:
            ArgumentError: no optimizer, a second one, or a method that is an optimizer of its own.
        """
        if not isinstance(optimizer, Optimizer):
            raise ArgumentError(f"`optimizer` must be a torch optimizer; got {shortened(optimizer)}.")
        self._refuse_second()
        self._optimizer = self.method.attach(self.model, optimizer, goal=self.goal)
        _refuse_replaced_later(self.model, self._optimizer)
        return self._optimizer

    def works_in(self, optimizer: Optimizer) -> bool:
        """Whether the method's work happens in the steps of this optimizer, or of the one that it wraps."""
        return self._optimizer is not None and stepped(self._optimizer) is stepped(optimizer)

    def figures(self) -> dict[str, float]:
        """The present size of the model, for a tracker: ``params``, and ``rank/NAME`` of each layer that has one.

        In Tucker format each mode has its own: ``rank/NAME/0``, the output channels', ``rank/NAME/1``, the input's.
        """
        found: dict[str, float] = {"params": float(sum(p.numel() for p in self.model.parameters()))}
        for name, rank in present_ranks(self.model, self._optimizer).items():
            found |= (
                {f"rank/{name}/{i}": float(r) for i, r in enumerate(rank)}
                if isinstance(rank, list)
                else {f"rank/{name}": float(rank)}
            )
        return found

    def finish(self, data: Iterable[Any] | None = None, *, refit: Refit | None = None, norms: Norms = "auto") -> Result:
        """Compress the model as trained so far: model, plan and report. The training can go on unchanged.

        Budget, example inputs and selections are those that the run began with. Torch's global random numbers are put
        back too: a loader that shuffles draws from them.

        Args:
            data: batches to re-estimate batch norm from, to calibrate on and to refit; see `tenfold.compress`.
            refit: see `tenfold.compress`.
            norms: see `tenfold.compress`.

        Raises:
            BudgetError: the budget cannot be reached.
        """
        goal = self.goal
        with torch.random.fork_rng():
            return self.method.finish(
                self.model,
                goal.budget,
                example_inputs=goal.example_inputs,
                data=data,
                target_modules=goal.target_modules,
                exclude_modules=goal.exclude_modules,
                refit=refit,
                norms=norms,
                runtime=goal.runtime,
                threads=goal.threads,
            )

    def _refuse_second(self) -> None:
        if self._optimizer is not None:
            raise ArgumentError(
                f"this run has its optimizer, a {type(self._optimizer).__name__}: with a second one {self.method.name} "
                "would do its work twice. Begin another run for another training."
            )


def _refuse_replaced_later(model: nn.Module, optimizer: Optimizer) -> None:
    """Have the first step raise `ArgumentError` where parameters that the optimizer holds are the model's no more.

    It would train what nobody uses, and say nothing.
    """
    names = dict(model.named_parameters())

    def look(*_: Any) -> None:
        handle.remove()
        held = {id(p) for group in stepped(optimizer).param_groups for p in group["params"]}
        now = dict(model.named_parameters())
        lost = held - {id(p) for p in now.values()}
        other = next((name for name, p in names.items() if id(p) in lost), None)
        if other is not None:
            why = "sharded (fully_shard)" if is_sharded(now.get(other)) else "replaced"
            raise ArgumentError(
                f"`model` must have the parameters that its optimizer was made of; '{other}' was {why} since. Begin "
                "another run, and make its optimizer after that."
            )

    handle = stepped(optimizer).register_step_pre_hook(look)


def begin(
    model: nn.Module,
    method: Method,
    budget: Budget | None = None,
    *,
    example_inputs: Any = None,
    target_modules: Selection = None,
    exclude_modules: Selection = None,
    steps_per_epoch: int | None = None,
    steps: int | None = None,
    runtime: str = "eager",
    threads: int = 1,
) -> TrainingRun:
    """Begin a training run of ``model`` by ``method``, for any training loop.

    ::

        run = tenfold.begin(model, tenfold.LRPET(), tenfold.Budget(macs=0.5), example_inputs=x, steps_per_epoch=390)
        optimizer = run.optimizer(torch.optim.SGD, lr=0.1, momentum=0.9)     # or: run.attach(yours)
        ...                                                                  # train run.model
        small, plan, report = run.finish(data=batches)

    Args:
        model: with its first weights, or trained ones; untouched: ``run.model`` is trained.
        method: one that trains, e.g. ``tenfold.TRP()``; any other trains a dense model and compresses it in the end.
        budget: what may be kept in the end; None where the method chooses ranks itself.
        example_inputs: needed for a budget on MACs; see `tenfold.plan`.
        target_modules: only these layers; see `tenfold.plan`.
        exclude_modules: never these.
        steps_per_epoch: optimizer steps of one epoch, >= 1; for methods that act by epoch.
        steps: of the whole run, >= 1; for methods that act in a part of it only.
        runtime: see `tenfold.plan`.
        threads: see `tenfold.plan`.

    Raises:
        ArgumentError: a model, method or budget of the wrong type; a number below 1; a selection that matches nothing.
        BudgetError: a budget that the method knows from the start to be out of reach.
        UnsupportedLayer: no layer that the method could train.
    """
    check_method(method)
    check_budget(budget)
    refuse_unusable(model)
    refuse_without_numbers(model)
    goal = Goal(budget, example_inputs, target_modules, exclude_modules, steps_per_epoch, steps, runtime, threads)
    needy = [] if budget is None or example_inputs is not None else [n for n in budget.costs if n != "params"]
    if needy:
        raise ArgumentError(
            f"`example_inputs` must be given for a budget on {needy[0]}: a batch as the model takes it."
        )
    return TrainingRun(method, goal, method.begin(model, goal=goal))
