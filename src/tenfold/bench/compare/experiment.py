"""An experiment as data: which methods, at which budgets, with which seeds, on which network and data.

How epochs are counted, the same for all::

    dense             trains all ``epochs``
    during training   trains all ``epochs`` by its method, and is then compressed
    after training    one dense training of ``epochs - recovery`` per seed, shared by all methods and budgets, through
                      the whole schedule; compressed; ``recovery`` epochs at the rates of the schedule's end
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, TypeVar, get_args

from tenfold.bench.compare.cuts import Cuts
from tenfold.errors import ArgumentError, check, is_count
from tenfold.layers.norm_choice import Norms
from tenfold.methods import get_method, list_methods
from tenfold.methods.contract.method import Method
from tenfold.methods.contract.own import record
from tenfold.methods.dense import Dense
from tenfold.plans.budget import Budget
from tenfold.plans.refit_result import Refit, check_refit
from tenfold.runtimes import NAMES
from tenfold.runtimes.onnx_int8 import KINDS
from tenfold.train.recipe import AUTO, Recipe
from tenfold.validation import construct

DENSE, AFTER, DURING = "dense", "post-training", "training"
ALL = "all"
_LONGEST = 80
"""Letters of a run's name: it becomes the name of a file."""

T = TypeVar("T")


@dataclass(frozen=True)
class DataChoice:
    """The data set of an experiment, and how much of it is used.

    Args:
        name: as `tenfold.train.load_data` takes it.
        root: folder of its files; None searches the usual places.
        examples: of the training set that are used, >= 1, the same every time; None: all.
        validation: of the validation set, likewise; it is looked at after every epoch.

    Raises:
        ArgumentError: a number below 1.
    """

    name: str
    root: str | None = None
    examples: int | None = None
    validation: int | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("examples", "validation"):
            value = getattr(self, name)
            check(value is None or is_count(value), name, "an integer >= 1, or None", value)


@dataclass(frozen=True)
class LatencyProtocol:
    """The settings of a latency measurement.

    Args:
        batch: examples in the batch, >= 1.
        rounds: pairs of turns, >= 3; the median counts.
        runtime: "eager", "compile" or "onnxruntime".

    Raises:
        ArgumentError: a number out of range, another runtime.
    """

    batch: int = 1
    rounds: int = 15
    runtime: str = "eager"

    def __post_init__(self) -> None:
        """Check the ranges."""
        check(is_count(self.batch), "batch", "an integer >= 1", self.batch)
        check(is_count(self.rounds, 3), "rounds", "an integer >= 3", self.rounds)
        check(self.runtime in NAMES, "runtime", f"one of {', '.join(NAMES)}", self.runtime)


@dataclass(frozen=True)
class Entry:
    """A method in a comparison, and how it is trained.

    Args:
        method: with its fields.
        after: compress after a dense training, although the method can work while the network trains.
        recipe: what this method's training does differently, of `OWN`; for methods that work while the network trains.
        refit: which factors are fitted to the dense layers' outputs on the calibration examples, "last" or "both", in
            place of batch norm's re-estimation; see `tenfold.refit_`.

    Raises:
        ArgumentError: another key in ``recipe``, or one for a method that works after training; no kind of refit.
    """

    method: Method
    after: bool = False
    recipe: Mapping[str, Any] = field(default_factory=dict)
    refit: Refit | None = None

    def __post_init__(self) -> None:
        """Check what may differ."""
        check_refit(self.refit, ())
        other = sorted(set(self.recipe) - set(OWN))
        check(not other, "recipe", f"keys of a method's own among {', '.join(OWN)}", other)
        during = not self.recipe or self.kind == DURING
        what = "left out for what is compressed after the dense training that all share"
        check(during, "recipe", what, dict(self.recipe))

    @property
    def kind(self) -> str:
        """`DENSE`, `AFTER` or `DURING`: a method that has work to do while the network trains does it."""
        if isinstance(self.method, Dense):
            return DENSE
        own = [name for name in _WORK if getattr(type(self.method), name) is not getattr(Method, name)]
        return DURING if own and not self.after else AFTER

    @property
    def label(self) -> str:
        """The name of the method, and the fields that are not at their defaults: ``alds measure=fro``."""
        usual = {f.name: f.default for f in fields(self.method)}
        values = {name: getattr(self.method, name) for name in usual}
        changed = [f"{name}={_short(value)}" for name, value in values.items() if value != usual[name]]
        changed += [f"{name}={_short(value)}" for name, value in self.recipe.items()]
        changed += [f"refit={self.refit}"] if self.refit else []
        return " ".join([self.method.name, *changed, *(["after"] if self.after else [])])

    def to_dict(self) -> dict[str, Any]:
        """The entry as plain values, as `Experiment.from_dict` takes it."""
        recipe = {"recipe": dict(self.recipe)} if self.recipe else {}
        refit = {"refit": self.refit} if self.refit else {}
        return record(self.method) | ({"after": True} if self.after else {}) | recipe | refit


