"""``tenfold eval``: how good a run is, and what it costs."""

from __future__ import annotations

from tenfold.cli import figures, tables
from tenfold.cli.command import Outcome, verb
from tenfold.cli.network_options import takes_network
from tenfold.cli.opening import open_network
from tenfold.cli.progress import Steps
from tenfold.cli.source import NetworkSource
from tenfold.layers.cost import cost

NAME = "eval"
EXAMPLES = (
    "Examples:\n\ntenfold eval runs/b\n\ntenfold eval runs/b --json\n\n"
    "tenfold eval --model net.py:make --weights w.pt --score net.py:score"
)


@verb
@takes_network
def command(*, source: NetworkSource) -> Outcome:
    """Evaluate a run, on the validation and test sets or by its score, and count its parameters and MACs."""
    opened = open_network(source, needs=["score"])
    assert opened.score is not None
    with Steps().step("evaluating"):
        row = opened.score.stage(opened.title, opened.model)
    dense, small = opened.dense_cost, cost(opened.model, opened.example)
    body = {
        "command": NAME,
        "run": str(source),
        "model": opened.settings.network,
        "data": opened.settings.data or None,
        "method": opened.settings.method or None,
        "cost": tables.cost_dict(dense, small),
    } | row.to_dict()
    return Outcome(body, [*figures.stages(str(source), [row]), tables.costs(dense, small)])
