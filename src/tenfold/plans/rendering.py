"""Plans, and what came of them, as tables: in a terminal, as plain text, and as HTML for notebooks.

A table is a `Sheet` of plain strings first; what is shown anywhere is drawn from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from io import StringIO

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from tenfold.layers.cost import Cost
from tenfold.plans.apply import Report, Result
from tenfold.plans.plan import LayerPlan, Plan
from tenfold.runtimes.timing import WORTH

WIDTH = 80
"""Columns of what `print` shows."""
_MOST = 12
_MOST_BESIDE_COSTS = 7
"""Layers that `print` shows of a plan, alone and with the costs of a result: 25 lines at most."""
_REASONS = 2
"""Reasons for dense layers that `print` shows."""
_NAME = 16
"""A layer's name is not cut to less than this."""


@dataclass(frozen=True)
class Sheet:
    """A table as plain strings.

    Args:
        title: above it.
        columns: the headings.
        rows: the cells of each row.
        total: the cells of the last row, which is set apart; empty where there is none.
        notes: sentences below.
        words: that many columns, from the first, hold words and stand to the left; numbers stand to the right.
    """

    title: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[str]]
    total: Sequence[str] = ()
    notes: Sequence[str] = ()
    words: int = 1


# ---- what is shown


def sheets(shown: object) -> list[Sheet]:
    """The short tables of a `Plan`, a `Report` or a `Result`.

    Raises:
        TypeError: anything else.
    """
    if isinstance(shown, Result):
        return [plan_sheet(shown.plan, most=_MOST_BESIDE_COSTS), *_report(shown.report, ms=planned_ms(shown.plan))]
    if isinstance(shown, Report):
        return _report(shown, _reasons(shown.left, _REASONS))
    if isinstance(shown, Plan):
        return [plan_sheet(shown, most=_MOST)]
    raise TypeError(f"`shown` must be a Plan, a Report or a Result; got {type(shown).__name__}.")


def line(shown: object) -> str:
    """A `Plan`, a `Report` or a `Result` in one line."""
    if isinstance(shown, Result):
        return f"Result({type(shown.model).__name__}, {line(shown.plan)})"
    if isinstance(shown, Plan):
        changed = sum(layer.decomposition != "dense" for layer in shown.layers.values())
        what = f"{shown.method}, {changed} of {len(shown.layers)} layers decomposed, "
        return f"Plan({what}{_totals(*_costs(shown))})"
    return f"Report({_totals(shown.dense, shown.small)})" if isinstance(shown, Report) else object.__repr__(shown)


def plan_sheet(made: Plan, *, most: int | None = None) -> Sheet:
    """The table of a plan: what each layer becomes; below, why some stay dense.

    Args:
        made: the plan.
        most: so many layers, those that change most, and the others summed up in one row; without kernels and empty
            columns, and names cut to fit into `WIDTH`. None: everything.
    """
    columns = ("Layer", "Kernel", "Becomes", "Rank", "Slices", "Params", "MACs", "ms", "Error")
    layers = made.layers if most is None else _largest_changes(made.layers, most)
    rows = [(name, *_cells(layer)) for name, layer in layers.items()]
    rest = [layer for name, layer in made.layers.items() if name not in layers]
    if rest:
        dense = sum(layer.decomposition == "dense" for layer in rest)
        rows.append((f"and {len(rest)} more", "", f"{dense} dense" if dense else "", "", "", *_sums(rest), "", ""))
    share = f"{made.params / max(made.dense_params, 1):.1%}"
    costs = (change(made.dense_params, made.params), change(made.dense_macs, made.macs))
    total = ("all", "", share, "", "", *costs, "" if made.latency_ms is None else f"{made.latency_ms:.3g}", "")
    title = f"Plan by {made.method}" + ("" if made.level is None else f", level {made.level:.4g}")
    left = {name: layer.reason for name, layer in made.layers.items() if layer.reason}
    notes = _reasons(left, None if most is None else _REASONS)
    if made.calibration_bytes:
        notes.append(f"Calibration took up to {made.calibration_bytes / 1e6:.1f} MB of memory.")
    if made.latency_ms is not None and made.dense_latency_ms is not None:
        notes.append(latency_words(made))
    if made.compared:
        figures = ", ".join(f"{name} {value:.4g}" for name, value in made.compared.items())
        notes.append(f"Lost on held-out examples, refitted, by allocation: {figures}.")
    whole = Sheet(title, columns, rows, total, notes)
    return whole if most is None else _narrowed(whole)