OWN = ("lr", "momentum", "weight_decay", "schedule", "warmup", "milestones", "gamma", "clip_norm")
"""What a method may need for itself in a recipe. All else is the same for all: epochs, batches, augmentation."""
_WORK = ("begin", "optimizer", "attach")


@dataclass(frozen=True)
class Row:
    """One run of an experiment: a method at a budget with a seed.

    Args:
        entry: the method.
        budget: None for the dense run, and in experiments without budgets.
        seed: of everything random.
    """

    entry: Entry
    budget: Budget | None
    seed: int

    @property
    def id(self) -> str:
        """The name of the run, fit for a file: ``alds-measure=fro-params0.25-s0``."""
        method = re.sub(r"[^\w.=]+", "-", self.entry.label).strip("-")
        if len(method) > _LONGEST:
            digest = hashlib.sha256(self.entry.label.encode()).hexdigest()[:8]
            method = f"{method[:_LONGEST]}-{digest}"
        limits = self.budget.limits if self.budget else {}
        return "-".join([method, *(f"{name}{value}" for name, value in limits.items()), f"s{self.seed}"])


@dataclass(frozen=True)
class Experiment:
    """A comparison as data: methods x budgets x seeds, with a dense run per seed, named or not.

    Args:
        name: of the experiment.
        data: the data set.
        model: as `tenfold.build_model` takes it.
        methods: at least one; "dense" among them changes nothing.
        budgets: at least one; or none, where every method chooses by itself how much it keeps.
        seeds: of everything random: first weights, order, augmentation. At least one.
        recipe: of a training that is ``recipe.epochs`` long; its seed is replaced. ``distill`` is the weight
            of the dense network in the loss of a recovery after compression, and 0 elsewhere.
        recovery: epochs of it that come after a compression, in [0, epochs).
        target: layers that may be compressed; see `tenfold.plan`.
        exclude: layers that may not.
        calibration: training examples that batch norm is re-estimated from, and that methods that need data see, >= 1;
            None: all that are trained on.
        norms: batch norm after a compression: "reestimate" it from all of ``calibration``, "keep" it, or "auto", as
            `tenfold.compress` does. It is always kept where factors are fitted to its statistics: by `refit`, and by
            methods that say so.
        threads: that torch may use on the CPU, >= 1.
        latency: how it is measured.
        cuts: what is removed, without retraining, of the networks that the dense training and the methods that work
            while a network trains leave; at most one of a kind.
        keep: keep the networks that come out, as `tenfold.save` writes them.
        int8: quantise what comes out, "static" or "dynamic", as `tenfold export --int8` does, the dense network too:
            bytes, milliseconds and test accuracy of dense, int8, low rank, and both. None: do not.

    Raises:
        ArgumentError: a value out of its range, or the same method, budget or seed twice.
    """

    name: str
    data: DataChoice
    model: str
    methods: tuple[Entry, ...]
    budgets: tuple[Budget, ...] = ()
    seeds: tuple[int, ...] = (0,)
    recipe: Recipe = field(default_factory=Recipe)
    recovery: int = 0
    target: str | list[str] | None = None
    exclude: str | list[str] | None = None
    calibration: int | None = None
    norms: Norms = "reestimate"
    threads: int = 1
    latency: LatencyProtocol = field(default_factory=LatencyProtocol)
    cuts: tuple[Cuts, ...] = ()
    keep: bool = False
    int8: str | None = None

    def __post_init__(self) -> None:
        """Check what belongs together."""
        check(is_count(self.threads), "threads", "an integer >= 1", self.threads)
        few = self.calibration is None or is_count(self.calibration)
        check(few, "calibration", "an integer >= 1, or None", self.calibration)
        check(self.int8 is None or self.int8 in KINDS, "int8", f"one of {', '.join(KINDS)}, or left out", self.int8)
        check(self.norms in get_args(Norms), "norms", f"one of {', '.join(get_args(Norms))}", self.norms)
        check(is_count(self.recovery, 0), "recovery", "an integer >= 0", self.recovery)
        epochs = self.recipe.epochs
        check(self.recovery < epochs, "recovery", f"below the {epochs} epochs of the recipe", self.recovery)
        one = "no, bf16 or fp16: one for all runs of a comparison"
        check(self.recipe.precision != AUTO, "precision", one, self.recipe.precision)
        check(self.recipe.total is None, "total", "left out: the experiment windows the schedule", self.recipe.total)
        for name in ("methods", "seeds"):
            check(len(getattr(self, name)) > 0, name, "a list with at least one entry", [])
        lost = [entry.label for entry in self.methods if entry.method.needs_budget and not self.budgets]
        check(not lost, "budgets", f"a list with at least one entry for {', '.join(lost)}", [])
        kinds = [each.kind for each in self.cuts]
        check(len(set(kinds)) == len(kinds), "cuts", "of different kinds", kinds)
        for entry in self.methods:
            self.whole(0, entry)  # its own check of the values
        for seed in self.seeds:
            check(is_count(seed, 0), "seeds", "integers >= 0", seed)
        for name in ("budgets", "seeds"):
            values = list(map(str, getattr(self, name)))
            check(len(set(values)) == len(values), name, "different from one another", values)
        names = [row.id for row in self.rows if row.seed == self.seeds[0]]
        twice = [name for name in names if names.count(name) > 1]
        check(not twice, "methods", "different from one another", twice[:1])

    @property
    def rows(self) -> list[Row]:
        """Every run, as results are ordered: by seed within budget within method, dense first."""
        compressed = [e for e in self.methods if e.kind != DENSE]
        rows = [Row(Entry(Dense()), None, seed) for seed in self.seeds]
        return rows + [Row(e, b, seed) for e in compressed for b in self.budgets or (None,) for seed in self.seeds]

    @property
    def epochs(self) -> int:
        """The number of training epochs of all runs together, the shared dense trainings once."""
        after = sum(row.entry.kind == AFTER for row in self.rows)
        shared = (self.recipe.epochs - self.recovery) * len(self.seeds) if after else 0
        return shared + after * self.recovery + (len(self.rows) - after) * self.recipe.epochs

    def whole(self, seed: int, entry: Entry | None = None) -> Recipe:
        """The recipe of a training over all epochs, with what the method of ``entry`` does differently."""
        return replace(self.recipe, **{} if entry is None else entry.recipe, seed=seed, distill=0.0)

    def shortened(self, seed: int) -> Recipe:
        """The recipe of the dense training before a compression: the whole schedule in fewer epochs."""
        epochs = self.recipe.epochs - self.recovery
        milestones = tuple(m * epochs / self.recipe.epochs for m in self.recipe.milestones)
        return replace(self.whole(seed), epochs=epochs, milestones=milestones)

    def recovering(self, seed: int) -> Recipe:
        """The recipe of the recovery: the last epochs of the whole schedule."""
        return replace(self.recipe, seed=seed).rewound(self.recovery)

    def to_dict(self) -> dict[str, Any]:
        """The experiment as plain values, as `from_dict` takes it, without the data's folder on this machine."""
        body = asdict(self)
        del body["data"]["root"]
        body["methods"] = [entry.to_dict() for entry in self.methods]
        body["budgets"] = [budget.limits for budget in self.budgets]
        body["recipe"] = {key: value for key, value in body["recipe"].items() if key not in ("total", "seed")}
        return json.loads(json.dumps(body, default=repr))

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Experiment:
        """An experiment from plain values, e.g. of a YAML file; the keys are the fields.

        ``methods`` is "all", or a list of names and of mappings ``{method: NAME, FIELD: VALUE, ..., after: true}``,
        with ``recipe: {lr: 0.5}`` where a method needs one of its own, and ``refit: both``; ``budgets`` a list of
        mappings ``{params: 0.5, macs: 0.5}``, ``cuts`` one mapping or a list of them,
        ``{kind: rank, remove: [0.2, 0.4]}``.

        Raises:
            ArgumentError: an unknown key, or a value that cannot be; the message names the key.
        """
        parts = dict(body)
        if isinstance(parts.get("data"), str):
            parts["data"] = {"name": parts["data"]}
        if isinstance(parts.get("cuts"), Mapping):
            parts["cuts"] = [parts["cuts"]]
        for key, kind in (("data", DataChoice), ("recipe", Recipe), ("latency", LatencyProtocol)):
            if key in parts:
                parts[key] = _built(parts[key], kind, f"`{key}`")
        for key, kind in (("budgets", Budget), ("cuts", Cuts)):
            if key in parts:
                parts[key] = tuple(_built(each, kind, f"each of `{key}`") for each in _list(parts[key], key))
        if "methods" in parts:
            wanted = sorted(list_methods()) if parts["methods"] == ALL else _list(parts["methods"], "methods")
            parts["methods"] = tuple(_entry(each) for each in wanted)
        if "seeds" in parts:
            parts["seeds"] = tuple(_list(parts["seeds"], "seeds"))
        return construct(cls, parts, "the experiment", ArgumentError)


