"""From a plan to a model, and what came of it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tenfold.errors import BudgetError, PlanError, TenfoldWarning
from tenfold.layers import swap
from tenfold.layers.cost import Cost, cost, layer_cost
from tenfold.layers.decomposed import Decomposed
from tenfold.layers.find import FoundLayer
from tenfold.layers.folded_weight import FoldedWeight
from tenfold.layers.norm_choice import NormChoice
from tenfold.layers.open_recurrent import opened
from tenfold.layers.spec import LayerSpec, spec_of
from tenfold.layers.tucker_training import TrainedTucker
from tenfold.layers.usable import refuse_unusable
from tenfold.linalg.fold import Fold
from tenfold.linalg.projection import project
from tenfold.linalg.svd import low_rank_factors, require_finite
from tenfold.plans.budget import Budget
from tenfold.plans.plan import Factors, LayerPlan, Plan, fingerprint, priced
from tenfold.plans.printed import Printed
from tenfold.plans.problem import Problem


@dataclass(frozen=True, repr=False)
class Report(Printed):
    """The cost of a model before and after compression, measured on the built model, not predicted.

    Args:
        dense: cost before: parameters, and MACs where inputs were given.
        small: cost after.
        seconds: wall time of each stage, by name.
        left: layers left dense, with the reason.
        norms: what became of batch-norm statistics; None where nothing was asked or there are none.
        output_error: how far the network's outputs are from the dense one's, by stage: "built", "refitted"; empty where
            nobody asked for a refit. See `tenfold.layers.output_loss` for what it is.
        dense_latency_ms: with a budget on latency, as in the plan.
        latency_ms: the same of the compressed model.
    """

    dense: Cost
    small: Cost
    seconds: dict[str, float] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    norms: NormChoice | None = None
    output_error: dict[str, float] = field(default_factory=dict)
    dense_latency_ms: float | None = None
    latency_ms: float | None = None

    @property
    def kept(self) -> dict[str, float]:
        """The share of each cost that is kept: ``{"params": 0.25, "macs": 0.31}``."""
        shares = {"params": self.small.params / max(self.dense.params, 1)}
        if self.dense.macs and self.small.macs is not None:
            shares["macs"] = self.small.macs / self.dense.macs
        if self.dense_latency_ms and self.latency_ms is not None:
            shares["latency"] = self.latency_ms / self.dense_latency_ms
        return shares


@dataclass(frozen=True, repr=False)
class Result(Printed):
    """A compressed model, the plan it was built from, and the report; unpacks as ``small, plan, report``.

    Args:
        model: the compressed model, of plain layers.
        plan: what each layer became.
        report: measured costs before and after.
    """

    model: nn.Module
    plan: Plan
    report: Report

    def __iter__(self) -> Any:
        """Unpack as ``small, plan, report = compress(...)``."""
        return iter((self.model, self.plan, self.report))


def build(problem: Problem, plan: Plan, budget: Budget | None = None) -> Result:
    """Build ``plan`` on the model of ``problem`` and measure the cost. Batch-norm statistics stay as they were.

    Every compression goes through here: `tenfold.compress`, the command line, comparisons, sweeps, the guard.

    Args:
        problem: from `survey`.
        plan: for it.
        budget: what the built model may cost; None: whatever the plan says.

    Raises:
        BudgetError: the built model costs more than the budget allows; the message has both numbers.
    """
    clock = time.perf_counter()
    small = _applied(problem.model, plan, problem.found)
    seconds = time.perf_counter() - clock
    after = cost(small, problem.example_inputs)
    over = None if budget is None else budget.exceeded(problem.dense, after)
    if over is not None:
        raise BudgetError(f"the model that was built to the plan by {plan.method} exceeds `budget`: it has {over}.")
    left = {name: layer.reason or "" for name, layer in plan.layers.items() if layer.decomposition == "dense"}
    report = Report(
        problem.dense,
        after,
        {"apply": seconds},
        left,
        dense_latency_ms=plan.dense_latency_ms,
        latency_ms=plan.latency_ms,
    )
    return Result(small, plan, report)


def apply(model: nn.Module, plan: Plan) -> nn.Module:
    """Factorise the layers of ``model`` as ``plan`` says: a new model; the given one is untouched, ties stay.

    The plan is built as written, whoever wrote it: a rank that saves nothing warns, an impossible one raises.

    Args:
        model: the dense model that the plan is for. A factorised one is multiplied back to dense first.
        plan: from a method, from JSON, or edited.

    Raises:
        PlanError: the plan is for another model, a layer cannot become what it says, or the plan brings factors of
            weights that the model no longer has.
        TenfoldError: a weight with NaN or infinite entries, by name.
        ArgumentError: a model wrapped in DataParallel or the like.

    Warns:
        TenfoldWarning: a layer that the plan makes no smaller.
    """
    refuse_unusable(model)
    return _applied(opened(swap.multiplied_back(model)), plan)


def _applied(model: nn.Module, plan: Plan, found: Sequence[FoundLayer] | None = None) -> nn.Module:
    """`apply` to a dense model whose layers may have been found already."""
    check_fits(model, plan)
    for name, layer in plan.layers.items():
        if layer.decomposition != "dense" and layer.layer is not None and not layer.tied_to:
            dense = layer.layer.dense().params
            if layer.params >= dense:
                warnings.warn(
                    f"'{name}' at rank {layer.rank} has {layer.params:,} weights, its dense kernel {dense:,}: "
                    f"the plan makes it no smaller.",
                    TenfoldWarning,
                    stacklevel=3,
                )
    return swap.apply(model, plan.layers, _factors(model, plan), found)


def _factors(model: nn.Module, plan: Plan) -> dict[str, Factors]:
    """The factors that are not simply the best ones for the weight, by layer name."""
    made = _from_data(model, plan) if plan.from_data else {}
    own = {n: x for n, x in plan.layers.items() if (x.norm or x.transfer) and not x.tied_to}
    made |= {name: _projected(model, name, layer) for name, layer in own.items()}
    owner = {n: n if n in made else x.tied_to or n for n, x in plan.layers.items()}
    return {n: made[name] for n, name in owner.items() if name in made}


def _projected(model: nn.Module, name: str, layer: LayerPlan) -> Factors:
    """Factors of the kernel cut in the metric of a batch norm, without loss of energy where the plan says so."""
    module = model.get_submodule(name)
    spec, rank = spec_of(module), layer.rank
    assert spec is not None
    assert isinstance(rank, int)
    fold = Fold(spec.shape, spec.groups, layer.slices, layer.fold or "channel")
    folded = FoldedWeight(name, module, spec, fold, fold.full_rank, _norm_of(model, name, layer.norm, spec.shape[0]))
    require_finite(folded.matrices, f"the weight of '{name}'")
    kept = project(folded.matrices, rank, metric=folded.metric, transfer=layer.transfer)
    return low_rank_factors(kept, rank), None


def _norm_of(model: nn.Module, name: str, norm: str | None, channels: int) -> _BatchNorm | None:
    """The batch norm that a layer's plan names."""
    if norm is None:
        return None
    module = dict(model.named_modules()).get(norm)
    if isinstance(module, _BatchNorm) and module.num_features == channels:
        return module
    there = "nothing" if module is None else f"a {type(module).__name__}"
    there += f" of {module.num_features} channels" if isinstance(module, _BatchNorm) else ""
    raise PlanError(
        f"'{name}': `norm` must name a batch norm of its {channels} channels; got {norm!r}, where there is {there}."
    )


