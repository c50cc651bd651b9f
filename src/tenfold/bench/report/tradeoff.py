"""Plots of accuracy against what a model costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tenfold.bench.report.figure import (
    Figure,
    Panel,
    accuracy_range,
    layout,
    log_axis,
    method_styles,
    plain,
    short,
    wrapped,
)
from tenfold.bench.report.summary import Mean, ReportEntry, front, percent
from tenfold.bench.report.words import plural


def all_costs(found: Sequence[ReportEntry]) -> tuple[Panel | None, ...]:
    """Plots of accuracy against parameters, MACs and latency; None for what was not measured."""
    return (
        against(found, "params", "Accuracy against parameters", "parameters", lambda e: e.params),
        against(found, "macs", "Accuracy against MACs", "multiply-adds per example", lambda e: e.macs),
        against(found, "latency", "Accuracy against latency", "time of a forward pass, dense = 1", lambda e: e.time),
    )


def against(
    found: Sequence[ReportEntry], id: str, title: str, axis: str, cost: Callable[[ReportEntry], Mean | None]
) -> Panel | None:
    """Plot of test accuracy against a cost: a line per method with intervals over the seeds, and the Pareto front.

    Args:
        found: the entries.
        id: of the plot.
        title: over it.
        axis: title of the axis of the cost.
        cost: of an entry; None where it was not measured.
    """
    points = [(e, c, a) for e in found if (c := cost(e)) is not None and (a := e.accuracy) is not None]
    if not points:
        return None
    best = front([(c.value, a.value) for _, c, a in points])
    traces: list[Figure] = []
    if len(points) > 2:
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": "Pareto front",
                "hoverinfo": "skip",
            }
            | {"x": [short(x) for x, _ in best], "y": [short(y) for _, y in best]}
            | {"line": {"shape": "hv", "color": "$quiet", "width": 5}, "opacity": 0.35}
        )
    styles = method_styles(found)
    for label in dict.fromkeys(entry.label for entry, _, _ in points):
        mine = sorted((p for p in points if p[0].label == label), key=lambda point: point[1].value)
        traces.append(_curve(label, mine, styles[label]))
    costs = [c.value for _, c, _ in points]
    made = layout(axis, "test accuracy", height=460, percent=True)
    made["xaxis"] |= {"type": "log"} | log_axis(min(costs), max(costs))
    made["yaxis"] |= {"range": accuracy_range([a for _, _, a in points])}
    alt = f"{title}: one line per method; {plural(len(best), 'point')} on the Pareto front. The table has the numbers."
    return Panel(id, title, alt, {"": {"data": traces, "layout": made}}, [])


def _curve(label: str, points: Sequence[tuple[ReportEntry, Mean, Mean]], style: dict[str, Any]) -> Figure:
    """One method: a mark per budget, with intervals in both directions where there are any."""
    texts = [f"<b>{plain(e.name)}</b><br>{percent(a)}<br>{c.value:.6g}" for e, c, a in points]
    trace: Figure = {
        "type": "scatter",
        "mode": "lines+markers",
        "name": wrapped(label),
        "x": [short(c.value) for _, c, _ in points],
        "y": [short(a.value) for _, _, a in points],
        "text": texts,
        "hovertemplate": "%{text}<extra></extra>",
        "line": {"color": style["color"], "dash": style["dash"], "width": 2},
        "marker": {"color": style["color"], "symbol": style["symbol"], "size": style["size"]}
        | {"line": {"color": "$paper", "width": 1}},
    }
    for axis, halves in (("error_x", [c.half for _, c, _ in points]), ("error_y", [a.half for _, _, a in points])):
        if any(halves):
            trace[axis] = {"type": "data", "array": [short(half or 0) for half in halves], "color": style["color"]}
            trace[axis] |= {"thickness": 1.2, "width": 4}
    return trace
