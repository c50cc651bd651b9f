"""Training runs in other people's loops: callbacks that attach a `TrainingRun`; libraries are imported when asked for.

All that a method does happens in ``optimizer.step()``. A loop of one's own, Accelerate's included, needs nothing from
here: ``run.attach(optimizer)``, before or after ``accelerator.prepare``. What these callbacks add is the moment at
which a trainer has its optimizer, and a place to tell a tracker ``run.figures()``: pass ``wandb.log``, ``trackio.log``,
a Lightning module's ``log_dict``, or any function of a dict of numbers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from torch import nn
from torch.optim import Optimizer

from tenfold.errors import ArgumentError, TenfoldError, shortened
from tenfold.methods.contract.training_run import TrainingRun

Log = Callable[[dict[str, float]], object]
"""A user's logger: takes figures by name."""


def trainer_callback(run: TrainingRun, log: Log | None = None) -> Any:
    """A ``TrainerCallback`` for the Trainer of transformers: attaches ``run`` when the training begins.

    ::

        run = tenfold.begin(model, tenfold.Factors(), tenfold.Budget(params=0.5), steps=1000)
        trainer = Trainer(run.model, arguments, train_dataset=..., callbacks=[trainer_callback(run)])
        trainer.train()
        small = run.finish().model

    Methods that make an optimizer of their own, or change the model's form and are to be resumed from a checkpoint,
    take the other door: ``Trainer(..., optimizers=(run.optimizer(torch.optim.AdamW, lr=3e-4), None))``.

    Args:
        run: of the model that the Trainer is given: ``run.model``.
        log: called with ``run.figures()`` whenever the Trainer logs.

    Raises:
        TenfoldError: transformers is missing.
        ArgumentError: no run; when the training begins: another model, or an optimizer that the method refuses.
    """
    _check_run(run)
    base: Any = _library(("transformers",), "tenfold[hf]").TrainerCallback

    class TransformersCallback(base):
        def on_train_begin(self, arguments: Any, state: Any, control: Any, **kwargs: Any) -> None:
            _attach(run, kwargs["model"], kwargs["optimizer"])

        def on_log(self, arguments: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if log is not None and state.is_world_process_zero:
                log(run.figures())

    return TransformersCallback()


def lightning_callback(run: TrainingRun, log: Log | None = None) -> Any:
    """A Lightning ``Callback``: attaches ``run`` to the first optimizer of a module, of which ``run.model`` is a part.

    Args:
        run: of the model that the module trains, or of the module itself.
        log: called with ``run.figures()`` after each epoch of training, in its hook: the module's ``log_dict`` will do.

    Raises:
        TenfoldError: Lightning is missing.
        ArgumentError: no run; when the fit begins: another model, or an optimizer that the method refuses.
    """
    _check_run(run)
    base: Any = _library(("lightning.pytorch", "pytorch_lightning"), "lightning").Callback

    class LightningCallback(base):
        def on_fit_start(self, trainer: Any, module: Any) -> None:
            _attach(run, module, trainer.optimizers[0])

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            if log is not None and trainer.is_global_zero:
                log(run.figures())

    return LightningCallback()


def _check_run(run: object) -> None:
    if not isinstance(run, TrainingRun):
        raise ArgumentError(f"`run` must be a training run, from tenfold.begin(...); got {shortened(run)}.")


def _attach(run: TrainingRun, trained: nn.Module, optimizer: Optimizer) -> None:
    """Attach ``run`` unless it made ``optimizer`` itself."""
    if all(module is not run.model for module in trained.modules()):
        raise ArgumentError(
            f"`model` must be `run.model`, the one that tenfold.begin made; the trainer trains another "
            f"{type(trained).__name__}. Give it run.model."
        )
    if not run.works_in(optimizer):
        run.attach(optimizer)


def _library(names: tuple[str, ...], remedy: str) -> Any:
    """The first of these modules that the user has imported, or that can be."""
    for name in (*(name for name in names if name in sys.modules), *names):
        try:
            return import_module(name)
        except ImportError:
            continue
    raise TenfoldError(f"{' or '.join(names)} is missing or broken: pip install '{remedy}'.")
