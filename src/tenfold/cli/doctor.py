"""``tenfold doctor``: which layers can pay on this machine, and why others cannot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import torch
import typer
from rich.text import Text
from torch import nn

from tenfold.bench.diagnosis import Diagnosis, Examined, LayerTiming
from tenfold.bench.doctor import BLOCK, diagnose
from tenfold.cli import parse, tables
from tenfold.cli.bench import place
from tenfold.cli.command import Outcome, verb
from tenfold.cli.network_options import takes_network
from tenfold.cli.opening import Opened, open_network
from tenfold.cli.options import Exclude, Fields, Limits, MaybeMethod, Target, with_default
from tenfold.cli.progress import Steps
from tenfold.cli.source import NetworkSource
from tenfold.errors import check
from tenfold.methods.contract.builder import plan as make_plan
from tenfold.plans.plan import Plan

NAME = "doctor"
EXAMPLES = (
    "Examples:\n\n"
    "tenfold doctor runs/a\n\n"
    "tenfold doctor runs/a --method alds --budget params=0.5\n\n"
    "tenfold doctor runs/a --batch-size 32 --threads 4 --fold spatial\n\n"
    "tenfold doctor runs/a --target conv3 --rungs 12 --rounds 21 --json"
)


@verb
@takes_network
def command(
    *,
    source: NetworkSource,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help=with_default("Inputs in the batch.", "1; the first of --inputs")),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads that torch may use.")] = 1,
    fold: Annotated[str, typer.Option(help="Of the factor pairs: channel, spatial, spatial-t or input.")] = "channel",
    rungs: Annotated[int, typer.Option(min=2, help="Ranks that each layer is timed at.")] = 6,
    rounds: Annotated[int, typer.Option(min=3, help="Turns of each measurement; the median counts.")] = 7,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    method: MaybeMethod = None,
    fields: Fields = None,
    budget: Limits = None,
    target: Target = None,
    exclude: Exclude = None,
) -> Outcome:
    """Say which layers of a run can pay here: break-even ranks by parameters, MACs and time, and reasons.

    Every layer is timed in turns with factor pairs in its place, on inputs of the sizes that it sees; with a --budget,
    or for a compressed run, also in the form that the plan gives it.
    """
    where = place(device)
    opened = open_network(source, needs=["inputs"], reason="to time the layers")
    model = opened.model.to(where)
    x = opened.batch(batch_size)
    planned = _plan(source, opened, model, method, fields or (), budget or (), target or (), exclude or ())
    steps = Steps()
    with steps.step("measuring"):
        found = diagnose(
            model,
            x,
            fold=fold,
            rungs=rungs,
            rounds=rounds,
            threads=threads,
            target_modules=parse.selection(target or ()),
            exclude_modules=parse.selection(exclude or ()),
            plan=planned,
            report=lambda done, whole, name: steps.say(f"layer {done + 1} of {whole}: {name}"),
        )
    body: dict[str, Any] = {
        "command": NAME,
        "run": str(source),
        "device": str(where),
        "torch": torch.__version__,
        "block": BLOCK,
        "reachable": found.reachable,
        "rest": found.rest,
        "planned_ms": found.planned_ms,
    } | asdict(found)
    return Outcome(body, _shown(found, f"{where}, batch {found.batch}, {threads} thread(s)"))


def _plan(
    source: NetworkSource,
    opened: Opened,
    model: nn.Module,
    method: str | None,
    fields: Sequence[str],
    budget: Sequence[str],
    target: Sequence[str],
    exclude: Sequence[str],
) -> Plan | None:
    """The plan whose forms are timed: of a method within a budget, or of the run; None for neither."""
    limits = parse.budget(budget)
    if limits is None:
        check(method is None, "--method", "given with a --budget: it says what is built", method)
        return opened.plan
    made = parse.method_or(source.default_method, method, fields)
    with Steps().step("planning"):
        return make_plan(
            model,
            made,
            limits,
            example_inputs=opened.example,
            data=opened.calibration(source.recipe) if made.needs_data else None,
            target_modules=parse.selection(target),
            exclude_modules=parse.selection(exclude),
        )


def _shown(found: Diagnosis, where: str) -> list[Any]:
    columns = ("Layer", "Kernel", "ms", "Share", "Even: params", "MACs", "time", "At rank", "Speed-up", "MACs promise")
    if found.planned_ms is not None:
        columns = (*columns, "Planned", "ms", "Speed-up")
    made = tables.table(columns)
    reasons: dict[str, list[str]] = {}
    for layer in found.layers:
        if layer.reason:
            reasons.setdefault(layer.reason, []).append(layer.name)
        if layer.ms is not None:
            made.add_row(layer.name, *_row(layer), *(_planned(layer) if found.planned_ms is not None else ()))
    made.add_section()
    made.add_row("everything else", "", f"{found.rest * found.ms:.3f}", f"{found.rest:.1%}")
    made.add_row("all", "", f"{found.ms:.3f}", f"{1:.1%}")
    notes = [
        Text(f"The whole model takes {found.ms:.3f} ms; {found.reachable:.0%} of it in layers that can pay."),
        Text("Even: the largest rank that is still cheaper than dense, by parameters, by MACs, and by the clock here."),
    ]
    if found.planned_ms is not None:
        ratio = found.ms / found.planned_ms
        notes.append(Text(f"As planned, layers and everything else add up to {found.planned_ms:.3f} ms, {ratio:.2f}×."))
    uneven = [layer for layer in found.layers if layer.uneven]
    if uneven:
        worst = max(uneven, key=lambda layer: layer.step or 0.0)
        rank = worst.step_rank or 0
        notes.append(
            Text(
                f"Ranks in steps of {BLOCK}: one rank more takes longer in {len(uneven)} layer(s), "
                f"in {worst.name} {worst.step:.2f} times as long at {rank + 1} as at {rank}."
            )
        )
    notes += [Text(f"Cannot pay, {reason}: {', '.join(names)}") for reason, names in reasons.items()]
    return [tables.titled(f"Latency by layer; {where}; fold {found.fold}", made), *notes]


def _row(layer: Examined) -> tuple[str, ...]:
    """The cells of one layer; the rank shown is the one nearest to half of what saves parameters."""
    middle = _middle(layer)
    return (
        "×".join(map(str, layer.kernel or ())),
        f"{layer.ms:.3f}",
        f"{layer.share or 0.0:.1%}",
        _rank(layer.even_params, layer),
        _rank(layer.even_macs, layer),
        _rank(layer.even_ms, layer),
        "" if middle is None else str(middle.rank),
        "" if middle is None else f"{middle.speedup:.2f}×",
        "" if middle is None else f"{middle.predicted:.2f}×",
    )


def _planned(layer: Examined) -> tuple[str, ...]:
    """The cells of a layer as planned."""
    if layer.planned is None:
        return "dense", "", ""
    return layer.planned.form, f"{layer.planned.ms:.3f}", f"{layer.planned.speedup:.2f}×"


def _middle(layer: Examined) -> LayerTiming | None:
    half = layer.even_params / 2
    return min(layer.timings, key=lambda timing: abs(timing.rank - half), default=None)


def _rank(rank: int, layer: Examined) -> str:
    return f"{rank} of {layer.full_rank}" if rank else "none"
