"""``tenfold compare``: which method, at which budget, on my network."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tenfold.bench.compare.experiment import ALL, DataChoice, Entry, Experiment
from tenfold.bench.compare.read_yaml import read_experiment
from tenfold.bench.compare.results import Results
from tenfold.bench.compare.scheduler import EXPERIMENT, MERGED, Watch, compare
from tenfold.bench.report import summary, write_report
from tenfold.bench.report.summary import Mean, by_budget, entries, percent
from tenfold.cli import parse, runs, tables
from tenfold.cli.command import Outcome, console, verb
from tenfold.cli.option_names import renamed
from tenfold.cli.options import DataRoot, Exclude, Target, recipe_options, with_default
from tenfold.errors import ArgumentError, DataError, TenfoldError
from tenfold.methods import list_methods
from tenfold.own_code import absolute
from tenfold.plans.budget import Budget
from tenfold.train import Recipe

NAME = "compare"
EXAMPLES = (
    "Examples:\n\n"
    "tenfold compare --model cnn --data digits --methods alds,svd,lrpet --budgets 0.5,0.25 --epochs 10 --out runs/x\n\n"
    "tenfold compare --methods all --budgets params=0.3+macs=0.4 --seeds 0,1,2 --epochs 20 --out runs/y\n\n"
    "tenfold compare --methods trp:energy=0.95,alds:measure=fro --budgets macs=0.5 --epochs 10 --out runs/z\n\n"
    "tenfold compare --experiment experiments/smoke/config.yaml --out runs/smoke\n\n"
    "Start the same command in several shells, and they share the work."
)
REPORT = "report.html"
_RECIPE = [name for name in Recipe.__dataclass_fields__ if name not in ("total", "seed")]
_WHAT = "What is compared"
_DEFAULTS = {"data": "digits", "model": "cnn", "seed": "0"}


@verb
@recipe_options(_RECIPE, panel="Recipe")
def command(
    *,
    experiment: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A YAML file that says what is compared, in place of the options below."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help=with_default("Where results go.", "beside the experiment")),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Methods with commas between, or all; FILE.py:CLASS is one of your own; fields behind colons: "
            "trp:energy=0.95. Dense is always there.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    budgets: Annotated[
        str | None,
        typer.Option(
            metavar="VALUE,...",
            help="What may be kept of the whole model: 0.5 half of the parameters; macs=0.5; params=0.3+macs=0.4.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help=with_default("digits, npz:FILE, ... or FILE.py:FUNCTION.", "digits"), rich_help_panel=_WHAT),
    ] = None,
    data_root: DataRoot = None,
    examples: Annotated[
        int | None, typer.Option(min=1, help=with_default("Training examples to use.", "all"), rich_help_panel=_WHAT)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help=with_default("cnn, resnet20, ... or FILE.py:FACTORY.", "cnn"),
            rich_help_panel=_WHAT,
        ),
    ] = None,
    seed: Annotated[
        str | None,
        typer.Option("--seeds", "--seed", metavar="N,...", help=with_default("Of all random numbers.", "0")),
    ] = None,
    recovery: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="EPOCHS",
            help=with_default("How many of the epochs come after a compression.", "a fifth of --epochs"),
            rich_help_panel=_WHAT,
        ),
    ] = None,
    target: Target = None,
    exclude: Exclude = None,
    int8: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="Quantise what comes out too, the dense network included: static or dynamic. Bytes, speed, accuracy.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Do the runs that failed again.")] = False,
    recipe: dict[str, Any],
) -> Outcome:
    """Compare methods at budgets on a network: train, compress, recover, measure; the same epochs for all.

    Every run gets as many epochs in all. A method that works after training shares one dense training per seed; the
    last --recovery of its epochs come after the compression. Killed at any point, the same command goes on.
    """
    typed = {"methods": methods, "budgets": budgets, "data": data, "examples": examples, "model": model}
    typed |= {"seed": seed, "recovery": recovery, "target": target, "exclude": exclude, "int8": int8} | recipe
    if experiment is not None:
        given = next((name for name, value in typed.items() if value is not None), None)
        if given is not None:
            option = "--seeds" if given == "seed" else "--" + given.replace("_", "-")
            raise ArgumentError(
                f"`{option}` is what the file at `--experiment` says: change it there, or leave one out."
            )
        chosen, folder = read_experiment(experiment), out or experiment.resolve().parent
    else:
        if out is None:
            raise ArgumentError("`--out` must be given: a folder for the results, e.g. --out runs/x.")
        chosen, folder = _inline(out.name, typed, recipe), out
    if data_root is not None:
        chosen = replace(chosen, data=replace(chosen.data, root=str(data_root.expanduser().resolve())))
    return _compared(chosen, folder, retry=retry)


def _inline(name: str, typed: dict[str, Any], recipe: dict[str, Any]) -> Experiment:
    """The experiment that the options describe."""
    for needed, example in (("methods", "alds,svd"), ("budgets", "0.5,0.25")):
        if not typed[needed]:
            raise ArgumentError(f"`--{needed}` must be given, or --experiment FILE: e.g. --{needed} {example}.")
    given = _DEFAULTS | {key: value for key, value in typed.items() if value is not None}
    made = Recipe(**recipe)
    words = sorted(list_methods()) if given["methods"] == ALL else given["methods"].split(",")
    return Experiment(
        name=name,
        data=DataChoice(absolute(given["data"]), None, typed["examples"]),
        model=absolute(given["model"]),
        methods=tuple(_method(word) for word in words),
        budgets=tuple(_budget(word) for word in given["budgets"].split(",")),
        seeds=_seeds(given["seed"]),
        recipe=made,
        recovery=made.epochs // 5 if typed["recovery"] is None else typed["recovery"],
        target=parse.selection(typed["target"] or ()),
        exclude=parse.selection(typed["exclude"] or ()),
        int8=typed["int8"],
    )


def _method(word: str) -> Entry:
    parts = word.strip().split(":")
    fields = [part for part in parts if "=" in part]
    name = ":".join(parts[: len(parts) - len(fields)])
    with renamed(method="--methods"):
        return Entry(parse.method(name, fields))


def _budget(word: str) -> Budget:
    limits = [part if "=" in part else f"params={part}" for part in word.strip().split("+")]
    found = parse.budget(limits)
    assert found is not None
    return found


def _seeds(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError as error:
        raise ArgumentError(f"`--seeds` must be integers with commas between; got {text!r}. E.g. 0,1,2.") from error


def _compared(chosen: Experiment, folder: Path, *, retry: bool) -> Outcome:
    if folder.exists() and not folder.is_dir():
        raise ArgumentError(f"`--out` must be a folder; got the file '{folder}'.")
    if folder.exists() and (folder / runs.RUN).exists() and not (folder / EXPERIMENT).exists():
        raise ArgumentError(f"`--out` must be a folder of its own; '{folder}' holds a run. Choose another.")
    try:
        with _bar(chosen) as watch, _in_options():
            results = compare(chosen, folder, retry=retry, watch=watch)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"what is done is kept in {folder}: the same command goes on from there") from None
    report, note = folder / REPORT, ""
    try:
        write_report(results, report)
    except TenfoldError as error:  # an extra is missing: the results are there all the same
        report, note = None, str(error)
    failed = [run for run in results.runs if run.failure is not None]
    if len(failed) == len(results.runs):
        assert failed[0].failure is not None
        why = f"{failed[0].id}: {failed[0].failure.message}"
        raise TenfoldError(f"every run failed, the first with: {why} What there is, is in {folder}.")
    body = {
        "command": NAME,
        "out": str(folder),
        "results": str(folder / MERGED),
        "report": None if report is None else str(report),
        "runs": [_plain(run) for run in results.runs],
    }
    next_step = f"Results in {folder / MERGED}" + (f", report in {report}" if report else f". {note}")
    return Outcome(body, [table(results), *_failures(results), next_step])


def _plain(run: Any) -> dict[str, Any]:
    """One run for ``--json``, in short; its file has the rest."""
    return {
        "id": run.id,
        "method": run.label,
        "budget": run.budget,
        "seed": run.seed,
        "kept": run.price.kept if run.price else None,
        "test": run.test.accuracy if run.test else None,
        "failure": None if run.failure is None else {"type": run.failure.type, "message": run.failure.message},
    }


def table(results: Results) -> Any:
    """Table of a comparison: by budget one line per method, means over the seeds."""
    made = tables.table(("", "Params", "MACs", "Right\nafter", "Re-\nestimated", "Test", "Time", "Seeds"))
    found = entries(results)
    for group in ([entry for entry in found if entry.dense], *by_budget(found).values()):
        if group and not group[0].dense:
            made.add_section()
            made.add_row(" ".join(f"{k}={v}" for k, v in group[0].budget.items()) or group[0].where, style="bold")
        for entry in group:
            made.add_row(entry.label, *_figures(entry))
    network, data = results.experiment["model"], results.experiment["data"]["name"]
    return tables.titled(f"{network} on {data}: accuracy on validation, then test; dense takes time 1", made)


def _figures(entry: summary.ReportEntry) -> list[str]:
    kept = [_percent(entry.over(lambda run, k=k: run.price and run.price.kept[k]), 1) for k in ("params", "macs")]
    stages = [
        _percent(entry.over(lambda run, at=at: getattr(run.accuracy, at))) for at in ("right_after", "reestimated")
    ]
    test = entry.absent if entry.accuracy is None else percent(entry.accuracy)
    return [*kept, *stages, test, "" if entry.time is None else f"{entry.time.value:.2f}×", entry.seeds]


def _percent(mean: Mean | None, digits: int = 2) -> str:
    return "" if mean is None else f"{mean.value:.{digits}%}"


def _failures(results: Results) -> list[str]:
    lines = [f"{run.id} failed, {run.failure.type}: {run.failure.message}" for run in results.runs if run.failure]
    return ["\n".join(lines), ""] if lines else []


@contextlib.contextmanager
def _in_options() -> Iterator[None]:
    """Errors about names speak of the option that it is."""
    with renamed(name="--model"):
        try:
            yield
        except DataError:
            with renamed(name="--data"):
                raise


@contextlib.contextmanager
def _bar(chosen: Experiment) -> Iterator[Watch]:
    """A bar over the epochs of all runs, on standard error; where that is no terminal, nothing is shown."""
    screen = console(stderr=True)
    said = TextColumn("{task.description}", markup=False)
    columns = (said, BarColumn(), TextColumn("{task.completed:.1f}/{task.total} epochs"))
    bar = Progress(
        *columns,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=screen,
        disable=not screen.is_terminal,
        transient=True,
    )
    task = bar.add_task(chosen.name, total=chosen.epochs)
    with bar:
        yield lambda text, epochs: bar.update(task, description=text, completed=epochs)
