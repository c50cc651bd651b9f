"""Filters removed to fit a budget, or a given share of them: what `apply` is for ranks, for filters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from tenfold.errors import BudgetError, UnsupportedLayer, check, is_share
from tenfold.layers.batchnorm import reestimate_
from tenfold.layers.cost import Cost, cost
from tenfold.layers.filters import Filters, find_filters
from tenfold.layers.select import Selection
from tenfold.plans.plan import Budget


@dataclass(frozen=True)
class Pruned:
    """A model with fewer filters.

    Args:
        model: of plain layers, narrower ones.
        share: of the filters that was removed, in [0, 1): of each layer, or of all together.
        removed: channels by the name of the layer, of those that lost any; tied layers lose the same.
        left: layers whose filters all had to stay, with the reason.
        dense: cost before.
        small: cost after.
    """

    model: nn.Module
    share: float
    removed: Mapping[str, tuple[int, ...]]
    left: Mapping[str, str]
    dense: Cost
    small: Cost


def prune_filters(
    model: nn.Module,
    amount: Budget | float,
    example_inputs: Any,
    *,
    norm: float = 2,
    together: bool = False,
    data: Iterable[Any] | None = None,
    target_modules: Selection = None,
    exclude_modules: Selection = None,
) -> Pruned:
    """A new model without its weakest filters, those of least norm. They are gone, not masked; ``model`` is untouched.

    Convolutions lose output channels, and norms, residual sums and following layers shrink along. Each layer keeps one
    filter at least. Save the model whole, or prune again: a plan has no word for it.

    Args:
        model: any module that runs on ``example_inputs``.
        amount: the share of the filters to remove, in [0, 1); or a budget: the fewest are removed that fit it.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments.
        norm: 1 or 2: which norm of a filter's weights is its score.
        together: choose among the filters of all layers, by scores relative to the root mean square of a layer's own;
            otherwise every layer loses the same share.
        data: batches ``x`` or ``(x, y)`` to re-estimate batch norm from; None leaves the statistics of what is left.
        target_modules: only the filters of these; see `tenfold.plan`.
        exclude_modules: never those of these.

    Raises:
        BudgetError: the budget is below what one filter per layer costs; the message names it.
        UnsupportedLayer: no layer has filters that can be removed.
        ArgumentError: a value out of range, or inputs that the model does not run on.
        TenfoldError: `torch-pruning` is missing; a weight that is not finite.

    Source: Li et al. 2017 (arXiv 1608.08710), L1 norms of filters; the graph is Fang et al. 2023's (arXiv 2301.12900).
    """
    fine = isinstance(amount, Budget) or (is_share(amount) and amount < 1)
    check(fine, "amount", "a tenfold.Budget, or a share to remove in [0, 1)", amount)
    filters = find_filters(
        model, example_inputs, norm=norm, target_modules=target_modules, exclude_modules=exclude_modules
    )
    if not filters.bundles:
        found = "; ".join(f"'{name}': {why}" for name, why in filters.left.items()) or "it has no convolution"
        raise UnsupportedLayer(f"`model` has no filters that can be removed: {found}.")
    dense = cost(model, example_inputs)
    share = _fitting(filters, amount, dense, together=together) if isinstance(amount, Budget) else amount
    gone = filters.weakest(share, together=together)
    small = filters.without(gone)
    if data is not None:
        reestimate_(small, data)
    removed = {name: tuple(gone[b.root]) for b in filters.bundles for name in b.layers if gone[b.root]}
    return Pruned(small, share, removed, filters.left, dense, cost(small, example_inputs))


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
        raise BudgetError(f"`amount` is below what removing filters can reach on this model: {parts}.", smallest)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return steps[high]


def _share_of(part: int, whole: int) -> float:
    """To five digits, upwards."""
    return min(1.0, -(-part * 10**5 // whole) / 10**5)
