"""Plans: what each layer of a model becomes, with its predicted error and cost.

A plan is plain data. It round-trips through JSON, can be edited by hand, compared with another and built later, on
another machine, or after another method's training. Costs are recomputed from the ranks whenever a plan is read, so an
edited rank is never beside a stale cost.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor

from tenfold.errors import ArgumentError, PlanError, shortened
from tenfold.files import parse_json
from tenfold.layers.cost import Cost, LayerCost
from tenfold.layers.tucker import why_impossible
from tenfold.linalg.fold import Fold
from tenfold.plans.printed import Printed
from tenfold.validation import construct

FORMAT = "tenfold-plan/1"


@dataclass(frozen=True)
class LayerPlan:
    """The decomposition of one layer: its rank and fold, with predicted error and cost.

    Args:
        decomposition: ``"dense"``, ``"low-rank"`` or ``"tucker"``.
        rank: an int, per group for grouped layers (and per slice); for Tucker ``(r_out, r_in)``; None for dense.
        slices: of the input channels, each with its own factors; 1 otherwise.
        fold: how the kernel was made a matrix, see `tenfold.linalg.fold`; None unless low-rank.
        error: predicted, in the plan's measure; None where unknown (an edited rank).
        params: weights, the bias counted only where it is added; 0 for the weights of another layer.
        macs: of one forward pass; None where unknown.
        reason: why it stays dense.
        tied_to: name of the layer whose weight this one shares; it becomes what that one becomes.
        bias: whether a bias is added that the dense layer lacks, as `PCA` does.
        norm: the batch norm in whose metric the kernel is cut, as `LRPET` does; None: in its own, the Frobenius norm.
        transfer: whether what is kept is scaled so that the kernel loses no energy; see `tenfold.linalg.project`.
        layer: what the costs are computed from; None for layers of an unknown kind.
        latency_ms: measured, of all its uses in one forward pass; None where nobody asked.
    """

    decomposition: str
    rank: int | tuple[int, ...] | None = None
    slices: int = 1
    fold: str | None = None
    error: float | None = 0.0
    params: int = 0
    macs: int | None = None
    reason: str | None = None
    tied_to: str | None = None
    bias: bool = False
    norm: str | None = None
    transfer: bool = False
    layer: LayerCost | None = None
    latency_ms: float | None = None

    @property
    def dense_params(self) -> int:
        """Number of weights of the dense layer; 0 for the weights of another layer."""
        if self.layer is None:
            return self.params
        return 0 if self.tied_to else self.layer.dense().params  # `params` may hold a bias that was added

    @property
    def dense_macs(self) -> int | None:
        """MACs of the dense layer; None where unknown."""
        return self.macs if self.layer is None else self.layer.dense().macs


Factors = tuple[tuple[Tensor, ...], Tensor | None]
"""The factors of a layer, and what is added to its bias, or None: left and right factors of a fold's matrices, or core,
output and input basis of a Tucker layer."""


@dataclass(frozen=True, repr=False)
class Plan(Printed):
    """The decomposition and ranks of every layer of a model, with predicted error and cost. Plain data.

    Args:
        method: the name of the method that made it.
        layers: every layer with a weight matrix, those left dense included, in module order.
        dense_params: parameters of the dense model.
        dense_macs: MACs of the dense model; None where no example inputs were given.
        measure: what ``error`` and ``level`` mean.
        level: the objective reached; None where the rule has none, or the plan was edited.
        budget: the limits that it was made for.
        from_data: whether the factors depend on calibration data, not on the weights alone.
        calibration_bytes: the most memory that calibration took at a time, beyond the model and a batch's own pass
            through it; 0 where there was none.
        compared: of a method that built several plans, what each one's outputs lost on held-out calibration examples,
            by the rule that made it; the plan is the best of them. Of one that a first look left far behind, what that
            look promised.
        latency_ms: with a budget on latency, measured milliseconds of a network of this plan's shapes, batch norm
            folded; None where nobody asked, or the plan was edited.
        dense_latency_ms: of the dense network, in its best memory format.
        conditions: that these were measured under: runtime, version, threads, memory format, device, input shapes.
        gap: how far the objective may be from the best one possible, relatively; None where that is not known.
        factors: where the method makes them from data, the factors by layer name. They do not travel in JSON: build
            the plan where it was made, and save the model.
        fingerprints: of the weights that the factors were made of, by layer name; they stay where the factors stay.
    """

    method: str
    layers: dict[str, LayerPlan]
    dense_params: int
    dense_macs: int | None = None
    measure: str | None = None
    level: float | None = None
    budget: dict[str, float | int] = field(default_factory=dict)
    from_data: bool = False
    calibration_bytes: int = 0
    compared: dict[str, float] = field(default_factory=dict)
    latency_ms: float | None = None
    dense_latency_ms: float | None = None
    conditions: dict[str, Any] = field(default_factory=dict)
    gap: float | None = None
    factors: Mapping[str, Factors] = field(default_factory=dict, compare=False, repr=False)
    fingerprints: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def params(self) -> int:
        """Number of parameters of the compressed model, everything counted."""
        return self.dense_params - sum(x.dense_params - x.params for x in self.layers.values())

    @property
    def compresses(self) -> bool:
        """Whether any layer is decomposed."""
        return any(layer.decomposition != "dense" for layer in self.layers.values())

    @property
    def macs(self) -> int | None:
        """MACs of the compressed model; None where no example inputs were given."""
        if self.dense_macs is None:
            return None
        return self.dense_macs - sum((x.dense_macs or 0) - (x.macs or 0) for x in self.layers.values())

    def edit(self, name: str, **changes: Any) -> Plan:
        """A copy of the plan with another ``rank``, ``slices``, ``fold`` or ``decomposition`` of one layer.

        Layers that share its weight change with it. Costs are computed anew; the error, and the plan's level, become
        unknown.

        Args:
            name: of the layer.
            changes: the new values, by field of `LayerPlan`.

        Raises:
            PlanError: no such layer, no such field, or values that the layer cannot take.
        """
        if name not in self.layers:
            raise PlanError(f"the plan has no layer '{name}'. It has: {', '.join(self.layers)}.")
        if not set(changes) <= set(_EDITABLE):
            raise PlanError(f"only {', '.join(_EDITABLE)} can be edited; got {', '.join(changes)}.")
        owner = self.layers[name].tied_to or name
        edited = {
            n: priced(n, construct(LayerPlan, vars(old) | {"error": None, "latency_ms": None} | changes, f"'{n}'"))
            for n, old in self.layers.items()
            if owner in (n, old.tied_to)
        }
        kept = {name: f for name, f in self.factors.items() if name != owner}
        return replace(self, layers=self.layers | edited, level=None, gap=None, latency_ms=None, factors=kept)

    def diff(self, other: Plan) -> dict[str, tuple[LayerPlan | None, LayerPlan | None]]:
        """The layers that differ in another plan: ``{name: (here, there)}``; None where a plan lacks the name."""
        names = dict.fromkeys([*self.layers, *other.layers])
        pairs = {name: (self.layers.get(name), other.layers.get(name)) for name in names}
        return {name: (a, b) for name, (a, b) in pairs.items() if _structure(a) != _structure(b)}

    def to_json(self) -> str:
        """The plan as indented JSON text, for `from_json`."""
        plain = {k: v for k, v in asdict(replace(self, factors={})).items() if k not in _UNWRITTEN}
        body = {"format": FORMAT} | plain | {"params": self.params, "macs": self.macs}
        return json.dumps(body, indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a plan from JSON text, check it, and compute its costs anew from its ranks.

        Raises:
            PlanError: no JSON, another format, a missing or unknown field, a value of the wrong type, an impossible
                rank, or layers that share a weight and differ.
        """
        try:
            body = parse_json(text)
        except ValueError as error:
            raise PlanError(f"the plan is no JSON: {error}.") from error
        if not isinstance(body, dict) or body.get("format") != FORMAT:
            found = body.get("format") if isinstance(body, dict) else type(body).__name__
            raise PlanError(f"`format` must be {FORMAT!r}; got {shortened(found)}.")
        if not isinstance(body.get("layers"), dict):
            raise PlanError("`layers` must be an object of layer name -> layer plan.")
        written = {name: _read_layer(name, value) for name, value in body["layers"].items()}
        layers = {name: priced(name, layer) for name, layer in written.items()}
        _check_ties(layers)
        # costs are for the reader's eye: they follow from the layers
        kept = {k: v for k, v in body.items() if k not in ("format", "params", "macs", *_UNWRITTEN)}
        plan = construct(cls, kept | {"layers": layers}, "the plan")
        _check_totals(plan)
        return plan if layers == written else replace(plan, level=None, gap=None, latency_ms=None)


