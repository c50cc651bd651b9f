"""Several plans built and refitted, and the one taken whose network comes nearest to the dense one's outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from tenfold.layers.calibration_batches import calibration_batches
from tenfold.layers.calibration_runs import held_out, positions_in
from tenfold.layers.matrix import LowRank
from tenfold.layers.output_loss import OutputLoss, mean_output_loss
from tenfold.layers.refit import PASSES, refit_
from tenfold.linalg.fold import Fold
from tenfold.plans.apply import build
from tenfold.plans.plan import Factors, Plan, fingerprint
from tenfold.plans.problem import Problem
from tenfold.plans.refit_result import Refit

_MANY, _SOME = 256, 8
"""Examples from which on a quarter tells which plans are worth the others; with maps for outputs, positions in them, of
so many examples at least."""
_FEW = 8
"""Passes over them."""
_RIVAL = 2.0
"""Times what the best loses at that first look: above it a plan is none."""


def best_refitted(
    problem: Problem,
    plans: Mapping[str, Plan],
    fit: Sequence[Any],
    held: Sequence[Any],
    *,
    factors: Refit,
    loss: OutputLoss | None,
    memory: int,
) -> Plan:
    """The plan whose refitted network loses least on examples that it was not fitted to; of equals the first.

    It brings the refitted factors, and says what each of them lost. With 256 examples and more, or positions in output
    maps, all plans are refitted on a quarter of them first, in a few passes. Those that so lose more than twice what
    the best one does are taken no further; said of them is what the best loses in the end, times their ratio at that
    first look.

    Args:
        problem: of whose model they are plans, of low-rank layers.
        plans: by name; those that become the same are built once.
        fit: batches to refit on.
        held: batches to compare on.
        factors: see `tenfold.refit_`.
        loss: see `tenfold.layers.output_loss`.
        memory: see `tenfold.refit_`.
    """
    model, twins = problem.model, dict[str, str]()

    def refitted(small: nn.Module, data: Sequence[Any], passes: int = PASSES) -> float:
        refit_(small, model, data, factors=factors, memory=memory, passes=passes)
        return mean_output_loss(small, model, calibration_batches(model, held), loss)

    made: dict[str, nn.Module] = {}
    for name, plan in plans.items():
        twin = next((other for other in made if not plan.diff(plans[other])), None)
        if twin is not None:
            twins[name] = twin
        else:
            made[name] = build(problem, plan).model
    examples = sum(map(len, calibration_batches(model, fit)))
    seen = dict.fromkeys(made, 1.0)
    many = examples >= _MANY or (examples >= _SOME and examples * positions_in(model, fit) >= _MANY)
    if len(made) > 1 and many:
        some = held_out(model, list(fit), examples // 4)[0]
        seen = {name: refitted(small, some, passes=_FEW) for name, small in made.items()}
    least = min(seen.values())
    lost = {name: refitted(small, fit) for name, small in made.items() if seen[name] <= _RIVAL * least}
    best = min(lost, key=lost.__getitem__)
    lost = {name: lost.get(name, lost[best] * seen[name] / least) for name in made}
    compared = {name: lost[twins.get(name, name)] for name in plans}
    return replace(_with_factors(plans[best], made[best], model), compared=compared)


def _with_factors(plan: Plan, small: nn.Module, dense: nn.Module) -> Plan:
    """The plan with the factors that its layers have in ``small``."""
    made = {n: _factors(small, dense, n) for n, x in plan.layers.items() if x.decomposition != "dense"}
    prints = {name: fingerprint(cast("Tensor", dense.get_submodule(name).weight)) for name in made}
    return replace(plan, from_data=True, factors=made, fingerprints=prints)


@torch.no_grad()
def _factors(small: nn.Module, dense: nn.Module, name: str) -> Factors:
    layer = cast("LowRank", small.get_submodule(name))
    fold = Fold(layer.spec.shape, layer.spec.groups, layer.slices, layer.fold or "channel")
    made = tuple(t.detach().clone() for t in fold.factors(*layer.factor_kernels()))
    before, after = cast("Tensor | None", dense.get_submodule(name).bias), layer.held_bias
    if after is None:
        return made, None
    shift = after.detach().clone() if before is None else after.detach() - before.detach()
    return made, shift if bool(shift.any()) else None  # a bias that others use as well has not moved
