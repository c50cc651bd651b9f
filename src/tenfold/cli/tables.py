"""What people see: tables of plans, figures and costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group
from rich.text import Text

from tenfold.layers.cost import Cost
from tenfold.plans.plan import Plan
from tenfold.plans.rendering import cost_sheet, draw, plan_sheet, table, titled


def described(method: str, rows: Sequence[dict[str, Any]]) -> list[Group]:
    """Table of what a method does to which tensor in training; nothing where `Method.describe` is empty."""
    if not rows:
        return []
    made = table([name.capitalize() for name in rows[0]], left=2)
    for row in rows:
        cells = ("" if v is None else f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values())
        made.add_row(*map(Text, cells))  # rich would read brackets in names as its own
    return [titled(f"{method}, while training", made)]


def costs(dense: Cost, small: Cost, ms: tuple[float, float] | None = None) -> Group:
    """Table of parameters and MACs, dense and kept, and of the milliseconds where both networks were timed."""
    return draw(cost_sheet(dense, small, ms=ms))


def plan(made: Plan) -> Group:
    """Table of what each layer becomes; under it, why some stay dense."""
    return draw(plan_sheet(made))


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
            "ms": x.latency_ms,
            "error": x.error,
            "reason": x.reason,
            "tied_to": x.tied_to,
        }
        for name, x in made.layers.items()
    }
    about = {"level": made.level, "measure": made.measure, "gap": made.gap}
    about |= {"calibration_bytes": made.calibration_bytes}
    about |= {"dense_ms": made.dense_latency_ms, "ms": made.latency_ms, "conditions": made.conditions}
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