_UNWRITTEN = ("factors", "fingerprints")
_MOST = 2**63
"""Beyond it a number counts nothing."""
_EDITABLE = ("decomposition", "rank", "slices", "fold")


def priced(name: str, layer: LayerPlan) -> LayerPlan:
    """A layer plan with costs computed from its rank; its error is dropped where they differ from its own.

    Another rank that costs exactly as much, in other slices or another fold, is not noticed here.

    Raises:
        PlanError: a decomposition, rank, number of slices or fold that the layer cannot take.
    """
    cost = layer.layer
    if layer.decomposition == "dense":
        layer = replace(layer, rank=None, slices=1, fold=None, bias=False, norm=None, transfer=False)
        price = Cost(layer.params, layer.macs) if cost is None else cost.dense()
    elif layer.decomposition not in ("low-rank", "tucker"):
        raise PlanError(
            f"'{name}': `decomposition` must be 'dense', 'low-rank' or 'tucker'; got {shortened(layer.decomposition)}."
        )
    elif cost is None:
        raise PlanError(f"'{name}': only a layer with a `layer` entry can be decomposed; {shortened(layer.reason)}.")
    elif layer.decomposition == "tucker":
        layer = replace(layer, fold=None, reason=None, norm=None, transfer=False)
        price = cost.tucker(_possible_ranks(name, layer, cost))
    else:
        layer = replace(layer, fold=layer.fold or "channel", reason=None)
        price = cost.low_rank(_possible_rank(name, layer, cost), layer.slices, layer.fold or "channel")
    params = (0 if layer.tied_to else price.params) + (cost.shape[0] if cost and layer.bias else 0)
    if layer.decomposition == "dense":
        error = 0.0
    else:
        error = layer.error if (layer.params, layer.macs) == (params, price.macs) else None
    return replace(layer, params=params, macs=price.macs, error=error)