def _built(value: Any, kind: type[T], where: str) -> T:
    if not isinstance(value, Mapping):
        names = ", ".join(f.name for f in fields(kind))  # pyright: ignore[reportArgumentType]
        raise ArgumentError(f"{where} must be a mapping with keys among {names}; got {value!r}.")
    if kind is Recipe:
        barred = next((key for key in ("seed", "total") if key in value), None)
        if barred is not None:
            raise ArgumentError(
                f"`{barred}` is no key of `recipe` here: the experiment's `seeds` and `recovery` say it."
            )
    listed = ("target", "exclude")  # selections stay lists
    plain = {k: tuple(v) if isinstance(v, list) and k not in listed else v for k, v in value.items()}
    return construct(kind, plain, where, ArgumentError)


def _list(value: Any, key: str) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise ArgumentError(f"`{key}` must be a list; got {value!r}.")
    return list(value)


def _entry(value: Any) -> Entry:
    """A method from its name, or from a mapping with its fields."""
    given: Any = {"method": value} if isinstance(value, str) else value
    if not isinstance(given, Mapping) or not isinstance(given.get("method"), str):
        raise ArgumentError(
            f"`methods` must be a list of names or of mappings {{method: NAME, FIELD: VALUE}}; got {value!r} in it. "
            f"Known: {', '.join(list_methods())}."
        )
    after = given.get("after", False)
    check(isinstance(after, bool), "after", "true or false", after)
    recipe = given.get("recipe", {})
    if not isinstance(recipe, Mapping):
        raise ArgumentError(f"`recipe` of {given['method']} must be a mapping of keys among {OWN}; got {recipe!r}.")
    own = {str(key): item for key, item in given.items() if key not in ("method", "after", "recipe", "refit")}
    try:
        return Entry(get_method(given["method"], **own), after, recipe, given.get("refit"))
    except TypeError as error:  # a method's own check choked on the value
        raise ArgumentError(f"`methods`: {given['method']} cannot be made with {own}: {error}.") from error


def _short(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return ",".join(map(_short, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
