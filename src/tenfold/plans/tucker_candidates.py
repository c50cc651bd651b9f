"""Pairs of ranks: the options of convolutions in Tucker format, of matrices by one rank, as arrays.

The error of a pair is what the higher-order SVD would lose, relative, in Frobenius norm. One decomposition of a kernel
gives it for all pairs at once; the orthogonal iteration that follows when a layer is built only makes it smaller.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tenfold.layers.find import FoundLayer
from tenfold.layers.tucker import channel_sizes
from tenfold.linalg.multilinear import rank_pair_errors
from tenfold.plans.candidates import candidates
from tenfold.plans.problem import Problem
from tenfold.ranks.aligned import CONVOLUTIONS, aligned_ranks
from tenfold.ranks.candidates import Candidates
from tenfold.ranks.measures import MEASURES

PairErrors = Callable[[Sequence[int]], NDArray[np.float64] | None]
"""Input ranks -> relative errors of pairs ``(r_out, r_in)``, known at these input ranks; None where none is known."""
_GRID = 64
"""Ranks of a mode that compete: all up to so many, of a larger mode evenly spread ones."""
_TIMED = 6
"""Ranks of a mode that compete where each pair is measured."""
_TABLES, _LOST = "rank pairs", "lost by rank pairs"


def tucker_candidates(problem: Problem) -> list[Candidates]:
    """The candidates of every site: Tucker rank pairs for kernels with spatial axes, ranks in the channel fold else."""
    if _TABLES not in problem.tables:
        matrices = replace(problem, sites=tuple(s for s in problem.sites if pointwise(s)), tables={})
        flat = iter(candidates(matrices, MEASURES["fro"], slices=(1,)))
        problem.tables[_TABLES] = [
            next(flat) if pointwise(s) else judged_pairs(problem, s, lambda _, s=s: _lost(problem, s))
            for s in problem.sites
        ]
    return list(problem.tables[_TABLES])


def tucker_line(problem: Problem, site: FoundLayer, end: tuple[int, int], *, measured: bool) -> Candidates:
    """The candidates on the line of rank pairs from ``(1, 1)`` to ``end``, one for each rank of its larger mode.

    Args:
        problem: the layers.
        site: a convolution with spatial axes, one of them.
        end: the last pair, one that the kernel can have.
        measured: whether errors are known; otherwise NaN, and the weights are not looked at.
    """
    entries, shares = math.prod(site.cost.shape[2:]), np.arange(1, max(end) + 1) / max(end)
    outer, inner = (np.maximum(1, np.rint(n * shares)).astype(np.int64) for n in end)
    outer = np.minimum(outer, entries * inner)
    lost = _lost(problem, site) if measured else None
    return problem.fast(site, _saving(site, outer, np.minimum(inner, entries * outer), lost))


def pointwise(site: FoundLayer) -> bool:
    """Whether the kernel is a matrix: a linear layer or a pointwise convolution."""
    return math.prod(site.cost.shape[2:]) == 1


def judged_pairs(problem: Problem, site: FoundLayer, errors: PairErrors) -> Candidates:
    """Dense, and every pair on the grid that a Tucker tensor can have and that saves what low-rank options save.

    Args:
        problem: the layers; with times, the ranks of the grid are those at which layers are fast.
        site: a convolution with spatial axes.
        errors: asked for once.
    """
    sizes, entries = channel_sizes(site.cost.shape, site.cost.groups)
    grid = _grid if problem.align == 1 and problem.times is None else partial(_aligned_grid, problem)
    outer, inner = map(grid, sizes)
    lost = errors(inner.tolist())
    outer, inner = (x.ravel() for x in np.meshgrid(outer, inner, indexing="ij"))
    possible = (outer <= entries * inner) & (inner <= entries * outer)
    return problem.fast(site, _saving(site, outer[possible], inner[possible], lost))


def unknown_pairs(inner: Sequence[int]) -> None:
    """The `PairErrors` of options that are known by their shapes alone."""


def _lost(problem: Problem, site: FoundLayer) -> NDArray[np.float64]:
    """Relative errors of all pairs of ranks; computed once."""
    key = (_LOST, site.name)
    if key not in problem.tables:
        lost = sum(rank_pair_errors(part) for part in site.kernel.chunk(site.cost.groups))
        energy = float(site.kernel.double().square().sum())
        problem.tables[key] = np.sqrt(cast("Tensor", lost).cpu().numpy() / (energy or 1.0))
    return problem.tables[key]


def _saving(
    site: FoundLayer, outer: NDArray[np.int64], inner: NDArray[np.int64], lost: NDArray[np.float64] | None
) -> Candidates:
    """Dense, and those of the pairs that save what low-rank options save."""
    dense, keep = site.cost.dense(), np.full(len(outer), True)
    costs: dict[str, NDArray[np.int64]] = {}
    for name, terms in zip(("params", "macs"), site.cost.tucker_terms(), strict=True):
        whole = getattr(dense, name)
        if terms is not None:
            costs[name] = terms[0] * inner + terms[1] * outer * inner + terms[2] * outer
            keep &= (costs[name] < whole) | (whole == 0)  # a layer that is not used has no MACs to save
    error = np.full(len(outer), np.nan) if lost is None else lost[outer - 1, inner - 1]

    def after(first: Any, values: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate([np.array([first], dtype=values.dtype), values[keep]])

    ranks = after([0, 0], np.stack([outer, inner], axis=1))
    n = len(ranks)
    return Candidates(
        site.name,
        ("channel",),
        np.zeros(n, dtype=np.int64),
        np.ones(n, dtype=np.int64),
        ranks,
        after(0.0, error),
        {name: after(getattr(dense, name), values) for name, values in costs.items()},
    )


def _grid(n: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(1, n, min(n, _GRID)).round().astype(np.int64))


def _aligned_grid(problem: Problem, n: int) -> NDArray[np.int64]:
    """Ranks at which a layer is fast: all, or a few where each pair of them has to be measured."""
    ranks = aligned_ranks(n, max(problem.align, 1) if problem.times is None else CONVOLUTIONS)
    most = _GRID if problem.times is None else _TIMED
    return np.array(ranks[:: -(-len(ranks) // most)], dtype=np.int64)
