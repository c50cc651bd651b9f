"""Every post-training method at several budgets on one trained run: accuracy before any training, and what it cost.

    python experiments/post-training/run.py runs/fashion --out experiments/post-training/results/fashion-resnet20.json

Test accuracy right after compression and after batch norm is re-estimated, on the same calibration examples that the
data-aware methods see. Failures are results too. The file is rewritten after every row.
"""

import argparse
import platform
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch

import tenfold
from tenfold.cli.runs import open_run
from tenfold.files import write_json
from tenfold.train import batches, evaluate

BUDGETS = (0.75, 0.5, 0.25)
VARIANTS = [
    tenfold.ALDS(),
    tenfold.ALDS(measure="rss"),
    tenfold.ALDS(measure="bound"),
    tenfold.ALDS(measure="fro"),
    tenfold.ALDS(slices=(1,)),
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
    parser.add_argument("--calibration", type=int, default=2048)
    given = parser.parse_args()
    torch.set_num_threads(1)
    run = open_run(given.run)
    order = torch.randperm(len(run.data.train), generator=torch.Generator().manual_seed(0))[: given.calibration]
    calibration = batches(replace(run.data.train, x=run.data.train.x[order], y=run.data.train.y[order]), 128)
    problem = tenfold.survey(run.model, example_inputs=run.example, data=calibration)
    body = {
        "data": run.settings.data["name"],
        "model": run.settings.network,
        "training": run.settings.recipe,
        "calibration": given.calibration,
        "versions": {"tenfold": version("tenfold"), "torch": torch.__version__, "python": platform.python_version()},
        "dense": {"accuracy": evaluate(run.model, run.data.test).accuracy, "params": problem.dense.params},
        "rows": [],
    }
    for budget in BUDGETS:
        for method in VARIANTS:
            row = {"method": method.to_dict(), "budget": budget}
            body["rows"].append(row)
            try:
                row |= measure(problem, method, budget, run, calibration)
            except tenfold.TenfoldError as error:
                row["failure"] = str(error)
            write_json(given.out, body)


def measure(problem, method, budget, run, calibration) -> dict:
    clock = time.process_time()
    plan = method.plan(problem, tenfold.Budget(params=budget))
    small = tenfold.apply(problem.model, plan)
    seconds = time.process_time() - clock
    right_after = evaluate(small, run.data.test).accuracy
    tenfold.reestimate_(small, calibration)
    return {
        "params": plan.params / plan.dense_params,
        "macs": plan.macs / plan.dense_macs,
        "right_after": right_after,
        "reestimated": evaluate(small, run.data.test).accuracy,
        "seconds": seconds,
        "level": plan.level,
    }


if __name__ == "__main__":
    main()
