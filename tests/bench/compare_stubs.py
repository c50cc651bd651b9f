"""Small comparisons, and processes to run them in: they fork from a server that has everything imported."""

import json
from dataclasses import dataclass
from typing import ClassVar

import torch

import tenfold
from processes import FORKED
from tenfold.bench.compare.experiment import DataChoice, Entry, Experiment
from tenfold.bench.compare.scheduler import compare
from tenfold.methods.contract.method import Method
from tenfold.train import Recipe

ASIDE = ("seconds", "latency", "peak_memory", "place")
"""Parts of a result that are different each time."""


@dataclass(frozen=True)
class Broken(Method):
    """Raises what no method should."""

    name: ClassVar[str] = "broken"

    def choose(self, problem, budget):
        raise ZeroDivisionError("of the ranks")


def experiment(*entries, **changes) -> Experiment:
    """A small one on the digits."""
    given = {
        "name": "tiny",
        "data": DataChoice("digits", examples=256, validation=40),
        "model": "cnn",
        "methods": tuple(Entry(method) for method in entries or (tenfold.SVD(), tenfold.TRP(every=2))),
        "budgets": (tenfold.Budget(params=0.5),),
        "recipe": Recipe(epochs=3, batch_size=64, lr=0.05),
        "recovery": 1,
        "keep": True,
    }
    return Experiment(**(given | changes))


def work(folder, *entries, **changes) -> None:
    """A process that does a comparison."""
    torch.set_num_threads(1)
    compare(experiment(*entries, **changes), folder)


def process(folder, *entries, **changes):
    """`work`, in a process of its own that is running."""
    made = FORKED.Process(target=work, args=(folder, *entries), kwargs=changes, daemon=True)
    made.start()
    return made


def lasting(body):
    """A results file without what is different each time; also inside the curves."""
    if isinstance(body, dict):
        return {k: lasting(v) for k, v in body.items() if k not in (*ASIDE, "throughput")}
    return [lasting(item) for item in body] if isinstance(body, list) else body


def read(folder):
    """What lasts of the results in a folder."""
    return lasting(json.loads((folder / "results.json").read_text()))
