"""A picture of what was cut: the spectra of each layer, and the ranks that plans chose on them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tenfold.errors import TenfoldError
from tenfold.files import atomic_file
from tenfold.ranks.plan import Plan
from tenfold.ranks.problem import Problem, Site

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#0072B2", "#56B4E9", "#D55E00", "#E69F00", "#009E73", "#CC79A7")
_MARKERS = ("s", "o", "D", "^", "P", "v")
_SIZES = (13, 8)
"""In turns, so that of two marks in one place both are seen."""
_FLOOR = 1e-3
"""Values below this share of the largest are left out: they are rounding noise of no interest here."""


def draw_spectra(problem: Problem, plans: Mapping[str, Plan], path: Path | str) -> None:
    """Write a PNG: one panel per layer, one curve per decomposition, a mark at the rank that each plan chose.

    A curve holds the singular values of a layer's kernel in the fold and slices of a plan, relative to the largest of
    the whole kernel; with several slices, the largest over them at each index. It is grey where plans share it. Plans
    that leave a layer dense have no curve there.

    Args:
        problem: of the model that the plans are for.
        plans: by the name that the legend gives them; at most six.
        path: the file.

    Raises:
        TenfoldError: matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise TenfoldError("Pictures need matplotlib, which is missing: pip install 'tenfold[report]'.") from error
    columns = min(3, len(problem.sites))
    rows = -(-len(problem.sites) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.7 * rows + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel().tolist()
    for site, panel in zip(problem.sites, panels, strict=False):
        _panel(panel, problem, site, plans)
    for panel in panels[len(problem.sites) :]:
        panel.set_visible(False)
    _decorate(panels[0])
    figure.suptitle("Singular values of each kernel, and the ranks that were kept", fontsize=15)
    figure.supxlabel("index of the singular value")
    figure.supylabel("singular value, relative to the largest of the kernel")
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _panel(panel: Axes, problem: Problem, site: Site, plans: Mapping[str, Plan]) -> None:
    """One layer. What was chosen stands in a legend under the panel, where it cannot cover a curve."""
    structures = [(x.fold, x.groups) for x in (plan.layers[site.name] for plan in plans.values())]
    for number, (name, plan) in enumerate(plans.items()):
        layer, colour = plan.layers[site.name], _COLOURS[number % len(_COLOURS)]
        look: dict[str, Any] = {"color": colour, "marker": _MARKERS[number % len(_MARKERS)], "linestyle": "none"}
        if not isinstance(layer.rank, int) or layer.fold is None:  # no rank of a spectrum
            became = "dense" if layer.rank is None else f"{layer.decomposition} {layer.rank}"
            panel.plot([], [], alpha=0.35, label=f"{name}: {became}", **look)
            continue
        spectrum = _spectrum(problem, site, layer.fold, layer.groups)
        shared = structures.count((layer.fold, layer.groups)) > 1
        panel.plot(range(1, len(spectrum) + 1), spectrum, color="0.55" if shared else colour, linewidth=1.3)
        height = spectrum[min(layer.rank, len(spectrum)) - 1]
        panel.vlines(layer.rank, _FLOOR, height, color=colour, linewidth=1, linestyle=":")
        slices = f" × {layer.groups} slices" if layer.groups > 1 else ""
        label = f"{name}: rank {layer.rank}{slices}"
        panel.plot(
            [layer.rank],
            [height],
            label=label,
            markersize=_SIZES[number % 2],
            markeredgecolor="white",
            zorder=3,
            **look,
        )
    panel.set_title(f"{site.name}  ({'×'.join(map(str, site.cost.shape))})", fontsize=12)
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    panel.grid(alpha=0.25, which="both")
    panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.09), ncols=2, fontsize=9, frameon=False, handletextpad=0.3)


def _decorate(panel: Axes) -> None:
    """The axis that all panels share: logarithmic, down to the smallest value on show, with ticks in plain numbers."""
    values = [float(y) for p in panel.figure.axes for line in p.get_lines() for y in np.asarray(line.get_ydata())]
    lowest = max(min(values, default=_FLOOR), _FLOOR)
    panel.set_yscale("log")
    panel.set_ylim(lowest * 0.8, 1.3)
    ticks = [t for t in (1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if t >= lowest * 0.8]
    panel.set_yticks(ticks, [f"{t:g}" for t in ticks])
    panel.minorticks_off()


def _spectrum(problem: Problem, site: Site, fold: str, slices: int) -> list[float]:
    """Largest value over groups and slices at each index, relative to the largest without slices; the visible part."""
    found = problem.spectra(fold, (1, slices))[problem.sites.index(site)]
    share = found[slices].flatten(0, -2).amax(0) / found[1].max().clamp(min=1e-300)
    return [value for value in share.tolist() if value >= _FLOOR] or [_FLOOR]