def latency_words(made: Plan) -> str:
    """The latency of a plan that has one, in a sentence."""
    dense, small, about = made.dense_latency_ms or 0.0, made.latency_ms or 0.0, made.conditions
    ratio = dense / max(small, 1e-9)
    faster = f"{ratio:.2f} times as fast" if ratio >= WORTH else "not faster than noise"
    shapes = ", ".join("×".join(map(str, shape)) for shape in about.get("inputs", []))
    threads = about.get("threads", 1)
    return (
        f"Measured: {dense:.3g} ms dense, {small:.3g} ms compressed, {faster}; {about.get('runtime')}, "
        f"{threads} thread{'s' * (threads > 1)}, inputs {shapes}, batch norm folded."
    )


def cost_sheet(dense: Cost, small: Cost, notes: Sequence[str] = (), ms: tuple[float, float] | None = None) -> Sheet:
    """The table of parameters and MACs, dense and kept, and of the milliseconds where both networks were timed.

    Args:
        dense: cost of the dense network.
        small: of the compressed one.
        notes: below the table.
        ms: milliseconds of both; None where nobody measured.
    """
    pairs = (("parameters", dense.params, small.params), ("MACs", dense.macs, small.macs))
    rows = [(n, f"{a:,}", f"{b:,}", f"{b / a:.1%}") for n, a, b in pairs if a and b is not None]
    rows += [("milliseconds", f"{ms[0]:.3g}", f"{ms[1]:.3g}", f"{ms[1] / ms[0]:.1%}")] if ms else []
    return Sheet("Cost", ("", "Dense", "Kept", "Share"), rows, notes=notes)


def planned_ms(made: Plan) -> tuple[float, float] | None:
    """Milliseconds of the dense and the compressed network, of a plan that was made for a budget on latency."""
    dense, small = made.dense_latency_ms, made.latency_ms
    return None if dense is None or small is None else (dense, small)


def _report(made: Report, notes: Sequence[str] = (), ms: tuple[float, float] | None = None) -> list[Sheet]:
    seconds = ", ".join(f"{name} {value:.2f}" for name, value in made.seconds.items())
    errors = ", ".join(f"{name} {value:.4g}" for name, value in made.output_error.items())
    said = [f"Error of the outputs: {errors}."] if errors else []
    said += [f"Seconds: {seconds}."] if seconds else []
    said += [] if made.norms is None else [made.norms.sentence]
    return [cost_sheet(made.dense, made.small, [*said, *notes], ms)]


def _cells(layer: LayerPlan) -> tuple[str, ...]:
    """The cells of one layer, after its name."""
    low_rank = layer.rank is not None
    return (
        "" if layer.layer is None else "×".join(map(str, layer.layer.shape)),
        _becomes(layer),
        str(layer.rank) if low_rank else "",
        str(layer.slices) if low_rank else "",
        change(layer.dense_params, layer.params),
        change(layer.dense_macs, layer.macs),
        "" if layer.latency_ms is None else f"{layer.latency_ms:.3g}",
        "" if not low_rank else "?" if layer.error is None else f"{layer.error:.3f}",
    )


def _becomes(layer: LayerPlan) -> str:
    if layer.tied_to:
        return f"shares {layer.tied_to}"
    if layer.decomposition == "dense":
        return "dense"
    return layer.decomposition if layer.fold in (None, "channel") else f"low-rank, {layer.fold}"


def _largest_changes(layers: Mapping[str, LayerPlan], most: int) -> dict[str, LayerPlan]:
    """The layers that change most, in their own order; all of them where a row for the rest would save none."""
    if len(layers) <= most + 1:
        return dict(layers)
    size = {n: (abs(x.dense_params - x.params), x.dense_params, x.dense_macs or 0) for n, x in layers.items()}
    shown = set(sorted(layers, key=lambda name: size[name], reverse=True)[:most])
    return {name: layer for name, layer in layers.items() if name in shown}


def _sums(layers: Sequence[LayerPlan]) -> tuple[str, str]:
    """Parameters and MACs of several layers together, before and after."""
    params = change(sum(x.dense_params for x in layers), sum(x.params for x in layers))
    known = [x for x in layers if x.dense_macs is not None and x.macs is not None]
    return params, change(sum(x.dense_macs or 0 for x in known), sum(x.macs or 0 for x in known)) if known else ""


def _reasons(left: Mapping[str, str], most: int | None) -> list[str]:
    """A sentence for each reason why layers stay dense; with ``most``, for so many, and with the first name alone."""
    names: dict[str, list[str]] = {}
    for name, reason in left.items():
        names.setdefault(reason, []).append(name)
    if most is None:
        return [f"Dense, {reason}: {', '.join(found)}" for reason, found in names.items()]
    frequent = sorted(names, key=lambda reason: -len(names[reason]))
    firsts = {reason: _cut(names[reason][0], _NAME + 8) for reason in frequent}
    more = {reason: f" and {len(names[reason]) - 1} more" if len(names[reason]) > 1 else "" for reason in frequent}
    notes = [f"Dense, {reason}: {firsts[reason]}{more[reason]}" for reason in frequent]
    hidden = sum(len(names[reason]) for reason in frequent[most:])
    return notes[:most] + ([f"Dense for other reasons: {hidden}."] if hidden else [])


