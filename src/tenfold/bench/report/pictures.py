"""The main plots of a report as PNG files: the page's own figures, drawn by matplotlib."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tenfold.bench.report import curves, maps, tradeoff
from tenfold.bench.report.figure import THEMES, Figure, Panel
from tenfold.bench.report.summary import entries
from tenfold.bench.results import Results
from tenfold.errors import TenfoldError
from tenfold.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

_MARKERS = {"circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "cross": "P", "triangle-down": "v"}
_MARKERS |= {"x": "X", "pentagon": "p", "hexagram": "h", "star": "*"}
_DASHES: dict[str, Any] = {"solid": "-", "dash": "--", "dashdot": "-.", "longdash": (0, (8, 3)), "dot": ":"}


def write_pictures(results: Results, folder: Path | str) -> list[Path]:
    """Write the main plots as PNG: ``accuracy``, ``ranks``, ``spectra`` and ``training``, for light and dark pages.

    What the reader of the page can pick is shown at its start, and at the smallest budget. ``accuracy.png`` is for
    light pages, ``accuracy-dark.png`` for dark ones; both have their own background, and so can be read on either.

    Args:
        results: of `tenfold compare`.
        folder: made where it is missing.

    Returns:
        The files; none for plots of which the results hold nothing.

    Raises:
        TenfoldError: matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as Canvas
    except ImportError as error:
        raise TenfoldError("Pictures need matplotlib, which is missing: pip install 'tenfold[report]'.") from error
    found = entries(results)
    pictures: dict[str, list[Panel | None]] = {
        "accuracy": list(tradeoff.all_costs(found)),
        "ranks": [maps.rank_map(found)],
        "spectra": [curves.spectra(found)],
        "training": [curves.training(found)],
    }
    written = []
    for name, panels in pictures.items():
        drawn = [_picked(panel) for panel in panels if panel is not None]
        for theme in THEMES if drawn else ():
            canvas = Canvas(figsize=_inches([figure for _, figure in drawn]), layout="constrained")
            FigureCanvasAgg(canvas)
            _draw(canvas, drawn, THEMES[theme])
            path = Path(folder) / (f"{name}.png" if theme == "light" else f"{name}-{theme}.png")
            with atomic_file(path) as temporary:
                canvas.savefig(temporary, format="png", dpi=144, facecolor=canvas.get_facecolor())
            written.append(path)
    return written


def _picked(panel: Panel) -> tuple[str, Figure]:
    """The figure at the start of every choice, and at the last budget; with a title that says so."""
    positions = [len(c.options) - 1 if c.label == "Budget" else c.start for c in panel.choices]
    words = [choice.options[position] for choice, position in zip(panel.choices, positions, strict=True)]
    return "\n".join([panel.title, *([", ".join(words)] if words else [])]), panel.figures[
        ",".join(map(str, positions))
    ]


def _inches(figures: Sequence[Figure]) -> tuple[float, float]:
    first = figures[0]["data"][0]
    if first["type"] == "heatmap":
        return 3.5 + 0.75 * len(first["x"]), 2.2 + 0.26 * len(first["y"])
    return (5.0 * len(figures), 5.2) if len(figures) > 1 else (8.0, 5.6)


