"""Pairs of ranks: the options of convolutions in Tucker format, of matrices by one rank, as arrays.

The error of a pair is what the higher-order SVD would lose, relative, in Frobenius norm. One decomposition of a kernel
gives it for all pairs at once; the orthogonal iteration that follows when a layer is built only makes it smaller.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tenfold.linalg.multilinear import rank_pair_errors
from tenfold.ranks.measures import MEASURES
from tenfold.ranks.options import Options, options
from tenfold.ranks.problem import Problem, Site

_GRID = 64
"""Ranks of a mode that compete: all up to so many, of a larger mode evenly spread ones."""
_TABLES = "rank pairs"


def pair_options(problem: Problem) -> list[Options]:
    """The options of every site: rank pairs for kernels with spatial axes, ranks in the channel fold for the others."""
    if _TABLES not in problem.tables:
        matrices = replace(problem, sites=tuple(s for s in problem.sites if _pointwise(s)), tables={})
        flat = iter(options(matrices, MEASURES["fro"], slices=(1,)))
        problem.tables[_TABLES] = [next(flat) if _pointwise(s) else _pairs(s) for s in problem.sites]
    return list(problem.tables[_TABLES])


def _pairs(site: Site) -> Options:
    """Dense, and every pair on the grid that a Tucker tensor can have and that saves what low-rank options save."""
    lost = torch.stack([rank_pair_errors(part) for part in site.kernel.chunk(site.cost.groups)]).sum(0).cpu().numpy()
    energy = float(site.kernel.double().square().sum())
    outer, inner = (x.ravel() for x in np.meshgrid(*map(_grid, lost.shape), indexing="ij"))
    entries, dense = math.prod(site.cost.shape[2:]), site.cost.dense()
    keep = (outer <= entries * inner) & (inner <= entries * outer)
    costs: dict[str, NDArray[np.int64]] = {}
    for name, terms in zip(("params", "macs"), site.cost.tucker_terms(), strict=True):
        whole = getattr(dense, name)
        if terms is not None:
            costs[name] = terms[0] * inner + terms[1] * outer * inner + terms[2] * outer
            keep &= (costs[name] < whole) | (whole == 0)  # a layer that is not used has no MACs to save
    error = np.sqrt(lost[outer - 1, inner - 1] / energy) if energy > 0 else np.zeros(len(outer))

    def after(first: Any, values: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate([np.array([first], dtype=values.dtype), values[keep]])

    ranks = after([0, 0], np.stack([outer, inner], axis=1))
    n = len(ranks)
    return Options(
        site.name,
        ("channel",),
        np.zeros(n, dtype=np.int64),
        np.ones(n, dtype=np.int64),
        ranks,
        after(0.0, error),
        {name: after(getattr(dense, name), values) for name, values in costs.items()},
    )


def _pointwise(site: Site) -> bool:
    return math.prod(site.cost.shape[2:]) == 1


def _grid(n: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(1, n, min(n, _GRID)).round().astype(np.int64))
