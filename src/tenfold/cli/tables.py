"""What people see: tables of plans, figures and costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from tenfold.bench.budget_search import Probe
from tenfold.cli.progress import Stage
from tenfold.layers.cost import Cost
from tenfold.plans.plan import LayerPlan, Plan


def table(columns: Sequence[str], *, left: int = 1) -> Table:
    """An empty table: the first ``left`` columns to the left, numbers to the right and never wrapped."""
    made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for position, column in enumerate(columns):
        if position < left:
            made.add_column(column, overflow="fold")
        else:
            made.add_column(column, justify="right", no_wrap=True)
    return made


def titled(title: str, made: Table) -> Group:
    """A table under its title, with an empty line after it. Rich would wrap a title of its own to the table's width."""
    return Group(Text(title, style="bold"), made, "")


def described(method: str, rows: Sequence[dict[str, Any]]) -> list[Group]:
    """What a method does to which tensor while training; nothing where it has nothing to say."""
    if not rows:
        return []
    made = table([name.capitalize() for name in rows[0]], left=2)
    for row in rows:
        cells = ("" if v is None else f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values())
        made.add_row(*cells)
    return [titled(f"{method}, while training", made)]


def stages(title: str, rows: Sequence[Stage]) -> Group:
    """Accuracy on validation and test, stage by stage."""
    made = table(("Accuracy", "Validation", "Test"))
    for row in rows:
        made.add_row(row.name, f"{row.validation.accuracy:.2%}", f"{row.test.accuracy:.2%}")
    return titled(title, made)


def probes(tried: Sequence[Probe], least: float, points: float) -> Group:
    """What the guard tried, in the order that it tried it in."""
    made = table(("Budget", "Kept", "Validation", "Enough"), left=0)
    for probe in tried:
        made.add_row(
            f"{probe.budget:.1%}", f"{probe.kept:.1%}", f"{probe.accuracy:.2%}", "yes" if probe.enough else "no"
        )
    return titled(f"Guard {points:g} points: validation accuracy, batch norm re-estimated, at least {least:.2%}", made)


def costs(dense: Cost, small: Cost) -> Group:
    """Parameters and MACs, dense and kept."""
    made = table(("", "Dense", "Kept", "Share"))
    for name, before, after in (("parameters", dense.params, small.params), ("MACs", dense.macs, small.macs)):
        if before and after is not None:
            made.add_row(name, f"{before:,}", f"{after:,}", f"{after / before:.1%}")
    return titled("Cost", made)


def plan(made: Plan) -> Group:
    """What each layer becomes; under the table, why some stay dense."""
    columns = ("Layer", "Kernel", "Becomes", "Rank", "Slices", "Params", "MACs", "Error")
    shown = table(columns)
    reasons: dict[str, list[str]] = {}
    for name, layer in made.layers.items():
        shown.add_row(name, *_row(layer))
        if layer.reason:
            reasons.setdefault(layer.reason, []).append(name)
    shown.add_section()
    share = f"{made.params / max(made.dense_params, 1):.1%}"
    costs = (change(made.dense_params, made.params), change(made.dense_macs, made.macs))
    shown.add_row("all", "", share, "", "", *costs, "")
    title = f"Plan by {made.method}" + ("" if made.level is None else f", level {made.level:.4g}")
    notes = [Text(f"Dense, {reason}: {', '.join(names)}") for reason, names in reasons.items()]
    if made.calibration_bytes:
        notes.append(Text(f"Calibration: its moments took {made.calibration_bytes / 1e6:.1f} MB of memory."))
    return Group(Text(title, style="bold"), shown, *notes, "")


def _row(layer: LayerPlan) -> tuple[str, ...]:
    """The cells of one layer, after its name."""
    low_rank = layer.rank is not None
    return (
        "" if layer.layer is None else "×".join(map(str, layer.layer.shape)),
        _becomes(layer),
        str(layer.rank) if low_rank else "",
        str(layer.slices) if low_rank else "",
        change(layer.dense_params, layer.params),
        change(layer.dense_macs, layer.macs),
        "" if not low_rank else "?" if layer.error is None else f"{layer.error:.3f}",
    )


def change(before: int | None, after: int | None) -> str:
    """``73.7k→18.4k``; one number where nothing changes."""
    if before is None or after is None:
        return ""
    return short(after) if before == after else f"{short(before)}→{short(after)}"


def short(number: int) -> str:
    """A count with three digits and a unit."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            scaled = number / size
            return f"{scaled:.{max(0, 3 - len(str(int(scaled))))}f}{unit}"
    return str(number)


def plan_dict(made: Plan) -> dict[str, Any]:
    """The plan for ``--json``: every layer with what it becomes, its cost and its reason."""
    layers = {
        name: {
            "kernel": None if x.layer is None else list(x.layer.shape),
            "decomposition": x.decomposition,
            "rank": x.rank,
            "slices": x.slices,
            "fold": x.fold,
            "params": {"dense": x.dense_params, "kept": x.params},
            "macs": {"dense": x.dense_macs, "kept": x.macs},
            "error": x.error,
            "reason": x.reason,
            "tied_to": x.tied_to,
        }
        for name, x in made.layers.items()
    }
    about = {"level": made.level, "measure": made.measure, "calibration_bytes": made.calibration_bytes}
    return about | {"layers": layers}


def cost_dict(dense: Cost, small: Cost) -> dict[str, Any]:
    """Costs for ``--json``."""
    kept = {
        name: after / before
        for name, before, after in (("params", dense.params, small.params), ("macs", dense.macs, small.macs))
        if before and after is not None
    }
    return {
        "dense": {"params": dense.params, "macs": dense.macs},
        "kept": {"params": small.params, "macs": small.macs},
        "share": kept,
    }


def _becomes(layer: LayerPlan) -> str:
    if layer.tied_to:
        return f"shares {layer.tied_to}"
    if layer.decomposition == "dense":
        return "dense"
    return layer.decomposition if layer.fold in (None, "channel") else f"low-rank, {layer.fold}"
