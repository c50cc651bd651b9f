"""Accuracy against compression: TDLRT over its tolerance, beside the dense network.

    python experiments/tdlrt/compression.py --seeds 0 1 2 --out experiments/tdlrt/results/compression.json

LeNet-5 on Fashion-MNIST, trained from the usual initialisation; the classifier stays dense. For each tau: the test
accuracy of the finished model (plain layers, cut and refactorised), the share of parameters that is left, of the whole
model and of the factorised layers alone, and the ranks. The figures go into a JSON file, the picture into a PNG beside
it; both are rewritten after each run, and runs that the file holds already are not run again.
"""

import argparse
import itertools
import json
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

import tenfold
from tenfold.files import write_json
from tenfold.train import Data, Recipe, evaluate, fit, load_data

TAUS = (0.1, 0.2, 0.3, 0.4)
HEAD = ["fc2"]


def run(method: tenfold.Method, data: Data, recipe: Recipe) -> dict:
    """One training, and the figures of what came of it."""
    clock = time.process_time()
    torch.manual_seed(recipe.seed)
    model, goal = tenfold.build_model("lenet5", channels=1, size=28), tenfold.Goal(exclude_modules=HEAD)
    fitted = fit(model, method, data, recipe, goal=goal, progress=False)
    result = method.finish(fitted.model, example_inputs=torch.zeros(1, 1, 28, 28), exclude_modules=HEAD)
    layers = [layer for layer in result.plan.layers.values() if layer.decomposition != "dense"]
    dense = sum(layer.layer.dense().params for layer in layers if layer.layer is not None)
    return {
        "accuracy": evaluate(result.model, data.test).accuracy,
        "params": result.report.kept["params"],
        "macs": result.report.kept["macs"],
        "factorised": sum(layer.params for layer in layers) / dense if dense else 1.0,
        "ranks": {name: layer.rank for name, layer in result.plan.layers.items()},
        "seconds": time.process_time() - clock,
    }


def draw(rows: list[dict], path: Path) -> None:
    """Test accuracy against the share of parameters that is left."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    ax = figure.subplots()
    for name, colour in (("tdlrt", "#0072B2"), ("dense", "#D55E00")):
        points = [row for row in rows if row["method"]["method"] == name]
        ax.plot([p["params"] for p in points], [p["accuracy"] for p in points], "o", color=colour, label=name)
        for p in points:
            if name == "tdlrt":
                ax.annotate(f"{p['method']['tau']:g}", (p["params"], p["accuracy"]), fontsize=8)
    ax.set(xscale="log", xlabel="parameters left, of the whole model", ylabel="test accuracy")
    ax.grid(alpha=0.3)
    ax.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--taus", type=float, nargs="+", default=TAUS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--examples", type=int, default=6400)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--integrator", default="cycle")
    parser.add_argument("--data-root", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = load_data("fashion-mnist", given.data_root).part(given.examples, 500)
    recipe = Recipe(epochs=given.epochs, batch_size=64, lr=0.02, momentum=0.9, weight_decay=1e-4)
    settings = {"examples": given.examples, "recipe": asdict(recipe)}
    body: dict = {"settings": settings, "torch": torch.__version__, "rows": []}
    if given.out.exists():
        body["rows"] = json.loads(given.out.read_text())["rows"]
    rows = body["rows"]
    methods = [tenfold.TDLRT(tau=tau, integrator=given.integrator) for tau in given.taus]
    for seed, method in itertools.product(given.seeds, (tenfold.Dense(), *methods)):
        name = {"seed": seed, "method": method.to_dict()}
        if all(row | name != row for row in rows):
            rows.append(name | run(method, data, replace(recipe, seed=seed)))
            given.out.parent.mkdir(parents=True, exist_ok=True)
            write_json(given.out, body)
            draw(rows, given.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