def _draw(canvas: Canvas, drawn: Sequence[tuple[str, Figure]], theme: dict[str, str]) -> None:
    canvas.set_facecolor(theme["$paper"])
    panels = canvas.subplots(1, len(drawn), squeeze=False).ravel().tolist()
    for panel, (title, figure) in zip(panels, drawn, strict=True):
        panel.set_facecolor(theme["$paper"])
        panel.set_title(title, color=theme["$ink"], fontsize=12)
        panel.tick_params(colors=theme["$ink"], labelsize=9, which="both")
        for spine in panel.spines.values():
            spine.set_color(theme["$grid"])
        for trace in figure["data"]:
            (_map if trace["type"] == "heatmap" else _scatter)(panel, trace, theme)
        _axes(panel, figure["layout"], theme)
    handles, labels = panels[0].get_legend_handles_labels()
    if len(labels) > 1:
        columns = max(1, min(len(labels), int(canvas.get_figwidth() // 1.9)))
        canvas.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=columns,
            frameon=False,
            fontsize=9,
            labelcolor=theme["$ink"],
        )


def _scatter(panel: Axes, trace: Figure, theme: dict[str, str]) -> None:
    """A curve with its marks and intervals, or a band."""
    if trace.get("fill") == "toself":
        panel.fill(trace["x"], trace["y"], color=theme[trace["fillcolor"]], alpha=trace["opacity"], linewidth=0)
        return
    line, marker = trace["line"], trace.get("marker", {})
    look: dict[str, Any] = {"color": theme[line["color"]], "linestyle": _DASHES[line.get("dash", "solid")]}
    look |= {"linewidth": line["width"], "alpha": trace.get("opacity", 1.0), "zorder": 1 if "opacity" in trace else 2}
    if line.get("shape") == "hv":
        look["drawstyle"] = "steps-post"
    if marker:
        look |= {"marker": _MARKERS[marker["symbol"]], "markersize": 0.85 * marker["size"]}
        look |= {"markeredgecolor": theme["$paper"], "markeredgewidth": 0.7}
    name = html.unescape(trace["name"].replace("<br>", "\n")) if trace.get("showlegend", True) else "_"
    intervals = {f"{axis}err": trace[f"error_{axis}"]["array"] for axis in "xy" if f"error_{axis}" in trace}
    panel.errorbar(trace["x"], trace["y"], **intervals, label=name, elinewidth=1, capsize=2, **look)


def _map(panel: Axes, trace: Figure, theme: dict[str, str]) -> None:
    """Shares in colour, with the ranks on them."""
    shares = [[float("nan") if share is None else share for share in row] for row in trace["z"]]
    limits = {"vmin": trace["zmin"], "vmax": trace["zmax"]}
    image = panel.pcolormesh(shares, cmap="cividis", edgecolors=theme["$paper"], linewidth=1.5, **limits)
    panel.invert_yaxis()
    for row, texts in enumerate(trace["text"]):
        for column, text in enumerate(texts):
            ink = "black" if (trace["z"][row][column] or 0) > 0.55 else "white"
            panel.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=8, color=ink)
    for axis, names in ((panel.xaxis, trace["x"]), (panel.yaxis, trace["y"])):
        axis.set_ticks(
            [n + 0.5 for n in range(len(names))], [html.unescape(str(name)).replace("<br>", "\n") for name in names]
        )
    for text in panel.get_xticklabels():
        text.set(rotation=40, ha="right", rotation_mode="anchor")
    bar = panel.figure.colorbar(image, ax=panel, format=lambda share, _: f"{100 * share:.0f}%")
    bar.set_label(trace["colorbar"]["title"]["text"], color=theme["$ink"])
    bar.ax.tick_params(colors=theme["$ink"], labelsize=9)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]


def _axes(panel: Axes, layout: Figure, theme: dict[str, str]) -> None:
    from matplotlib.ticker import MultipleLocator

    for name, axis in (("x", panel.xaxis), ("y", panel.yaxis)):
        wanted = layout[f"{name}axis"]
        axis.set_label_text(wanted["title"]["text"], color=theme["$ink"])
        if wanted.get("type") == "category":
            continue
        panel.grid(color=theme["$grid"], linewidth=0.8)
        panel.set_axisbelow(True)
        if wanted.get("type") == "log":
            panel.set(**{f"{name}scale": "log", f"{name}lim": [10**end for end in wanted["range"]]})
            axis.set_ticks(wanted["tickvals"], wanted["ticktext"])
            axis.set_ticks([], minor=True)
            panel.set(**{f"{name}lim": [10**end for end in wanted["range"]]})
        elif "dtick" in wanted:
            axis.set_major_locator(MultipleLocator(wanted["dtick"]))
        elif "%" in wanted.get("tickformat", ""):
            axis.set_major_formatter(lambda share, _: f"{100 * share:.3g}%")
