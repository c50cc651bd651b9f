"""What a comparison leaves: one JSON file per run, and all of them together. This file is the schema.

``results.json`` is a `Results` as JSON, ``{"format": "tenfold-results/1", "name": ..., "runs": [...], ...}``; each
``results/ID.json`` beside it is a `RunResult`, ``{"format": "tenfold-run-result/1", ...}``.

- Fractions and accuracies are in [0, 1], seconds are wall time, counts are integers. Unknown is null, never NaN.
- **Nothing is chosen by the test set.** Accuracy at every stage is on the validation set; `RunResult.test` is measured
  once, on the model that comes out in the end.
- A run that fails is a run too: `RunResult.failure` says why, and what was not reached is null or empty.
- Runs are ordered as the experiment lists them: by seed within budget within method, dense first.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from tenfold.errors import CheckpointError, TenfoldError
from tenfold.files import write_json
from tenfold.ranks.typed import construct
from tenfold.train.history import Epoch

FORMAT = "tenfold-results/1"
RUN_FORMAT = "tenfold-run-result/1"
POINTS = 32
"""Singular values that are kept of a layer, at most."""

T = TypeVar("T")


@dataclass(frozen=True)
class Failure:
    """Why a run has no result.

    Args:
        type: class of the error, e.g. "BudgetError".
        message: what it said.
    """

    type: str
    message: str


@dataclass(frozen=True)
class Curve:
    """The epochs of one phase of a run.

    Args:
        phase: "training", or "recovery" after a compression.
        epochs: in order; their numbers go on from the phase before.
    """

    phase: str
    epochs: list[Epoch]


@dataclass(frozen=True)
class Accuracy:
    """On the validation set, stage by stage; None where there is no such stage, or it was not reached.

    Args:
        before: of the network as training left it, before compression. A dense run has this alone.
        right_after: right after compression.
        reestimated: after batch norm is re-estimated on training data. As ``right_after`` in networks without.
        recovered: after the epochs of recovery; None for methods that compress while they train.
    """

    before: float | None = None
    right_after: float | None = None
    reestimated: float | None = None
    recovered: float | None = None


@dataclass(frozen=True)
class Verdict:
    """On the test set, once: of the model that comes out in the end.

    Args:
        accuracy: in [0, 1].
        loss: mean cross-entropy in nats; None where it is not finite.
    """

    accuracy: float
    loss: float | None


@dataclass(frozen=True)
class Price:
    """What the whole model costs, dense and in the end.

    Args:
        dense_params: parameters of the dense network.
        params: of what came out.
        dense_macs: multiply-adds for one example.
        macs: of what came out.
    """

    dense_params: int
    params: int
    dense_macs: int
    macs: int

    @property
    def kept(self) -> dict[str, float]:
        """The shares that are left: ``{"params": ..., "macs": ...}``."""
        return {"params": self.params / self.dense_params, "macs": self.macs / self.dense_macs}


@dataclass(frozen=True)
class Latency:
    """A forward pass of the dense network and of what came out, measured in turns; medians.

    Args:
        device: "cpu" or "cuda".
        batch: examples in the batch.
        threads: that torch might use.
        dense_ms: milliseconds of the dense network.
        small_ms: milliseconds of what came out.
        speedup: median of the ratios of neighbouring turns.
        quartiles: of the same ratios, two numbers.
    """

    device: str
    batch: int
    threads: int
    dense_ms: float
    small_ms: float
    speedup: float
    quartiles: list[float]


@dataclass(frozen=True)
class Layer:
    """What one layer became.

    Args:
        name: of the module.
        kernel: shape of the dense kernel ``(out, in / groups, *kernel_size)``; None for layers of an unknown kind.
        decomposition: "dense", "low-rank", ...
        rank: an int; a list for one rank per mode; None for dense.
        slices: of the input channels, each with its own factors.
        fold: how the kernel was made a matrix; None for dense.
        dense_params: weights of the dense kernel.
        params: weights of what it became.
        dense_macs: multiply-adds of the dense layer; None where unknown.
        macs: of what it became.
        error: predicted, in the method's measure; None where unknown.
        reason: why it stays dense.
    """

    name: str
    kernel: list[int] | None
    decomposition: str
    rank: int | list[int] | None
    slices: int
    fold: str | None
    dense_params: int
    params: int
    dense_macs: int | None
    macs: int | None
    error: float | None
    reason: str | None


@dataclass(frozen=True)
class Spectrum:
    """Singular values of one matrix, sampled: the first, the last, and others between, at most `POINTS`.

    Args:
        index: positions, from 1, ascending.
        value: the singular values there, descending.
    """

    index: list[int]
    value: list[float]


@dataclass(frozen=True)
class Spectra:
    """Of one layer's kernel as a matrix ``(out, rest)``, or of its dense equivalent where it is factorised.

    Args:
        layer: name of the module.
        before: as training left it, before compression.
        after: of what came out in the end.
    """

    layer: str
    before: Spectrum
    after: Spectrum


@dataclass(frozen=True)
class Evolution:
    """Ranks while a method trained that chooses them on the way.

    Args:
        epochs: after which they were read, ascending.
        ranks: by layer name, one rank (or a list, per mode) per epoch of ``epochs``; None where it had none then.
    """

    epochs: list[int]
    ranks: dict[str, list[Any]]


@dataclass(frozen=True)
class Place:
    """Where, with what, and by which code a run was made.

    Args:
        versions: of "tenfold", "torch", "python", ...
        commit: of the code, where git knows; None elsewhere.
        dirty: whether files differed from that commit; None without one.
        cpu: model of the CPU.
        cores: that there are.
        threads: that torch might use.
        gpu: its name; None without.
        device: "cpu" or "cuda": what was trained on.
    """

    versions: dict[str, str]
    commit: str | None
    dirty: bool | None
    cpu: str
    cores: int
    threads: int
    gpu: str | None
    device: str


@dataclass(frozen=True)
class RunResult:
    """One row of a comparison: a method at a budget with a seed.

    Args:
        id: its name in the experiment, and that of its file.
        label: of the method, for tables and pictures: the name, with the fields that are not at their defaults.
        method: its registered name.
        fields: all its fields.
        kind: "dense", "post-training" (compressed after a dense training, then recovered) or "training".
        budget: limits by name, e.g. ``{"params": 0.25}``; empty for the dense run.
        seed: of everything random.
        model: as `tenfold.build_model` takes it.
        data: "name", "root" (or None), "train" (number of examples), and "checksum" of the data set.
        recipe: of the training, and of the recovery.
        epochs: "training" and "recovery": how many there are to be. Their sum is the same for all runs.
        failure: None where all went well.
        curves: the training; for "post-training" the shared dense training's, then the recovery's.
        accuracy: on the validation set, by stage.
        test: once, in the end.
        price: parameters and MACs.
        latency: measured.
        seconds: wall time by stage: "training" (for "post-training", of the shared dense training), "plan", "apply",
            "reestimate", "recovery".
        peak_memory: bytes that the process (on a GPU: torch, on the device) held at most while this run went on.
        level: the objective that the plan reached; None where the method has none.
        layers: in module order.
        spectra: of the layers that may be decomposed.
        evolution: None for methods whose ranks do not change while they train.
        place: where it was made.
    """

    id: str
    label: str
    method: str
    fields: dict[str, Any]
    kind: str
    budget: dict[str, Any]
    seed: int
    model: str
    data: dict[str, Any]
    recipe: dict[str, Any]
    epochs: dict[str, int]
    place: Place
    failure: Failure | None = None
    curves: list[Curve] = field(default_factory=list)
    accuracy: Accuracy = field(default_factory=Accuracy)
    test: Verdict | None = None
    price: Price | None = None
    latency: Latency | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory: int | None = None
    level: float | None = None
    layers: list[Layer] = field(default_factory=list)
    spectra: list[Spectra] = field(default_factory=list)
    evolution: Evolution | None = None

    def write(self, path: Path | str) -> None:
        """Write it as a file of its own, atomically."""
        write_json(path, {"format": RUN_FORMAT} | asdict(self))

    @classmethod
    def read(cls, path: Path | str) -> RunResult:
        """Read what `write` wrote.

        Raises:
            CheckpointError: no such file, or one that is damaged or of another format.
        """
        return _decoded(cls, _read(path, RUN_FORMAT), path)


@dataclass(frozen=True)
class Results:
    """A whole comparison.

    Args:
        name: of the experiment.
        experiment: the configuration, as `tenfold.bench.experiment.Experiment.to_dict` gives it.
        runs: those that there are so far.
        expected: how many there are to be.
    """

    name: str
    experiment: dict[str, Any]
    runs: list[RunResult]
    expected: int

    def write(self, path: Path | str) -> None:
        """Write it, atomically."""
        write_json(path, {"format": FORMAT} | asdict(self))

    @classmethod
    def read(cls, path: Path | str) -> Results:
        """Read what `write` wrote.

        Raises:
            CheckpointError: no such file, or one that is damaged or of another format.
        """
        return _decoded(cls, _read(path, FORMAT), path)


def _read(path: Path | str, expected: str) -> dict[str, Any]:
    """The JSON object in a file, without its format, which must be the expected one."""
    try:
        body = json.loads(Path(path).read_text(encoding="utf-8"))
        found = body.pop("format")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"'{path}' cannot be read as results ({error!r}): pass a results.json that tenfold compare wrote."
        ) from error
    if found != expected:
        raise CheckpointError(f"'{path}' has format {found!r}, not {expected!r}: pass what tenfold compare wrote.")
    return body


def _decoded(cls: type[T], body: dict[str, Any], path: Path | str) -> T:
    try:
        return _decode(body, cls)
    except (TenfoldError, TypeError) as error:
        raise CheckpointError(f"'{path}' is damaged: {error} Run the comparison again.") from error


def _decode(value: Any, kind: Any) -> Any:
    """``value`` from JSON as the annotated type: dataclasses are built, also inside lists and optional ones."""
    if get_origin(kind) in (Union, UnionType):
        inner = [each for each in get_args(kind) if is_dataclass(each)]
        return _decode(value, inner[0]) if inner and value is not None else value
    if get_origin(kind) is list and isinstance(value, list):
        return [_decode(item, get_args(kind)[0]) for item in value]
    if is_dataclass(kind) and isinstance(kind, type) and isinstance(value, dict):
        hints = get_type_hints(kind)
        parts = {key: _decode(item, hints[key]) if key in hints else item for key, item in value.items()}
        return construct(kind, parts, f"the {kind.__name__}", CheckpointError)
    return value
