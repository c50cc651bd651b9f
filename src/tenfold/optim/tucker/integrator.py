"""Train layers in Tucker format by any optimizer, their bases and ranks by dynamical low-rank approximation.

An optimizer of torch holds the cores, the biases and all else; it never sees a basis, since weight decay or momentum
would make its columns anything but orthonormal. Around its steps runs a cycle: the bases grow by the directions that
their gradients point to, the cores take some steps in the larger space, and are cut.

One cycle serves all integrators. Its first step has no gradient in the new directions yet; it takes the Riemannian one,
which follows from the gradients of the bases. A cycle of one step is therefore the parallel integrator.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tenfold.errors import ArgumentError, TenfoldWarning, check
from tenfold.layers.tucker_protocol import factorised
from tenfold.layers.usable import refuse_unusable
from tenfold.optim.distributed import average_, average_gradients_, shared
from tenfold.optim.tucker.gradient_capture import Catch
from tenfold.optim.tucker.resize import Unit, augment_, cut_
from tenfold.optim.tucker.rng import RandomState
from tenfold.optim.tucker.settings import IntegratorSettings

STATE = "integrator"
"""Where the state of a run is: ``optimizer.param_groups[0][STATE]``, so that checkpoints have it."""
PATIENCE = 10
"""Cycles in a row after which a growth that is always cut again is called a stall."""


class Integrator(Optimizer):
    """An optimizer around ``inner`` that moves the bases and ranks of ``model``'s layers in Tucker format.

    Hyper-parameters are those of ``inner``, whose groups these are: schedulers work as usual. Steps count when they
    happen, so those that a gradient scaler skips do not, and accumulated gradients make one step. Gradients of bases
    are taken out of ``.grad`` as they come: clipping does not see them. Where processes train together, each with its
    part of the batch, gradients are averaged here, and the model must not be wrapped: its parameters change shape.
    Where all its layers are static, they do not, and always require gradients: a wrapper may stand around ``model``.

    Args:
        inner: any of torch's optimizers that takes plain steps, over all trained parameters but the bases.
        model: what is trained.
        course: how.

    Raises:
        ArgumentError: a wrapped model; no layer in Tucker format; an inner optimizer that holds a basis, or misses a
            core, or needs a closure of its own.

    Source: Zangrando et al. 2024 (arXiv 2305.19059), TDLRT; Ceruti, Kusch, Lubich (arXiv 2304.05660), the parallel
    step. Deviations: the gradients of the factors serve in place of a K step and of an inverse; after the growth, the
    cores may take several steps of any optimizer (``every``), whose state is brought from basis to basis.
    """

    def __init__(self, inner: Optimizer, model: nn.Module, course: IntegratorSettings) -> None:
        refuse_unusable(model)
        check(not isinstance(inner, torch.optim.LBFGS), "base", "an optimizer without closures of its own", inner)
        self.inner, self.course, self._model = inner, course, model
        self._units = [Unit(name, layer) for name, layer in factorised(model).items() if layer.core.requires_grad]
        self._catch = Catch([u.layer.core for u in self._units], [b for u in self._units for b in u.layer.bases])
        super().__init__(inner.param_groups, inner.defaults)
        self._follow()
        held = {id(p) for group in inner.param_groups for p in group["params"]}
        check(bool(self._units), "model", "one with layers in Tucker format: from method.begin(model)", type(model))
        for unit in self._units:
            if id(unit.layer.core) not in held or any(id(b) in held for b in unit.layer.bases):
                raise ArgumentError(
                    f"`inner` must hold the core of '{unit.name}' and none of its bases. "
                    "Make it by method.optimizer(model, base=...)."
                )
        self.param_groups[0].setdefault(STATE, _fresh())
        self._listen()

    # ---- what an optimizer is asked

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step of the inner optimizer, and what the cycle has to do before and after it.

        Args:
            closure: computes the loss and its gradients anew, ``zero_grad`` included. The two-pass integrator needs
                it, and calls it twice with the same random numbers; buffers (running statistics) change once.

        Returns:
            the loss that the closure gave first; None without one.

        Raises:
            ArgumentError: no closure where one is needed.
        """
        twice = self.course.twice
        known = closure is not None or not twice
        check(known, "closure", "given: the two-pass integrator computes gradients twice", closure)
        state = self._state
        before = RandomState.of(self._model) if twice else None
        loss = None if closure is None else torch.enable_grad()(closure)()
        if state["position"] == 0:
            self._catch.scale_()  # by what this process did to its own gradients, so before they are averaged
        self._average()
        if state["position"] == 0:
            grown = self._open()
            if grown and before is not None and closure is not None:
                self._again(closure, before)
            self._measure(grown)
        self.inner.step()
        self._catch.forget()
        state["steps"] += 1
        state["position"] += 1
        if state["position"] >= (1 if twice else self.course.every) or state["steps"] == self.course.steps:
            self.settle_()
        self._listen()
        return loss

    def settle_(self) -> None:
        """End the cycle now: cut what has grown. For a model that is to be used as it is, in the middle of a run."""
        state = self._state
        open_ = [unit for unit in self._units if bool(unit.layer.augmented)]
        good = [unit for unit in open_ if bool(torch.isfinite(unit.layer.core.detach().sum()))]
        state["nonfinite"] += len(open_) - len(good)
        frozen = self.course.pinned or (self.course.freeze is not None and state["steps"] >= self.course.freeze)
        norms = {unit.name: float(unit.layer.core.detach().double().norm()) for unit in good}
        fresh = {
            unit.name: unit.fresh_norm(unit.layer.core, state["settled"][unit.name])
            for unit in good
            if unit.name in state["settled"]
        }
        if frozen and not self.course.pinned and self.course.aim is not None and not state["aimed"]:
            state["aimed"] = True
            state["settled"] |= self._aim(self.course.aim)
        pins = [state["settled"].get(unit.name) if frozen else None for unit in good]
        limits = [self.course.limits(unit, pin) for unit, pin in zip(good, pins, strict=True)]
        for name, result in cut_(good, limits, self.course.tau, self.inner).items():
            state["error"][name] = result.error
            if result.overridden and not frozen:
                state["overridden"][name] = state["overridden"].get(name, 0) + 1
        for name, norm in fresh.items():
            state["growth"][name] = norm / max(self.course.tau * norms[name], 1e-300)
        state["position"] = 0
        self._look(good, frozen)
        self._listen()

    @property
    def ranks(self) -> dict[str, tuple[int, ...]]:
        """Of each layer by name, as they are now; in the middle of a cycle larger than before and after."""
        return {unit.name: unit.layer.ranks for unit in self._units}

    @property
    def settled(self) -> dict[str, tuple[int, ...]]:
        """Of each layer by name, between cycles: in the middle of one those from before it."""
        before = self._state["settled"]
        return {u.name: tuple(before[u.name]) if bool(u.layer.augmented) else u.layer.ranks for u in self._units}

    @property
    def report(self) -> dict[str, Any]:
        """Counts and measures of the run so far.

        ``steps``; ``nonfinite``: growths and cuts that were left out since a number was not finite; and by layer:
        ``error``: relative, of the last cut; ``overridden``: cuts in which a limit of the ranks made it larger than
        tau; ``growth``: size of the core in its new directions at the last cut over ``tau |C|``, below 1 these are
        cut off again; ``share``: of the gradient's energy in the new directions, as the last cycle began.
        """
        return {k: self._state[k] for k in ("steps", "nonfinite", "error", "overridden", "growth", "share")}

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients, those of the bases too."""
        self.inner.zero_grad(set_to_none)
        self._catch.forget()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """See `torch.optim.Optimizer.add_param_group`."""
        if self.__dict__.get("_ready"):
            self.inner.add_param_group(param_group)
        else:
            super().add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's, whose first group holds the position in the cycle and the counts."""
        return self.inner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state; load the model's own first or after, which resizes its layers."""
        self.inner.load_state_dict(state_dict)
        self._follow()
        self.param_groups[0].setdefault(STATE, _fresh())
        self._listen()

    # ---- the cycle

    def _open(self) -> list[Unit]:
        """Let the bases grow; the units that did."""
        state = self._state
        average_(self._catch.all())
        grads, grown = {}, []
        for unit in self._units:
            found = [self._catch.of(basis) for basis in unit.layer.bases]
            mine = [g[:, :r] for g, r in zip(found, unit.layer.ranks, strict=True) if g is not None]
            if len(mine) < len(found) or bool(unit.layer.augmented):
                continue
            if not math.isfinite(sum(float(g.sum()) for g in mine)) or not _finite(unit.layer.core.grad):
                state["nonfinite"] += 1
                continue
            grads[unit.name] = mine
            grown.append(unit)
        for unit in grown:
            state["settled"][unit.name] = list(unit.layer.ranks)
            state["first"].setdefault(unit.name, list(unit.layer.ranks))
        tangent = not self.course.twice
        augment_(grown, grads, self.inner, columns=self.course.columns, tangent=tangent)
        return grown

    def _aim(self, aim: Callable[[], Mapping[str, Sequence[int]]]) -> dict[str, list[int]]:
        """The ranks to freeze at, found by one process: others might find others."""

        def found() -> list[Tensor]:
            wanted = aim()
            return [torch.tensor([*wanted.get(u.name, ())], dtype=torch.float64) for u in self._units]

        ranks = shared([found], [1])[0]
        return {u.name: [int(r) for r in x.tolist()] for u, x in zip(self._units, ranks, strict=True) if len(x)}

    def _again(self, closure: Callable[[], Any], before: RandomState) -> None:
        """The gradient in the larger space, with the random numbers of the first, and no second look at the data."""
        buffers = [(b, b.detach().clone()) for b in self._model.buffers()]
        self._ask(False)
        before.restore()
        torch.enable_grad()(closure)()
        for buffer, old in buffers:
            buffer.copy_(old)
        self._average()

    def _measure(self, grown: Sequence[Unit]) -> None:
        """How much of the gradient lies in the new directions."""
        for unit in grown:
            grad = unit.layer.core.grad
            if grad is not None:
                whole = float(grad.detach().double().norm())
                fresh = unit.fresh_norm(grad, self._state["settled"][unit.name])
                self._state["share"][unit.name] = (fresh / whole) ** 2 if whole > 0 else 0.0

    def _look(self, units: Sequence[Unit], frozen: bool) -> None:
        """Warn, once, where limits override the tolerance, and where ranks are too small and cannot grow."""
        state = self._state
        for unit in units:
            name = unit.name
            stuck = list(unit.layer.ranks) == state["first"].get(name) and state["growth"].get(name, 1) < 1
            stuck = stuck and not frozen and state["share"].get(name, 0) > 0.5
            state["stalled"][name] = state["stalled"].get(name, 0) + 1 if stuck else 0
        stalled = [name for name, count in state["stalled"].items() if count >= PATIENCE]
        if stalled and "stall" not in state["said"]:
            state["said"].append("stall")
            warnings.warn(
                f"the ranks of {', '.join(map(repr, stalled))} cannot grow: most of the gradient lies outside their "
                f"bases, but what grows in a cycle is {state['growth'][stalled[0]]:.2g} of what the cut may take. "
                "Start at larger ranks, or take a smaller `tau`, a larger `every` or a larger learning rate.",
                TenfoldWarning,
                stacklevel=3,
            )
        if state["overridden"] and "override" not in state["said"]:
            state["said"].append("override")
            name = next(iter(state["overridden"]))
            warnings.warn(
                f"`cap` overrides `tau`: the cut of '{name}' erred by {state['error'][name]:.3g} of its weight, with "
                f"`tau` {self.course.tau:.3g}. Raise `cap` if it is to hold.",
                TenfoldWarning,
                stacklevel=3,
            )

    # ---- gradients

    def _average(self) -> None:
        average_gradients_([p for group in self.param_groups for p in group["params"]])

    def _listen(self) -> None:
        """Ask for gradients of the bases where the next step uses them."""
        self._ask(self._state["position"] == 0)

    def _ask(self, wanted: bool) -> None:
        for unit in self._units:
            for basis in unit.layer.bases:
                basis.requires_grad_(wanted or unit.layer.static)

    # ---- state

    @property
    def _state(self) -> dict[str, Any]:
        return self.param_groups[0][STATE]

    def _follow(self) -> None:
        """Have the groups and the state of the inner optimizer, which it replaces at loading."""
        self.param_groups, self.state = self.inner.param_groups, self.inner.state
        self._ready = True


def _fresh() -> dict[str, Any]:
    by_layer = ("settled", "first", "error", "overridden", "growth", "share", "stalled")
    return {"steps": 0, "position": 0, "nonfinite": 0, "said": [], "aimed": False} | {key: {} for key in by_layer}


def _finite(grad: Tensor | None) -> bool:
    return grad is None or bool(torch.isfinite(grad.sum()))
