"""Plots of accuracy against the share of a trained network that is removed, without retraining."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

from tenfold.bench.report.figure import Choice, Figure, Panel, layout, method_styles, plain, short, wrapped
from tenfold.bench.report.summary import Mean, ReportEntry, mean, percent
from tenfold.bench.sweep import SweepRow

KINDS = {"rank": "ranks", "filter": "filters"}
STAGES: dict[str, Callable[[SweepRow], float | None]] = {
    "right after": lambda row: row.right_after,
    "norms re-estimated": lambda row: row.reestimated,
}


def cut_entries(found: Sequence[ReportEntry], kind: str) -> dict[str, ReportEntry]:
    """The entries that have cuts of this kind by what to call them: with the budget where a method has several."""
    cut = [entry for entry in found if any(each.kind == kind for run in entry.done for each in run.cuts)]
    labels = [entry.label for entry in cut]
    return {entry.label if labels.count(entry.label) == 1 else entry.name: entry for entry in cut}


def by_share(entry: ReportEntry, kind: str, stage: Callable[[SweepRow], float | None]) -> dict[float, Mean]:
    """The mean accuracy over the seeds by removed share; only shares at which a cut came through."""
    rows = [row for run in entry.done for each in run.cuts if each.kind == kind for row in each.rows]
    means = {s: mean(stage(row) for row in rows if row.removed == s) for s in dict.fromkeys(r.removed for r in rows)}
    return {share: value for share, value in means.items() if value is not None}


def against_removed(found: Sequence[ReportEntry]) -> Panel | None:
    """Plot of validation accuracy against the removed share: a line per method; None where nothing was cut."""
    kinds = [kind for kind in KINDS if cut_entries(found, kind)]
    if not kinds:
        return None
    styles = method_styles(found)
    pairs = product(enumerate(kinds), enumerate(STAGES.values()))
    figures = {f"{i},{j}": _figure(cut_entries(found, kind), kind, stage, styles) for (i, kind), (j, stage) in pairs}
    alt = "Accuracy against the share removed, one line per method. The table has the numbers."
    choices = [Choice("Removed", [KINDS[kind] for kind in kinds]), Choice("Accuracy", list(STAGES))]
    return Panel("cuts", "Accuracy against the share removed", alt, figures, choices)


def _figure(
    cut: Mapping[str, ReportEntry],
    kind: str,
    stage: Callable[[SweepRow], float | None],
    styles: Mapping[str, dict[str, Any]],
) -> Figure:
    traces: list[Figure] = []
    for name, entry in cut.items():
        means = dict(sorted(by_share(entry, kind, stage).items()))
        style = styles[entry.label]
        texts = [f"<b>{plain(name)}</b><br>{100 * s:g} % removed<br>{percent(m)}" for s, m in means.items()]
        trace: Figure = {
            "type": "scatter",
            "mode": "lines+markers",
            "name": wrapped(name),
            "x": [short(share) for share in means],
            "y": [short(value.value) for value in means.values()],
            "text": texts,
            "hovertemplate": "%{text}<extra></extra>",
            "line": {"color": style["color"], "dash": style["dash"], "width": 2},
            "marker": {"color": style["color"], "symbol": style["symbol"], "size": 7},
        }
        halves = [value.half for value in means.values()]
        if any(halves):
            trace["error_y"] = {"type": "data", "array": [short(half or 0) for half in halves]}
            trace["error_y"] |= {"color": style["color"], "thickness": 1.2, "width": 4}
        traces.append(trace)
    made = layout(f"share of the {KINDS[kind]} removed", "validation accuracy", height=460, percent=True)
    made["xaxis"] |= {"tickformat": ".0%"}
    made["yaxis"] |= {"range": [0, 1.02]}
    return {"data": traces, "layout": made}
