"""Candidates and factors from what layers put out on calibration data; for the mathematics see `linalg.output_aware`.

The channel fold without slices is what output moments speak of: its factors project a layer's outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from numpy.typing import NDArray
from torch import Tensor

from tenfold.layers.find import FoundLayer
from tenfold.linalg.output_aware import output_factors
from tenfold.plans.candidates import candidates, with_bias
from tenfold.plans.output_moments import Moments, block_bytes, bytes_of
from tenfold.plans.plan import Factors
from tenfold.plans.problem import Problem
from tenfold.ranks.candidates import Candidates
from tenfold.ranks.measures import MEASURES

_MADE = "outputs"
_SQUARES = 8
"""Matrices of a layer's moments that are there at a time while its basis is made."""


@dataclass(frozen=True)
class OutputBasis:
    """Output-aware factors of every rank for one layer: ``W_hat = left[:, :r] (right[:, :r]^T W)``, group by group.

    All in the coordinates of the layer's moments, p of them; see `tenfold.plans.output_moments`.

    Args:
        left: ``(g, p, p)``, best directions first.
        right: ``(g, p, p)``.
        energy: what each direction carries, ``(g, p)``; what is cut is lost.
        shift: mean output ``E[W x]``, ``(g, p)``, kept by the bias where directions are cut; None for no shift.
    """

    left: Float64[Tensor, "g p p"]
    right: Float64[Tensor, "g p p"]
    energy: Float64[Tensor, "g p"]
    shift: Float64[Tensor, "g p"] | None = None

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        return bytes_of(self.left, None if self.right is self.left else self.right, self.energy, self.shift)

    def lost(self) -> NDArray[np.float64]:
        """Energy lost at rank 0, 1, ..., p, over all groups; never negative."""
        tail = self.energy.clamp(min=0).sum(0).flip(0).cumsum(0).flip(0)
        return torch.cat([tail, tail.new_zeros(1)]).numpy()


@dataclass(frozen=True)
class Outputs:
    """Output moments, bases and candidates of all sites; made once, for any number of budgets.

    Args:
        problem: the layers.
        moments: by site.
        bases: by site.
        tables: the unsliced options of every site; errors are ``sqrt(energy lost / energy)``. An added bias is counted.
        bytes: the most memory that all of it took at a time, beyond the model and a batch's own pass.
    """

    problem: Problem
    moments: Mapping[str, Moments]
    bases: Mapping[str, OutputBasis]
    tables: list[Candidates]
    bytes: int

    def made(self, choice: Sequence[int] | None) -> dict[str, Any]:
        """The factors of the chosen ranks by site, and the memory they took, as fields of a `Plan`."""
        made: dict[str, Factors] = {}
        for site, table, i in zip(self.problem.sites, self.tables, choice or (), strict=choice is not None):
            if i > 0:
                weight = site.matrices()[:, 0].cpu()
                made[site.name] = _factors(weight, self.moments[site.name], self.bases[site.name], int(table.rank[i]))
        return {"factors": made, "calibration_bytes": self.bytes}


def outputs_of(
    problem: Problem,
    key: Hashable,
    moments: Mapping[str, Moments],
    basis: Callable[[Moments, Float64[Tensor, "g p n"]], OutputBasis],
) -> Outputs:
    """Bases and options of every site, computed once for each ``key``: the next budget comes from there.

    Args:
        problem: the layers.
        key: what the bases depend on: the method with its fields.
        moments: from the problem.
        basis: of one layer, from its moments and its weight in their coordinates.
    """
    if (_MADE, key) not in problem.tables:
        bases = {s.name: basis(moments[s.name], _weight(s, moments[s.name])) for s in problem.sites}
        tables = candidates(problem, MEASURES["fro"], slices=(1,))
        spread = [_with_energy(t, s, bases[s.name], problem) for t, s in zip(tables, problem.sites, strict=True)]
        problem.tables[_MADE, key] = Outputs(problem, moments, bases, spread, _peak(problem, moments, bases))
    return problem.tables[_MADE, key]


def _weight(site: FoundLayer, moments: Moments) -> Float64[Tensor, "g p n"]:
    return moments.coordinates(site.matrices()[:, 0])


def _peak(problem: Problem, moments: Mapping[str, Moments], bases: Mapping[str, OutputBasis]) -> int:
    """While outputs are added up, or while the bases are made, or while factors are: the largest."""
    kept = sum(m.bytes for m in moments.values())
    collecting = max(block_bytes(m) for m in moments.values())
    made = sum(b.bytes for b in bases.values())
    solving = max(_SQUARES * bytes_of(moments[s.name].outer) + 2 * 8 * s.params for s in problem.sites)
    return kept + max(collecting, made + solving)


def kept_product(tables: Sequence[Candidates]) -> list[NDArray[np.float64]]:
    """The loss ``-log(1 - error^2)`` of every candidate; its least sum maximises the product of the kept shares.

    A layer that would keep nothing is as bad as can be, not infinitely so.
    """
    return [-np.log(np.maximum(1 - t.error**2, 1e-12)) for t in tables]


def _with_energy(table: Candidates, site: FoundLayer, basis: OutputBasis, problem: Problem) -> Candidates:
    lost = basis.lost()
    error = np.sqrt(lost[table.rank] / lost[0]) if lost[0] > 0 else np.zeros(len(table.rank))
    error[0] = 0.0  # dense
    found = replace(table, error=error)
    return found if basis.shift is None else with_bias(problem, site, found)


def _factors(weight: Tensor, moments: Moments, basis: OutputBasis, rank: int) -> Factors:
    """Factors in the dtype of the weight ``(g, f', n)``, and what the cut directions put out on average, ``(f,)``."""
    left, right = output_factors(moments.coordinates(weight), basis.left, basis.right, rank)
    unseen = None
    if basis.shift is not None:
        seen = basis.left[..., :rank] @ (basis.right[..., :rank].mT @ basis.shift[..., None])
        unseen = basis.shift[..., None] - seen
    if moments.basis is not None:
        left = moments.basis @ left
        unseen = None if unseen is None else moments.basis @ unseen
    return (left.to(weight.dtype), right.to(weight.dtype)), None if unseen is None else unseen.flatten()
