"""The rate of `tenfold.distill`, chosen on validation images: a trained network made smaller, then 100 steps.

    python experiments/label-free/steps.py experiments/networks/resnet20 --out experiments/label-free/steps.json

512 training images without their labels, as in ``run.py``; accuracy on the validation images, never the test set.
"""

import argparse
import copy
import itertools
import warnings
from dataclasses import asdict
from pathlib import Path

import torch
from run import drawn, opened

import tenfold
from tenfold.bench.environment import place
from tenfold.files import write_json
from tenfold.train import evaluate
from tenfold.train.data.augment import random_flip

RATES = (1e-3, 3e-4, 1e-4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the folder of a training")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shares", nargs="+", type=float, default=[0.5, 0.35])
    parser.add_argument("--data-root", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model, data = opened(given.run, given.data_root)
    batches = drawn(data, 512, 0)
    generator = torch.Generator().manual_seed(0)
    ways = {"as they are": None, "mirrored": lambda x: random_flip(x, generator)}
    body = {
        "network": given.run.name,
        "place": asdict(place(__file__)),
        "dense": evaluate(model, data.validation).accuracy,
        "rows": [],
    }
    for share in given.shares:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            small = tenfold.compress(
                model,
                tenfold.Calibrated(loss="logits"),
                tenfold.Budget(macs=share),
                example_inputs=batches[0][:1],
                data=batches,
                align=1,
            ).model
        before = evaluate(small, data.validation).accuracy
        body["rows"].append({"share": share, "rate": None, "images": None, "accuracy": before})
        for rate, (name, augment) in itertools.product(RATES, ways.items()):
            moved = copy.deepcopy(small)
            tenfold.distill(moved, model, batches, loss="logits", steps=100, lr=rate, augment=augment)
            row = {"share": share, "rate": rate, "images": name, "accuracy": evaluate(moved, data.validation).accuracy}
            body["rows"].append(row)
            write_json(given.out, body)
            print(row, flush=True)


if __name__ == "__main__":
    main()
