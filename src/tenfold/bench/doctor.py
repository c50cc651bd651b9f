"""The doctor: which layers can pay on this machine, from which rank down, and why the others cannot.

A factor pair at rank ``j`` costs ``j`` times a constant, so parameters and MACs each have one break-even rank: the
largest at which the pair is cheaper than the layer. Time has none that could be computed: each layer is timed at a
ladder of ranks beside its dense form, on inputs of the sizes that it sees. Time over rank is a staircase, not a line:
kernels work in blocks of channels, and one rank above a block can cost as much as the whole next one. The ladder keeps
to multiples of `BLOCK`, and one rung is measured a second time with one rank more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tenfold.bench.diagnosis import Diagnosis, Examined, LayerTiming, PlannedTiming
from tenfold.bench.latency import batch_size, milliseconds
from tenfold.errors import TenfoldError, check
from tenfold.layers.find import FoundLayer
from tenfold.layers.layer_inputs import Uses, layer_inputs
from tenfold.layers.matrix import LowRank, low_rank_class
from tenfold.layers.select import Selection
from tenfold.linalg.fold import NAMES, Fold
from tenfold.plans.network_times import layer_in_form, option_name
from tenfold.plans.plan import Plan
from tenfold.plans.problem import Problem, survey
from tenfold.plans.within_latency import without_recurrences
from tenfold.runtimes.timing import undisturbed_clock

_PLANNED = -1
"""Stands for the form that a plan gives, where ranks name forms."""
BLOCK = 8
"""Ranks are aligned to multiples of this."""
UNUSED = "the forward pass does not use it"
NO_RANK = "even rank 1 is no cheaper than the layer"
SLOWER = "slower than dense at every rank that was timed"


def diagnose(
    model: nn.Module,
    x: Any,
    *,
    fold: str = "channel",
    rungs: int = 6,
    rounds: int = 7,
    threads: int = 1,
    target_modules: Selection = None,
    exclude_modules: Selection = None,
    plan: Plan | None = None,
    report: Callable[[int, int, str], None] = lambda *_: None,
) -> Diagnosis:
    """Time every layer of ``model`` beside factor pairs in its place. The model is untouched.

    On a CPU with one thread that is time of the processor, which other programs do not lengthen; else of the wall.

    Args:
        model: any module; a factorised one is multiplied back to dense first.
        x: a batch, on the device of the model: a tensor, a tuple of positional or a dict of keyword arguments.
        fold: see `tenfold.linalg.fold`.
        rungs: ranks that each layer is timed at, >= 2.
        rounds: turns of each measurement, of which the median counts, >= 3.
        threads: that torch may use on the CPU, >= 1.
        target_modules: only these layers; see `tenfold.plan`.
        exclude_modules: never these.
        plan: what the layers are to become; each is timed in that form, too.
        report: called before each layer with how many are done, how many there are, and its name.

    Raises:
        ArgumentError: a number out of its range, a selection that matches nothing, a model that does not take ``x``.
        UnsupportedLayer: a layer named in full by ``target_modules`` that cannot be decomposed.
    """
    check(fold in NAMES, "fold", f"one of {', '.join(NAMES)}", fold)
    check(rungs >= 2, "rungs", ">= 2", rungs)
    check(rounds >= 3, "rounds", ">= 3", rounds)
    problem = without_recurrences(
        survey(model, example_inputs=x, target_modules=target_modules, exclude_modules=exclude_modules)
    )
    with torch.random.fork_rng(devices=_gpus(x)):
        clock = undisturbed_clock(x, threads)
        whole = milliseconds({"model": problem.model}, x, threads=threads, rounds=rounds, clock=clock)["model"]
        uses = layer_inputs(problem.model, {site.name: site.names for site in problem.sites}, x)
        sites = {site.name: site for site in problem.sites}
        found = []
        for target in problem.found:
            if target.name in sites:
                report(len(found), len(problem.found), target.name)
                site = sites[target.name]
                found.append(_examine(problem, site, uses[site.name], fold, rungs, rounds, threads, plan))
            else:
                kernel = None if target.spec is None else target.spec.shape
                found.append(Examined(target.name, kernel, target.params, reason=target.reason))
    whole = max(whole, sum(layer.ms or 0.0 for layer in found))
    shared = (layer if layer.ms is None else replace(layer, share=layer.ms / whole) for layer in found)
    return Diagnosis(whole, batch_size(x), threads, fold, tuple(shared))


def _gpus(inputs: Any) -> list[torch.device]:
    return list({leaf.device for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.is_cuda})


def _examine(
    problem: Problem,
    site: FoundLayer,
    uses: Uses,
    fold: str,
    rungs: int,
    rounds: int,
    threads: int,
    plan: Plan | None,
) -> Examined:
    """Time one site at a ladder of ranks, all interleaved with its dense form."""
    dense, one = site.cost.dense(), site.cost.low_rank(1, 1, fold)
    full = Fold(site.cost.shape, site.cost.groups, 1, fold).full_rank
    params = _even(full, dense.params, one.params)
    macs = _even(full, dense.macs or 0, one.macs or 0)
    layer = problem.model.get_submodule(site.name)
    base = Examined(site.name, site.cost.shape, dense.params, dense.macs, full_rank=full, even_params=params,
                    even_macs=macs)  # fmt: skip
    if not uses:
        return replace(base, reason=UNUSED)
    ranks = _ladder(max(params, macs), rungs)
    aligned = [rank for rank in ranks if rank % BLOCK == 0 and rank < full]
    probe = aligned[len(aligned) // 2] if aligned else None
    forms: dict[int, nn.Module] = {0: layer}
    forms |= {rank: _pair(layer, site, rank, fold) for rank in {*ranks, *([probe + 1] if probe else [])}}
    made = None if plan is None else plan.layers.get(site.name)
    if made is not None and made.decomposition != "dense":
        forms[_PLANNED] = layer_in_form(layer, made)
    ms = _times(forms, uses, rounds, threads)
    as_planned = None
    if made is not None and _PLANNED in ms:
        as_planned = PlannedTiming(option_name(made), ms[_PLANNED], ms[0] / ms[_PLANNED])
    timings = tuple(
        LayerTiming(rank, ms[rank], ms[0] / ms[rank], (dense.macs or 0) / max((one.macs or 0) * rank, 1))
        for rank in ranks
    )
    faster = 0
    for timing in timings:
        if timing.speedup <= 1:
            break
        faster = timing.rank
    reason = NO_RANK if not ranks else None if faster else SLOWER
    step = None if probe is None else ms[probe + 1] / ms[probe]
    return replace(
        base, ms=ms[0], even_ms=faster, timings=timings, step=step, step_rank=probe, reason=reason, planned=as_planned
    )


def _even(full: int, dense: int, one: int) -> int:
    """The largest rank that costs less than dense."""
    return min(full, (dense - 1) // one) if one and dense else 0


def _ladder(top: int, rungs: int) -> list[int]:
    """Ranks up to ``top``, evenly spread, multiples of `BLOCK` where that leaves more than one."""
    spread = [top * i / rungs for i in range(1, rungs + 1)]
    aligned = sorted({int(rank) // BLOCK * BLOCK for rank in spread} - {0})
    return aligned if len(aligned) > 1 else sorted({int(rank) for rank in spread} - {0})


def _pair(layer: nn.Module, site: FoundLayer, rank: int, fold: str) -> LowRank:
    """A factor pair of the right sizes; what its numbers are does not change its time, as long as they are normal."""
    pair = low_rank_class(site.options).like(layer, site.options, rank, 1, fold)
    for p in pair.parameters():
        nn.init.normal_(p.data, std=0.1)
    return pair.eval()


def _times(forms: dict[int, nn.Module], uses: Uses, rounds: int, threads: int) -> dict[int, float]:
    """Median milliseconds of each form, over all uses."""
    device = next(forms[0].parameters()).device
    total = dict.fromkeys(forms, 0.0)
    for (shape, dtype), times in uses.items():
        x = torch.randn(shape, device=device).to(dtype)
        named, clock = {str(rank): form for rank, form in forms.items()}, undisturbed_clock(x, threads)
        found = milliseconds(named, x, threads=threads, rounds=rounds, clock=clock)
        for rank in forms:
            total[rank] += times * found[str(rank)]
    if min(total.values()) <= 0:
        raise TenfoldError("the clock of this machine is too coarse to time a layer: pass a larger batch.")
    return total
