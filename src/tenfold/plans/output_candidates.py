"""Candidates and factors from what layers put out on calibration data; for the mathematics see `linalg.output_aware`.

The channel fold without slices is what output moments speak of: its factors project a layer's outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float64
from numpy.typing import NDArray
from torch import Tensor

from tenfold.layers.find import FoundLayer
from tenfold.linalg.output_aware import output_factors
from tenfold.plans.candidates import candidates
from tenfold.plans.plan import Factors
from tenfold.plans.problem import Problem
from tenfold.ranks.candidates import Candidates
from tenfold.ranks.measures import MEASURES


@dataclass(frozen=True)
class OutputBasis:
    """Output-aware factors of every rank for one layer: ``W_hat = left[:, :r] (right[:, :r]^T W)``, group by group.

    Args:
        left: ``(g, f', f')``, best directions first.
        right: ``(g, f', f')``.
        energy: what each direction carries, ``(g, f')``; what is cut is lost.
        shift: mean output ``E[W x]``, ``(g, f')``, kept by the bias where directions are cut; None for no shift.
    """

    left: Float64[Tensor, "g f f"]
    right: Float64[Tensor, "g f f"]
    energy: Float64[Tensor, "g f"]
    shift: Float64[Tensor, "g f"] | None = None

    def lost(self) -> NDArray[np.float64]:
        """Energy lost at rank 0, 1, ..., f', over all groups; never negative."""
        tail = self.energy.clamp(min=0).sum(0).flip(0).cumsum(0).flip(0)
        return torch.cat([tail, tail.new_zeros(1)]).numpy()


def output_candidates(problem: Problem, bases: Mapping[str, OutputBasis]) -> list[Candidates]:
    """The unsliced candidates of every site, with errors ``sqrt(energy lost / energy)``. An added bias is counted."""
    tables = candidates(problem, MEASURES["fro"], slices=(1,))
    return [
        _with_energy(t, s, bases[s.name], _added(problem, s, bases[s.name]))
        for t, s in zip(tables, problem.sites, strict=True)
    ]


def kept_product(tables: Sequence[Candidates]) -> list[NDArray[np.float64]]:
    """The loss ``-log(1 - error^2)`` of every candidate; its least sum maximises the product of the kept shares.

    A layer that would keep nothing is as bad as can be, not infinitely so.
    """
    return [-np.log(np.maximum(1 - t.error**2, 1e-12)) for t in tables]


def _with_energy(table: Candidates, site: FoundLayer, basis: OutputBasis, added: int) -> Candidates:
    lost = basis.lost()
    error = np.sqrt(lost[table.rank] / lost[0]) if lost[0] > 0 else np.zeros(len(table.rank))
    error[0] = 0.0  # dense
    if not added:
        return replace(table, error=error)
    params = table.costs["params"].copy()
    params[1:] += site.cost.shape[0] * added
    worth = params < params[0]
    worth[0] = True
    costs = {name: (params if name == "params" else cost)[worth] for name, cost in table.costs.items()}
    kept = {name: getattr(table, name)[worth] for name in ("fold", "slices", "rank")}
    return replace(table, **kept, error=error[worth], costs=costs, bias=True)


def _added(problem: Problem, site: FoundLayer, basis: OutputBasis) -> int:
    """How many biases the shift needs that the layers with this weight do not have."""
    return 0 if basis.shift is None else len(problem.without_bias(site))


def factors_of(
    problem: Problem, bases: Mapping[str, OutputBasis], tables: Sequence[Candidates], choice: Sequence[int] | None
) -> dict[str, Factors]:
    """The factors of the chosen ranks by site; those left dense are absent.

    Args:
        problem: the layers.
        bases: from `output_basis`, by site.
        tables: from `output_candidates`.
        choice: one index into each table; None: no factors.
    """
    made: dict[str, Factors] = {}
    for site, table, i in zip(problem.sites, tables, choice or (), strict=choice is not None):
        if i == 0:
            continue
        basis, rank = bases[site.name], int(table.rank[i])
        left, right = output_factors(site.matrices()[:, 0].cpu(), basis.left, basis.right, rank)
        made[site.name] = (left, right, _kept_mean(basis, rank))
    return made


def _kept_mean(basis: OutputBasis, rank: int) -> Tensor | None:
    """``E[W x] - W_hat``'s share of it: what the cut directions put out on average, ``(f,)``."""
    if basis.shift is None:
        return None
    seen = basis.left[..., :rank] @ (basis.right[..., :rank].mT @ basis.shift[..., None])
    return (basis.shift - seen[..., 0]).flatten()