def _from_data(model: nn.Module, plan: Plan) -> dict[str, Factors]:
    """The factors that a plan from data brings: all of them, and made of the model's own weights."""
    wanted = [n for n, x in plan.layers.items() if x.decomposition != "dense" and not x.tied_to]
    missing = [name for name in wanted if name not in plan.factors]
    if missing:
        raise PlanError(
            f"the plan was made by {plan.method} from calibration data, and holds no factors for '{missing[0]}': "
            f"they do not travel in JSON, and an edited rank loses them. Plan again on the data, and save the model."
        )
    for name in wanted:
        weight = cast("Tensor", model.get_submodule(name).weight)
        if plan.fingerprints.get(name) not in (None, fingerprint(weight)):
            raise PlanError(
                f"the weight of '{name}' is not the one that the plan was made for: it was trained or replaced since, "
                f"and the plan, made by {plan.method} from calibration data, would put the old one back. "
                f"Plan again on the model as it is."
            )
    # A layer that shares a weight may bring factors of its own, the same but for what its bias gains.
    tied = [n for n, x in plan.layers.items() if x.decomposition != "dense" and x.tied_to and n in plan.factors]
    return {name: plan.factors[name] for name in (*wanted, *tied)}


def check_fits(model: nn.Module, plan: Plan) -> None:
    """Raise `PlanError` unless every layer that the plan decomposes is in ``model`` with the kernel it expects.

    A wrapped model must have been refused: in it every layer has another name.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    biased: set[int] = set()
    for name, layer in plan.layers.items():
        if layer.decomposition == "dense" or layer.layer is None:
            continue
        spec = spec_of(modules[name]) if name in modules else None
        found = None if spec is None else (spec.shape, spec.groups, spec.transposed)
        expected = (layer.layer.shape, layer.layer.groups, layer.layer.transposed)
        if found != expected:
            what = "has no such layer" if name not in modules else f"has {_describe(spec)} there"
            raise PlanError(
                f"the plan is for another model: it expects '{name}' with kernel {expected[0]} in {expected[1]} "
                f"groups, the model {what}."
            )
        assert spec is not None
        if layer.bias and (spec.bias or id(modules[name]) in biased):
            raise PlanError(
                f"'{name}': `bias` must be true only where a bias is added, and once; the model has that one already, "
                f"and the plan would count it twice. Set it to false."
            )
        if layer.bias:
            biased.add(id(modules[name]))


def plan_of(model: nn.Module) -> Plan:
    """The plan of a compressed model, read from its layers; errors and MACs are unknown."""
    dense = sum(p.numel() for p in model.parameters())
    layers: dict[str, LayerPlan] = {}
    owner: dict[int, str] = {}
    seen: set[int] = set()
    for name, layer in _decomposed(model).items():
        first = owner.setdefault(id(layer.factors[0]), name)
        tied = None if first == name else first
        added = layer.added_bias and id(layer) not in seen
        seen.add(id(layer))
        bare = LayerPlan(layer.decomposition, layer.rank, layer.slices, layer.fold, tied_to=tied, bias=added)
        layers[name] = replace(priced(name, replace(bare, layer=layer_cost(layer.spec))), error=None)
        dense += (0 if tied else layer.spec.params) - layers[name].params
    return Plan("unknown", layers, dense)


def matches(model: nn.Module, plan: Plan) -> bool:
    """Whether ``model`` is built as ``plan`` says."""
    there = {n: (m.decomposition, m.rank, m.slices, m.fold) for n, m in _decomposed(model).items()}
    said = {
        n: (x.decomposition, x.rank, x.slices, x.fold) for n, x in plan.layers.items() if x.decomposition != "dense"
    }
    return there == said


def _decomposed(model: nn.Module) -> dict[str, Decomposed]:
    """The factorised layers under all their names, as plans list them."""
    found = {name: m for name, m in model.named_modules(remove_duplicate=False) if isinstance(m, Decomposed)}
    for name, layer in found.items():
        if isinstance(layer, TrainedTucker):
            raise PlanError(
                f"'{name}' is in the form in which it is trained, which no plan describes. Finish the training with "
                f"the method's `finish`, or take tenfold.deploy(model), which is made of plain layers."
            )
    return found


def _describe(spec: LayerSpec | None) -> str:
    return "another kind of module" if spec is None else f"kernel {spec.shape} in {spec.groups} groups"