def _possible_rank(name: str, layer: LayerPlan, cost: LayerCost) -> int:
    try:
        full = Fold(cost.shape, cost.groups, layer.slices, layer.fold or "channel").full_rank
    except ArgumentError as error:
        raise PlanError(f"'{name}' with kernel {cost.shape}: {error}") from error
    rank = layer.rank
    if not isinstance(rank, int) or not 1 <= rank <= full:
        raise PlanError(
            f"'{name}': `rank` must be an integer in 1..{full} for kernel {cost.shape}, "
            f"{layer.slices} slices and fold {shortened(layer.fold)}; got {shortened(rank)}."
        )
    return rank


def _possible_ranks(name: str, layer: LayerPlan, cost: LayerCost) -> tuple[int, ...]:
    if len(cost.shape) == 2:
        raise PlanError(f"'{name}' is linear: its weight is a matrix, whose `decomposition` is 'low-rank'.")
    if layer.slices != 1:
        raise PlanError(f"'{name}': `slices` must be 1 for Tucker, which does not slice; got {layer.slices!r}.")
    rank = layer.rank
    if not isinstance(rank, tuple):
        raise PlanError(f"'{name}': `rank` must be a pair (r_out, r_in) for Tucker; got {shortened(rank)}.")
    impossible = why_impossible(rank, cost.shape, cost.groups)
    if impossible is not None:
        raise PlanError(f"'{name}': `rank` must be {impossible}; got {shortened(rank)}.")
    return rank


