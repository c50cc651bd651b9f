"""Which error measure keeps the most accuracy without retraining: several networks, seeds, budgets, held-out data.

    python experiments/proxies/run.py --out experiments/proxies/results/small-nets.json

Every network is trained from its seed, then compressed at each budget by each candidate. Calibration (batch norm, and
what data-aware candidates see) is training data; the accuracy is that of the test set. No weight is trained after
compression. The file is rewritten after every network.
"""

import argparse
import platform
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import torch

import tenfold
from tenfold.files import write_json
from tenfold.train import Recipe, batches, build_model, evaluate, fit, load_data

CASES = [  # data, network, training examples (None: all), recipe, budgets
    ("digits", "cnn", None, Recipe(epochs=20, lr=0.05), (0.5, 0.25, 0.1)),
    ("digits", "resnet20", None, Recipe(epochs=20, lr=0.1), (0.75, 0.5, 0.25)),
    ("fashion-mnist", "lenet5", 20_000, Recipe(epochs=4, lr=0.02), (0.5, 0.25, 0.1)),
    ("fashion-mnist", "cnn", 20_000, Recipe(epochs=3, lr=0.05), (0.5, 0.25, 0.1)),
]
CANDIDATES = {
    "alds max": tenfold.ALDS(),
    "alds spectral": tenfold.ALDS(measure="spectral"),
    "alds fro": tenfold.ALDS(measure="fro"),
    "alds max, unsliced": tenfold.ALDS(slices=(1,)),
    "l-rank": tenfold.LRank(),
    "pca": tenfold.PCA(),
    "activation-svd": tenfold.ActivationSVD(),
    "fisher-svd": tenfold.FisherSVD(),
    "fisher-svd, sum": tenfold.FisherSVD(rule="sum"),
    "fisher-svd, isotropic=0.1": tenfold.FisherSVD(isotropic=0.1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--calibration", type=int, default=1024)
    given = parser.parse_args()
    torch.set_num_threads(1)
    versions = {"tenfold": version("tenfold"), "torch": torch.__version__, "python": platform.python_version()}
    body = {"calibration": given.calibration, "versions": versions, "nets": []}
    for name, network, examples, recipe, budgets in CASES:
        for seed in range(given.seeds):
            data = load_data(name).part(examples)
            torch.manual_seed(seed)
            model = build_model(network, classes=data.classes, channels=data.channels, size=data.size)
            trained = fit(model, tenfold.Dense(), data, replace(recipe, seed=seed)).model.eval()
            net = {"data": name, "network": network, "seed": seed, "examples": len(data.train)}
            net |= {"recipe": asdict(recipe), "dense": evaluate(trained, data.test).accuracy}
            calibration = batches(data.train.part(given.calibration), 128)
            net["rows"] = list(rows(trained, data, calibration, budgets))
            body["nets"].append(net)
            write_json(given.out, body)


def rows(model, data, calibration, budgets):
    example = torch.zeros(1, data.channels, data.size, data.size)
    problem = tenfold.survey(model, example_inputs=example, data=calibration)
    for budget in budgets:
        for name, method in CANDIDATES.items():
            row = {"candidate": name, "budget": budget}
            try:
                small = tenfold.apply(problem.model, method.plan(problem, tenfold.Budget(params=budget)))
                row["right_after"] = evaluate(small, data.test).accuracy
                tenfold.reestimate_(small, calibration)
                row["reestimated"] = evaluate(small, data.test).accuracy
            except tenfold.TenfoldError as error:
                row["failure"] = str(error)
            yield row


if __name__ == "__main__":
    main()
