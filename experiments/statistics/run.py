"""Batch norm estimated again, from images as the training saw them and from plain ones: what a network then gets right.

    python experiments/statistics/run.py experiments/networks/resnet20 --out experiments/statistics/results/a.json

The network as it was trained, and cut by unsliced spatial `ALDS` at several shares of its MACs; statistics kept, and
estimated from 5,000 training images, plain and augmented as in the training (crops pad black borders). All test images.
"""

import argparse
import copy
import json
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn

import tenfold
from tenfold.bench.environment import place
from tenfold.files import write_json
from tenfold.train import Data, Recipe, evaluate, load_data
from tenfold.train.calibration import CalibrationBatches

IMAGES, SHARES = 5000, (1.0, 0.75, 0.6, 0.5)


def row(model: nn.Module, share: float, data: Data, recipe: Recipe) -> dict[str, float]:
    """Accuracy with the statistics of the training, and with both kinds of new ones."""
    found = {"share": share, "kept": evaluate(model, data.test).accuracy}
    for name, seen in (("plain", replace(recipe, augment="none")), ("augmented", recipe)):
        other = copy.deepcopy(model)
        tenfold.reestimate_(other, CalibrationBatches(data.part(IMAGES), seen))
        found[name] = evaluate(other, data.test).accuracy
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the folder of a training")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data-root", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    settings = json.loads((given.run / "run.json").read_text())
    data, recipe = load_data(settings["data"]["name"], given.data_root), Recipe(**settings["recipe"])
    example = torch.zeros(1, data.channels, data.size, data.size)
    dense = tenfold.load(
        given.run / "model", model=tenfold.build_model(settings["network"], data.classes, data.channels, data.size)
    )
    method, rows = tenfold.ALDS(folds=("spatial",), slices=(1,)), []
    for share in SHARES:
        budget = tenfold.Budget(macs=share)
        small = dense if share == 1 else tenfold.compress(dense, method, budget, example_inputs=example).model
        rows.append(row(small, share, data, recipe))
        print(rows[-1], flush=True)
    here = asdict(place(__file__, device="cpu"))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(given.out, {"network": given.run.name, "images": IMAGES, "place": here, "rows": rows})


if __name__ == "__main__":
    main()
