"""Which method, at which budget, on my network: every run of an experiment, by one process or by several.

The folder of an experiment::

    experiment.json   what is compared; the same command goes on where the last one stopped, with the same settings
    results/ID.json   one per run, written when it is done
    results.json      all of them
    networks/ID/      what came out, where the experiment says to keep it
    work/             claims, checkpoints, the dense trainings, a journal; tracebacks of runs that failed

Methods, budgets and seeds may be added to an experiment; everything else must stay as it was.
"""

from __future__ import annotations

import contextlib
import shutil
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tenfold.bench.compare.experiment import AFTER, Experiment, Row
from tenfold.bench.compare.queue import claim, journal
from tenfold.bench.compare.results import Failure, Results, RunResult
from tenfold.bench.compare.run import Setting, Tell, failed, run, train_base
from tenfold.bench.environment import place
from tenfold.errors import CheckpointError, shortened
from tenfold.files import atomic_file, read_json, write_json
from tenfold.runtimes.onnx_capture import onnx_runtime
from tenfold.runtimes.runtime import torch_threads
from tenfold.train import Data, build_model, load_data
from tenfold.train.engine import refuse_launched
from tenfold.validation import construct

EXPERIMENT, RESULTS, WORK, MERGED = "experiment.json", "results", "work", "results.json"
_GROWS = ("methods", "budgets", "seeds", "name", "threads", "keep")
"""Keys of an experiment that may change: what was done before stays as it is."""
_BEFORE = {"cuts": [], "int8": None}
"""Keys that files of older versions lack, with what was so then."""
_POLL = 2.0
"""Seconds between looks at the work that other processes do."""

Watch = Callable[[str, float], None]
"""Called with what is being done, and the epochs of the whole experiment that are done."""


@dataclass(frozen=True)
class Task:
    """One piece of work of an experiment, done by one process.

    Args:
        id: its name.
        result: the file that there is when it is done, and not before.
        epochs: of training in it.
        work: does it, writing ``result`` last.
        needs: the task that must be done before.
    """

    id: str
    result: Path
    epochs: int
    work: Callable[[Tell], None] = field(repr=False)
    needs: Task | None = None

    @property
    def done(self) -> bool:
        """Whether the result is there."""
        return self.result.exists()

    @property
    def ready(self) -> bool:
        """Whether the task that it needs is done."""
        return not self.done and (self.needs is None or self.needs.done)


def compare(
    experiment: Experiment,
    out: Path | str,
    *,
    retry: bool = False,
    watch: Watch = lambda text, epochs: None,
) -> Results:
    """Run an experiment: all runs that are not done yet; waits for those that other processes are doing.

    Killed at any point and called again, it goes on after the last whole epoch, and ends with the same results, times
    and memory aside (on a CPU). Call it in several processes to share the work.

    Args:
        experiment: what is compared.
        out: folder of the experiment, see above.
        retry: runs that failed are done again.
        watch: called with a text and the number of epochs done.

    Returns:
        The results, also written to ``out/results.json``.

    Raises:
        CheckpointError: ``out`` holds another experiment.
        DataError, TenfoldError: the data or the network cannot be had; or a launcher started several processes at once.
    """
    refuse_launched()
    out = Path(out)
    with torch_threads(experiment.threads):
        choice = experiment.data
        data = load_data(choice.name, choice.root).part(choice.examples, choice.validation)
        if experiment.calibration is not None:
            data.train.part(experiment.calibration, "calibration")  # refused at once, if it is
        if experiment.int8 is not None:
            onnx_runtime()  # refused at once, if a package is missing
        build_model(experiment.model, data.classes, data.channels, data.size)  # refused before anything is written
        _keep_experiment(experiment, data, out)
        setting = Setting(experiment, data, place(), out / WORK)
        made = tasks(setting, out)
        if retry:
            _forget_failures(made)
        _work_off(made, out, watch)
        for row in experiment.rows:  # a process that was killed right after a result left what it had gone on from
            shutil.rmtree(setting.work / row.id, ignore_errors=True)
        return merge(experiment, out)


