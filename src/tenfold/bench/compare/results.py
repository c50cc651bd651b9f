"""The schema of results: one JSON file per run, and all of them together. Its parts: `tenfold.bench.compare.findings`.

``results.json`` is a `Results` as JSON, ``{"format": "tenfold-results/1", "name": ..., "runs": [...], ...}``; each
``results/ID.json`` beside it is a `RunResult`, ``{"format": "tenfold-run-result/1", ...}``.

- Fractions and accuracies are in [0, 1], seconds are wall time, counts are integers. Unknown is null, never NaN.
- **Nothing is chosen by the test set.** Accuracy at every stage is on the validation set; `RunResult.test` is measured
  once, on the model that comes out in the end.
- A run that fails is a run too: `RunResult.failure` says why, and what was not reached is null or empty.
- Runs are ordered as the experiment lists them: by seed within budget within method, dense first.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tenfold.bench.compare.findings import (
    Accuracy,
    Curve,
    CutCurve,
    Evolution,
    Int8,
    Latency,
    Layer,
    Price,
    Spectra,
    Verdict,
)
from tenfold.errors import CheckpointError, TenfoldError, is_share, shortened
from tenfold.files import read_json, write_json
from tenfold.validation import construct

FORMAT = "tenfold-results/1"
RUN_FORMAT = "tenfold-run-result/1"

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
class Place:
    """The code, libraries and hardware by which a run was made.

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
    """The result of one run of a comparison: a method at a budget with a seed.

    Args:
        id: its name in the experiment, and that of its file.
        label: of the method, for tables and pictures: the name, with the fields that are not at their defaults.
        method: its registered name.
        fields: all its fields.
        kind: "dense", "post-training" (compressed after a dense training, then recovered) or "training".
        budget: limits by name, e.g. ``{"params": 0.25}``; empty for the dense run.
        seed: of everything random.
        model: as `tenfold.build_model` takes it.
        data: "name" of the data set, "examples" and "validation" that were asked for (None: all), "train" (number of
            examples), and "checksum".
        recipe: of the training, and of the recovery.
        epochs: "training" and "recovery": how many there are to be. Their sum is the same for all runs.
        failure: None where all went well.
        curves: the training; for "post-training" the shared dense training's, then the recovery's.
        accuracy: on the validation set, by stage.
        test: once, in the end.
        price: parameters and MACs.
        latency: measured.
        int8: the same as files in float and in int8; None where the experiment does not ask for it.
        seconds: wall time by stage: "training" (for "post-training", of the shared dense training), "plan", "apply",
            "reestimate" or "refit", "recovery".
        peak_memory: bytes that the process (on a GPU: torch, on the device) held at most while this run went on.
        level: the objective that the plan reached; None where the method has none.
        layers: in module order.
        spectra: of the layers that may be decomposed.
        evolution: None for methods whose ranks do not change while they train.
        cuts: of the network as training left it, apart from what the method makes of it; empty where the experiment
            asks for none, and for "post-training", whose network is that of the dense run.
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
    int8: Int8 | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory: int | None = None
    level: float | None = None
    layers: list[Layer] = field(default_factory=list)
    spectra: list[Spectra] = field(default_factory=list)
    evolution: Evolution | None = None
    cuts: list[CutCurve] = field(default_factory=list)

    def write(self, path: Path | str) -> None:
        """Write the result as a JSON file, atomically."""
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
    """The results of a whole comparison.

    Args:
        name: of the experiment.
        experiment: the configuration, as `tenfold.bench.compare.experiment.Experiment.to_dict` gives it.
        runs: those that there are so far.
        expected: how many there are to be.
    """

    name: str
    experiment: dict[str, Any]
    runs: list[RunResult]
    expected: int

    def write(self, path: Path | str) -> None:
        """Write the results as a JSON file, atomically."""
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
        body = read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"'{path}' cannot be read as results ({error}): pass a results.json that tenfold compare wrote."
        ) from error
    found = body.pop("format", None) if isinstance(body, dict) else None
    if found != expected:
        raise CheckpointError(
            f"'{path}' has format {shortened(found)}, not {expected!r}: pass what tenfold compare wrote."
        )
    return body


def _decoded(cls: type[T], body: dict[str, Any], path: Path | str) -> T:
    try:
        made = construct(cls, body, f"the {cls.__name__}", CheckpointError)
        for each in made.runs if isinstance(made, Results) else [made]:
            if isinstance(each, RunResult):
                _check_numbers(each)
        return made
    except TenfoldError as error:
        raise CheckpointError(f"'{path}' is damaged: {error} Run the comparison again.") from error


def _check_numbers(run: RunResult) -> None:
    """What tables and pictures divide by, or take for a share."""
    price = run.price
    if price is not None and (min(price.dense_params, price.dense_macs) < 1 or min(price.params, price.macs) < 0):
        raise CheckpointError(f"`price` must be of counts, of the dense network >= 1; got {shortened(price, 200)}.")
    odd = {key: limit for key, limit in run.budget.items() if not is_share(limit)}
    if odd:
        raise CheckpointError(f"`budget` must be of numbers >= 0 by name; got {shortened(odd)}.")
