"""ALDS the plain way: one economy float32 `torch.linalg.svd` per slice and candidate, the same allocation, the factors.

The tables hold the same options with the same costs; only how singular values and factors are found differs.
"""

import numpy as np
import torch
from torch import Tensor, nn

import tenfold
from tenfold.layers.find import FoundLayer
from tenfold.layers.spec import spec_of
from tenfold.linalg.fold import Fold, divisors
from tenfold.ranks.candidates import Candidates
from tenfold.ranks.minmax import allocate

Factors = tuple[Tensor, Tensor]


def tables(problem: tenfold.Problem) -> list[Candidates]:
    """The options of every site in the ``max`` measure."""
    return [_table(site) for site in problem.sites]


def compress(model: nn.Module, budget: tenfold.Budget) -> tuple[float, dict[str, nn.Module]]:
    """Plan and factorise: the level reached, and the layers that replace others, by name."""
    problem = tenfold.survey(model)
    found = tables(problem)
    chosen = allocate(found, problem.limits(budget))
    assert chosen is not None
    layers: dict[str, nn.Module] = {}
    for site, table, i in zip(problem.sites, found, chosen.choice, strict=True):
        if i > 0:
            left, right = _factors(site, int(table.slices[i]), int(table.rank[i]))
            spec = spec_of(model.get_submodule(site.name))
            kind = tenfold.LowRankLinear if spec.linear else tenfold.LowRankConv
            layer = kind(spec, int(table.rank[i]), int(table.slices[i]))
            layer.set_factors(left, right)
            layers[site.name] = layer
    return chosen.level, layers


def spectrum_error(site: FoundLayer, spectra: dict[int, Tensor]) -> dict[str, float]:
    """Largest distance from float64 SVDs, relative to the largest value: of tenfold's spectra and of float32 SVDs."""
    worst = {"tenfold": 0.0, "reference": 0.0}
    for k, s in spectra.items():
        for matrix, found in zip(site.matrices("channel", k).flatten(0, 1), s.flatten(0, 1), strict=True):
            exact = torch.linalg.svdvals(matrix.double().mT)
            plain = torch.linalg.svd(matrix, full_matrices=False)[1]
            scale = float(spectra[1].max()) if 1 in spectra else float(exact[0])
            worst["tenfold"] = max(worst["tenfold"], float((found - exact).abs().max()) / scale)
            worst["reference"] = max(worst["reference"], float((plain - exact).abs().max()) / scale)
    return worst


def _table(site: FoundLayer) -> Candidates:
    dense = site.cost.dense().params
    rank, slices, error, cost, top = [0], [1], [0.0], [dense], None
    for k in divisors(site.cost.shape[1]):
        values = torch.stack([torch.linalg.svd(m, full_matrices=False)[1] for m in _slices(site, k)])
        top = float(values.max()) if top is None else top  # the first is k = 1
        one = site.cost.low_rank(1, k, "channel").params
        behind = torch.cat([values.amax(0)[1:], torch.zeros(1)])
        for j in range(1, min(values.shape[-1], (dense - 1) // one) + 1):
            rank.append(j)
            slices.append(k)
            error.append(float(behind[j - 1]) / top)
            cost.append(j * one)
    whole = np.array(rank)
    costs = {"params": np.array(cost)}
    return Candidates(site.name, ("channel",), np.zeros_like(whole), np.array(slices), whole, np.array(error), costs)


def _factors(site: FoundLayer, k: int, rank: int) -> Factors:
    left, right = [], []
    for matrix in _slices(site, k):
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        left.append(u[:, :rank] * s[:rank].sqrt())
        right.append(s[:rank].sqrt()[:, None] * vh[:rank])
    return torch.stack(left), torch.stack(right)


def _slices(site: FoundLayer, k: int) -> Tensor:
    return Fold(site.cost.shape, site.cost.groups, k).matrices(site.kernel)
