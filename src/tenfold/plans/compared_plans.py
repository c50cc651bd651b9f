"""Several plans built and refitted, and the one taken whose network comes nearest to the dense one's outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from tenfold.layers.calibration_batches import calibration_batches
from tenfold.layers.matrix import LowRank
from tenfold.layers.output_loss import OutputLoss, mean_output_loss
from tenfold.layers.refit import refit_
from tenfold.linalg.fold import Fold
from tenfold.plans.apply import build
from tenfold.plans.plan import Factors, Plan, fingerprint
from tenfold.plans.problem import Problem
from tenfold.plans.refit_result import Refit


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

    It brings the refitted factors, and says what each of them lost.

    Args:
        problem: of whose model they are plans, of low-rank layers.
        plans: by name; those that become the same are built once.
        fit: batches to refit on.
        held: batches to compare on.
        factors: see `tenfold.refit_`.
        loss: see `tenfold.layers.output_loss`.
        memory: see `tenfold.refit_`.
    """
    lost: dict[str, float] = {}
    best: tuple[float, Plan] | None = None
    for name, plan in plans.items():
        twin = next((other for other in lost if not plan.diff(plans[other])), None)
        if twin is not None:
            lost[name] = lost[twin]
            continue
        small = build(problem, plan).model
        refit_(small, problem.model, fit, factors=factors, memory=memory)
        lost[name] = mean_output_loss(small, problem.model, calibration_batches(problem.model, held), loss)
        if best is None or lost[name] < best[0]:
            best = lost[name], _with_factors(plan, small, problem.model)
    assert best is not None
    return replace(best[1], compared=lost)


def _with_factors(plan: Plan, small: nn.Module, dense: nn.Module) -> Plan:
    """The plan with the factors that its layers have in ``small``."""
    made = {n: _factors(small, dense, n) for n, x in plan.layers.items() if x.decomposition != "dense"}
    prints = {name: fingerprint(cast("Tensor", dense.get_submodule(name).weight)) for name in made}
    return replace(plan, from_data=True, factors=made, fingerprints=prints)


@torch.no_grad()
def _factors(small: nn.Module, dense: nn.Module, name: str) -> Factors:
    layer = cast("LowRank", small.get_submodule(name))
    fold = Fold(layer.spec.shape, layer.spec.groups, layer.slices, layer.fold or "channel")
    left, right = (t.detach().clone() for t in fold.factors(*layer.factor_kernels()))
    before, after = cast("Tensor | None", dense.get_submodule(name).bias), layer.held_bias
    if after is None:
        return left, right, None
    shift = after.detach().clone() if before is None else after.detach() - before.detach()
    return left, right, shift if bool(shift.any()) else None  # a bias that others use as well has not moved
