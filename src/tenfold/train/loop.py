"""The training loop. It knows no method: all that a method does happens inside ``optimizer.step()``."""

from __future__ import annotations

import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import nn
from torch.optim import Optimizer

from tenfold.errors import CheckpointError, TenfoldWarning, check
from tenfold.methods.contract.method import Goal
from tenfold.train.checkpoint import load_checkpoint, read_record, save_checkpoint
from tenfold.train.data.augment import AUGMENTATIONS
from tenfold.train.data.batching import Batches, batches
from tenfold.train.data.split import Data, Split
from tenfold.train.distill import fingerprint, frozen
from tenfold.train.engine import engine
from tenfold.train.history import Epoch, Fit
from tenfold.train.probe import settled
from tenfold.train.progress import Display, Meter, Scalars
from tenfold.train.recipe import Recipe
from tenfold.train.run import Run, check_finite, stream
from tenfold.train.schedule import scheduler
from tenfold.train.score import evaluate

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer


class Trainable(Protocol):
    """Protocol of what the loop trains by: makes the model to train, and the optimizer whose steps train it.

    ``tenfold.Method`` has it all. With ``needs_closure`` each step gets a closure that computes the gradient anew.
    """

    @property
    def needs_closure(self) -> bool:
        """Whether steps need a closure."""
        ...

    def begin(self, model: nn.Module, *, goal: Goal | None = None) -> nn.Module:
        """The model that is trained: a copy."""
        ...

    def optimizer(self, model: nn.Module, *, goal: Goal | None = None, **hyper: Any) -> Optimizer:
        """The optimizer that trains it."""
        ...


def fit(
    model: nn.Module,
    method: Trainable,
    data: Data,
    recipe: Recipe,
    *,
    goal: Goal | None = None,
    teacher: nn.Module | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    progress: bool = True,
    tensorboard: bool = False,
) -> Fit:
    """Train ``model`` by ``method`` on ``data`` as ``recipe`` says, on the device that Accelerate finds.

    The same seed gives the same run on a CPU with the same number of threads, and a run that was stopped and resumed
    ends with the same bits.

    Args:
        model: the network to start from; it is not changed.
        method: what is done at each step; see `Trainable`.
        data: trained on ``data.train``, watched on ``data.validation``; ``data.test`` is not touched.
        recipe: the hyper-parameters; what is "auto" in it is measured first, or as in the run that is resumed.
        goal: budget and selection, for methods that use them; the length of the training is filled in here.
        teacher: images -> logits, as the model; its distillation loss has the weight ``recipe.distill``. It is run in
            eval mode and not changed.
        out: folder of the run. ``out/checkpoint`` is written after every epoch, in place of the one before (an older
            run's too); an error or Ctrl-C leaves the last one as it is. None writes nothing.
        resume: go on from ``out/checkpoint``. The recipe must be the same, but for more ``epochs`` under a schedule
            that does not depend on their number. A run that is finished already is returned with a warning.
        progress: show a bar, if standard error is a terminal.
        tensorboard: write scalars to ``out/tensorboard``.

    Raises:
        ArgumentError: options that need one another.
        CheckpointError: nothing to resume, or a checkpoint that is damaged or of another run.
        TenfoldError: a loss that is not finite; an extra that is missing.
    """
    check(out is not None or not (resume or tensorboard), "out", "given for `resume` and `tensorboard`", out)
    check(teacher is not None or not recipe.distill, "teacher", "given where `distill` is above 0", teacher)
    teacher = teacher if recipe.distill else None
    folder = Path(out or ".") / "checkpoint"
    recipe = _decided(recipe, model, method, data, goal, folder if resume else None)
    board = Path(out or ".") / "tensorboard" if tensorboard else None
    identity = {"recipe": asdict(recipe), "method": repr(method), "data": f"{data.name} {data.checksum}"}
    identity |= {} if teacher is None else {"teacher": fingerprint(teacher)}
    with engine(recipe.precision) as accelerator, torch.random.fork_rng(_devices(accelerator)):
        train, validation = data.train.to(accelerator.device), data.validation.to(accelerator.device)
        steps = len(_order(train, recipe, 0))
        ahead = replace(goal or Goal(), steps_per_epoch=steps, steps=steps * recipe.epochs)
        run = _begin(model, method, recipe, accelerator, ahead, teacher)
        history: list[Epoch] = []
        if resume:
            _same_run(folder, identity, recipe)
            history = [Epoch(**row) for row in load_checkpoint(folder, run.parts)["history"]]
            if len(history) >= recipe.epochs:
                text = f"{folder} is a finished run of {len(history)} epochs: nothing is trained."
                warnings.warn(text, TenfoldWarning, stacklevel=2)
        with (
            Display(recipe.epochs * steps, len(history) * steps, progress) as display,
            Scalars(board) as scalars,
        ):
            for epoch in range(len(history) + 1, recipe.epochs + 1):
                history.append(_epoch(run, train, validation, epoch, display))
                scalars.add(asdict(history[-1]), epoch)
                if out is not None:
                    rows = [asdict(row) for row in history]
                    save_checkpoint(folder, run.parts, {**identity, "epoch": epoch, "history": rows})
    return Fit(run.model, history, sum(row.seconds for row in history), recipe)


