"""Forms of each layer, judged by what the layer puts out on calibration data; see `tenfold.linalg.output_forms`.

Layer after layer, from the moments of its unfolded inputs: the errors of every rank of every form, and some of the
decompositions themselves, to be tried in the network. The moments are held no longer than that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from tenfold.layers.find import FoundLayer
from tenfold.layers.input_moments import input_moments
from tenfold.linalg.alternation import best_encoder
from tenfold.linalg.fold import Fold
from tenfold.linalg.output_decoders import factors
from tenfold.linalg.output_forms import OutputForm
from tenfold.plans.candidates import Errors, judged, unknown, with_bias
from tenfold.plans.problem import Problem
from tenfold.plans.site_forms import SiteForms, competing, relative_errors, side_of
from tenfold.ranks import uniform
from tenfold.ranks.candidates import Candidates, entries


@dataclass(frozen=True)
class FormTrial:
    """One decomposition of one layer, as its dense equivalent.

    Args:
        kernel: ``(out, in / groups, *k)``, float64.
        shift: what the bias gains, so that the mean of the outputs stays, ``(out,)``.
        error: of the outputs, relative: ``sqrt(E |y - y_hat|^2 / E |y - E y|^2)``.
    """

    kernel: Tensor
    shift: Tensor
    error: float


@dataclass(frozen=True)
class JudgedLayer:
    """The options of one site with the errors of its outputs, and decompositions near the errors asked for."""

    site: FoundLayer
    table: Candidates
    trials: tuple[FormTrial, ...]


def judged_layers(
    problem: Problem,
    data: Iterable[Any],
    *,
    forms: Sequence[str],
    errors: Sequence[float],
    samples: int,
    memory: int,
) -> Iterator[JudgedLayer]:
    """Every site in turn, in the order of the problem.

    Each option adds a bias where its layer lacks one, and pays for it. Kernels without spatial extent have one form,
    the channel fold, whatever ``forms`` says.

    Args:
        problem: the layers.
        data: calibration batches that last for several passes.
        forms: folds that compete for kernels with spatial extent.
        errors: squared relative errors for each of which a decomposition is wanted: the cheapest option below.
        samples: see `input_moments`.
        memory: see `input_moments`.

    Raises:
        DataError: see `input_moments`.
    """
    sites = {site.name: site for site in problem.sites}
    told = {n: side_of(x, problem.modules_of(x), _competing(x, forms), memory) for n, x in sites.items()}
    sides = {name: side for name, (side, _) in told.items()}
    for name, moments in input_moments(problem.model, sides, data, samples=samples, memory=memory):
        site = SiteForms(sites[name], sides[name], moments)
        made = {fold: site.form(fold) for fold in told[name][1]}
        table = _table(problem, site.site, told[name][1], lambda fold, _, n, made=made: relative_errors(made[fold], n))
        chosen = dict.fromkeys(i for e in errors if (i := _cheapest_below(table, e)) is not None)
        trials = [_trial(site, made[table.folds[table.fold[i]]], int(table.rank[i])) for i in chosen]
        yield JudgedLayer(site.site, table, tuple(trials))


def form_tables(problem: Problem, forms: Sequence[str]) -> list[Candidates]:
    """The options of `judged_layers` by shapes alone: costs are known, errors are NaN."""
    return [_table(problem, site, _competing(site, forms), unknown) for site in problem.sites]


def uniform_choice(
    problem: Problem, tables: Sequence[Candidates], form: str, limits: Mapping[str, int]
) -> tuple[list[int], float] | None:
    """The same share of the full rank everywhere, in one form for each layer: the choice and the share.

    Args:
        problem: the layers.
        tables: what each can become, from `judged_layers`.
        form: the fold, where a table has it; else the table's first.
        limits: what all layers together may cost.

    Returns:
        None where even rank 1 everywhere does not fit.
    """
    lines, full = [], []
    for site, table in zip(problem.sites, tables, strict=True):
        fold = form if form in table.folds else table.folds[0]
        lines.append(np.flatnonzero((table.rank == 0) | (table.fold == table.folds.index(fold))))
        full.append(Fold(site.cost.shape, site.cost.groups, 1, fold).full_rank)
    narrow = [entries(table, line) for table, line in zip(tables, lines, strict=True)]
    found = uniform.allocate(narrow, full, full, limits)
    if found is None:
        return None
    return [int(line[i]) for line, i in zip(lines, found[0], strict=True)], found[1]


def _competing(site: FoundLayer, forms: Sequence[str]) -> dict[str, Sequence[int]]:
    """Of the forms those that differ from each other for this kernel; for a matrix the channel fold."""
    folds = ("channel",) if math.prod(site.cost.shape[2:]) == 1 else tuple(forms)
    return competing(site, folds, dict.fromkeys(folds, (1,)))


def _table(problem: Problem, site: FoundLayer, forms: Mapping[str, Sequence[int]], errors: Errors) -> Candidates:
    return problem.fast(site, with_bias(problem, site, judged(site, forms, errors)))


def _cheapest_below(table: Candidates, error: float) -> int | None:
    """The cheapest option whose squared error is at most ``error``, else the most exact one; None where none is."""
    if len(table.rank) == 1:
        return None
    cost = sum(values / max(values[0], 1) for values in table.costs.values())
    below = np.flatnonzero(table.error[1:] ** 2 <= error) + 1
    if not len(below):
        return 1 + int(np.argmin(table.error[1:]))
    return int(below[np.argmin(np.asarray(cost)[below])])


def _trial(forms: SiteForms, form: OutputForm, rank: int) -> FormTrial:
    v, h = best_encoder(form, rank, rounds=1)
    left, right = factors(form, v, h)
    total = float(form.total.sum())
    error = math.sqrt(min(max(float(form.error(v, h).sum()) / total, 0.0), 1.0)) if total > 0 else 0.0
    return FormTrial(form.fold.kernel(left @ right), forms.shift(form, v, h), error)
