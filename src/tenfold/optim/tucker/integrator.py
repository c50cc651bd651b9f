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
from tenfold.layers.tucker_protocol import Factorised, factorised
from tenfold.layers.usable import refuse_unusable
from tenfold.optim.distributed import any_process, average_gradients_, process, shared
from tenfold.optim.factorise import forms_in, take_layers_
from tenfold.optim.saved_form import follow_checkpoints
from tenfold.optim.tucker.refusals import refuse_bases, refuse_open_cycle, refuse_other_ranks, refuse_sharded
from tenfold.optim.tucker.resize import augment_, cut_, fresh_norm
from tenfold.optim.tucker.rng import RandomState
from tenfold.optim.tucker.settings import IntegratorSettings

STATE = "integrator"
"""Where the state of a run is: ``optimizer.param_groups[0][STATE]``, so that checkpoints have it."""
PATIENCE = 10
"""Cycles in a row after which a growth that is always cut again is called a stall."""


class Integrator(Optimizer):
    """Rank-adaptive optimizer for layers in Tucker format: wraps ``inner``, and updates bases and ranks itself.

    Hyper-parameters are those of ``inner``, whose groups these are: schedulers work as usual. Each basis is in the
    group of its core, so that scalers, clipping and ``zero_grad`` see its gradient, which is its ``.grad``; it is taken
    away before ``inner`` steps, which therefore never moves a basis. Steps count when they happen, so those that a
    gradient scaler skips do not, and accumulated gradients make one step. Where processes train together, each with its
    part of the batch, gradients are averaged here, and the model must not be wrapped: its parameters change shape.
    Where all its layers are static, they do not: a wrapper may stand around ``model``.

    Args:
        inner: any of torch's optimizers that takes plain steps, over all trained parameters but the bases.
        model: what is trained.
        settings: tolerance, cycle, and limits of the ranks.

    Raises:
        ArgumentError: a wrapped or sharded model; no layer in Tucker format; an inner optimizer that holds a basis, or
            misses a core, or needs a closure of its own.

    Source: Zangrando et al. 2024 (arXiv 2305.19059), TDLRT; Ceruti, Kusch, Lubich (arXiv 2304.05660), the parallel
    step. Deviations: the gradients of the factors serve in place of a K step and of an inverse; after the growth, the
    cores may take several steps of any optimizer (``every``), whose state is brought from basis to basis.
    """

    def __init__(self, inner: Optimizer, model: nn.Module, settings: IntegratorSettings) -> None:
        refuse_unusable(model)
        check(not isinstance(inner, torch.optim.LBFGS), "base", "an optimizer without closures of its own", inner)
        self.inner, self.settings, self._model = inner, settings, model
        self._find()
        there = bool(self._layers) or settings.enter is not None
        check(there, "model", "one with layers in Tucker format: from method.begin(model)", type(model))
        self._take_bases()
        super().__init__(inner.param_groups, inner.defaults)
        self._follow()
        self.param_groups[0].setdefault(STATE, _fresh())
        if settings.enter is not None:
            follow_checkpoints(model, inner, STATE)
        self._listen()

    # ---- what an optimizer is asked

    @torch.compiler.disable
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step of the inner optimizer, with the growth and the cut of the cycle before and after it.

        Args:
            closure: computes the loss and its gradients anew, ``zero_grad`` included. The two-pass integrator needs
                it, and calls it twice with the same random numbers; buffers (running statistics) change once.

        Returns:
            the loss that the closure gave first; None without one.

        Raises:
            ArgumentError: no closure where one is needed; a model that was sharded, or loaded without its optimizer.
        """
        twice, state = self.settings.twice, self._state
        known = closure is not None or not twice
        check(known, "closure", "given: the two-pass integrator computes gradients twice", closure)
        self._refuse_what_has_changed()
        before = RandomState.of(self._model) if twice else None
        loss = None if closure is None else torch.enable_grad()(closure)()
        if self._overflow():
            return loss
        self._average()
        if self._layers and state["position"] == 0:
            grown = self._open()
            if grown and before is not None and closure is not None:
                self._again(closure, before)
            self._measure(grown)
        for basis in self._bases():
            basis.grad = None  # used by now, or zero: the inner optimizer leaves alone what has no gradient
        self.inner.step()
        state["steps"] += 1
        if not self._layers:
            if state["steps"] >= self.settings.begin:
                self._enter()
            return loss
        state["position"] += 1
        ends = state["steps"] in (self.settings.steps, self.settings.freeze)
        if ends or state["position"] >= (1 if twice else self.settings.every):
            self.end_cycle_()
        self._listen()
        return loss

    def end_cycle_(self) -> None:
        """End the cycle now: truncate the augmented bases. For a model that is to be used in the middle of a run."""
        state, settings = self._state, self.settings
        open_ = {name: layer for name, layer in self._layers.items() if bool(layer.augmented)}
        good = {name: layer for name, layer in open_.items() if _finite(layer.core.detach())}
        state["nonfinite"] += len(open_) - len(good)
        frozen = settings.pinned or (settings.freeze is not None and state["steps"] >= settings.freeze)
        norms = {name: float(layer.core.detach().double().norm()) for name, layer in good.items()}
        fresh = {
            name: fresh_norm(layer, layer.core, state["cut_ranks"][name])
            for name, layer in good.items()
            if name in state["cut_ranks"]
        }
        if frozen and settings.aim is not None and not state["aimed"]:
            state["aimed"] = True
            state["cut_ranks"] |= self._aim(settings.aim)
        limits = {
            name: settings.limits(layer, state["cut_ranks"].get(name) if frozen else None)
            for name, layer in good.items()
        }
        for name, result in cut_(good, limits, settings.tau, self.inner).items():
            state["error"][name] = result.error
            if result.overridden and not frozen:
                state["overridden"][name] = state["overridden"].get(name, 0) + 1
        for name, norm in fresh.items():
            state["growth"][name] = norm / max(settings.tau * norms[name], 1e-300)
        state["position"] = 0
        self._note_ranks()
        self._look(good, frozen)
        self._listen()

    @property
    def ranks(self) -> dict[str, tuple[int, ...]]:
        """The present ranks by layer name; in the middle of a cycle they are larger than before and after it."""
        return {name: layer.ranks for name, layer in self._layers.items()}

    @property
    def cut_ranks(self) -> dict[str, tuple[int, ...]]:
        """The ranks by layer name as the last cut left them: in the middle of a cycle those from before it."""
        before = self._state["cut_ranks"]
        return {n: tuple(before[n]) if bool(x.augmented) else x.ranks for n, x in self._layers.items()}

    @property
    def report(self) -> dict[str, Any]:
        """Counts and errors of the run so far.

        ``steps``; ``nonfinite``: growths and cuts that were left out since a number was not finite; and by layer:
        ``error``: relative, of the last cut; ``overridden``: cuts in which a limit of the ranks made it larger than
        tau; ``growth``: size of the core in its new directions at the last cut over ``tau |C|``, below 1 these are
        cut off again; ``share``: of the gradient's energy in the new directions, as the last cycle began.
        """
        return {k: self._state[k] for k in ("steps", "nonfinite", "error", "overridden", "growth", "share")}

    def zero_grad(self, set_to_none: bool = True) -> None:
        """See `torch.optim.Optimizer.zero_grad`."""
        self.inner.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """See `torch.optim.Optimizer.add_param_group`.

        Raises:
            ArgumentError: a group with bases of another model.
        """
        if not self.__dict__.get("_ready"):
            super().add_param_group(param_group)
            return
        given = param_group["params"]
        param_group = {**param_group, "params": [given] if isinstance(given, Tensor) else list(given)}
        refuse_bases(param_group["params"])
        self.inner.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's, whose first group holds the position in the cycle and the counts."""
        return self.inner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; load the model's own first or after, which resizes its layers."""
        self.inner.load_state_dict(state_dict)
        self._follow()
        self._find()
        self.param_groups[0][STATE] = _fresh() | self.param_groups[0].get(STATE, {})
        self._listen()

    def __getstate__(self) -> dict[str, Any]:
        """All of it, for `copy.deepcopy` and pickle; the model and the inner optimizer go along."""
        own = ("inner", "settings", "_model", "_layers", "_twins", "_ready")
        return {**super().__getstate__(), **{name: self.__dict__[name] for name in own}, "_stamps": {}}

    # ---- from dense to Tucker format

    def _find(self) -> None:
        """See which layers are in Tucker format now."""
        self._layers = {n: layer for n, layer in factorised(self._model).items() if layer.core.requires_grad}
        cores = {id(layer.core) for layer in self._layers.values()}
        self._twins = [m for m in self._model.modules() if isinstance(m, Factorised) and id(m.core) in cores]
        self._stamps: dict[str, int] = {}

    def _enter(self) -> None:
        """Take the layers of a copy in Tucker format, made by one process; momentum goes along by the chain rule."""
        assert self.settings.enter is not None
        made = self.settings.enter()
        layers = factorised(made).values()
        (factors,) = shared([lambda: [f.detach() for layer in layers for f in (layer.core, *layer.bases)]], [1])
        parts = iter(factors)
        for layer in layers:
            layer.set_factors(*(next(parts).to(f) for f in (layer.core, *layer.bases)))
        take_layers_(self._model, made, self.inner)
        self._find()
        self._state["forms"] = {name: list(form) for name, form in forms_in(self._model).items()}
        for basis in self._bases():
            self.inner.state.pop(basis, None)  # a basis has no momentum: the inner optimizer never moves it
        self._note_ranks()
        self._listen()

    # ---- the cycle

    def _open(self) -> dict[str, Factorised]:
        """Let the bases grow; the layers that did."""
        state, grads, grown = self._state, {}, {}
        for name, layer in self._layers.items():
            found = [basis.grad for basis in layer.bases]
            mine = [g.detach()[:, :r] for g, r in zip(found, layer.ranks, strict=True) if g is not None]
            if bool(layer.augmented):
                if self.settings.pinned and name not in state["cut_ranks"]:
                    refuse_open_cycle(name)
                continue
            if len(mine) < len(found):
                continue
            if not math.isfinite(sum(float(g.sum()) for g in mine)) or not _finite(layer.core.grad):
                state["nonfinite"] += 1
                continue
            grads[name], grown[name] = mine, layer
        for name, layer in grown.items():
            state["cut_ranks"][name] = list(layer.ranks)
            state["first"].setdefault(name, list(layer.ranks))
        augment_(grown, grads, self.inner, columns=self.settings.columns, tangent=not self.settings.twice)
        self._note_ranks()
        return grown

    def _aim(self, aim: Callable[[], Mapping[str, Sequence[int]]]) -> dict[str, list[int]]:
        """The ranks to freeze at, found by one process: others might find others."""

        def found() -> list[Tensor]:
            wanted = aim()
            return [torch.tensor([*wanted.get(name, ())], dtype=torch.float64) for name in self._layers]

        ranks = shared([found], [1])[0]
        return {name: [int(r) for r in x.tolist()] for name, x in zip(self._layers, ranks, strict=True) if len(x)}

    def _again(self, closure: Callable[[], Any], before: RandomState) -> None:
        """The gradient in the larger space, with the random numbers of the first, and no second look at the data."""
        buffers = [(b, b.detach().clone()) for b in self._model.buffers()]
        self._ask(False)
        before.restore()
        torch.enable_grad()(closure)()
        for buffer, old in buffers:
            buffer.copy_(old)
        self._average()

    def _measure(self, grown: Mapping[str, Factorised]) -> None:
        """How much of the gradient lies in the new directions."""
        for name, layer in grown.items():
            grad = layer.core.grad
            if grad is not None:
                whole = float(grad.detach().double().norm())
                fresh = fresh_norm(layer, grad, self._state["cut_ranks"][name])
                self._state["share"][name] = (fresh / whole) ** 2 if whole > 0 else 0.0

    def _look(self, layers: Mapping[str, Factorised], frozen: bool) -> None:
        """Warn, once, where limits override the tolerance, and where ranks are too small and cannot grow."""
        state = self._state
        for name, layer in layers.items():
            stuck = list(layer.ranks) == state["first"].get(name) and state["growth"].get(name, 1) < 1
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
                f"`tau` {self.settings.tau:.3g}. Raise `cap` if it is to hold.",
                TenfoldWarning,
                stacklevel=3,
            )

    # ---- gradients

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether a scaler leaves it to `step` to skip: several processes have to agree on it."""
        return process()[1] > 1

    def _overflow(self) -> bool:
        """Whether a scaler found an overflow in any process; otherwise gradients are as without a scaler from here on.

        A scaler that leaves this to us sets two attributes for the time of the step.
        """
        found = getattr(self, "found_inf", None)
        if found is None:
            return False
        scale = getattr(self, "grad_scale", None)
        if scale is not None:
            inverse = scale.double().reciprocal().float()
            for p in self._parameters():
                if p.grad is not None:
                    p.grad.mul_(inverse.to(p.grad.device))
        return any_process(bool(found))

    def _average(self) -> None:
        unused = set() if self._state["position"] == 0 else {id(basis) for basis in self._bases()}
        average_gradients_([p for p in self._parameters() if id(p) not in unused])

    def _parameters(self) -> list[nn.Parameter]:
        return [p for group in self.param_groups for p in group["params"]]

    def _bases(self) -> list[nn.Parameter]:
        return [basis for layer in self._layers.values() for basis in layer.bases]

    def _listen(self) -> None:
        """Ask for gradients of the bases where the next step uses them."""
        self._ask(self._state["position"] == 0)

    def _ask(self, wanted: bool) -> None:
        for layer in self._twins:
            layer.constant_bases = not wanted

    # ---- state

    @property
    def _state(self) -> dict[str, Any]:
        return self.param_groups[0][STATE]

    def _take_bases(self) -> None:
        """Have each basis in the group of its core.

        Raises:
            ArgumentError: an inner optimizer that holds a basis, or misses a core; sharded layers.
        """
        held = [p for group in self.inner.param_groups for p in group["params"]]
        known = {id(p) for p in held}
        for name, layer in self._layers.items():
            if id(layer.core) not in known or any(id(b) in known for b in layer.bases):
                raise ArgumentError(
                    f"`inner` must hold the core of '{name}' and none of its bases. "
                    "Make it by method.optimizer(model, base=...)."
                )
        refuse_bases(held)
        refuse_sharded(self._layers, held)
        for layer in self._layers.values():
            group = next(g for g in self.inner.param_groups if any(p is layer.core for p in g["params"]))
            group["params"].extend(layer.bases)

    def _refuse_what_has_changed(self) -> None:
        """Raise `ArgumentError` where the model is no longer the one that this optimizer has left."""
        refuse_sharded(self._layers, self._parameters())
        for name, layer in self._layers.items():
            known, stamp = self._state["sizes"].get(name), layer.augmented._version
            if known is not None and (not layer.static or self._stamps.get(name) != stamp):
                refuse_other_ranks(name, layer, known, self.inner, self.settings.pinned)
                self._stamps[name] = stamp

    def _note_ranks(self) -> None:
        """Write down the ranks. Whoever loads a state writes the buffers of a layer, which their version tells."""
        self._state["sizes"] = {name: list(layer.ranks) for name, layer in self._layers.items()}
        self._stamps = {name: layer.augmented._version for name, layer in self._layers.items()}

    def _follow(self) -> None:
        """Have the groups and the state of the inner optimizer, which it replaces at loading."""
        self.param_groups, self.state = self.inner.param_groups, self.inner.state
        self._ready = True


def _fresh() -> dict[str, Any]:
    by_layer = ("cut_ranks", "sizes", "first", "error", "overridden", "growth", "share", "stalled")
    return {"steps": 0, "position": 0, "nonfinite": 0, "said": [], "aimed": False, "forms": {}} | {
        key: {} for key in by_layer
    }


def _finite(x: Tensor | None) -> bool:
    return x is None or bool(torch.isfinite(x.sum()))
