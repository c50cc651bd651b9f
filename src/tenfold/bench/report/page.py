"""One page that holds a whole comparison: tables, plots, and the program that draws them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from tenfold.bench.compare.results import Results, RunResult
from tenfold.bench.report import curves, maps, removal, tables, tradeoff, words
from tenfold.bench.report.figure import THEMES, Panel
from tenfold.bench.report.summary import ReportEntry, entries
from tenfold.bench.report.tables import Cell, Group, Table
from tenfold.bench.report.words import plural
from tenfold.errors import TenfoldError
from tenfold.files import atomic_file

T = TypeVar("T")


@dataclass(frozen=True)
class Section:
    """A section of the page: text, tables and plots.

    Args:
        id: of the element, for links.
        title: over it.
        text: paragraphs before its tables and plots.
        tables: of it.
        panels: plots of it.
        code: (title, text) to be shown as it is.
    """

    id: str
    title: str
    text: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    panels: tuple[Panel, ...] = ()
    code: tuple[tuple[str, str], ...] = ()

    @property
    def empty(self) -> bool:
        """Whether the section has neither table nor plot nor code."""
        return not (self.tables or self.panels or self.code)


def write_report(results: Results, path: Path | str) -> None:
    """Write the report of a comparison as one self-contained HTML page.

    Accuracies are means over the seeds of the runs that did not fail, with 95 % intervals of the mean by Student's t.
    Parts of which the results hold nothing are left out.

    Args:
        results: of `tenfold compare`; also of one that is not finished.
        path: of the file.

    Raises:
        TenfoldError: jinja2 or plotly is missing.
    """
    try:
        from jinja2 import Environment, StrictUndefined
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise TenfoldError(f"Reports need {error.name}, which is missing: pip install 'tenfold[report]'.") from error
    found = entries(results)
    parts = sections(found, results)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    assets = files("tenfold.bench.report")
    page = environment.from_string(assets.joinpath("page.html.j2").read_text(encoding="utf-8")).render(
        title=results.name,
        lead=words.lead(found, results),
        facts=words.facts(found, results),
        sections=parts,
        panels=script_json({"panels": [asdict(p) for s in parts for p in s.panels], "themes": THEMES}),
        style=assets.joinpath("page.css").read_text(encoding="utf-8"),
        script=assets.joinpath("page.js").read_text(encoding="utf-8"),
        plotly=get_plotlyjs().replace("</script", "<\\/script") if any(s.panels for s in parts) else "",
    )
    with atomic_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def script_json(value: Any) -> str:
    """JSON that can stand inside a ``script`` element: nothing in it ends the element or begins a comment."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def sections(found: Sequence[ReportEntry], results: Results) -> list[Section]:
    """The sections of the page, in order, those that are empty left out."""
    parts = [
        Section("results", "Results", tables=_some(tables.headline(found, results) if found else None)),
        Section("accuracy", "Accuracy against cost", (_TRADEOFF,), panels=_some(*tradeoff.all_costs(found))),
        Section("int8", "Low rank and int8", (_INT8,), _some(tables.in_int8(found))),
        Section(
            "cuts", "Without retraining", (_CUTS,), _some(tables.cuts(found)), _some(removal.against_removed(found))
        ),
        Section("layers", "Ranks", (_RANKS,), panels=_some(maps.rank_map(found), maps.evolution(found))),
        Section("spectra", "Singular values", (_SPECTRA,), panels=_some(curves.spectra(found))),
        Section("training", "Training", (_TRAINING,), panels=_some(curves.training(found))),
        Section("stages", "Accuracy by stage", tables=_some(tables.stages(found))),
        Section("cost", "What training costs", tables=_some(tables.costs(found))),
        Section("dense", "Left dense", tables=_some(tables.left_dense(found))),
        Section("failures", "Failures", tables=_some(tables.failures(results))),
        _manifest(results),
    ]
    return [part for part in parts if not part.empty]


_TRADEOFF = (
    "Marks are means over the seeds, bars their 95 % intervals; very wide ones run out of the plot. The broad grey "
    "line is the Pareto front of the means: who stands on it is beaten by no one in both figures. Latency is relative "
    "to the dense network, because each model was measured in turns with it."
)
_INT8 = "The rival of low rank is quantisation, and the two go together: dense, in int8, with low rank, and both."
_CUTS = (
    "Of each network as its training left it, the same share is removed in every layer, each time from the whole "
    "network; no weight is trained after."
)
_RANKS = "Colour is the share that is kept, numbers are ranks; a range where the seeds differ."
_SPECTRA = (
    "Of the first seed, relative to the largest value before compression; values below 1/10,000 of it are left out. "
    "Dotted lines are networks trained by a method, before it compressed them."
)
_TRAINING = "Lines are means over the seeds, bands reach from the lowest seed to the highest."


def _some(*parts: T | None) -> tuple[T, ...]:
    return tuple(part for part in parts if part is not None)


def _manifest(results: Results) -> Section:
    """How to make it again: the command with its configuration, and where, with what and on what it was made."""
    places: dict[tuple[tuple[str, str], ...], int] = {}
    for run in results.runs:
        rows = tuple(_place_rows(run))
        places[rows] = places.get(rows, 0) + 1
    made = [
        Table(
            _of_runs(count, results), ["What", "Value"], [Group("", [[Cell(a), Cell(b)] for a, b in rows])], words=True
        )
        for rows, count in places.items()
    ]
    command = ("Command", "tenfold compare --experiment experiment.json")
    configuration = ("experiment.json", json.dumps(results.experiment, indent=2))
    text = (f"{len(results.runs)} of {plural(results.expected, 'run')}.",)
    return Section("manifest", "How to make it again", text, tuple(made), code=(command, configuration))


def _of_runs(count: int, results: Results) -> str:
    return "Of all runs." if count == len(results.runs) else f"Of {plural(count, 'run')}."


def _place_rows(run: RunResult) -> Iterable[tuple[str, str]]:
    place = run.place
    yield "Versions", ", ".join(f"{name} {version}" for name, version in place.versions.items())
    if place.commit is not None:
        yield "Commit", place.commit + (", with changes that are not committed" if place.dirty else "")
    yield "Processor", f"{place.cpu}, {plural(place.cores, 'core')}, {plural(place.threads, 'thread')} used"
    if place.gpu is not None:
        yield "GPU", place.gpu
    yield "Trained on", place.device
    yield "Network", run.model
    yield from ((f"Data: {name}", str(value)) for name, value in run.data.items() if value is not None)
