"""Curves: singular values before and after, and the figures of each epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

from tenfold.bench.compare.findings import LayerSpectrum
from tenfold.bench.compare.results import RunResult
from tenfold.bench.report.figure import (
    Choice,
    Figure,
    Panel,
    epoch_ticks,
    layout,
    log_axis,
    method_styles,
    plain,
    short,
    wrapped,
)
from tenfold.bench.report.summary import ReportEntry, by_budget
from tenfold.train.history import Epoch

_FLOOR = 1e-4
"""Singular values below this share of the largest are left out: rounding noise of no interest here."""


def spectra(found: Sequence[ReportEntry]) -> Panel | None:
    """Singular values of a layer before and after, for all methods at a budget; of the first seed."""
    groups = {
        where: shown
        for where, group in by_budget(found).items()
        if (shown := [(e, e.done[0]) for e in group if e.done and e.done[0].spectra])
    }
    weights = {layer.name: layer.dense_params for e in found for run in e.done for layer in run.layers}
    names = list(dict.fromkeys(s.layer for group in groups.values() for _, run in group for s in run.spectra))
    if not names:
        return None
    styles = method_styles(found)
    pairs = product(enumerate(names), enumerate(groups.values()))
    figures = {f"{i},{j}": _spectra(name, group, styles) for (i, name), (j, group) in pairs}
    start = max(range(len(names)), key=lambda i: weights.get(names[i], 0))
    alt = "Curves of singular values of a layer, before and after each method, on logarithmic axes."
    choices = [Choice("Layer", names, start), Choice("Budget", list(groups))]
    return Panel("spectra", "Singular values, before and after", alt, figures, choices)


def _spectra(name: str, group: Sequence[tuple[ReportEntry, RunResult]], styles: Mapping[str, dict[str, Any]]) -> Figure:
    """One layer at one budget. What several methods began with is drawn once, in grey."""
    mine = [(e, s) for e, run in group for s in run.spectra if s.layer == name]
    top = max((s.before.value[0] for _, s in mine if s.before.value), default=0.0) or 1.0
    shared = [s.before for e, s in mine if e.kind == "post-training"]
    traces = []
    if shared:
        grey = {"color": "$quiet", "dash": "solid", "symbol": "circle", "size": 5}
        traces.append(_spectrum("dense network", shared[0], top, grey, before=False))
    for entry, each in mine:
        style = styles[entry.label]
        if entry.kind != "post-training":
            traces.append(_spectrum(f"{entry.label}, before", each.before, top, style, before=True))
        traces.append(_spectrum(entry.label, each.after, top, style, before=False))
    made = layout("index of the singular value", "relative to the largest", height=460)
    last = max((i for _, s in mine for i in s.before.index), default=1)
    made["xaxis"] |= {"type": "log"} | log_axis(1, max(last, 2))
    values = [y for trace in traces for y in trace["y"]] or [1.0]
    made["yaxis"] |= {"type": "log"} | log_axis(min(values), max(values))
    return {"data": traces, "layout": made}


def _spectrum(name: str, values: LayerSpectrum, top: float, style: dict[str, Any], *, before: bool) -> Figure:
    shown = [(i, v / top) for i, v in zip(values.index, values.value, strict=True) if v >= _FLOOR * top]
    trace: Figure = {
        "type": "scatter",
        "mode": "lines" if before else "lines+markers",
        "name": wrapped(name),
        "x": [i for i, _ in shown],
        "y": [short(v) for _, v in shown],
        "hovertemplate": "value %{x}: %{y:.3g}<extra>" + plain(name) + "</extra>",
        "line": {"color": style["color"], "dash": "dot" if before else style["dash"], "width": 1.8},
    }
    if not before:
        trace["marker"] = {"color": style["color"], "symbol": style["symbol"], "size": 6}
    return trace


_MEASURES: dict[str, Callable[[Epoch], float]] = {
    "validation accuracy": lambda epoch: epoch.validation_accuracy,
    "validation loss": lambda epoch: epoch.validation_loss,
    "training accuracy": lambda epoch: epoch.accuracy,
    "training loss": lambda epoch: epoch.loss,
    "learning rate": lambda epoch: epoch.lr,
}


def training(found: Sequence[ReportEntry]) -> Panel | None:
    """Figures of each epoch: the mean over the seeds, with the range of them; the dense network stands in each plot."""
    dense = [entry for entry in found if entry.dense]
    groups = {where: dense + group for where, group in by_budget(found).items()} or {"dense": dense}
    groups = {w: g for w, g in groups.items() if any(run.curves for entry in g for run in entry.done)}
    if not groups:
        return None
    styles = method_styles(found)
    pairs = product(enumerate(_MEASURES), enumerate(groups.values()))
    figures = {f"{i},{j}": _training(name, group, styles) for (i, name), (j, group) in pairs}
    alt = "Curves over the epochs, one per method: the mean over the seeds, and their range as a band."
    choices = [Choice("Figure", list(_MEASURES)), Choice("Budget", list(groups))]
    return Panel("training", "Training curves", alt, figures, choices)


def _training(measure: str, group: Sequence[ReportEntry], styles: Mapping[str, dict[str, Any]]) -> Figure:
    """One figure at one budget. The training that post-training methods share is drawn once, in grey."""
    traces: list[Figure] = []
    drawn: list[dict[int, list[float]]] = []
    for entry in group:
        for phase in ("training", "recovery"):
            values = _over_epochs(entry, phase, _MEASURES[measure])
            shared = entry.kind == "post-training" and phase == "training"
            if not values or (shared and values in drawn):
                continue
            if shared:
                drawn.append(values)
            style = {"color": "$quiet", "dash": "solid"} if shared else styles[entry.label]
            traces += _band(values, style)
            name = "before compression" if shared else entry.label
            traces.append(
                _line(name, values, style) | {"showlegend": all(t.get("name") != wrapped(name) for t in traces)}
            )
    made = layout("epoch", measure, height=460, percent="accuracy" in measure)
    made["xaxis"] |= epoch_ticks([epoch for trace in traces for epoch in trace["x"]])
    if "loss" in measure:
        values = [y for trace in traces for y in trace["y"] if y > 0] or [1.0]
        made["yaxis"] |= {"type": "log"} | log_axis(min(values), max(values))
    return {"data": traces, "layout": made}


def _over_epochs(entry: ReportEntry, phase: str, measure: Callable[[Epoch], float]) -> dict[int, list[float]]:
    """``{epoch: values of the seeds}``."""
    values: dict[int, list[float]] = {}
    for run in entry.done:
        for epoch in (epoch for curve in run.curves if curve.phase == phase for epoch in curve.epochs):
            values.setdefault(epoch.epoch, []).append(measure(epoch))
    return values


def _band(values: Mapping[int, list[float]], style: dict[str, Any]) -> list[Figure]:
    """From the lowest to the highest seed."""
    if all(len(each) < 2 for each in values.values()):
        return []
    low, high = [short(min(v)) for v in values.values()], [short(max(v)) for v in values.values()]
    return [
        {"type": "scatter", "mode": "lines", "fill": "toself", "fillcolor": style["color"], "opacity": 0.18}
        | {"x": [*values, *reversed(values)], "y": [*high, *reversed(low)], "line": {"width": 0}}
        | {"hoverinfo": "skip", "showlegend": False}
    ]


def _line(name: str, values: Mapping[int, list[float]], style: dict[str, Any]) -> Figure:
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(values) == 1 else "lines",
        "name": wrapped(name),
        "x": list(values),
        "y": [short(sum(v) / len(v)) for v in values.values()],
        "line": {"color": style["color"], "dash": style["dash"], "width": 2},
        "hovertemplate": "epoch %{x}: %{y:.4g}<extra>" + plain(name) + "</extra>",
    }