def _decided(
    recipe: Recipe, model: nn.Module, method: Trainable, data: Data, goal: Goal | None, resumed: Path | None
) -> Recipe:
    """The recipe with nothing left open: as the run that is resumed has it, else by a probe."""
    if resumed is None or not recipe.left_open:
        return settled(recipe, model, method, data.train, goal)[0]
    saved = read_record(resumed).get("recipe", {})
    known = {name: saved[name] for name in recipe.left_open if name in saved}
    return settled(replace(recipe, **known), model, method, data.train, goal)[0]


def _begin(
    model: nn.Module, method: Trainable, recipe: Recipe, accelerator: Accelerator, goal: Goal, teacher: nn.Module | None
) -> Run:
    """The method's model and optimizer, on the device. The model stays unwrapped: Accelerate would leave traces."""
    fits = recipe.precision != "fp16" or not method.needs_closure
    check(fits, "precision", "no or bf16 for a method that needs a closure", recipe.precision)
    torch.manual_seed(stream(recipe.seed, "begin"))
    model = method.begin(model, goal=goal).to(accelerator.device)
    if recipe.memory_format == "channels_last":
        model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - the stub lacks it
    hyper = {"lr": recipe.lr, "momentum": recipe.momentum, "weight_decay": recipe.weight_decay}
    optimizer = method.optimizer(model, goal=goal, **hyper)
    assert goal.steps_per_epoch is not None
    rates = scheduler(optimizer, recipe.factor(), goal.steps_per_epoch)
    wrapped = cast("AcceleratedOptimizer", accelerator.prepare_optimizer(optimizer, device_placement=False))
    asked = None if teacher is None else frozen(teacher, accelerator.device)
    return Run(recipe, accelerator, model, wrapped, rates, method.needs_closure, asked)


def _epoch(run: Run, train: Split, validation: Split, epoch: int, display: Display) -> Epoch:
    """Train one epoch (numbered from 1), then look at the validation set."""
    recipe = run.recipe
    torch.manual_seed(stream(recipe.seed, "model", epoch))
    order = _order(train, recipe, epoch)
    run.model.train()
    meter, lr = Meter(), run.lr
    for number, (x, y) in enumerate(order, start=1):
        lr = run.lr
        loss, correct = run.step(x, y, f"epoch {epoch}, step {number} of {len(order)}")
        meter.add(loss, correct, len(y))
        display.step(f"epoch {epoch}/{recipe.epochs}", meter.loss, meter.accuracy, meter.throughput)
    seconds, throughput = meter.seconds, meter.throughput
    with run.accelerator.autocast():
        score = evaluate(run.model, validation)
    check_finite(score.loss, f"the validation after epoch {epoch}")
    return Epoch(epoch, lr, meter.loss, meter.accuracy, score.loss, score.accuracy, seconds, throughput)


def _order(train: Split, recipe: Recipe, epoch: int) -> Batches:
    """The batches of one epoch, a function of seed and epoch; a last one that is smaller waits for another epoch."""
    return batches(
        train,
        recipe.batch_size,
        shuffle=True,
        generator=torch.Generator().manual_seed(stream(recipe.seed, "data", epoch)),
        augment=AUGMENTATIONS[recipe.augment],
        drop_last=len(train) > recipe.batch_size,
    )


def _devices(accelerator: Accelerator) -> list[torch.device]:
    return [accelerator.device] if accelerator.device.type == "cuda" else []


def _same_run(folder: Path, identity: dict[str, Any], recipe: Recipe) -> None:
    """Refuse the checkpoint of another run: its past must be what this run would have done."""
    saved = read_record(folder)
    different = recipe.differences(saved.get("recipe", {}))
    different += [
        f"{key}: {saved.get(key)} -> {identity.get(key)}"
        for key in ("method", "data", "teacher")
        if saved.get(key) != identity.get(key)
    ]
    if different:
        raise CheckpointError(
            f"{folder} belongs to another run ({'; '.join(different)}): resume with the same settings, or start anew."
        )
