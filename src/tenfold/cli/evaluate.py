"""``tenfold eval``: how good a run is, and what it costs."""

from __future__ import annotations

from tenfold.cli import runs, tables
from tenfold.cli.command import Outcome, verb
from tenfold.cli.options import DataRoot, RunFolder
from tenfold.cli.progress import Steps, score
from tenfold.layers.cost import Cost, cost

NAME = "eval"
EXAMPLES = "Examples:\n\ntenfold eval runs/b\n\ntenfold eval runs/b --json"


@verb
def command(run: RunFolder, *, data_root: DataRoot = None) -> Outcome:
    """Evaluate a run on the validation and test sets, and count its parameters and MACs."""
    opened = runs.open_run(run, data_root)
    with Steps(["evaluating"]).step():
        row = score(f"{opened.settings.network} on {opened.data.name}", opened.model, opened.data)
    dense, small = Cost(opened.plan.dense_params, opened.plan.dense_macs), cost(opened.model, opened.example)
    body = {
        "command": NAME,
        "run": str(run),
        "model": opened.settings.network,
        "data": opened.settings.data,
        "method": opened.settings.method,
        "cost": tables.cost_dict(dense, small),
    } | row.to_dict()
    return Outcome(body, [tables.stages(f"Accuracy of {run}", [row]), tables.costs(dense, small)])
