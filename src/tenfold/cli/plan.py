"""``tenfold plan``: what ``compress`` would do, without doing it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tenfold.cli import parse, tables
from tenfold.cli.command import Outcome, verb
from tenfold.cli.compression import PlanSource, Timed, checked, needed
from tenfold.cli.network_options import takes_network
from tenfold.cli.opening import open_network
from tenfold.cli.options import (
    Align,
    Exclude,
    Fields,
    Force,
    LatencyBatch,
    Limits,
    MaybeMethod,
    Runtime,
    Target,
    Threads,
    check_file,
)
from tenfold.cli.progress import Steps
from tenfold.cli.source import NetworkSource
from tenfold.errors import ArgumentError
from tenfold.files import atomic_file
from tenfold.layers.cost import Cost
from tenfold.methods.contract.builder import plan as make_plan
from tenfold.methods.contract.own import record
from tenfold.plans.rendering import planned_ms

NAME = "plan"
EXAMPLES = (
    "Examples:\n\n"
    "tenfold plan runs/a --method alds --budget params=0.25\n\n"
    "tenfold plan runs/a --method svd --set fold=spatial --budget macs=0.5 --exclude linear\n\n"
    "tenfold plan runs/a --method alds --budget params=0.25 --out plan.json\n\n"
    "tenfold plan --model net.py:make --weights w.safetensors --inputs net.py:batches --budget macs=0.5"
)
OutFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write the plan, to be edited and built by tenfold compress --plan FILE."),
]


@verb
@takes_network
def command(
    *,
    source: NetworkSource,
    method: MaybeMethod = None,
    fields: Fields = None,
    budget: Limits = None,
    target: Target = None,
    exclude: Exclude = None,
    runtime: Runtime = None,
    threads: Threads = 1,
    latency_batch: LatencyBatch = None,
    align: Align = None,
    out: OutFile = None,
    force: Force = False,
) -> Outcome:
    """Show what each layer of a run or network would become. A dry run: nothing is written, but for --out."""
    made = parse.method_or(source.default_method, method, fields or ())
    limits = parse.budget(budget or ())
    parse.require_budget(made, limits)
    timed = checked(Timed(runtime or "eager", threads, latency_batch), limits)
    if out is not None:
        check_file(out, force=force)
        if made.needs_data:
            raise ArgumentError(
                f"`--out` cannot hold a plan by {made.name}: its factors come from data. Compress at once; or take a "
                "method that needs none: --method alds."
            )
    needs, reason = needed(PlanSource(record(made), made, limits))
    opened = open_network(source, needs=needs, reason=reason)
    with Steps().step("planning"):
        planned = make_plan(
            opened.model,
            made,
            limits,
            example_inputs=opened.example if timed.batch is None else opened.batch(timed.batch),
            data=opened.calibration(source.recipe) if made.needs_data else None,
            target_modules=parse.selection(target or ()),
            exclude_modules=parse.selection(exclude or ()),
            runtime=timed.runtime,
            threads=timed.threads,
            align=align,
        )
    if out is not None:
        with atomic_file(out) as temporary:
            temporary.write_text(planned.to_json(), encoding="utf-8")
    dense, small = Cost(planned.dense_params, planned.dense_macs), Cost(planned.params, planned.macs)
    body = {
        "command": NAME,
        "run": str(source),
        "method": record(made),
        "budget": planned.budget,
        "cost": tables.cost_dict(dense, small),
        "plan": tables.plan_dict(planned),
        "file": None if out is None else str(out),
    }
    shown: list[Any] = [tables.plan(planned), tables.costs(dense, small, planned_ms(planned))]
    if out is not None:
        shown.append(f"Written to {out}. Next: tenfold compress {source.named.words} --plan {out} --out FOLDER")
    return Outcome(body, shown)
