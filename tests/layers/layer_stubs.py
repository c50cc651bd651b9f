"""Small networks and plain-data plans that the layer tests share."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tenfold.layers.matrix import low_rank_class
from tenfold.layers.spec import spec_of
from tenfold.layers.tucker import TuckerConv, full_ranks
from tenfold.linalg.fold import Fold, slice_counts


@dataclass(frozen=True)
class Entry:
    """The least that a plan says about a layer."""

    rank: int | tuple[int, ...] | None = None
    slices: int = 1
    fold: str | None = "channel"
    decomposition: str = "low-rank"
    bias: bool = False


DENSE = Entry(None, 1, None, "dense")


TUCKER = "tucker"
"""Stands among the folds for the format that is none."""


def factorised(layer: nn.Module, rank: Any = None, slices: int = 1, fold: str = "channel") -> Any:
    """``layer`` as a factor pair, or in Tucker format, at full rank by default."""
    spec = spec_of(layer)
    assert spec is not None
    if fold == TUCKER:
        pair = (rank, rank) if isinstance(rank, int) else rank
        return TuckerConv.from_layer(layer, spec, pair or full_ranks(spec.shape, spec.groups))
    full = Fold(spec.shape, spec.groups, slices, fold).full_rank
    return low_rank_class(spec).from_layer(layer, spec, full if rank is None else rank, slices, fold)


def sliced(layer: nn.Module, fold: str, *wanted: int) -> list[int]:
    """Which of the wanted numbers of slices ``fold`` takes for ``layer``."""
    spec = spec_of(layer)
    assert spec is not None
    possible = (1,) if fold == TUCKER else slice_counts(spec.shape, fold)
    return [s for s in wanted if s in possible]


def entry_for(layer: nn.Module, rank: Any = None, slices: int = 1, fold: str = "channel") -> Entry:
    """A structure that fits ``layer``, at full rank by default."""
    spec = spec_of(layer)
    assert spec is not None
    if fold == TUCKER and not spec.linear:
        return Entry(full_ranks(spec.shape, spec.groups) if rank is None else rank, 1, None, TUCKER)
    fold = "channel" if fold == TUCKER else fold
    return Entry(Fold(spec.shape, spec.groups, slices, fold).full_rank if rank is None else rank, slices, fold)


def full_rank(model: nn.Module, *, slices: int = 1, fold: str = "channel") -> dict[str, Entry]:
    """Every plain layer of ``model`` at full rank, under all its names."""
    named = model.named_modules(remove_duplicate=False)
    return {name: entry_for(m, slices=slices, fold=fold) for name, m in named if spec_of(m) is not None}


def low_rank(model: nn.Module, rank: int = 1, fold: str = "channel") -> dict[str, Entry]:
    """Every plain layer of ``model`` at one rank, or at full rank where that is less, under all its names."""
    made = {}
    for name, full in full_rank(model, fold=fold).items():
        top = full.rank or 1
        made[name] = replace(full, rank=tuple(min(rank, r) for r in top) if isinstance(top, tuple) else min(rank, top))
    return made


def state(model: nn.Module) -> dict[str, Tensor]:
    """A copy of everything that a query must leave alone."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def relative(a: Tensor, b: Tensor) -> float:
    """``|a - b| / |b|`` in float64."""
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm().clamp(min=1e-300))


def batches(*shape: int, count: int, seed: int = 0) -> Iterator[Tensor]:
    """``count`` random batches."""
    g = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield torch.randn(*shape, generator=g)


class Block(nn.Module):
    """A residual block: fan-out at its input, a projection on the shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.down = nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.down(x))


class TinyResNet(nn.Module):
    """Stem, two blocks, pooling, a linear head."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = nn.Sequential(Block(width, width, 1), Block(width, 2 * width, 2))
        self.fc = nn.Linear(2 * width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer1(torch.relu(self.bn1(self.conv1(x))))
        return self.fc(x.mean((-2, -1)))


class Tied(nn.Module):
    """An embedding whose table is the weight of the head, and two linear layers that share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.up = nn.Linear(8, 8)
        self.down = nn.Linear(8, 8)
        self.down.weight = self.up.weight
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.down(torch.relu(self.up(self.embed(tokens)))))
