"""Plans within a limit on latency: chosen by the times of layers, and proven by the time of the whole network.

A sum over layers is some per cent off, more so where the dense network does not fit the cache and the compressed one
does. So the network that a plan makes is timed, what the sum missed is taken for the rest, and the plan is chosen
again, a few times; the best plan that was measured to be within the limit is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tenfold.errors import BudgetError
from tenfold.layers.cost import call_arguments
from tenfold.layers.open_recurrent import is_recurrence
from tenfold.plans.budget import Budget
from tenfold.plans.candidates import NOTHING_FASTER
from tenfold.plans.network_times import NetworkTimes
from tenfold.plans.plan import LayerPlan, Plan
from tenfold.plans.problem import Problem
from tenfold.ranks.aligned import aligned_ranks
from tenfold.runtimes.optimize import CHANNELS_LAST, CONTIGUOUS
from tenfold.runtimes.stopwatch import Stopwatch, stopwatch

Choose = Callable[[Problem, Budget], Plan]
_BUILDS = 5
"""Networks that are timed, at most."""
_NEAR = 0.95
"""From this share of the limit on a plan is near enough."""
_TIMES = "network times"
RECURRENCE = "a recurrence, which torch and ONNX Runtime do with the whole matrix"


def with_times(problem: Problem) -> Problem:
    """The problem with a stopwatch: its options have times, in the memory format that is best for a compressed network.

    Raises:
        ArgumentError: no example inputs; an unknown runtime.
        TenfoldError: the package of the runtime is missing.
        UnsupportedLayer: all layers that may be decomposed are recurrences.
    """
    if problem.times is not None:
        return problem
    if _TIMES not in problem.tables:
        timed = without_recurrences(problem)
        if problem.sites:
            timed.require_sites()
        problem.tables[_TIMES] = replace(timed, times=_times(timed), tables={})
    return problem.tables[_TIMES]


def without_recurrences(problem: Problem) -> Problem:
    """The problem with dense recurrences: what they take in a kernel cannot be told from single steps."""
    names = [site.name for site in problem.sites if is_recurrence(problem.model, site.name)]
    return problem.leaving(dict.fromkeys(names, RECURRENCE)) if names else problem


def within_latency(problem: Problem, budget: Budget, choose: Choose) -> Plan:
    """The plan of a rule that is nearest to the limit on latency, and measured to be within it.

    Args:
        problem: from `with_times`.
        budget: with a limit on latency, and maybe others.
        choose: the rule.

    Raises:
        BudgetError: no plan of the rule was within the limit; the message names the shortest time of one, or what the
            rule itself says.
    """
    times = problem.times
    assert times is not None
    allowed = budget.allowed("latency", times.dense)
    tried: dict[int, Plan] = {}
    refused: BudgetError | None = None
    layers: Mapping[str, LayerPlan] = {}
    for _ in range(_BUILDS):
        try:
            plan = choose(replace(problem, layers=layers), budget)
        except BudgetError as error:
            refused, fastest = error, times.fastest()
            if layers or fastest == layers:
                break
            layers = fastest  # the dense network's rest may be longer than a small one's
            continue
        if any(not plan.diff(other) for other in tried.values()):
            break
        measured = times.measured(plan.layers)
        tried[measured] = plan
        if _NEAR * allowed <= measured <= allowed:
            break
        layers = plan.layers
    within = [ns for ns in tried if ns <= allowed]
    if not within:
        if tried:
            raise _refusal(budget, times, min(tried))
        assert refused is not None
        raise refused
    return finished(problem, tried[max(within)])


def finished(problem: Problem, plan: Plan) -> Plan:
    """The plan with its times."""
    times = problem.times
    assert times is not None
    ms = {site.name: times.of_layer(site.name, plan.layers[site.name]) / 1e6 for site in problem.sites}
    layers = {name: replace(layer, latency_ms=ms.get(name)) for name, layer in plan.layers.items()}
    return replace(
        plan,
        layers=layers,
        latency_ms=times.measured(plan.layers) / 1e6,
        dense_latency_ms=times.dense / 1e6,
        conditions=times.conditions,
    )


def _refusal(budget: Budget, times: NetworkTimes, shortest: int) -> BudgetError:
    words, reachable = [], {}
    for name, value in budget.limits.items():
        if name == "latency":
            reachable[name] = min(1.0, round(shortest / times.dense + 5e-4, 3))
        if name == "latency_ms":
            reachable[name] = round(shortest / 1e6 + 5e-4, 3)
        if name in reachable:
            words.append(f"{name}={value} asked, {reachable[name]} reachable")
    return BudgetError(
        f"`budget` is below what this method reaches here: {'; '.join(words)} "
        f"({shortest / 1e6:.3g} of {times.dense / 1e6:.3g} ms, {times.words}). "
        + (NOTHING_FASTER if shortest >= times.dense else "Raise it, or let more layers be decomposed."),
        reachable,
    )


def _times(problem: Problem) -> NetworkTimes:
    """The stopwatch of the best memory format: that in which a network of half ranks is fastest."""
    tensors = [t for t in tree_leaves(call_arguments(problem.example_inputs)) if isinstance(t, Tensor)]
    device = tensors[0].device if tensors else torch.device("cpu")

    def watch(memory_format: str) -> Stopwatch:
        return stopwatch(problem.runtime, threads=problem.threads, memory_format=memory_format, device=device)

    plain = NetworkTimes(problem, watch(CONTIGUOUS))
    maps = any(isinstance(m, nn.Conv2d) for m in problem.model.modules())
    if problem.runtime != "eager" or not maps:
        return plain
    half, last = _half_ranks(problem), NetworkTimes(problem, watch(CHANNELS_LAST))
    return min((last, plain), key=lambda times: times.measured(half) / times.dense)


def _half_ranks(problem: Problem) -> dict[str, LayerPlan]:
    """About half of the ranks that save something, in the fold that fast forms have."""
    made = {}
    for site in problem.sites:
        fold = "spatial" if len(site.cost.shape) == 4 else "channel"
        dense, one = site.cost.dense(), site.cost.low_rank(1, 1, fold)
        ranks = aligned_ranks(dense.params // max(one.params, 1), 16)
        if ranks:
            layer = LayerPlan("low-rank", ranks[len(ranks) // 2], 1, fold)
            made |= dict.fromkeys(site.names, layer)
    return made
