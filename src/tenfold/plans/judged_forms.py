"""Options of all layers with the errors of their outputs on calibration data, and the factors of those chosen.

The covariances of a model's inputs are too large to be kept: one pass over the data gives the errors of every option,
layer after layer, and another one, for each plan, the factors of the options that it chose.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tenfold.layers.calibration_runs import kept_batches
from tenfold.layers.find import FoundLayer
from tenfold.layers.input_moments import UNFOLDED_NUMBERS, InputSide, input_moments
from tenfold.layers.tucker import channel_sizes
from tenfold.linalg.fold import Fold, slice_counts
from tenfold.plans.budget import Budget
from tenfold.plans.candidates import Errors, judged, layer_plan, require_reachable, unknown, with_bias
from tenfold.plans.plan import Factors
from tenfold.plans.problem import Problem
from tenfold.plans.site_forms import SiteForms, competing, relative_errors, side_of
from tenfold.plans.tucker_candidates import PairErrors, judged_pairs, pointwise, unknown_pairs
from tenfold.ranks.candidates import Candidates

_ADDING, _SOLVING = 4, 10
"""Matrices of the size of a layer's moments that are there at a time: while a batch is added, while it is solved."""


@dataclass(frozen=True)
class JudgedForms:
    """The options of every site, judged by outputs, and the examples that their factors are made from.

    Args:
        problem: the layers.
        batches: the examples.
        samples: see `input_moments`.
        memory: see `input_moments`.
        sides: what the moments are of, by site.
        tables: the options; an error is ``sqrt(E |y - y_hat|^2 / E |y - E y|^2)``, and an added bias is counted.
        bytes: the most memory that all of it takes at a time, beyond the model and a batch's own pass.
    """

    problem: Problem
    batches: list[Any]
    samples: int
    memory: int
    sides: Mapping[str, InputSide]
    tables: list[Candidates]
    bytes: int

    def made(self, choice: Sequence[int] | None) -> dict[str, Any]:
        """The factors of the chosen options by site, and the memory that calibration took, as fields of a `Plan`."""
        chosen = {t.name: layer_plan(t, i) for t, i in zip(self.tables, choice or (), strict=choice is not None) if i}
        made: dict[str, Factors] = {}
        for forms in self._forms(chosen):
            layer = chosen[forms.site.name]
            if isinstance(layer.rank, tuple):
                made[forms.site.name] = forms.tucker((layer.rank[0], layer.rank[1]))
            else:
                assert layer.rank is not None
                made[forms.site.name] = forms.low_rank(layer.fold or "channel", layer.slices, layer.rank)
        return {"factors": made, "calibration_bytes": self.bytes}

    def _forms(self, names: Mapping[str, Any]) -> Iterator[SiteForms]:
        """These sites with their moments, in one more pass; that examples are few has been said."""
        sites = {site.name: site for site in self.problem.sites}
        sides = {name: self.sides[name] for name in names}
        if sides:
            options = {"samples": self.samples, "memory": self.memory, "warn": False}
            for name, moments in input_moments(self.problem.model, sides, self.batches, **options):
                yield SiteForms(sites[name], sides[name], moments)


