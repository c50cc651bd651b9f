"""Layers that a rule leaves dense because cutting them gains nothing: the smallest ones, and the ends of a network."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import numpy as np
from torch import nn

from tenfold.errors import TenfoldWarning
from tenfold.layers.cost import count_params
from tenfold.layers.find import find
from tenfold.layers.select import Selection
from tenfold.plans.budget import Budget
from tenfold.plans.problem import Problem
from tenfold.ranks.candidates import Candidates, entries
from tenfold.ranks.negligible import smallest_within

End = Literal["first", "last"]
T = TypeVar("T")


@dataclass(frozen=True)
class Spared:
    """Layers to leave dense, by name, and why.

    Args:
        small: given up where the budget cannot be reached with them.
        ends: never given up.
    """

    small: Mapping[str, str] = field(default_factory=dict)
    ends: Mapping[str, str] = field(default_factory=dict)


def smallest_layers(model: nn.Module, selection: Selection, exclude: Selection, share: float) -> dict[str, str]:
    """The smallest layers that together hold at most ``share`` of the model's parameters, by name, with the reason.

    Args:
        model: any module.
        selection: layers that the user selects, of which none is left.
        exclude: layers that the user excludes, which do not count.
        share: in [0, 1); 0 leaves no layer.
    """
    if selection is not None or share <= 0:
        return {}
    able = [layer for layer in find(model, None, exclude) if layer.reason is None]
    shares = np.array([layer.params for layer in able]).reshape(-1, 1) / max(count_params(model), 1)
    found = smallest_within(shares, share)
    why = _why(len(found), f"{100 * shares[found].sum():.2g} % of the params")
    return {able[i].name: why for i in found}


def _why(count: int, held: str) -> str:
    which = "the smallest layer, with" if count == 1 else f"one of the {count} smallest layers, together"
    return f"{which} {held}: too little to be worth an error"


def spared(
    problem: Problem, budget: Budget | None, tables: Sequence[Candidates], share: float, ends: Sequence[End] = ()
) -> Spared:
    """The smallest layers that together hold at most ``share`` of every limited cost of the model, and its ends.

    A rule that treats the errors or the ranks of all layers alike cuts a small layer as hard as the others: a
    classifier of 0.16 % of the MACs to rank 2 of 97, say, and nothing is recognised any more. Layers for which nothing
    saves anything are dense anyway and do not count; of layers that the user selects none is left.

    Args:
        problem: the layers.
        budget: its limits are the costs that count; None: the parameters count.
        tables: what each site can become.
        share: of each limited cost of the whole model, in [0, 1); 0 leaves no layer for its size.
        ends: which end of the layers that could be decomposed is left: "first", "last".

    Raises:
        ArgumentError: a limit on MACs without example inputs.
    """
    costs = ["params"] if budget is None else list(budget.costs)
    if problem.selected or not problem.sites:
        return Spared()
    at = {"first": problem.sites[0].name, "last": problem.sites[-1].name}
    kept = {at[end]: f"the {end} layer, as `ends` asks" for end in ends}
    open_ = [t for t in tables if len(t.rank) > 1 and t.name not in kept]
    whole = [max(problem.dense_cost(name), 1) for name in costs]
    shares = np.array([[t.costs[name][0] for name in costs] for t in open_]).reshape(-1, len(whole)) / whole
    found = smallest_within(shares, share)
    sums = zip(costs, shares[found].sum(0), strict=True)
    held = " and ".join(f"{100 * part:.2g} % of the {name}" for name, part in sums)
    return Spared({open_[i].name: _why(len(found), held) for i in found}, kept)


def allotted(
    method: str, left: Spared, tables: Sequence[Candidates], rule: Callable[[list[Candidates]], T | None]
) -> tuple[T | None, list[Candidates], Mapping[str, str]]:
    """Apply a rank rule with the layers in ``left`` dense: the choice, its tables, and the reasons.

    Args:
        method: its name, for the warning.
        left: what is to be left dense.
        tables: what each site can become.
        rule: a choice, one index per table, or whatever holds one; None where the limits cannot be kept.

    Warns:
        TenfoldWarning: the limits can only be kept by cutting the smallest layers too.
    """
    kept = [dense_alone(t) if t.name in left.ends else t for t in tables]
    if left.small:
        found = rule([dense_alone(t) if t.name in left.small else t for t in kept])
        if found is not None:
            return found, kept, {**left.small, **left.ends}
    found = rule(kept)
    if found is not None and left.small:
        warn_of_small(method, list(left.small), stacklevel=5)
    return found, kept, left.ends


def warn_of_small(method: str, small: Sequence[str], *, stacklevel: int) -> None:
    """Warn that the smallest layers, by name, are cut after all.

    Args:
        method: its name.
        small: names of the layers.
        stacklevel: see `warnings.warn`.
    """
    warnings.warn(
        f"`budget` can be kept only if {method} cuts the smallest layers too, whose errors show most for what they "
        f"save: {', '.join(small[:3])}{', ...' if len(small) > 3 else ''}.",
        TenfoldWarning,
        stacklevel=stacklevel,
    )


def dense_alone(table: Candidates) -> Candidates:
    """A layer that cannot become anything else."""
    return entries(table, np.zeros(1, dtype=np.int64))
