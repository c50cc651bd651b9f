"""Plain-data plans, and layers in every format, that the layer tests share."""

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

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
