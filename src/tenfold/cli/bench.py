"""``tenfold bench``: dense against compressed, on this machine."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import torch
import typer

from tenfold.bench.latency import Comparison, compare
from tenfold.cli import tables
from tenfold.cli.command import Outcome, verb
from tenfold.cli.network_options import takes_network
from tenfold.cli.opening import open_network
from tenfold.cli.options import with_default
from tenfold.cli.progress import Steps
from tenfold.cli.source import NetworkSource
from tenfold.errors import ArgumentError
from tenfold.layers.cost import cost
from tenfold.layers.swap import structure_of, to_dense

NAME = "bench"
EXAMPLES = (
    "Examples:\n\ntenfold bench runs/b\n\ntenfold bench runs/b --batch-size 1 --batch-size 64 --threads 2 --rounds 50"
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
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
) -> Outcome:
    """Measure a compressed run against its dense equivalent: interleaved, medians, beside what the MACs promise."""
    where = place(device)
    opened = open_network(source, needs=["inputs"], reason="to be timed")
    if not structure_of(opened.model):
        words = source.named.words
        raise ArgumentError(f"'{source}' has no compressed layer to measure: run tenfold compress {words} first.")
    small = opened.model.to(where)
    dense = to_dense(small)
    sizes = batch_size or ([1, 32] if opened.inputs is None else [None])
    inputs = [opened.batch(n) for n in sizes]
    steps, found = Steps(len(sizes)), []
    for n, x in zip(sizes, inputs, strict=True):
        with steps.step("measuring" if n is None else f"batches of {n}"):
            found.append(compare(dense, small, x, threads=threads, rounds=rounds))
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
        "latency": [asdict(row) for row in found],
    }
    shown: list[Any] = [_table(found, predicted, f"{where}, {threads} thread(s)"), tables.costs(before, after)]
    if min(row.speedup for row in found) < _SHORT * predicted:
        shown.append(f"Slower than its MACs promise. Layer by layer: tenfold doctor {source.named.words}")
    return Outcome(body, shown)


def _table(found: list[Comparison], predicted: float, where: str) -> Any:
    columns = ("Batch", "Dense ms", "Compressed ms", "Speed-up", "Middle half", "MACs promise")
    made = tables.table(columns)
    for row in found:
        low, high = row.speedup_quartiles
        made.add_row(
            str(row.batch),
            f"{row.dense_ms:.3f}",
            f"{row.small_ms:.3f}",
            f"{row.speedup:.2f}×",
            f"{low:.2f} to {high:.2f}",
            f"{predicted:.2f}×",
        )
    return tables.titled(f"Latency of a forward pass, median of {found[0].rounds} pairs; {where}", made)


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
