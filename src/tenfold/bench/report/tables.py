"""The tables of a report: plain rows of text, made from results alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tenfold.bench.compare.findings import Int8, Latency
from tenfold.bench.compare.results import Results, RunResult
from tenfold.bench.report import removal
from tenfold.bench.report.figure import si
from tenfold.bench.report.summary import Mean, ReportEntry, best, by_budget, latencies, median, percent
from tenfold.bench.report.words import plural

NOTHING = "–"


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Args:
        text: of it.
        note: more of it, in smaller letters.
        best: whether it is the best of its column in its group.
    """

    text: str
    note: str = ""
    best: bool = False


@dataclass(frozen=True)
class Group:
    """A group of rows of a table.

    Args:
        title: over them; "" for none, as for the dense network.
        rows: of cells; the first of each is what the row is about.
    """

    title: str
    rows: list[list[Cell]]


@dataclass(frozen=True)
class Table:
    """A table of a report, as plain text.

    Args:
        caption: above it.
        head: the column titles.
        groups: of its rows.
        words: whether cells hold sentences: they are set flush left, and wrap.
    """

    caption: str
    head: list[str]
    groups: list[Group] = field(default_factory=list)
    words: bool = False


_LIMITS = {"params": "Parameters", "macs": "MACs"}
"""Columns by the limit of a budget that they stand for."""


def headline(found: Sequence[ReportEntry], results: Results) -> Table:
    """The main table, by method and budget: accuracy, size, speed and cost.

    The best of each column in each budget is marked, but for what the budget limits.
    """
    columns: list[tuple[str, Callable[[ReportEntry], Mean | None], Callable[[ReportEntry], Cell], bool]] = [
        ("Test accuracy", lambda e: e.accuracy, _accuracy, True),
        ("Parameters", lambda e: e.params, lambda e: _amount(e, e.params, "params"), False),
        ("MACs", lambda e: e.macs, lambda e: _amount(e, e.macs, "macs"), False),
        ("Latency", lambda e: e.time, lambda e: _latency(e, results), False),
        ("Training cost", lambda e: e.cost, lambda e: Cell(seconds(e.cost.value) if e.cost else NOTHING), False),
    ]
    groups = []
    for where, group in _groups(found).items():
        limited = [_LIMITS[name] for name in group[0].budget if name in _LIMITS]  # to be far below is no merit
        winners = [
            [] if name in limited else [id(entry) for entry in best(group, figure, largest=most)]
            for name, figure, _, most in columns
        ]
        rows = []
        for entry in group:
            cells = [draw(entry) for _, _, draw, _ in columns]
            marked = [Cell(c.text, c.note, id(entry) in won) for c, won in zip(cells, winners, strict=True)]
            rows.append([Cell(entry.label), *marked, Cell(entry.seeds, entry.lack)])
        groups.append(Group(where, rows))
    caption = "Means over the seeds, ± half the 95 % interval of the mean. ★ marks the best of a column at a budget. "
    caption += "Each latency is compared with that of the dense network, measured in turns with it. Training cost is "
    caption += "the wall time of all stages."
    return Table(caption, ["Method", *(name for name, *_ in columns), "Seeds"], groups)


def _groups(found: Sequence[ReportEntry]) -> dict[str, list[ReportEntry]]:
    dense = [entry for entry in found if entry.dense]
    return ({"": dense} if dense else {}) | by_budget(found)


def _accuracy(entry: ReportEntry) -> Cell:
    return Cell(percent(entry.accuracy) if entry.accuracy else entry.absent)


def _amount(entry: ReportEntry, value: Mean | None, name: str) -> Cell:
    share = entry.over(lambda run: run.price and run.price.kept[name])
    if value is None or share is None:
        return Cell(NOTHING)
    return Cell(si(value.value), "" if entry.dense else f"{100 * share.value:.1f} %")


