"""Filters removed to fit a budget, or a given share of them: what `apply` is for ranks, for filters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from tenfold.errors import ArgumentError, BudgetError, UnsupportedLayer, check, is_share
from tenfold.layers.batchnorm import reestimate_
from tenfold.layers.cost import Cost, cost
from tenfold.layers.filters import Filters, find_filters
from tenfold.layers.pretrained import refuse_save_pretrained_
from tenfold.layers.select import Selection
from tenfold.plans.budget import Budget


@dataclass(frozen=True)
class Pruned:
    """The result of `prune_filters`: a model with fewer filters, and what was removed.

    Args:
        model: of plain layers, narrower ones.
        share_removed: of the filters that could be removed, in [0, 1); those of the layers in ``left`` not counted.
        removed: channels by the name of the layer, of those that lost any, all that depend on each other included.
        left: layers whose filters all had to stay, with the reason.
        dense: cost before.
        small: cost after.
    """

    model: nn.Module
    share_removed: float
    removed: Mapping[str, tuple[int, ...]]
    left: Mapping[str, str]
    dense: Cost
    small: Cost


def prune_filters(
    model: nn.Module,
    *unnamed: Any,
    keep: Budget | float | None = None,
    remove: Budget | float | None = None,
    example_inputs: Any = None,
    norm: float = 2,
    together: bool = False,
    data: Iterable[Any] | None = None,
    target_modules: Selection = None,
    exclude_modules: Selection = None,
) -> Pruned:
    """Prune the filters of least norm: a new, narrower model, nothing masked; ``model`` is untouched.

    Convolutions lose output channels, and norms, residual sums and following layers shrink along. Each layer keeps one
    filter at least. On ``example_inputs`` the new model computes what the old one does with those channels silenced;
    layers for which that does not hold stay as they are, and are named. A plan cannot describe the result: save the
    model whole, or prune again.

    Args:
        model: any module that runs on ``example_inputs``.
        unnamed: refused: say ``keep`` or ``remove`` by name.
        keep: a budget for the whole model: the fewest filters are removed that fit it. Or the share of the filters that
            stays, in (0, 1], as a float. This or ``remove``.
        remove: the share of the filters that goes, in [0, 1); never more is removed, of each layer or of all
            together. A `Budget` is refused here: it says what is kept.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments. Needed.
        norm: 1 or 2: which norm of a filter's weights is its score.
        together: choose among the filters of all layers, by scores relative to the root mean square of a layer's own;
            otherwise every layer loses the same share.
        data: batches to re-estimate batch norm from, see `tenfold.reestimate_`; None: statistics stay as they are.
        target_modules: only the filters of these; see `tenfold.plan`.
        exclude_modules: never those of these.

    Raises:
        BudgetError: the budget is below what one filter per layer costs; the message names it.
        UnsupportedLayer: no layer has filters that can be removed.
        ArgumentError: a value out of range, or inputs that the model does not run on.
        TenfoldError: `torch-pruning` is missing; a weight that is not finite.

    Source: Li et al. 2017 (arXiv 1608.08710), L1 norms of filters; the graph is Fang et al. 2023's (arXiv 2301.12900).
    """
    amount = _amount(unnamed, keep, remove)
    if example_inputs is None:
        raise ArgumentError(
            "`example_inputs` must be given: removing filters runs the model. Pass a batch as it takes it."
        )
    filters = find_filters(
        model, example_inputs, norm=norm, target_modules=target_modules, exclude_modules=exclude_modules
    )
    if not filters.bundles:
        found = "; ".join(f"'{name}': {why}" for name, why in filters.left.items()) or "it has no convolution"
        raise UnsupportedLayer(f"`model` has no filters that can be removed: {found}.")
    dense = cost(model, example_inputs)
    share = _fitting(filters, amount, dense, together=together) if isinstance(amount, Budget) else amount
    gone = filters.weakest(share, together=together)
    small = refuse_save_pretrained_(filters.checked(gone))
    if data is not None:
        reestimate_(small, data)
    removed, small_cost = filters.names(gone), cost(small, example_inputs)
    return Pruned(small, filters.share_removed(gone), removed, filters.left, dense, small_cost)


def _amount(unnamed: tuple[Any, ...], keep: Any, remove: Any) -> Budget | float:
    """A budget, or the share to remove."""
    if unnamed:
        raise ArgumentError(
            f"`keep` or `remove` must say how many filters, by name; got {unnamed[0]!r} by position. Pass keep=0.7 "
            f"for what "
            "stays, remove=0.3 for what goes, or keep=tenfold.Budget(...); and example_inputs=..."
        )
    if (keep is None) == (remove is None):
        both = "neither" if keep is None else f"keep={keep!r} and remove={remove!r}"
        raise ArgumentError(
            f"`keep` or `remove` must be given, one of the two; got {both}. Pass keep=0.7 or remove=0.3."
        )
    if remove is not None:
        remedy = "A budget says what is kept: keep=tenfold.Budget(...)." if isinstance(remove, Budget) else ""
        share = 1.0 if isinstance(remove, Budget) or not is_share(remove) else float(remove)
        check(share < 1, "remove", "a share of the filters in [0, 1)", remove, remedy)
        return share
    if isinstance(keep, Budget):
        rule, remedy = "limited in params or macs", "A latency is a budget of tenfold.compress."
        check("latency" not in keep.costs, "keep", rule, keep, remedy)
        return keep
    fine = isinstance(keep, float) and 0 < keep <= 1
    check(fine, "keep", "a tenfold.Budget, or a share of the filters in (0, 1] as a float", keep)
    return 1.0 - keep


def _fitting(filters: Filters, budget: Budget, dense: Cost, *, together: bool) -> float:
    """The smallest share that fits, by bisection: both costs only fall with it."""
    steps = filters.steps(together=together)
    built: dict[int, Cost] = {}

    def fits(i: int) -> bool:
        small = filters.without(filters.weakest(steps[i], together=together))
        built[i] = cost(small, filters.example)
        return all(getattr(built[i], name) <= budget.allowed(name, getattr(dense, name)) for name in budget.limits)

    low, high = -1, len(steps) - 1
    if not fits(high):
        least = {name: getattr(built[high], name) for name in budget.limits}
        smallest = {
            name: _share_of(least[name], getattr(dense, name)) if isinstance(value, float) else least[name]
            for name, value in budget.limits.items()
        }
        parts = ", ".join(f"{name}={value} asked, {smallest[name]} reachable" for name, value in budget.limits.items())
        raise BudgetError(f"`keep` is below what removing filters can reach on this model: {parts}.", smallest)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return steps[high]


def _share_of(part: int, whole: int) -> float:
    """To five digits, upwards."""
    return min(1.0, -(-part * 10**5 // whole) / 10**5)