def _narrowed(sheet: Sheet) -> Sheet:
    """``sheet`` within `WIDTH`: no kernels, no empty columns, no column of ones; long names lose their beginning."""
    idle = {"Kernel": {row[1] for row in sheet.rows}, "Slices": {"1"}}
    kept = [
        i
        for i, title in enumerate(sheet.columns)
        if {row[i] for row in (*sheet.rows, sheet.total)} - idle.get(title, set()) - {""}
    ]
    columns, *rows, total = [tuple(row[i] for i in kept) for row in (sheet.columns, *sheet.rows, sheet.total)]
    becomes = columns.index("Becomes") if "Becomes" in columns else 0
    rows = [tuple(_cut(cell, _NAME + 8) if i == becomes else cell for i, cell in enumerate(row)) for row in rows]
    others = sum(2 + max(map(len, cells)) for cells in list(zip(columns, *rows, total, strict=True))[1:])
    rows = [(_cut(row[0], max(_NAME, WIDTH - others)), *row[1:]) for row in rows]
    return Sheet(sheet.title, columns, rows, total, sheet.notes)


def _cut(text: str, width: int) -> str:
    """The end of a text that is too long: the ends of names differ, their beginnings do not."""
    return text if len(text) <= width else f"…{text[1 - width :]}"


def _costs(made: Plan) -> tuple[Cost, Cost]:
    return Cost(made.dense_params, made.dense_macs), Cost(made.params, made.macs)


def _totals(dense: Cost, small: Cost) -> str:
    macs = change(dense.macs, small.macs)
    return f"params {change(dense.params, small.params)}" + (f", MACs {macs}" if macs else "")


def change(before: int | None, after: int | None) -> str:
    """Two counts as ``73.7k→18.4k``; one number where nothing changes."""
    if before is None or after is None:
        return ""
    return short(after) if before == after else f"{short(before)}→{short(after)}"


def short(number: int) -> str:
    """A count with three digits and a unit, as ``18.4k``."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            scaled = number / size
            return f"{scaled:.{max(0, 3 - len(str(int(scaled))))}f}{unit}"
    return str(number)


# ---- how it is drawn


def table(columns: Sequence[str], *, left: int = 1) -> Table:
    """An empty table: the first ``left`` columns to the left, numbers to the right and never wrapped."""
    made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for position, column in enumerate(columns):
        if position < left:
            made.add_column(column, overflow="fold")
        else:
            made.add_column(column, justify="right", no_wrap=True)
    return made


def titled(title: str, made: Table, notes: Iterable[str] = ()) -> Group:
    """A table under its title, over its notes and an empty line. Rich would wrap a title to the table's width."""
    return Group(Text(title, style="bold"), made, *map(Text, notes), "")


def draw(sheet: Sheet) -> Group:
    """A table for a terminal. Names stand as they are, whatever rich would read in their brackets."""
    made = table(sheet.columns, left=sheet.words)
    for row in sheet.rows:
        made.add_row(*map(Text, row))
    if sheet.total:
        made.add_section()
        made.add_row(*map(Text, sheet.total))
    return titled(sheet.title, made, sheet.notes)


def text(shown: Iterable[Sheet]) -> str:
    """Tables as plain text, `WIDTH` columns wide, whatever stands around: a terminal, a notebook, a file."""
    file = StringIO()
    console = Console(
        file=file, width=WIDTH, color_system=None, force_terminal=False, force_jupyter=False, highlight=False
    )
    for sheet in shown:
        console.print(draw(sheet))
    return "\n".join(each.rstrip() for each in file.getvalue().rstrip().splitlines())


def html(shown: Iterable[Sheet]) -> str:
    """Tables as HTML; what is in them is text, whoever named the layers."""
    return "\n".join(map(_html, shown))


def _html(sheet: Sheet) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        sides = ("left" if i < sheet.words else "right" for i in range(len(cells)))
        return "".join(
            f'<{tag} style="text-align:{side}">{escape(cell)}</{tag}>' for side, cell in zip(sides, cells, strict=True)
        ).join(("<tr>", "</tr>"))

    body = "".join(row(cells, "td") for cells in sheet.rows)
    foot = f"<tfoot>{row(sheet.total, 'th')}</tfoot>" if sheet.total else ""
    notes = "".join(f"<div>{escape(note)}</div>" for note in sheet.notes)
    return (
        f"<table><caption>{escape(sheet.title)}</caption><thead>{row(sheet.columns, 'th')}</thead>"
        f"<tbody>{body}</tbody>{foot}</table>{notes}"
    )