def _latency(entry: ReportEntry, results: Results) -> Cell:
    """How many times as fast as the dense network in turns with it; milliseconds are of one moment, and say less."""
    ms = median([m.dense_ms for m in latencies(results)] if entry.dense else [m.small_ms for m in _measured(entry)])
    speedup = entry.over(lambda run: run.latency and run.latency.speedup)
    if ms is None:
        return Cell(NOTHING)
    if entry.dense or speedup is None:
        return Cell(f"{ms:.3g} ms")
    return Cell(f"{speedup.value:.2f}× as fast", f"{ms:.3g} ms")


def _measured(entry: ReportEntry) -> list[Latency]:
    return [run.latency for run in entry.done if run.latency is not None]


def in_int8(found: Sequence[ReportEntry]) -> Table | None:
    """Table of the networks as files in float and in int8: the four of dense, int8, low rank, and both."""
    kind = next((run.int8 for entry in found for run in entry.done if run.int8), None)
    if kind is None:
        return None
    drawn: dict[str, Callable[[ReportEntry], str]] = {
        "File": _int8_figure(lambda made: made.float_bytes, lambda mean: kilobytes(mean.value)),
        "in int8": _int8_figure(lambda made: made.bytes, lambda mean: kilobytes(mean.value)),
        "Speed": _int8_figure(lambda made: made.float_speedup, _times_as_fast),
        "Speed in int8": _int8_figure(lambda made: made.speedup, _times_as_fast),
        "Test accuracy": lambda entry: _percent(entry.accuracy),
        "Accuracy in int8": _int8_figure(lambda made: made.accuracy, percent),
    }
    caption = f"Networks as ONNX files, batch norm folded, and the same in {kind.kind} int8. Speed is in ONNX Runtime, "
    caption += f"a batch of {kind.batch}, {plural(kind.threads, 'thread')}, and says how many times as fast as the "
    caption += "dense network's float file, in turns with it."
    return _filled(caption, found, drawn)


def _int8_figure(figure: Callable[[Int8], float], draw: Callable[[Mean], str]) -> Callable[[ReportEntry], str]:
    def drawn(entry: ReportEntry) -> str:
        value = entry.over(lambda run: run.int8 and figure(run.int8))
        return NOTHING if value is None else draw(value)

    return drawn


def _times_as_fast(value: Mean) -> str:
    return f"{value.value:.2f}×"


_STAGES: dict[str, Callable[[RunResult], float | None]] = {
    "Before compression": lambda run: run.accuracy.before,
    "Right after": lambda run: run.accuracy.right_after,
    "Norms re-estimated": lambda run: run.accuracy.reestimated,
    "Recovered": lambda run: run.accuracy.recovered,
    "Test, in the end": lambda run: run.test and run.test.accuracy,
}


def stages(found: Sequence[ReportEntry]) -> Table | None:
    """Table of the accuracy from stage to stage."""
    caption = "On the validation set, stage by stage; the test set is measured once, in the end."
    drawn = {name: lambda entry, figure=figure: _percent(entry.over(figure)) for name, figure in _STAGES.items()}
    return _filled(caption, found, drawn)


def cuts(found: Sequence[ReportEntry]) -> Table | None:
    """Table of accuracy by removed share of a trained network; None where nothing was cut."""
    cut = {kind: removal.cut_entries(found, kind) for kind in removal.KINDS}
    runs = [run for group in cut.values() for entry in group.values() for run in entry.done]
    shares = sorted({row.removed for run in runs for curve in run.cuts for row in curve.rows})
    if not shares:
        return None
    groups = [
        Group(
            f"{removal.KINDS[kind].capitalize()} removed",
            [[Cell(name), *_by_share(e, kind, shares), Cell(e.seeds, e.lack)] for name, e in named.items()],
        )
        for kind, named in cut.items()
        if named
    ]
    caption = "Validation accuracy in per cent by the share removed: right after / with batch norm re-estimated; no "
    caption += "retraining. Means over the seeds."
    return Table(caption, ["Method", *(f"{100 * share:g} %" for share in shares), "Seeds"], groups)


def _by_share(entry: ReportEntry, kind: str, shares: Sequence[float]) -> list[Cell]:
    stages = [removal.by_share(entry, kind, stage) for stage in removal.STAGES.values()]
    return [Cell(" / ".join(_short_percent(means.get(share)) for means in stages)) for share in shares]


