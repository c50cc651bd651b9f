"""Small models and slow, explicit counterparts, shared by the tests of ranks and methods."""

import itertools

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tenfold.ranks.candidates import Candidates


def chain() -> nn.Module:
    """Three layers whose MACs are proportional to their parameters, some of it strided, padded and grouped."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3, stride=2, groups=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 10),
    )


def unlike() -> nn.Module:
    """Layers whose MACs are *not* proportional to their parameters: transposed and strided convolutions."""
    return nn.Sequential(
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(6, 4, 4, stride=2),
        nn.Conv2d(4, 4, 3, stride=(1, 3), bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def image() -> torch.Tensor:
    return torch.randn(2, 3, 8, 8)


def small_image() -> torch.Tensor:
    return torch.randn(2, 4, 7, 7)


class Tied(nn.Module):
    """Two linear layers with one weight, an embedding tied to a head, a grouped convolution, a plain layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 16)
        self.first = nn.Linear(16, 16)
        self.second = nn.Linear(16, 16, bias=False)
        self.second.weight = self.first.weight
        self.mix = nn.Conv1d(16, 16, 3, padding=1, groups=2)
        self.plain = nn.Linear(16, 24)
        self.back = nn.Linear(24, 16)
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.second(torch.relu(self.first(self.table(tokens))))
        x = self.mix(x.mT).mT
        return self.head(self.back(torch.relu(self.plain(x))))[:, -1]


def tokens() -> torch.Tensor:
    return torch.randint(20, (3, 5))


def counted(model: nn.Module, inputs: torch.Tensor) -> tuple[int, int]:
    """Parameters (tied ones once) and MACs of a built model, by torch's own counter."""
    seen = {id(p): p.numel() for p in model.parameters()}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(inputs)
    return sum(seen.values()), counter.get_total_flops() // 2


def table(error, slices=None, **costs) -> Candidates:
    """Candidates from plain lists; entry 0 is dense."""
    n = len(error)
    return Candidates(
        "layer",
        ("channel",),
        np.zeros(n, dtype=np.int64),
        np.array(slices or [1] * n, dtype=np.int64),
        np.arange(n, dtype=np.int64),
        np.array(error, dtype=np.float64),
        {name: np.array(cost, dtype=np.int64) for name, cost in costs.items()},
    )


def random_tables(rng, layers, options, names=("params",), high=40, unlike=False) -> list[Candidates]:
    """Tables with many ties; with several costs either in one order in each layer, or each in an order of its own."""
    tables = []
    for _ in range(layers):
        n = int(rng.integers(1, options + 1))
        error = np.concatenate([[0.0], rng.integers(1, 2 * options, n - 1) / (2 * options)])
        first = np.concatenate([[high + 5], rng.integers(1, high, n - 1)])
        costs = {}
        for name in names:
            factor = int(rng.integers(1, 5))
            costs[name] = factor * (rng.permutation(first) if unlike and rng.random() < 0.8 else first)
        tables.append(table(error, rng.integers(1, 4, n).tolist(), **costs))
    return tables


def brute_force(tables, limits) -> float | None:
    """The smallest largest error over *all* combinations within the limits; None where there is none."""
    best = None
    for choice in itertools.product(*(range(len(t.error)) for t in tables)):
        if all(sum(t.costs[n][c] for t, c in zip(tables, choice, strict=True)) <= limits[n] for n in limits):
            level = max(t.error[c] for t, c in zip(tables, choice, strict=True))
            best = level if best is None else min(best, level)
    return None if best is None else float(best)


def brute_force_grid(tables, limits) -> float | None:
    """As `brute_force`, by arrays: for tables with too many combinations for a loop."""
    error, costs = np.zeros(1), {n: np.zeros(1, dtype=np.int64) for n in limits}
    for t in tables:
        error = np.maximum(error[:, None], t.error[None, :]).ravel()
        costs = {n: (costs[n][:, None] + t.costs[n][None, :]).ravel() for n in limits}
    fits = np.all([costs[n] <= limits[n] for n in limits], axis=0)
    return float(error[fits].min()) if fits.any() else None
