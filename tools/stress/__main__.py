"""``python -m tools.stress``: kill what writes, feed what reads; writes ``benchmarks/results/stress.json``."""

import argparse
import importlib
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import torch

from tenfold.bench.environment import place
from tenfold.files import write_json
from tools.stress.cases import cases, inputs
from tools.stress.run import alone, stress
from tools.stress.strangers import READERS, feed

ROOT = Path(__file__).parents[2]
HEAVY = ("accelerate", "plotly.graph_objects", "torch._dynamo", "torch.export")
"""Loaded once, not in every trial."""
RESULT = ROOT / "benchmarks" / "results" / "stress.json"


def main() -> int:
    """Do it; 1 where something that is promised did not hold."""
    parser = argparse.ArgumentParser(prog="python -m tools.stress", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="CPU seconds of the kills (default: 600)")
    parser.add_argument(
        "--most", type=int, default=10**6, help="kills of either kind of each case (default: as time allows)"
    )
    parser.add_argument("--examples", type=int, default=3000, help="files for each reader (default: 3000)")
    parser.add_argument("--only", nargs="*", default=None, help="names of cases (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULT, help="file of the result")
    given = parser.parse_args()
    torch.set_num_threads(1)
    where = place("tools/stress/*.py", device="cpu")
    with tempfile.TemporaryDirectory(prefix="stress-") as name:
        folder = Path(name)
        alone(folder / "locks")
        for heavy in HEAVY if given.only is None else ():
            importlib.import_module(heavy)
        made = [case for case in cases(inputs(folder)) if given.only is None or case.name in given.only]
        kills = []
        for number, case in enumerate(made):
            share = given.seconds / len(made)
            found = stress(case, folder / str(number), seconds=share, most=given.most, seed=given.seed)
            kills.append(found.to_dict())
            _say(f"{case.name}: {found.operations} operations, {dict(found.counts)}", found.failures)
        files = []
        for reader in READERS if given.examples else ():
            fed = feed(reader, folder / "files", given.examples, given.seed)
            files.append(fed)
            _say(f"{reader.name}: {fed['read']} read, {fed['refused']} refused", fed["failures"])
    settings = {"seconds": given.seconds, "examples": given.examples, "seed": given.seed}
    date = time.strftime("%Y-%m-%d", time.gmtime())
    body = {"benchmark": "stress", "date": date, "place": asdict(where), **settings, "results": kills, "readers": files}
    write_json(given.out, body)
    return int(any(row["failures"] for row in [*kills, *files]))


def _say(line: str, failures: list[str]) -> None:
    sys.stdout.write("\n".join([line, *(f"  FAILED {failure}" for failure in failures)]) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
