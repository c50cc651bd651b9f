"""Every ball, at tensors small enough for an outside solver."""

import itertools

import torch
from torch import Tensor

from tenfold import balls

SHAPES = {"Entries": [(2, 1, 4)], "FilterGrouping": [(5, 3, 1)], "Values": [(4, 6), (6, 2, 2)]}
FIELDS = {
    "Lp": [{"p": 1.5}, {"p": 3.0}],
    "KSparse": [{"k": 1}, {"k": 3}, {"k": 0.9}],
    "KSupport": [{"k": 1}, {"k": 3}, {"k": 0.9}],
    "GroupKSupport": [{"k": 1}, {"k": 2}, {"k": 0.7}],
    "SpectralKSparse": [{"k": 1}, {"k": 2}, {"k": 0.7}],
    "SpectralKSupport": [{"k": 1}, {"k": 2}, {"k": 0.7}],
}
ALL = [kind(**fields) for name, kind in balls.SETS.items() for fields in FIELDS.get(name, [{}])]
CASES = [(ball, shape) for ball in ALL for shape in SHAPES[type(ball.split).__name__]]
IDS = [f"{ball}{shape}" for ball, shape in CASES]


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def total(ball: balls.Ball, shape: tuple[int, ...]) -> int:
    """How many entries, filters or singular values there are, counted apart from the code."""
    rest = torch.Size(shape[1:]).numel()
    return {"Entries": shape[0] * rest, "FilterGrouping": shape[0], "Values": min(shape[0], rest)}[
        type(ball.split).__name__
    ]


def number(ball: balls.Ball, shape: tuple[int, ...]) -> int:
    """k of a ball as an int; 1 for L1 and the nuclear norm, all for LInf and L2."""
    n = total(ball, shape)
    k = getattr(ball, "k", {"L1": 1, "Nuclear": 1}.get(type(ball).__name__, n))
    return min(n, k) if isinstance(k, int) else next(i for i in range(1, n + 1) if i >= k * n)


def subsets(n: int, k: int) -> list[list[int]]:
    return [list(s) for s in itertools.combinations(range(n), k)]
