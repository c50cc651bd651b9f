"""Forms of each layer, judged by what the layer puts out on calibration data; see `tenfold.linalg.output_forms`.

Layer after layer, from the moments of its unfolded inputs: the errors of every rank of every form, and some of the
decompositions themselves, to be tried in the network. The moments are held no longer than that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tenfold.layers.find import FoundLayer
from tenfold.layers.input_moments import InputSide, input_moments
from tenfold.linalg.alternation import best_encoder
from tenfold.linalg.fold import Fold
from tenfold.linalg.joint_moments import JointMoments
from tenfold.linalg.output_decoders import factors, lost
from tenfold.linalg.output_forms import OutputForm, encoder_start
from tenfold.plans.candidates import judged
from tenfold.plans.problem import Problem
from tenfold.ranks import uniform
from tenfold.ranks.candidates import Candidates


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
    sides = {name: InputSide(problem.modules_of(site), _slices(site)) for name, site in sites.items()}
    for name, moments in input_moments(problem.model, sides, data, samples=samples, memory=memory):
        site = sites[name]
        made = {fold: _form(site, fold, moments) for fold in _folds(site, forms)}
        relative = {fold: _relative(form) for fold, form in made.items()}
        table = _priced(problem, site, relative)
        chosen = dict.fromkeys(i for e in errors if (i := _cheapest_below(table, e)) is not None)
        trials = [_trial(site, made[table.folds[table.fold[i]]], int(table.rank[i]), moments) for i in chosen]
        yield JudgedLayer(site, table, tuple(trials))


def form_tables(problem: Problem, forms: Sequence[str]) -> list[Candidates]:
    """The options of `judged_layers` by shapes alone: costs are known, errors are NaN."""
    made = []
    for site in problem.sites:
        ranks = {f: Fold(site.cost.shape, site.cost.groups, 1, f).full_rank for f in _folds(site, forms)}
        unknown = {f: torch.full((n,), torch.nan, dtype=torch.float64) for f, n in ranks.items()}
        made.append(_priced(problem, site, unknown))
    return made


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
    narrow = [_only(table, line) for table, line in zip(tables, lines, strict=True)]
    found = uniform.allocate(narrow, full, full, limits)
    if found is None:
        return None
    return [int(line[i]) for line, i in zip(lines, found[0], strict=True)], found[1]


def _slices(site: FoundLayer) -> int | None:
    """1 where the outputs are fewer than the inputs, and tell as much; None: the inputs."""
    shape, groups = site.cost.shape, site.cost.groups
    return 1 if math.prod(shape[2:]) == 1 and shape[0] // groups < shape[1] else None


def _folds(site: FoundLayer, forms: Sequence[str]) -> tuple[str, ...]:
    """Of the forms those that differ from each other for this kernel."""
    shape = site.cost.shape
    if math.prod(shape[2:]) == 1:
        return ("channel",)
    parts = {Fold(shape, site.cost.groups, 1, name).encoder_axes: name for name in reversed(forms)}
    return tuple(name for name in forms if name in parts.values())


def _form(site: FoundLayer, fold: str, moments: JointMoments) -> OutputForm:
    whole, covariance = Fold(site.cost.shape, site.cost.groups, 1, fold), moments.xx / moments.count
    make = OutputForm.of_inputs if _slices(site) is None else OutputForm.of_outputs
    return make(whole, site.kernel.to(covariance.device), covariance)


def _relative(form: OutputForm) -> Tensor:
    """Relative errors at rank 1, 2, ..., full."""
    energy = lost(form, encoder_start(form))
    return (energy[1:] / energy[0] if energy[0] > 0 else torch.zeros_like(energy[1:])).clamp(0, 1).sqrt().cpu()


def _priced(problem: Problem, site: FoundLayer, errors: Mapping[str, Tensor]) -> Candidates:
    """The options that save something although they add the biases that the site's modules lack."""
    table, numbers = judged(site, errors), len(problem.without_bias(site)) * site.cost.shape[0]
    params = table.costs["params"].copy()
    params[1:] += numbers
    worth = params < params[0]
    worth[0] = True
    priced = replace(table, costs=table.costs | {"params": params}, bias=numbers > 0)
    return _only(priced, np.flatnonzero(worth))


def _only(table: Candidates, entries: NDArray[np.int64]) -> Candidates:
    """The table of these entries alone."""
    costs = {name: cost[entries] for name, cost in table.costs.items()}
    return replace(table, **{n: getattr(table, n)[entries] for n in ("fold", "slices", "rank", "error")}, costs=costs)


def _cheapest_below(table: Candidates, error: float) -> int | None:
    """The cheapest option whose squared error is at most ``error``, else the most exact one; None where none is."""
    if len(table.rank) == 1:
        return None
    cost = sum(values / max(values[0], 1) for values in table.costs.values())
    below = np.flatnonzero(table.error[1:] ** 2 <= error) + 1
    if not len(below):
        return 1 + int(np.argmin(table.error[1:]))
    return int(below[np.argmin(np.asarray(cost)[below])])


def _trial(site: FoundLayer, form: OutputForm, rank: int, moments: JointMoments) -> FormTrial:
    v, h = best_encoder(form, rank, rounds=1)
    left, right = factors(form, v, h)
    kernel, mean = form.fold.kernel(left @ right), moments.mean_x
    if _slices(site) is None:
        gap = (site.kernel.to(kernel) - kernel).reshape(len(mean), -1, mean.shape[-1])
    else:  # what is known are the outputs' means, and W_hat x = H V (W x)
        eye = torch.eye(mean.shape[-1], dtype=kernel.dtype, device=kernel.device)
        gap = eye - h[..., 0, 0] @ v[:, 0]
    total = float(form.total.sum())
    error = math.sqrt(min(max(float(form.error(v, h).sum()) / total, 0.0), 1.0)) if total > 0 else 0.0
    return FormTrial(kernel, (gap @ mean[..., None]).flatten(), error)
