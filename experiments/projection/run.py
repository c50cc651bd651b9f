"""Projection while training beside cutting afterwards: equal epochs, equal final budgets, several seeds.

    python experiments/projection/run.py --data fashion-mnist --examples 10000 --epochs 5 --budget macs=0.5 \\
        --out experiments/projection/results/fashion-resnet20.json

Every network is trained for the same epochs from the same start; the projected ones toward the budget from their
first step. Then each is finished at the budget: projected once more where the method does so, factorised, batch norm
estimated again from training images, never fine-tuned. The dense network is cut by SVD and by ALDS at the same budget.
The figure is the accuracy on the whole test set. The file is rewritten after every network; a network that stands in it
is not trained again. Failures are results too.
"""

import argparse
import json
import platform
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import torch

import tenfold
from tenfold.files import write_json
from tenfold.train import Recipe, batches, build_model, evaluate, fit, load_data

EVERY = 50
TRAINED = {
    "dense": tenfold.Dense(),
    "trp channel": tenfold.TRP(fold="channel", nuclear=0.0),
    "trp channel, nuclear": tenfold.TRP(fold="channel"),
    "trp spatial": tenfold.TRP(fold="spatial", nuclear=0.0),
    "trp spatial, nuclear": tenfold.TRP(fold="spatial"),
    "lrpet": tenfold.LRPET(every=EVERY),
    "lrpet, no rectification": tenfold.LRPET(every=EVERY, rectify=False),
    "lrpet, no transfer": tenfold.LRPET(every=EVERY, transfer=False),
    "lrpet, neither": tenfold.LRPET(every=EVERY, rectify=False, transfer=False),
}
CUT_AFTERWARDS = {
    "dense, then svd": tenfold.SVD(),
    "dense, then svd spatial": tenfold.SVD(fold="spatial"),
    "dense, then alds": tenfold.ALDS(),
}
CALIBRATION = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--examples", type=int)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--budget", default="macs=0.5")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = load_data(given.data, given.data_root)
    data = data.part(given.examples, min(500, len(data.validation)))
    cost, share = given.budget.split("=")
    budget = tenfold.Budget(**{cost: float(share)})
    recipe = Recipe(epochs=given.epochs, augment="crop-flip", precision="bf16")
    body = {
        "data": given.data,
        "model": given.model,
        "examples": len(data.train),
        "budget": {cost: float(share)},
        "recipe": asdict(recipe),
        "methods": {name: method.to_dict() for name, method in (TRAINED | CUT_AFTERWARDS).items()},
        "calibration": CALIBRATION,
        "versions": {"tenfold": version("tenfold"), "torch": torch.__version__, "python": platform.python_version()},
        "rows": json.loads(given.out.read_text())["rows"] if given.out.exists() else [],
    }
    done = {(row["seed"], row["method"]) for row in body["rows"]}
    for seed in range(given.seeds):
        for name, method in TRAINED.items():
            if (seed, name) not in done:
                body["rows"] += rows(name, method, data, given.model, replace(recipe, seed=seed), budget)
                write_json(given.out, body)


def rows(name, method, data, network, recipe, budget):
    """One network trained, and what is made of it."""
    torch.manual_seed(recipe.seed)
    model = build_model(network, classes=data.classes, channels=data.channels, size=data.size)
    example = torch.zeros(1, data.channels, data.size, data.size)
    goal = None if name == "dense" else tenfold.Goal(budget, example)
    about = {"method": name, "seed": recipe.seed}
    try:
        trained = fit(model, method, data, recipe, goal=goal)
    except tenfold.TenfoldError as error:
        return [about | {"failure": str(error)}]
    about |= {"seconds": trained.seconds, "unfinished": evaluate(trained.model, data.test).accuracy}
    ends = {name: method} if name != "dense" else {name: method} | CUT_AFTERWARDS
    calibration = batches(data.train.part(CALIBRATION), 128)
    return [about | {"method": end} | finish(by, trained.model, data, example, budget, calibration)
            for end, by in ends.items()]  # fmt: skip


def finish(method, model, data, example, budget, calibration):
    """Accuracy of the network at the budget before and after batch norm is estimated again, and its cost."""
    try:
        small, plan, _ = method.finish(model, budget, example_inputs=example)
    except tenfold.TenfoldError as error:
        return {"failure": str(error)}
    figures = {"right_after": evaluate(small, data.test).accuracy}
    if plan.compresses:
        tenfold.reestimate_(small, calibration)
    return figures | {
        "reestimated": evaluate(small, data.test).accuracy,
        "params": plan.params / plan.dense_params,
        "macs": plan.macs / plan.dense_macs,
        "ranks": {layer: x.rank for layer, x in plan.layers.items() if x.rank is not None},
    }


if __name__ == "__main__":
    main()
