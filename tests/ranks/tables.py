"""Tables of candidates, and slow, explicit counterparts of the rules that choose among them."""

import itertools

import numpy as np

from tenfold.ranks.candidates import Candidates


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