def tasks(setting: Setting, out: Path) -> list[Task]:
    """All tasks, seed by seed, so that a first whole picture comes early."""
    experiment, made = setting.experiment, []
    for seed in experiment.seeds:
        rows = [row for row in experiment.rows if row.seed == seed]
        base = None
        if any(row.entry.kind == AFTER for row in rows):
            marker = setting.base(seed) / "done.json"
            epochs = experiment.recipe.epochs - experiment.recovery
            base = Task(f"base-s{seed}", marker, epochs, partial(_do_base, setting, seed, marker))
            made.append(base)
        for row in rows:
            after = row.entry.kind == AFTER
            file = out / RESULTS / f"{row.id}.json"
            epochs = experiment.recovery if after else experiment.recipe.epochs
            work = partial(_do_row, setting, row, file, base if after else None)
            made.append(Task(row.id, file, epochs, work, base if after else None))
    return made


def merge(experiment: Experiment, out: Path) -> Results:
    """Write ``results.json`` from the files of the runs that are done."""
    files = [out / RESULTS / f"{row.id}.json" for row in experiment.rows]
    runs = [RunResult.read(file) for file in files if file.exists()]
    results = Results(experiment.name, experiment.to_dict(), runs, len(files))
    results.write(out / MERGED)
    return results


def _work_off(made: list[Task], out: Path, watch: Watch) -> None:
    """Do what nobody else does, until all is done."""
    while pending := [task for task in made if not task.done]:
        for task in pending:
            with contextlib.ExitStack() as stack:
                if not task.ready or not stack.enter_context(claim(out / WORK / "claims", task.id)) or task.done:
                    continue
                before = sum(t.epochs for t in made if t.done)
                watch(task.id, before)
                journal(out / WORK / "journal.log", f"start {task.id}")
                task.work(lambda epochs, task=task, before=before: watch(task.id, before + epochs))
                journal(out / WORK / "journal.log", f"done {task.id}")
                break
        else:
            watch("waiting for other processes", sum(t.epochs for t in made if t.done))
            time.sleep(_POLL)


def _do_base(setting: Setting, seed: int, marker: Path, tell: Tell) -> None:
    """The dense training of a seed. Where it fails, so does all that starts from it."""
    failure = None
    try:
        train_base(setting, seed, tell)
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - a failure is a result
        failure = {"type": type(error).__name__, "message": " ".join(str(error).split())}
        _trace(setting.work / f"base-s{seed}.failed.txt", error)
    write_json(marker, {"failure": failure})


def _do_row(setting: Setting, row: Row, file: Path, base: Task | None, tell: Tell) -> None:
    """One run: its result is written, then what it left to go on from is removed."""
    broken = _failure(base.result) if base is not None else None
    if broken is not None:
        why = Failure(broken.type, f"the dense training that it starts from failed: {broken.message}")
        result, error = failed(setting, row, why), None
    else:
        result, error = run(setting, row, tell)
    if error is not None:
        _trace(setting.work / f"{row.id}.failed.txt", error)
    result.write(file)
    merge(setting.experiment, file.parents[1])
    shutil.rmtree(setting.work / row.id, ignore_errors=True)


def _failure(marker: Path) -> Failure | None:
    """What the marker of a dense training, or a result, says went wrong.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        found = read_json(marker)["failure"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"'{marker}' is damaged ({error!r}): remove it, and compare again.") from error
    return (
        None
        if found is None
        else construct(Failure, found if isinstance(found, dict) else {}, f"'{marker}'", CheckpointError)
    )


def _trace(path: Path, error: Exception) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text("".join(traceback.format_exception(error)), encoding="utf-8")


def _forget_failures(made: list[Task]) -> None:
    """Remove the results of what failed, dense trainings included."""
    for task in made:
        if task.done and _failure(task.result) is not None:
            task.result.unlink(missing_ok=True)


def _keep_experiment(experiment: Experiment, data: Data, out: Path) -> None:
    """Write what is compared; refuse a folder that holds anything else.

    Raises:
        CheckpointError: naming what differs.
    """
    file = out / EXPERIMENT
    body = experiment.to_dict() | {"checksum": data.checksum}
    if file.exists():
        try:
            saved = read_json(file)
            old = {key: saved.get(key, _BEFORE.get(key, body[key])) for key in body}
        except (OSError, ValueError, AttributeError) as error:
            raise CheckpointError(f"'{file}' is damaged ({error!r}): choose another folder.") from error
        different = [
            f"`{key}`: {shortened(old[key])} -> {shortened(body[key])}"
            for key in body
            if key not in _GROWS and old[key] != body[key]
        ]
        if different:
            raise CheckpointError(
                f"'{out}' holds another experiment ({'; '.join(different)}): its results would not compare. Choose "
                f"another folder; only methods, budgets and seeds can be added to one."
            )
    write_json(file, body)