def _short_percent(value: Mean | None) -> str:
    return NOTHING if value is None else f"{100 * value.value:.1f}"


def costs(found: Sequence[ReportEntry]) -> Table | None:
    """Table of wall time by stage, and of peak memory."""
    known = {"training": "Training", "plan": "Plan", "apply": "Apply", "reestimate": "Norms", "refit": "Refit"}
    known |= {"recovery": "Recovery"}
    names = dict.fromkeys([*known, *(name for entry in found for run in entry.done for name in run.seconds)])
    drawn: dict[str, Callable[[ReportEntry], str]] = {known.get(name, name): _stage_seconds(name) for name in names}
    drawn["All"] = lambda entry: _seconds(entry.cost)
    drawn["Peak memory"] = lambda entry: NOTHING if entry.memory is None else size(entry.memory)
    caption = "Wall time, means over the seeds; the largest peak memory of a run. Methods that compress after the "
    caption += "training share one dense training per seed; its time is counted for each."
    return _filled(caption, found, drawn)


def _stage_seconds(name: str) -> Callable[[ReportEntry], str]:
    return lambda entry: _seconds(entry.over(lambda run: run.seconds.get(name)))


def _filled(caption: str, found: Sequence[ReportEntry], drawn: dict[str, Callable[[ReportEntry], str]]) -> Table | None:
    """A row per entry that came through; columns without a figure are left out."""
    groups = {where: [entry for entry in group if entry.done] for where, group in _groups(found).items()}
    texts = {id(e): {name: draw(e) for name, draw in drawn.items()} for group in groups.values() for e in group}
    names = [name for name in drawn if any(row[name] != NOTHING for row in texts.values())]
    if not names:
        return None
    made = [
        Group(where, [[Cell(e.label), *(Cell(texts[id(e)][name]) for name in names)] for e in group])
        for where, group in groups.items()
        if group
    ]
    return Table(caption, ["Method", *names], made)


def left_dense(found: Sequence[ReportEntry]) -> Table | None:
    """Table of the layers that stay dense, with the reason, and in which entries."""
    where: dict[tuple[str, str], dict[str, None]] = {}
    for entry in (entry for entry in found if not entry.dense):
        for layer in (layer for run in entry.done for layer in run.layers if layer.decomposition == "dense"):
            where.setdefault((layer.reason or "not said", layer.name), {})[entry.name] = None
    grouped: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (reason, layer), names in where.items():
        grouped.setdefault((reason, tuple(names)), []).append(layer)
    if not grouped:
        return None
    everywhere = tuple(entry.name for entry in found if not entry.dense and entry.done)
    rows = [
        [Cell(", ".join(layers)), Cell(reason), Cell("all" if names == everywhere else "; ".join(names))]
        for (reason, names), layers in grouped.items()
    ]
    caption = "Layers that at least one seed leaves dense."
    return Table(caption, ["Layers", "Why", "In"], [Group("", rows)], words=True)


def failures(results: Results) -> Table | None:
    """Table of the runs that failed, with their errors."""
    rows = [
        [Cell(run.id), Cell(run.failure.type), Cell(run.failure.message)]
        for run in results.runs
        if run.failure is not None
    ]
    caption = "They count nowhere else in this report."
    return Table(caption, ["Run", "Error", "Message"], [Group("", rows)], words=True) if rows else None


def _percent(value: Mean | None) -> str:
    return NOTHING if value is None else percent(value)


def _seconds(value: Mean | None) -> str:
    return NOTHING if value is None else seconds(value.value)


def seconds(value: float) -> str:
    """Format seconds: ``75.0`` as "1 min 15 s"."""
    if value < 1e-3:
        return "< 1 ms"
    if value < 1:
        return f"{1000 * value:.3g} ms"
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def kilobytes(count: float) -> str:
    """Format the size of a file: "1,159 kB", in thousands of bytes."""
    return f"{count / 1000:,.0f} kB"


def size(count: int) -> str:
    """Format bytes: "477 MiB"."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
