"""What the plots of a report share. A plot is a plotly figure as a plain dictionary, made from results alone.

Colours are tokens, ``"$ink"`` or ``"$0"``: the page puts in those of its light or dark theme. Text from outside is
escaped, because plotly reads some HTML.
"""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tenfold.bench.report.summary import Mean, ReportEntry
from tenfold.errors import check

Figure = dict[str, Any]

_ROLES: list[str] = ["$paper", "$ink", "$quiet", "$grid", "$0", "$1", "$2", "$3", "$4", "$5", "$6", "$7"]
_LIGHT = "#ffffff #1b1f24 #6b7580 #e3e7eb #0072b2 #c44e00 #00805c #b04a8c #946200 #2b93c9 #5b3fa8 #7a1f1f"
_DARK = "#15181c #e6e9ed #98a2ad #2f363d #4ba9ea #ff8b4a #31c49a #e59acb #f0b93a #a5d8fa #ab97f5 #f07f7f"
THEMES = {name: dict(zip(_ROLES, all_.split(), strict=True)) for name, all_ in (("light", _LIGHT), ("dark", _DARK))}
"""What the tokens stand for. The eight of the methods have at least 3 : 1 against their paper."""
_COLOURS = 8
_WIDEST = 24
"""Letters in a line of a legend or of a column's name."""
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "triangle-down", "x", "pentagon", "hexagram")
_DASHES = ("solid", "dash", "dashdot", "longdash", "dot")


@dataclass(frozen=True)
class Choice:
    """A choice of the reader among variants of a plot.

    Args:
        label: its name.
        options: the variants.
        start: position of the variant that is shown first.
    """

    label: str
    options: list[str]
    start: int = 0


@dataclass(frozen=True)
class Panel:
    """A plot, or several among which the reader picks.

    Args:
        id: of the element in the page.
        title: over it.
        alt: text in place of the plot, for readers who do not see it.
        figures: by the positions of the choices, joined by commas: "0,2"; "" without choices.
        choices: in the order of the positions.
    """

    id: str
    title: str
    alt: str
    figures: dict[str, Figure]
    choices: list[Choice]


def method_styles(found: Sequence[ReportEntry]) -> dict[str, dict[str, Any]]:
    """Colour, mark and dash of each method, the same in all plots: no two methods share all three."""
    styles: dict[str, dict[str, Any]] = {}
    for number, label in enumerate(dict.fromkeys(entry.label for entry in found if not entry.dense)):
        styles[label] = {"color": f"${number % _COLOURS}", "symbol": _SYMBOLS[number % len(_SYMBOLS)], "size": 10}
        styles[label]["dash"] = _DASHES[number % len(_DASHES)]
    for entry in found:
        if entry.dense:
            styles[entry.label] = {"color": "$ink", "symbol": "star", "size": 14, "dash": "solid"}
    return styles


def epoch_ticks(epochs: Sequence[int]) -> dict[str, Any]:
    """Axis ticks at whole epochs: plotly's own may lie between two."""
    return {"dtick": 1} if len(set(epochs)) <= 12 else {}


def plain(text: str) -> str:
    """Escape text, so that plotly shows it as it is."""
    return html.escape(text, quote=False)


def wrapped(text: str) -> str:
    """Escape text and wrap it to the width of a legend."""
    return "<br>".join(plain(line) for line in textwrap.wrap(text, _WIDEST))


def round_ticks(low: float, high: float) -> list[float]:
    """Ticks of a logarithmic axis among 1, 2, 5, 10, 20, ..., from around ``low`` to around ``high``.

    Raises:
        ArgumentError: a range that is empty, or not > 0.
    """
    check(0 < low <= high, "low", "> 0 and at most high", (low, high))
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    width = high / low
    wide = (1, 1.5, 2, 3, 5, 7) if width < 8 else (1, 2, 5) if width < 500 else (1,)
    digits = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9) if width < 3 else wide
    steps = [float(f"{digit}e{decade}") for decade in decades for digit in digits]
    return [step for step in steps if low / 2 <= step <= high * 2]


def si(value: float) -> str:
    """A number with an SI prefix: ``25000`` as "25k"."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def log_axis(low: float, high: float) -> dict[str, Any]:
    """Ticks and range of a logarithmic axis with some room at both ends."""
    values = round_ticks(low, high)
    room = 0.06 * max(math.log10(high / low), 0.3)
    return {
        "tickvals": values,
        "ticktext": [si(value) for value in values],
        "range": [short(math.log10(low) - room), short(math.log10(high) + room)],
    }


def accuracy_range(means: Sequence[Mean]) -> list[float]:
    """Ends of an axis that shows these means, and their intervals unless those would crush what lies between.

    An interval may take half as much room on either side as the means do together; what is wider runs out of the plot.
    """
    low, high = min(m.value for m in means), max(m.value for m in means)
    most = (high - low) / 2 or 1.0
    low = max(0.0, low - most, min(m.low for m in means))
    high = min(1.0, high + most, max(m.high for m in means))
    room = 0.06 * (high - low) or 0.01
    return [short(low - room), short(high + room)]


def layout(x: str, y: str, *, height: int, percent: bool = False) -> Figure:
    """The plotly layout that all plots have in common.

    Args:
        x: title of the horizontal axis.
        y: title of the vertical axis.
        height: in pixels.
        percent: show the vertical axis in per cent.
    """
    axis = {"gridcolor": "$grid", "linecolor": "$grid", "zeroline": False, "automargin": True, "color": "$ink"}
    return {
        "height": height,
        "margin": {"l": 50, "r": 16, "t": 34, "b": 50},
        "paper_bgcolor": "$paper",
        "plot_bgcolor": "$paper",
        "font": {"color": "$ink", "size": 13, "family": "system-ui, sans-serif"},
        "hoverlabel": {"bgcolor": "$paper", "bordercolor": "$quiet", "font": {"color": "$ink"}},
        "legend": {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0},
        "xaxis": axis | {"title": {"text": x, "standoff": 8}},
        "yaxis": axis | {"title": {"text": y, "standoff": 8}} | ({"tickformat": ".1~%"} if percent else {}),
    }


def short(value: float) -> float:
    """Round to six digits: more would only make the page larger."""
    return float(f"{value:.6g}")
