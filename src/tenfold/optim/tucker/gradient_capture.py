"""Gradients of some parameters taken out of ``.grad`` as they come, so that nothing else sees them."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.autograd import Variable
from torch.utils.weak import WeakIdKeyDictionary


class Catch:
    """Puts aside the gradients of ``bases``, and keeps the sizes of those of ``cores`` as they come.

    They add up over several backward passes, as ``.grad`` does. A later `Catch` of the same parameter takes its place.
    It acts as a backward pass ends, after all else that does: where a wrapper averages gradients over processes, those
    put aside are averages too, and compare with those of the cores.

    Args:
        cores: their gradients stay in ``.grad``, where loss scaling and clipping change them.
        bases: their gradients are put aside; ``.grad`` stays None.
    """

    def __init__(self, cores: Sequence[nn.Parameter], bases: Sequence[nn.Parameter]) -> None:
        self._cores, self._bases = list(cores), list(bases)
        self._aside: dict[int, Tensor] = {}
        self._energy: dict[int, Tensor] = {}
        for core in cores:
            _watch(core, self, aside=False)
        for basis in bases:
            _watch(basis, self, aside=True)

    def of(self, basis: nn.Parameter) -> Tensor | None:
        """The gradient put aside; None where none has come."""
        return self._aside.get(id(basis))

    def all(self) -> list[Tensor]:
        """All that were put aside, in the order of the bases."""
        return [self._aside[id(basis)] for basis in self._bases if id(basis) in self._aside]

    def scale_(self) -> None:
        """Multiply those put aside by what the gradients of the cores were multiplied by since they came."""
        cores = [core for core in self._cores if id(core) in self._energy]
        came = sum(float(self._energy[id(core)]) for core in cores)
        now = sum(_energy(core.grad) for core in cores if core.grad is not None)
        if 0 < came < math.inf and now != came:
            for grad in self._aside.values():
                grad.mul_(math.sqrt(now / came))

    def forget(self) -> None:
        """Drop all."""
        self._aside.clear()
        self._energy.clear()

    def take(self, parameter: Tensor, aside: bool) -> None:
        """A gradient has come."""
        grad = parameter.grad
        if grad is None:
            return
        if aside:
            old = self._aside.get(id(parameter))
            # A copy: wrappers use the memory of a gradient again.
            self._aside[id(parameter)] = grad.detach().clone() if old is None else old + grad.detach()
            parameter.grad = None
        else:
            self._energy[id(parameter)] = grad.detach().double().square().sum()


def _energy(grad: Tensor) -> float:
    return float(grad.detach().double().square().sum())


_WATCHED: Any = WeakIdKeyDictionary()
_at_the_end: Any = Variable._execution_engine.queue_callback  # pyright: ignore[reportAttributeAccessIssue]


def _watch(parameter: nn.Parameter, catch: Catch, *, aside: bool) -> None:
    if parameter in _WATCHED:
        _WATCHED[parameter].remove()
    reference = weakref.ref(catch)  # a parameter must not keep an optimizer alive

    def take(p: Tensor) -> None:
        alive = reference()
        if alive is not None:
            alive.take(p, aside)

    def caught(p: Tensor) -> None:
        # Wrappers queue what they do at the end of the pass while gradients come: what is queued then is behind it.
        _at_the_end(lambda: _at_the_end(lambda: take(p)))

    _WATCHED[parameter] = parameter.register_post_accumulate_grad_hook(caught)
