"""Steps without labels: a compressed network trained to put out what the dense one does.

Both networks run in eval mode, so that batch norm is wholly fixed and dropout is out: the statistics of the dense
network stay those that its weights were trained with. For the loss see `tenfold.layers.output_loss`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from tenfold.errors import ArgumentError, DataError, check, is_count, shortened
from tenfold.layers.calibration_batches import Batch
from tenfold.layers.calibration_runs import Source, device_of, evaluating
from tenfold.layers.output_loss import OutputLoss, check_output_loss, output_loss
from tenfold.layers.usable import refuse_unusable

_WARM = 0.1
"""The share of the steps in which the rate climbs."""
_KEPT = 1 << 28
"""Bytes of dense outputs that are kept for the next pass."""


@dataclass(frozen=True)
class DistillReport:
    """The losses of steps without labels, from `distill`.

    Args:
        losses: of each step's batch, before the step.
        before: the loss of the first batch before the first step.
        after: of the same batch after the last one.
        tensors: parameters that were trained.
    """

    losses: tuple[float, ...]
    before: float
    after: float
    tensors: int

    @property
    def steps(self) -> int:
        """The number of steps."""
        return len(self.losses)


def distill(
    small: nn.Module,
    dense: nn.Module,
    data: Iterable[Any],
    *,
    loss: OutputLoss | None = None,
    steps: int = 100,
    lr: float = 3e-4,
    norms: Literal["frozen", "affine"] = "frozen",
    augment: Callable[[Any], Any] | None = None,
    seed: int = 0,
    progress: Callable[[int, int, float], None] | None = None,
) -> DistillReport:
    """Train ``small``, in place, to put out what ``dense`` does; no labels. One batch is one step of Adam.

    The rate climbs over the first tenth of the steps and falls as a cosine to zero. Everything in ``small`` that asks
    for gradients is trained, but for batch norm; layers that stayed dense too. Batches are gone through again and
    again, in the order of ``data``. Each step costs a forward and a backward pass of ``small`` and a forward pass of
    ``dense``; where ``data`` is a list and nothing is augmented, the dense outputs are kept, up to 256 MiB.

    Whatever is raised, ``small`` is as it was. Modes, ``requires_grad``, gradients and the state of the random number
    generators are put back.

    Args:
        small: the compressed network.
        dense: the network that it was made from; left as it is.
        data: batches, as for `tenfold.plan`; 64 to 128 examples each are a good size. A list or a loader, no generator.
        loss: ``(outputs, dense outputs) -> scalar``, a mean over examples; "logits": the outputs are logits. None: the
            divergence at temperature 2 where outputs are certainly logits (by that name in a dict or a dataclass, or
            with integer labels beside the inputs), else the squared error relative to the dense outputs, over all
            tensors that the networks put out.
        steps: >= 0.
        lr: the highest rate, > 0. Chosen on validation images of a ResNet-20, of 1e-4 to 1e-3: at the upper end a
            network that knew its training images well lost by the steps.
        norms: of batch norm, "frozen": statistics, scales and shifts are fixed; "affine": statistics alone.
        augment: a function of inputs, a tensor, a tuple or a dict as in a batch, that gives the like; called anew for
            every batch.
        seed: of whatever ``augment`` and a loader draw, >= 0.
        progress: called as ``progress(done, steps, loss)`` after each step.

    Returns:
        the loss of every step, and of one batch before and after.

    Raises:
        ArgumentError: a number out of range; nothing to be trained; networks that share parameters.
        DataError: no batch; a generator; outputs that cannot be compared; a loss that is not finite.

    Source: Hinton, Vinyals, Dean 2015 (arXiv 1503.02531) without labels; Adam is Kingma & Ba 2015 (arXiv 1412.6980).
    """
    check_output_loss(loss)
    check(is_count(steps, 0), "steps", "an integer >= 0", steps)
    check(isinstance(lr, (int, float)) and math.isfinite(lr) and lr > 0, "lr", "> 0", lr)
    check(norms in ("frozen", "affine"), "norms", "'frozen' or 'affine'", norms)
    check(augment is None or callable(augment), "augment", "a function of inputs, or None", augment)
    check(is_count(seed, 0), "seed", "an integer >= 0", seed)
    if isinstance(data, Iterator):
        raise DataError("`data` must last for several passes; a generator is used up by one. Pass a list or a loader.")
    refuse_unusable(small)
    refuse_unusable(dense)
    trained = _trained(small, dense, norms)
    teacher = _Teacher(dense, keep=augment is None and isinstance(data, (list, tuple)))
    losses: list[float] = []
    with evaluating(small, dense), torch.random.fork_rng(), torch.enable_grad(), _undone_by_errors(trained):
        torch.manual_seed(seed)
        batches = _endless(small, Source(data, None))
        first = next(batches)
        optimizer = torch.optim.Adam(trained, lr=lr)
        before = _value(output_loss(_outputs(small, first), teacher(first), first, loss), 0)
        batch = first
        for step in range(steps):
            moved = batch if augment is None else _augmented(batch, augment)
            value = output_loss(_outputs(small, moved), teacher(moved), moved, loss)
            losses.append(_value(value, step))
            _step(optimizer, trained, value, lr * _rate(step, steps))
            if progress is not None:
                progress(step + 1, steps, losses[-1])
            if step + 1 < steps:
                batch = next(batches)
        with torch.no_grad():
            after = _value(output_loss(_outputs(small, first), teacher(first), first, loss), steps)
    return DistillReport(tuple(losses), before, after, len(trained))


def _trained(small: nn.Module, dense: nn.Module, norms: str) -> list[nn.Parameter]:
    """The parameters that are trained, each once."""
    held = {id(p) for p in dense.parameters()}
    if any(id(p) in held for p in small.parameters()):
        raise ArgumentError("`small` must not share parameters with `dense`, which is left as it is. Copy one of them.")
    fixed = {id(p) for m in small.modules() if isinstance(m, _BatchNorm) for p in m.parameters(recurse=False)}
    fixed = fixed if norms == "frozen" else set()
    trained = [p for p in small.parameters() if p.requires_grad and p.is_floating_point() and id(p) not in fixed]
    check(bool(trained), "small", "a network with parameters that ask for gradients", "none", "small.requires_grad_()")
    return trained


def _rate(step: int, steps: int) -> float:
    """A climb and a cosine, as a share of the highest rate."""
    warm = max(1, round(_WARM * steps))
    return min(1.0, (step + 1) / warm) * (1 + math.cos(math.pi * step / steps)) / 2


def _step(optimizer: torch.optim.Optimizer, trained: list[nn.Parameter], value: Tensor, rate: float) -> None:
    if not value.requires_grad:
        raise DataError("`loss` must depend on what the compressed network puts out; it has no gradient there.")
    for p, gradient in zip(trained, torch.autograd.grad(value, trained, allow_unused=True), strict=True):
        p.grad = gradient
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()


def _value(loss: Tensor, step: int) -> float:
    """The number; refused where it is none."""
    value = float(loss.detach())
    if not math.isfinite(value):
        when = f"after {step} steps" if step else "before the first step"
        remedy = "Lower `lr`." if step else "Look at the outputs of both networks on `data`, or pass another `loss`."
        raise DataError(f"the loss between the outputs is {value} {when}: the network is left as it was. {remedy}")
    return value


class _Teacher:
    """What the dense network puts out, kept for batches that come again."""

    def __init__(self, dense: nn.Module, *, keep: bool) -> None:
        self.dense, self.keep = dense, keep
        self.kept: dict[int, Any] = {}
        self.bytes = 0

    def __call__(self, batch: Batch) -> Any:
        if batch.number in self.kept:
            return self.kept[batch.number]
        with torch.no_grad():
            output = batch.to(device_of(self.dense)).run(self.dense)
        size = sum(t.numel() * t.element_size() for t in tree_leaves(output) if isinstance(t, Tensor))
        if self.keep and self.bytes + size <= _KEPT:
            self.kept[batch.number] = output
            self.bytes += size
        return output


def _outputs(small: nn.Module, batch: Batch) -> Any:
    return batch.to(device_of(small)).run(small)


def _endless(small: nn.Module, source: Source) -> Iterator[Batch]:
    """The batches of one pass after the other; raises where there is none."""
    while True:
        yield from source.batches(small)


def _augmented(batch: Batch, augment: Callable[[Any], Any]) -> Batch:
    """The batch with other inputs of the same form."""
    given = dict(batch.kwargs) or (batch.args[0] if len(batch.args) == 1 else batch.args)
    made = augment(given)
    if isinstance(given, dict) and isinstance(made, dict) and set(made) == set(given):
        return replace(batch, kwargs=made)
    if isinstance(given, tuple) and isinstance(made, (tuple, list)) and len(made) == len(given):
        return replace(batch, args=tuple(made))
    if not isinstance(given, (dict, tuple)) and isinstance(made, type(given)):
        return replace(batch, args=(made,))
    raise DataError(
        f"`augment` must give inputs of the form it is given, a {type(given).__name__}; got {shortened(made)}."
    )


@contextmanager
def _undone_by_errors(trained: list[nn.Parameter]) -> Iterator[None]:
    """Puts gradients back, and where something is raised the numbers too."""
    numbers = [p.detach().clone() for p in trained]
    gradients = [p.grad for p in trained]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for p, old in zip(trained, numbers, strict=True):
                p.copy_(old)
        raise
    finally:
        for p, gradient in zip(trained, gradients, strict=True):
            p.grad = gradient
