"""Accuracy over a range of cuts: shares of a trained network are removed, without retraining."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tenfold.bench.compare.findings import CutCurve
from tenfold.bench.sweep import Cut, FilterCut, RankCut, measured_rows
from tenfold.errors import check, is_share
from tenfold.layers.swap import multiplied_back

RANK, FILTER = "rank", "filter"


@dataclass(frozen=True)
class Cuts:
    """A range of cuts of a trained network: what is removed, and in which shares, each from the whole network.

    Args:
        kind: "rank": the same share of the full rank in every layer, see `tenfold.RankCut`; "filter": the share of the
            filters of least norm in every layer, see `tenfold.FilterCut`.
        remove: the shares to remove, each in [0, 1), different from one another; at least one.
        target: only these layers are cut; see `tenfold.plan`.
        exclude: these never are.

    Raises:
        ArgumentError: another kind, no share, one out of range, or one twice.
    """

    kind: str
    remove: tuple[float, ...]
    target: str | list[str] | None = None
    exclude: str | list[str] | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        check(self.kind in (RANK, FILTER), "kind", f"one of {RANK}, {FILTER}", self.kind)
        check(len(self.remove) > 0, "remove", "a list with at least one share", [])
        for share in self.remove:
            check(is_share(share) and share < 1, "remove", "numbers in [0, 1): shares to remove", share)
        check(len(set(self.remove)) == len(self.remove), "remove", "different from one another", list(self.remove))


def curve(
    cuts: Cuts,
    model: nn.Module,
    accuracy: Callable[[nn.Module], float],
    *,
    data: Iterable[Any],
    example: Tensor,
) -> CutCurve:
    """Accuracy over a range of cuts, each on a copy of ``model``; factorised layers are multiplied out first.

    Args:
        cuts: kind and shares.
        model: trained; untouched.
        accuracy: of a model, in [0, 1].
        data: training batches that batch norm is re-estimated from; gone through for every cut.
        example: one input, of batch size 1, for MACs.
    """
    cut: Cut = (
        RankCut(target_modules=cuts.target, exclude_modules=cuts.exclude)
        if cuts.kind == RANK
        else FilterCut(example, target_modules=cuts.target, exclude_modules=cuts.exclude)
    )
    dense = multiplied_back(model)
    return CutCurve(cuts.kind, measured_rows(dense, cut, cuts.remove, accuracy, data=data, example_inputs=example))
