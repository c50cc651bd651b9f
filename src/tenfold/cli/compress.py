"""``tenfold compress``: a run, made smaller."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import torch
import typer

from tenfold.bench.latency import Comparison
from tenfold.cli import figures, parse, runs, tables
from tenfold.cli.command import Outcome, verb
from tenfold.cli.compression import CompressionOutcome, PlanSource, Timed, needed, way_to, work
from tenfold.cli.network_options import takes_network
from tenfold.cli.opening import Opened, open_network
from tenfold.cli.options import (
    Align,
    Exclude,
    Fields,
    Force,
    LatencyBatch,
    Limits,
    MaybeMethod,
    Out,
    Runtime,
    Target,
    Threads,
    recipe_options,
)
from tenfold.cli.source import NetworkSource
from tenfold.errors import ArgumentError, check
from tenfold.files import only_writer
from tenfold.layers.norm_choice import Norms
from tenfold.train import Recipe
from tenfold.train.engine import engine

NAME = "compress"
EXAMPLES = (
    "Examples:\n\n"
    "tenfold compress runs/a --budget macs=0.5 --out runs/b\n\n"
    "tenfold compress runs/a --method alds --set measure=fro --budget params=0.3 --budget macs=0.4 --out runs/c\n\n"
    "tenfold compress runs/a --budget params=0.2 --exclude linear --finetune 5 --distill 0.5 --out runs/d\n\n"
    "tenfold compress runs/a --budget macs=0.35 --distill-steps 100 --out runs/h\n\n"
    "tenfold compress runs/a --guard -1.0 --out runs/e\n\n"
    "tenfold plan runs/a --method alds --budget params=0.25 --out plan.json; "
    "tenfold compress runs/a --plan plan.json --refit both --out runs/f"
    "\n\n"
    "tenfold compress --model net.py:make --weights w.pt --inputs net.py:batches --score net.py:score "
    "--budget macs=0.5 --out runs/g"
)
Guard = Annotated[
    float | None,
    typer.Option(
        metavar="POINTS",
        help="In place of --budget: -1.0 finds, by bisection, the smallest share of the parameters at which the "
        "validation accuracy, refitted and with batch norm as --refit and --norms say, before any recovery, is at most "
        "one point below the run's; of a --score, a point is 0.01. Accuracy may go up and down with the budget: the "
        "smallest probe that is enough is taken.",
        rich_help_panel="Compression",
    ),
]
Resolution = Annotated[
    float,
    typer.Option(metavar="SHARE", help="How near --guard comes to the border.", rich_help_panel="Compression"),
]
PlanFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="In place of --method and --budget: a plan, perhaps edited, built as written. "
        "tenfold plan --out FILE writes one.",
        rich_help_panel="Compression",
    ),
]
RefitMode = Annotated[
    str | None,
    typer.Option(
        "--refit",
        metavar="FACTORS",
        help="Fit the factors, layer after layer, to the outputs of the dense layers, on training data or --inputs, "
        "without labels: `last` of each layer, or `both`. Batch norm keeps its statistics.",
        rich_help_panel="Compression",
        show_default=False,
    ),
]
DistillSteps = Annotated[
    int,
    typer.Option(
        metavar="STEPS",
        min=0,
        help="Then so many steps without labels, one batch of training data or --inputs each, towards the outputs of "
        "the dense network; 100 are a good number. Batch norm is fixed.",
        rich_help_panel="Compression",
    ),
]
Finetune = Annotated[
    int,
    typer.Option(
        metavar="EPOCHS",
        min=0,
        help="Epochs of recovery, with the learning rate rewound to the last EPOCHS of the training's schedule.",
        rich_help_panel="Recovery",
    ),
]
NormsOption = Annotated[
    str,
    typer.Option(
        "--norms",
        metavar="auto|keep|reestimate",
        help="Batch-norm statistics after a compression: auto estimates them from three in four of 1,024 training "
        "examples or --inputs, and keeps what is nearer to the network before on the others.",
        rich_help_panel="Compression",
    ),
]
_TEACHING = ("distill", "temperature")
_FIXED = ("epochs", "total", "schedule", "warmup", "milestones", "gamma")
_RECOVERY = [f for f in Recipe.__dataclass_fields__ if f not in _FIXED]


@verb
@takes_network
@recipe_options(_RECOVERY, panel="Recovery", shown="as in training", plain=_TEACHING)
def command(
    *,
    source: NetworkSource,
    out: Out,
    method: MaybeMethod = None,
    fields: Fields = None,
    budget: Limits = None,
    guard: Guard = None,
    resolution: Resolution = 0.01,
    plan: PlanFile = None,
    target: Target = None,
    exclude: Exclude = None,
    refit: RefitMode = None,
    distill_steps: DistillSteps = 0,
    runtime: Runtime = None,
    threads: Threads = 1,
    latency_batch: LatencyBatch = None,
    align: Align = None,
    norms: NormsOption = "auto",
    finetune: Finetune = 0,
    force: Force = False,
    recipe: dict[str, Any],
) -> Outcome:
    """Compress a run, or a network of your own: within a --budget, as far as a --guard allows, or by a --plan.

    Accuracy, or the --score, is shown right after compression; after what --refit and --distill-steps ask for; after
    batch norm is re-estimated on training data or --inputs where that helps (see --norms); and after the recovery that
    --finetune asks for. With --distill the run itself teaches the recovery.
    """
    check(norms in get_args(Norms), "--norms", f"one of {', '.join(get_args(Norms))}", norms)
    way = way_to(
        method=method,
        default=source.default_method,
        fields=fields or (),
        budget=budget or (),
        guard=guard,
        resolution=resolution,
        plan=plan,
        selecting=bool(target or exclude),
        refit=refit,
        steps=distill_steps,
        timed=Timed(runtime or "eager", threads, latency_batch),
        align=align,
    )
    with only_writer(out):
        runs.check_out(out, force=force, source=source.named.run)
        if not source.settings.data:
            _refuse_training(finetune, recipe)
        recovery = _recovery(source.recipe, finetune, recipe)
        needs, reason = needed(way)
        torch.manual_seed(recovery.seed)
        opened = open_network(source, needs=needs, reason=reason)
        settings = replace(
            opened.settings,
            command=NAME,
            method=way.record,
            budget={} if way.budget is None else way.budget.limits,
            target=parse.selection(target or ()),
            exclude=parse.selection(exclude or ()),
            source=None if source.named.run is None else str(source.named.run),
            finetune=finetune,
            recovery=asdict(recovery) if finetune else {},
            guard=guard,
            plan=None if plan is None else str(plan),
            refit=refit,
            distill_steps=distill_steps,
        )
        done = work(opened, way, settings, recovery, cast("Norms", norms))
        figures = _results(out, settings, way, done)
        body = runs.write_run(out, settings, done.model, done.result.plan, figures)
        return Outcome(body, _shown(out, opened, way, done))


def _refuse_training(finetune: int, recipe: dict[str, Any]) -> None:
    """Refuse what trains, or says how to, where there is no data set."""
    given = ["finetune"] if finetune else [name for name in recipe if name != "seed"]
    if given:
        raise ArgumentError(
            f"`--{given[0].replace('_', '-')}` must come with a data set, whose labels the recovery "
            f"learns: give --data, or train what comes out in a loop of your own."
        )


def _recovery(recipe: Recipe, epochs: int, changes: dict[str, Any]) -> Recipe:
    """The recipe of the recovery; where there is none, still checked."""
    changed = replace(recipe, **changes)
    for name in changed.left_open:
        check(False, "--" + name.replace("_", "-"), "said: a recovery is as the training was", changes.get(name))
    total = recipe.epochs if recipe.total is None else recipe.total
    check(epochs <= total, "--finetune", f"at most {total}, the epochs of the training to rewind", epochs)
    for name in _TEACHING:
        check(epochs > 0 or name not in changes, "--" + name, "used with --finetune EPOCHS", changes.get(name))
    softens = "temperature" not in changes or changed.distill > 0
    check(softens, "--temperature", "used with --distill", changes.get("temperature"))
    if not epochs:
        return changed
    with engine(changed.precision):  # whether this machine can do it, before any work
        return changed.rewound(epochs)


def _results(out: Path, settings: runs.Settings, way: PlanSource, done: CompressionOutcome) -> dict[str, Any]:
    report = done.result.report
    guarded = {"points": way.guard, "least": done.least, "resolution": way.resolution}
    return {
        "command": NAME,
        "run": str(out),
        "source": settings.source,
        "network": {"model": settings.network, "weights": settings.weights, "inputs": settings.inputs}
        | {"score": settings.score},
        "method": settings.method,
        "budget": settings.budget,
        "guard": None if way.guard is None else guarded | {"probes": [asdict(probe) for probe in done.probes]},
        "plan_file": settings.plan,
        "refit": settings.refit,
        "distill_steps": settings.distill_steps,
        "output_error": report.output_error,
        "finetune": settings.finetune,
        "recovery": settings.recovery,
        "norms": None if report.norms is None else asdict(report.norms),
        "stages": [stage.to_dict() for stage in done.stages],
        "cost": tables.cost_dict(report.dense, report.small),
        "latency": asdict(done.latency) if isinstance(done.latency, Comparison) else None,
        "plan": tables.plan_dict(done.result.plan),
        "history": [asdict(epoch) for epoch in done.history],
        "seconds": report.seconds | {"recover": done.seconds},
    }


def _shown(out: Path, opened: Opened, way: PlanSource, done: CompressionOutcome) -> list[Any]:
    report, own = done.result.report, opened.settings.score is not None
    shown: list[Any] = (
        [] if done.least is None else [figures.probes(done.probes, done.least, way.guard or 0.0, own=own)]
    )
    shown += [tables.plan(done.result.plan), *figures.stages(opened.title, done.stages)]
    timed = done.latency if isinstance(done.latency, Comparison) else None
    shown.append(tables.costs(report.dense, report.small, None if timed is None else (timed.dense_ms, timed.small_ms)))
    if done.latency is not None:
        shown.append(figures.faster(done.latency))
    if report.output_error:
        errors = ", ".join(f"{name} {value:.4g}" for name, value in report.output_error.items())
        shown.append(f"Error of the outputs: {errors}.")
    if not done.stages:
        shown.append("How good it is was not measured: --score FILE.py:FUNCTION says.")
    if report.norms is not None:
        shown.append(report.norms.sentence)
    if done.kept_norms:
        shown.append("Batch norm keeps the statistics of the dense network: --inputs FILE.py:NAME re-estimates them.")
    trust = " --trust" if set(runs.own_code(opened.settings)) - {"method"} else ""
    return [*shown, f"Saved in {out}. Next: tenfold bench {out}{trust}"]
