"""Every post-training method at several budgets on one trained run: accuracy right after, re-estimated, recovered.

    python experiments/post-training/run.py runs/fashion --out experiments/post-training/results/fashion-resnet20.json

Test accuracy right after compression; after batch norm is re-estimated, on the same calibration examples that the
data-aware methods see; and after a short recovery, the same for all: one pass over ``--recovery`` training examples.
Failures are results too. The file is rewritten after every row.
"""

import argparse
import platform
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch

import tenfold
from tenfold.cli.runs import open_run
from tenfold.files import write_json
from tenfold.train import Data, Recipe, Split, batches, evaluate, fit

BUDGETS = (0.75, 0.5, 0.25)
VARIANTS = [
    tenfold.ALDS(),
    tenfold.SVD(),
    tenfold.SVDEnergy(),
    tenfold.LRank(),
    tenfold.VBMF(),
    tenfold.PCA(),
    tenfold.ActivationSVD(),
    tenfold.FisherSVD(),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--calibration", type=int, default=2048)
    parser.add_argument("--recovery", type=int, default=6400)
    parser.add_argument("--test", type=int, help="test images, of all of them")
    given = parser.parse_args()
    torch.set_num_threads(1)
    run = open_run(given.run, given.data_root)
    test = run.data.test if given.test is None else run.data.test.part(given.test)
    calibration = batches(run.data.train.part(given.calibration), 128)
    kept = {name: run.settings.recipe[name] for name in ("augment", "precision")}
    recovery = Recipe(epochs=1, lr=0.02, weight_decay=1e-4, **kept)
    problem = tenfold.survey(run.model, example_inputs=run.example, data=calibration)
    body = {
        "data": run.settings.data["name"],
        "model": run.settings.network,
        "training": run.settings.recipe,
        "calibration": given.calibration,
        "recovery": {"examples": given.recovery} | asdict(recovery),
        "versions": {"tenfold": version("tenfold"), "torch": torch.__version__, "python": platform.python_version()},
        "tested": len(test),
        "dense": {"accuracy": evaluate(run.model, test).accuracy, "params": problem.dense.params}
        | recover(run.model, run.data.part(given.recovery, validation=500), test, recovery),
        "rows": [],
    }
    for budget in BUDGETS:
        for method in VARIANTS:
            row = {"method": method.to_dict(), "budget": budget}
            body["rows"].append(row)
            try:
                small, figures = measure(problem, method, budget, test, calibration)
                row |= figures | recover(small, run.data.part(given.recovery, validation=500), test, recovery)
            except tenfold.TenfoldError as error:
                row["failure"] = str(error)
            write_json(given.out, body)


def measure(problem, method, budget, test, calibration):
    """The compressed model, batch norm re-estimated, and its figures up to there."""
    clock = time.process_time()
    plan = method.plan(problem, tenfold.Budget(params=budget))
    small = tenfold.apply(problem.model, plan)
    seconds = time.process_time() - clock
    right_after = evaluate(small, test).accuracy
    tenfold.reestimate_(small, calibration)
    figures = {
        "params": plan.params / plan.dense_params,
        "macs": plan.macs / plan.dense_macs,
        "right_after": right_after,
        "reestimated": evaluate(small, test).accuracy,
        "seconds": seconds,
        "level": plan.level,
    }
    return small, figures


def recover(model, data: Data, test: Split, recipe: Recipe) -> dict:
    """The figures after training on a part of the data."""
    done = fit(model, tenfold.Dense(), data, recipe)
    return {"recovered": evaluate(done.model, test).accuracy, "recovery_seconds": done.seconds}


if __name__ == "__main__":
    main()
