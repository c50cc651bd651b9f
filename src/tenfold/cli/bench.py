"""``tenfold bench``: dense against compressed, on this machine."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import torch
import typer

from tenfold.bench.latency import Benchmark, Comparison, benchmark
from tenfold.cli import tables
from tenfold.cli.command import Outcome, verb
from tenfold.cli.network_options import takes_network
from tenfold.cli.opening import open_network
from tenfold.cli.option_names import renamed
from tenfold.cli.options import with_default
from tenfold.cli.progress import Steps
from tenfold.cli.source import NetworkSource
from tenfold.errors import ArgumentError, TenfoldError
from tenfold.layers.cost import cost
from tenfold.layers.swap import structure_of, to_dense
from tenfold.runtimes import at_hand, get_runtime
from tenfold.runtimes.optimize import CONTIGUOUS
from tenfold.runtimes.timing import WORTH

NAME = "bench"
EXAMPLES = (
    "Examples:\n\n"
    "tenfold bench runs/b\n\n"
    "tenfold bench runs/b --batch-size 1 --batch-size 64 --threads 2 --rounds 50\n\n"
    "tenfold bench runs/b --runtime eager,compile,onnxruntime"
)

_SHORT = 0.8
"""Share of the promised speed-up below which the doctor is recommended."""


@verb
@takes_network
def command(
    *,
    source: NetworkSource,
    batch_size: Annotated[
        list[int] | None,
        typer.Option(min=1, help=with_default("Inputs in a batch; repeatable.", "1 and 32; the first of --inputs")),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads that torch may use.")] = 1,
    rounds: Annotated[int, typer.Option(min=3, help="Pairs of measurements; the median counts.")] = 30,
    runtime: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help=with_default(
                "eager, compile, onnxruntime: each measures both networks, and the best of one is set beside the best "
                "of the other.",
                "eager, and onnxruntime where it is installed",
            ),
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
) -> Outcome:
    """Measure a compressed run against its dense equivalent: interleaved, medians, beside what the MACs promise.

    Both are optimised for inference alike: batch norms folded, memory format and form of sliced layers as measured
    fastest. With one thread on the CPU its own time counts, not that of other programs.
    """
    where = place(device)
    chosen = _runtimes(runtime, where)
    opened = open_network(source, needs=["inputs"], reason="to be timed")
    if not structure_of(opened.model):
        words = source.named.words
        raise ArgumentError(f"'{source}' has no compressed layer to measure: run tenfold compress {words} first.")
    small = opened.model.to(where)
    dense = to_dense(small)
    sizes = batch_size or ([1, 32] if opened.inputs is None else [None])
    inputs = [opened.batch(n) for n in sizes]
    steps, found, notes = Steps(len(sizes)), [], []
    for n, x in zip(sizes, inputs, strict=True):
        with steps.step("measuring" if n is None else f"batches of {n}"):
            try:
                found.append(benchmark(dense, small, x, runtimes=chosen, threads=threads, rounds=rounds))
            except TenfoldError as error:
                if runtime is not None or len(chosen) == 1 or isinstance(error, ArgumentError):
                    raise
                notes.append(f"Not measured in {chosen[-1]}: {error}")  # it was not asked for: eager will do
                chosen = chosen[:1]
                found.append(benchmark(dense, small, x, runtimes=chosen, threads=threads, rounds=rounds))
    before, after = cost(dense, opened.example), cost(small, opened.example)
    predicted = (before.macs or 0) / max(after.macs or 0, 1)
    body: dict[str, Any] = {
        "command": NAME,
        "run": str(source),
        "device": str(where),
        "threads": threads,
        "torch": torch.__version__,
        "predicted_speedup": predicted,
        "cost": tables.cost_dict(before, after),
        "latency": [asdict(row) for made in found for row in made.each],
        "best": [asdict(made.best) for made in found],
    }
    shown: list[Any] = [_table(found, predicted, f"{where}, {threads} thread(s)"), *notes]
    shown.append(tables.costs(before, after))
    least = min(made.best.speedup for made in found)
    if least < WORTH:
        shown.append(f"Not faster than dense, or by no more than noise ({least:.2f}×).")
    if least < _SHORT * predicted:
        shown.append(f"Slower than its MACs promise. Layer by layer: tenfold doctor {source.named.words}")
    return Outcome(body, shown)


def _runtimes(words: str | None, where: torch.device) -> tuple[str, ...]:
    """The runtimes that the option names; without it those that are at hand."""
    if words is None:
        return at_hand() if where.type == "cpu" else ("eager",)
    with renamed(runtime="--runtime"):
        return tuple(get_runtime(word.strip()).name for word in words.split(","))


def _table(found: list[Benchmark], predicted: float, where: str) -> Any:
    made = tables.table(("Batch", "Runtime", "Dense ms", "Compressed ms", "Speed-up", "Middle half"), left=2)
    for each in found:
        for row in each.each:
            made.add_row(*_cells(row, row.small_form.runtime))
        if len(each.each) > 1:
            best = dict.fromkeys((each.best.dense_form.runtime, each.best.small_form.runtime))
            made.add_row(*_cells(each.best, f"best: {' vs '.join(best)}"), style="bold")
        made.add_section()
    title = f"Latency of a forward pass, median of {found[0].best.rounds} pairs; {where}; MACs promise {predicted:.2f}×"
    return tables.titled(title, made, _about(found))


def _cells(row: Comparison, runtime: str) -> tuple[str, ...]:
    low, high = row.speedup_quartiles
    times = (f"{row.dense_ms:.3f}", f"{row.small_ms:.3f}", f"{row.speedup:.2f}×")
    return str(row.batch), runtime, *times, f"{low:.2f} to {high:.2f}"


def _about(found: list[Benchmark]) -> list[str]:
    """What dense and compressed were measured as, in a line each."""
    lines = ["Dense and compressed alike: batch norm folded, the rest as measured fastest."]
    for each in found:
        for row in each.each:
            forms = row.dense_form.memory_format, row.small_form.memory_format
            if forms != (CONTIGUOUS, CONTIGUOUS):
                lines.append(f"Batch {row.batch}, {row.small_form.runtime}: {forms[0]} dense, {forms[1]} compressed.")
    return lines


def place(name: str) -> torch.device:
    """The torch device called ``name``.

    Raises:
        ArgumentError: this machine has none of that name.
    """
    try:
        found = torch.device(name)
        torch.zeros(1, device=found)
    except (RuntimeError, AssertionError) as error:
        raise ArgumentError(f"`--device` must be one that this machine has; got {name!r}: {error}.") from error
    return found
