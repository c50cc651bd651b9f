"""The plots of a report as PNG files: the page's own figures, drawn by matplotlib."""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tenfold.bench.compare.results import Results
from tenfold.bench.report.figure import THEMES, Figure, Panel
from tenfold.bench.report.page import sections
from tenfold.bench.report.summary import entries
from tenfold.errors import TenfoldError
from tenfold.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

_SOURCE = "Source"
"""Key of the text in a file that says what was drawn."""
_LABELS = 24
"""Columns of a map that are labelled, at most: of more, every second, third, ..."""
_MARKERS = {"circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "cross": "P", "triangle-down": "v"}
_MARKERS |= {"x": "X", "pentagon": "p", "hexagram": "h", "star": "*"}
_DASHES: dict[str, Any] = {"solid": "-", "dash": "--", "dashdot": "-.", "longdash": (0, (8, 3)), "dot": ":"}


@dataclass(frozen=True)
class _Picture:
    """One plot for pages of one theme.

    Args:
        name: of its file.
        title: over it.
        figure: what it shows.
        theme: colours by token.
    """

    name: str
    title: str
    figure: Figure
    theme: dict[str, str]

    @property
    def source(self) -> str:
        """Of what it is drawn, in short; the file holds it."""
        made_of = json.dumps([self.title, self.figure, self.theme], sort_keys=True)
        return f"sha256:{hashlib.sha256(made_of.encode()).hexdigest()}"


def write_pictures(results: Results, folder: Path | str, only: Collection[str] | None = None) -> list[Path]:
    """Draw the plots of a report as PNG files, for light and for dark pages: ``params.png``, ``params-dark.png``, ...

    Plots with choices are drawn as they start, at the smallest budget.

    Args:
        results: of `tenfold compare`.
        folder: made where it is missing.
        only: these plots, among "params", "macs", "latency", "ranks", "evolution", "spectra" and "training"; None: all.

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
    written = []
    for picture in _pictures(results, only):
        canvas = Canvas(figsize=_inches(picture.figure), layout="constrained", facecolor=picture.theme["$paper"])
        FigureCanvasAgg(canvas)
        _draw(canvas, picture)
        path = Path(folder) / picture.name
        with atomic_file(path) as temporary:
            canvas.savefig(temporary, format="png", dpi=160, metadata={_SOURCE: picture.source, "Software": "tenfold"})
        written.append(path)
    return written


def stale_pictures(results: Results, folder: Path | str, only: Collection[str] | None = None) -> list[Path]:
    """The PNG files in ``folder`` that differ from what `write_pictures` would draw, or are superfluous or missing.

    Arguments as in `write_pictures`.

    What is compared is what they show, not the pixels, which differ between versions of matplotlib.
    """
    from PIL import Image

    there: dict[Path, str | None] = {}
    for path in sorted(Path(folder).glob("*.png")):
        with Image.open(path) as image:
            there[path] = image.info.get(_SOURCE)
    wanted = {Path(folder) / picture.name: picture.source for picture in _pictures(results, only)}
    return [path for path in dict.fromkeys([*wanted, *there]) if there.get(path) != wanted.get(path)]


def _pictures(results: Results, only: Collection[str] | None) -> list[_Picture]:
    panels = [panel for section in sections(entries(results), results) for panel in section.panels]
    return [
        _Picture(f"{panel.id}.png" if name == "light" else f"{panel.id}-{name}.png", *_picked(panel), theme)
        for panel in panels
        if only is None or panel.id in only
        for name, theme in THEMES.items()
    ]


def _picked(panel: Panel) -> tuple[str, Figure]:
    """The figure at the start of every choice, and at the last budget; with a title that says so."""
    positions = [len(c.options) - 1 if c.label == "Budget" else c.start for c in panel.choices]
    words = [choice.options[position] for choice, position in zip(panel.choices, positions, strict=True)]
    return "\n".join([panel.title, *([", ".join(words)] if words else [])]), panel.figures[
        ",".join(map(str, positions))
    ]


def _inches(figure: Figure) -> tuple[float, float]:
    if not _mapped(figure):
        return 6.4, 5.4
    (trace,) = figure["data"]
    return 3.5 + 0.75 * min(len(trace["x"]), _LABELS), 2.2 + 0.26 * len(trace["y"])


def _mapped(figure: Figure) -> bool:
    return figure["data"][0]["type"] == "heatmap"


def _draw(canvas: Canvas, picture: _Picture) -> None:
    theme, panel = picture.theme, canvas.subplots()
    panel.set_facecolor(theme["$paper"])
    panel.set_title(picture.title, color=theme["$ink"], fontsize=12)
    panel.tick_params(colors=theme["$ink"], labelsize=9, which="both")
    for spine in panel.spines.values():
        spine.set_color(theme["$grid"])
    mapped = _mapped(picture.figure)
    for trace in picture.figure["data"]:
        (_map if mapped else _scatter)(panel, trace, theme)
    _axes(panel, picture.figure["layout"], theme, mapped=mapped)
    bars, names = cast("tuple[list[Any], list[str]]", panel.get_legend_handles_labels())
    if len(names) > 1:
        look = {"frameon": False, "fontsize": 9, "labelcolor": theme["$ink"]}
        canvas.legend([line for line, *_ in bars], names, loc="outside lower center", ncols=min(len(names), 3), **look)


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
    image = panel.pcolormesh(
        shares,
        cmap="cividis",
        edgecolors=theme["$paper"],
        linewidth=1.5 if len(trace["x"]) <= _LABELS else 0.2,
        **limits,
    )
    panel.invert_yaxis()
    for row, texts in enumerate(trace["text"]):
        for column, text in enumerate(texts):
            ink = "black" if (trace["z"][row][column] or 0) > 0.55 else "white"
            panel.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=8, color=ink)
    for axis, names, step in ((panel.xaxis, trace["x"], 1 + len(trace["x"]) // _LABELS), (panel.yaxis, trace["y"], 1)):
        shown = range(0, len(names), step)
        axis.set_ticks([n + 0.5 for n in shown], [html.unescape(str(names[n])).replace("<br>", "\n") for n in shown])
    bar = panel.figure.colorbar(image, ax=panel, format=lambda share, _: f"{100 * share:.0f}%")
    bar.set_label(trace["colorbar"]["title"]["text"], color=theme["$ink"])
    bar.ax.tick_params(colors=theme["$ink"], labelsize=9)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]


def _axes(panel: Axes, layout: Figure, theme: dict[str, str], *, mapped: bool) -> None:
    from matplotlib.ticker import MultipleLocator

    for name, axis in (("x", panel.xaxis), ("y", panel.yaxis)):
        wanted = layout[f"{name}axis"]
        axis.set_label_text(wanted["title"]["text"], color=theme["$ink"])
        if mapped:  # it has its ticks
            if angle := -wanted.get("tickangle", 0):
                for text in axis.get_ticklabels():
                    text.set(rotation=angle, ha="right", rotation_mode="anchor")
            continue
        panel.grid(color=theme["$grid"], linewidth=0.8)
        panel.set_axisbelow(True)
        if wanted.get("type") == "log":
            panel.set(**{f"{name}scale": "log", f"{name}lim": [10**end for end in wanted["range"]]})
            axis.set_ticks(wanted["tickvals"], wanted["ticktext"])
            axis.set_ticks([], minor=True)
            panel.set(**{f"{name}lim": [10**end for end in wanted["range"]]})
        elif "range" in wanted:
            panel.set(**{f"{name}lim": wanted["range"]})
        if "dtick" in wanted:
            axis.set_major_locator(MultipleLocator(wanted["dtick"]))
        if "%" in wanted.get("tickformat", ""):
            axis.set_major_formatter(lambda share, _: f"{100 * share:.3g}%")
