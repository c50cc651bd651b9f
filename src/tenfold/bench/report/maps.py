"""Maps: ranks by layer and method, and by layer and epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tenfold.bench.compare.findings import Layer
from tenfold.bench.compare.results import RunResult
from tenfold.bench.report.figure import Choice, Figure, Panel, epoch_ticks, layout, plain, short, wrapped
from tenfold.bench.report.summary import ReportEntry, by_budget


def rank_map(found: Sequence[ReportEntry]) -> Panel | None:
    """Maps of the kept share of each layer's weights by method, one per budget: shares in colour, ranks as text."""
    groups = {where: shown for where, group in by_budget(found).items() if (shown := [e for e in group if _layers(e)])}
    if not groups:
        return None
    figures = {str(number): _map(group) for number, group in enumerate(groups.values())}
    alt = "A map of layers by methods: the share of each layer's weights that is kept, with the ranks as text."
    return Panel("ranks", "Ranks per layer", alt, figures, [Choice("Budget", list(groups))])


def _layers(entry: ReportEntry) -> list[tuple[Layer, ...]]:
    """Each layer over the seeds, in module order."""
    return list(zip(*(run.layers for run in entry.done if run.layers), strict=False))


def _map(group: Sequence[ReportEntry]) -> Figure:
    cells = {(layer[0].name, e.label): layer for e in group for layer in _layers(e)}
    names = list(dict.fromkeys(name for name, _ in cells))
    labels = list(dict.fromkeys(entry.label for entry in group))
    shares = [[_share(cells.get((name, label))) for label in labels] for name in names]
    texts = [[_rank_text(cells.get((name, label))) for label in labels] for name in names]
    return _heatmap([wrapped(x) for x in labels], [plain(y) for y in names], shares, texts, "weights kept")


def _share(layers: tuple[Layer, ...] | None) -> float | None:
    if not layers or any(layer.dense_params == 0 for layer in layers):
        return None
    return short(sum(layer.params / layer.dense_params for layer in layers) / len(layers))


def _rank_text(layers: tuple[Layer, ...] | None) -> str:
    """The rank; where the seeds differ its range, for each mode by itself, and "dense" if some leave the layer so."""
    if layers is None:
        return ""
    modes: dict[int, list[list[int]]] = {}
    for rank in (layer.rank for layer in layers if layer.rank is not None):
        several = rank if isinstance(rank, list) else [rank]
        modes.setdefault(len(several), []).append(several)
    words = ["dense"] if any(layer.rank is None for layer in layers) else []
    words += [" · ".join(_range(mode) for mode in zip(*ranks, strict=True)) for ranks in modes.values()]
    slices = [layer.slices for layer in layers]
    return " or ".join(words) + (f" × {_range(slices)}" if max(slices) > 1 else "")


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}–{high}"


def rank_words(rank: int | list[int] | None) -> str:
    """``12``, ``8 · 6`` for a rank per mode, "dense" for none."""
    if rank is None:
        return "dense"
    return " · ".join(map(str, rank)) if isinstance(rank, list) else str(rank)


def evolution(found: Sequence[ReportEntry]) -> Panel | None:
    """The ranks of a run epoch by epoch, for methods that change them; the first seed of each."""
    shown = {e.name: run for e in found for run in e.done[:1] if run.evolution and run.evolution.ranks}
    if not shown:
        return None
    figures = {str(number): _evolved(run) for number, run in enumerate(shown.values())}
    alt = "A map of layers by epochs: the rank of each layer, relative to the largest that it had, with ranks as text."
    return Panel("evolution", "Ranks while training", alt, figures, [Choice("Run", list(shown))])


def _evolved(run: RunResult) -> Figure:
    assert run.evolution is not None
    sizes = {n: [_size(rank) for rank in ranks] for n, ranks in run.evolution.ranks.items()}
    shares = [
        [None if size is None else short(size / max(s or 1 for s in row)) for size in row] for row in sizes.values()
    ]
    few = len(run.evolution.epochs) <= 24
    ranks = run.evolution.ranks.values()
    texts = [["" if rank is None or not few else rank_words(rank) for rank in row] for row in ranks]
    made = _heatmap(run.evolution.epochs, [plain(n) for n in sizes], shares, texts, "rank, of its largest")
    made["layout"]["xaxis"] |= {"title": {"text": "after epoch"}, "side": "bottom", "tickangle": 0, "type": "linear"}
    made["layout"]["xaxis"] |= epoch_ticks(run.evolution.epochs)
    return made


def _size(rank: int | list[int] | None) -> int | None:
    return math.prod(rank) if isinstance(rank, list) else rank


def _heatmap(x: Sequence[Any], y: Sequence[str], z: list[Any], texts: list[list[str]], title: str) -> Figure:
    trace: Figure = {
        "type": "heatmap",
        "x": list(x),
        "y": list(y),
        "z": z,
        "text": texts,
        "texttemplate": "%{text}",
        "textfont": {"size": 12},
        "hovertemplate": "%{y}<br>%{x}<br>" + title + " %{z:.1%}<br>rank %{text}<extra></extra>",
        "colorscale": "Cividis",
        "zmin": 0,
        "zmax": 1,
        "xgap": 2,
        "ygap": 2,
        "colorbar": {
            "title": {"text": title, "side": "right"},
            "tickformat": ".0%",
            "thickness": 12,
            "outlinewidth": 0,
        },
    }
    made = layout("", "", height=130 + 24 * len(y))
    made["margin"]["b"] = 12
    made["xaxis"] |= {"side": "top", "type": "category", "showgrid": False, "tickangle": -40}
    made["yaxis"] |= {"type": "category", "autorange": "reversed", "showgrid": False}
    widest = max((len(text) for row in texts for text in row), default=0)
    made["meta"] = {"least": 200 + len(x) * (max(34, 12 + 7 * widest) if widest else 4)}
    return {"data": [trace], "layout": made}