def _read_layer(name: str, value: Any) -> LayerPlan:
    where = shortened(name)
    if not isinstance(value, dict):
        raise PlanError(f"{where}: a layer plan must be an object; got {shortened(value)}.")
    if "groups" in value and "slices" not in value:  # the name under which older plans wrote them
        value = {"slices" if key == "groups" else key: item for key, item in value.items()}
    plan = construct(LayerPlan, value, where)
    if plan.layer is not None:
        _check_layer(where, plan.layer)
    for key in ("params", "macs", "error"):
        number = getattr(plan, key)
        if number is not None and not 0 <= number < _MOST:
            raise PlanError(f"{where}: `{key}` must be >= 0 and less than 2^63; got {number!r}.")
    return plan


def _check_layer(where: str, cost: LayerCost) -> None:
    """That there can be such a layer, and that its costs are numbers that a layer can have."""
    axes = len(cost.shape) - 2
    calls = cost.calls or ()
    sizes = [size for _, before, after in calls for size in (before, after)]
    counts = [count for count, _, _ in calls] + [n for size in sizes for n in size]
    possible = axes >= 0 and min(cost.shape) >= 1 and cost.groups >= 1
    if not possible or any(len(size) != axes for size in sizes) or any(count < 0 for count in counts):
        raise PlanError(f"{where}: `layer` describes no layer: {shortened(cost, 200)}.")
    dense = cost.dense()
    if max(dense.params, dense.macs or 0) >= _MOST:
        raise PlanError(f"{where}: `layer` must cost less than 2^63; got {shortened(cost, 200)}.")


def _check_totals(plan: Plan) -> None:
    """That the model has what its layers have."""
    least = {
        "dense_params": sum(layer.dense_params for layer in plan.layers.values()),
        "dense_macs": sum(layer.dense_macs or 0 for layer in plan.layers.values()),
        "calibration_bytes": 0,
    }
    for key, smallest in least.items():
        number = getattr(plan, key)
        if number is not None and not smallest <= number < _MOST:
            why = "its layers' sum" if key.startswith("dense") else "none"
            raise PlanError(f"`{key}` must be >= {smallest}, {why}, and less than 2^63; got {number!r}.")
    for key, limit in plan.budget.items():
        if not 0 < limit < _MOST:
            raise PlanError(f"`budget`: {shortened(key)} must be > 0 and less than 2^63; got {limit!r}.")


def _check_ties(layers: dict[str, LayerPlan]) -> None:
    for name, layer in layers.items():
        owner = layers.get(layer.tied_to or name)
        if owner is None or (layer.tied_to and owner.tied_to) or not _alike(owner, layer):
            raise PlanError(
                f"'{name}': it shares the weight of '{layer.tied_to}' (`tied_to`), which must be a layer of the plan "
                f"that becomes the same. Give both the same entry."
            )


def _structure(layer: LayerPlan | None) -> tuple[Any, ...] | None:
    return (
        None
        if layer is None
        else (
            layer.decomposition,
            layer.rank,
            layer.slices,
            layer.fold,
            layer.bias,
            layer.norm,
            layer.transfer,
        )
    )


def _alike(a: LayerPlan, b: LayerPlan) -> bool:
    """Whether both become the same, apart from a bias: of two layers with one weight, one may have its own."""
    return _structure(replace(a, bias=b.bias)) == _structure(b)


def fingerprint(weight: Tensor) -> str:
    """Hash of a weight's numbers in float64: a wider dtype, another device or memory format changes nothing."""
    made = hashlib.blake2b(digest_size=16)
    for part in weight.detach().flatten().split(1 << 20):
        made.update(part.cpu().double().numpy().data)
    return made.hexdigest()