def judged_forms(
    problem: Problem,
    budget: Budget | None = None,
    *,
    folds: Sequence[str] = ("channel",),
    slices: Sequence[int] | None = (1,),
    tucker: bool = False,
    samples: int,
    memory: int,
) -> JudgedForms:
    """The options of every site, judged once for all budgets.

    Work: a pass over the data for each block of layers, and for each number n of a layer's unfolded input about
    ``n^3`` operations for each of its numbers of slices. The examples are kept in memory.

    Args:
        problem: the layers, with data.
        budget: refused before any work where no choice can keep it; None: any.
        folds: which compete; any but the decoupled one.
        slices: which numbers of slices compete; None: every divisor of a layer's input channels.
        tucker: whether kernels with spatial axes become Tucker, and all others matrices.
        samples: examples, >= 1.
        memory: for moments, in bytes; see `input_moments`. A layer whose inputs alone would take more competes unsliced
            in the channel fold, where that fold competes and the outputs are fewer.

    Raises:
        ArgumentError: no data.
        BudgetError: a limit that no choice can keep.
        DataError: see `input_moments`.
    """
    problem.require_data()
    forms = {site.name: _competing(site, folds, slices) for site in problem.sites}
    if budget is not None:
        bare = [_table(problem, x, forms[x.name], tucker, unknown, unknown_pairs) for x in problem.sites]
        require_reachable(problem, budget, bare)
    key = (JudgedForms, tuple(folds), None if slices is None else tuple(slices), tucker, samples, memory)
    if key not in problem.tables:
        problem.tables[key] = _judged(problem, forms, tucker, samples, memory)
    return problem.tables[key]


def _judged(
    problem: Problem, forms: Mapping[str, Mapping[str, Sequence[int]]], tucker: bool, samples: int, memory: int
) -> JudgedForms:
    batches = kept_batches(problem.model, problem.require_data(), samples)
    sites, told, sides = {site.name: site for site in problem.sites}, dict(forms), dict[str, InputSide]()
    for name, site in sites.items():
        modules = problem.modules_of(site)
        if tucker and not pointwise(site):
            sides[name] = InputSide(modules)
        else:
            sides[name], told[name] = side_of(site, modules, forms[name], memory)
    examples = sum(t.numel() * t.element_size() for t in tree_leaves(batches) if isinstance(t, Tensor))
    tables, sizes, most = list[Candidates](), list[int](), 0
    for name, moments in input_moments(problem.model, sides, batches, samples=samples, memory=memory):
        site = SiteForms(sites[name], sides[name], moments)
        tables.append(_table(problem, site.site, told[name], tucker, _low_rank(site), _pairs(site)))
        unfolded = 2 * 8 * min(moments.count * moments.mean_x.numel(), UNFOLDED_NUMBERS)
        sizes.append(moments.bytes)
        most = max(most, _ADDING * moments.bytes + unfolded, _SOLVING * moments.bytes)
    held = min(sum(sizes), max(memory, *sizes))
    return JudgedForms(problem, batches, samples, memory, sides, tables, examples + held + most)


def _competing(site: FoundLayer, folds: Sequence[str], slices: Sequence[int] | None) -> dict[str, Sequence[int]]:
    possible = {fold: slice_counts(site.cost.shape, fold) for fold in folds}
    wanted = {fold: tuple(k for k in ks if slices is None or k in slices) for fold, ks in possible.items()}
    return competing(site, folds, wanted)


def _table(
    problem: Problem,
    site: FoundLayer,
    forms: Mapping[str, Sequence[int]],
    tucker: bool,
    errors: Errors,
    pair_errors: PairErrors,
) -> Candidates:
    """The options of a site at their price, with errors by rank or by pair of ranks."""
    pairs = tucker and not pointwise(site)
    if pairs:
        return with_bias(problem, site, judged_pairs(problem, site, pair_errors))
    return problem.fast(site, with_bias(problem, site, judged(site, forms, errors)))


def _low_rank(site: SiteForms) -> Errors:
    return lambda fold, slices, n: relative_errors(site.form(fold, slices), n)


def _pairs(site: SiteForms) -> PairErrors:
    """The errors of all output ranks at the input ranks asked for; NaN elsewhere."""
    shape, groups = site.site.cost.shape, site.site.cost.groups

    def errors(inner: Sequence[int]) -> NDArray[np.float64]:
        possible = [r for r in inner if r <= Fold(shape, groups, 1, "input").full_rank]
        found = np.full(channel_sizes(shape, groups)[0], np.nan)
        found[:, np.array(possible) - 1] = site.pair_errors(possible).numpy().T
        return found

    return errors
