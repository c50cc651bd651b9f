"""A trained network made smaller with a few hundred unlabelled images: every method after training, refitted or not.

    python experiments/label-free/run.py experiments/networks/resnet20 --out experiments/label-free/results/a.json

The images are drawn from those that the network was trained on, so many for each draw. Without a refit, batch norm is
estimated again where that helps (``norms="auto"``); what is refitted or `Calibrated` keeps it. Accuracy is on all test
images. Seconds are those of the processor for the compression alone, one thread. Rows that the file holds already are
not made again; several processes may share the work, each with methods and a file of its own.
"""

import argparse
import itertools
import json
import time
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tenfold
from tenfold.bench.environment import place
from tenfold.files import write_json
from tenfold.train import Data, Recipe, evaluate, load_data
from tenfold.train.calibration import CalibrationBatches

METHODS: dict[str, tenfold.Method] = {
    "calibrated": tenfold.Calibrated(),
    "alds": tenfold.ALDS(),
    "svd": tenfold.SVD(),
    "svd spatial": tenfold.SVD(fold="spatial"),
    "svd-energy": tenfold.SVDEnergy(),
    "l-rank": tenfold.LRank(),
    "tucker": tenfold.Tucker(),
    "vbmf": tenfold.VBMF(),
    "pca": tenfold.PCA(),
    "activation-svd": tenfold.ActivationSVD(),
    "fisher-svd": tenfold.FisherSVD(),
}
WAYS = {"": {}, "refit": {"refit": "both"}}
"""How a method's result is treated; `Calibrated` is refitted by itself, and takes ``steps`` in place of a refit."""
STEPS = 100
BATCH = 64


def drawn(data: Data, count: int, draw: int) -> list[Tensor]:
    """Batches of training images without their labels."""
    return [
        x for x, _ in itertools.islice(CalibrationBatches(data, Recipe(batch_size=BATCH, seed=draw)), count // BATCH)
    ]


def compressed(
    model: nn.Module, method: tenfold.Method, way: str, budget: tenfold.Budget, batches: list[Tensor]
) -> tuple[tenfold.Result, float]:
    """The result and what it took of the processor."""
    clock = time.process_time()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*smallest layers.*|.*tell enough.*")
        result = tenfold.compress(
            model, method, budget, example_inputs=batches[0][:1], data=batches, align=1, **WAYS.get(way, {})
        )
        if way == "steps":
            tenfold.distill(result.model, model, batches, loss="logits", steps=STEPS)
    return result, time.process_time() - clock


def row_of(model: nn.Module, data: Data, key: dict[str, Any], images: int) -> dict[str, Any]:
    """One row: what is kept, how good it is, what it took; or why it cannot be had."""
    method = METHODS[key["method"]]
    if isinstance(method, tenfold.Calibrated):
        method = replace(method, loss="logits")
    batches = drawn(data, images, key["draw"])
    try:
        result, seconds = compressed(model, method, key["way"], tenfold.Budget(**{key["limit"]: key["share"]}), batches)
    except tenfold.BudgetError as error:
        return key | {"failure": str(error)}
    small = result.report.small
    dense = result.report.dense
    return key | {
        "accuracy": evaluate(result.model, data.test).accuracy,
        "params": small.params / dense.params,
        "macs": small.macs / dense.macs,
        "seconds": round(seconds, 2),
    }


def opened(folder: Path, root: Path | None) -> tuple[nn.Module, Data]:
    """The network of a training and its data."""
    settings = json.loads((folder / "run.json").read_text())
    data = load_data(settings["data"]["name"], root)
    model = tenfold.build_model(settings["network"], data.classes, data.channels, data.size)
    return tenfold.load(folder / "model", model=model).eval().to(memory_format=torch.channels_last), data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the folder of a training")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--ways", nargs="+", default=["", "refit", "steps"])
    parser.add_argument("--limits", nargs="+", default=["macs", "params"])
    parser.add_argument("--shares", nargs="+", type=float, default=[0.5, 0.35, 0.75, 0.25])
    parser.add_argument("--draws", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--data-root", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model, data = opened(given.run, given.data_root)
    body: dict[str, Any] = {
        "network": given.run.name,
        "images": given.images,
        "steps": STEPS,
        "place": asdict(place(__file__)),
        "rows": [],
    }
    if given.out.exists():
        body["rows"] = json.loads(given.out.read_text())["rows"]
    body["dense"] = evaluate(model, data.test).accuracy
    rows = body["rows"]
    names = ("draw", "limit", "share", "method", "way")
    done = {tuple(row[name] for name in names) for row in rows}
    for values in itertools.product(given.draws, given.limits, given.shares, given.methods, given.ways):
        key = dict(zip(names, values, strict=True))
        fitted = key["method"] == "calibrated"
        if values in done or (key["way"] == "refit" and fitted) or (key["way"] == "steps" and not fitted):
            continue
        rows.append(row_of(model, data, key, given.images))
        given.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(given.out, body)
        print(rows[-1], flush=True)


if __name__ == "__main__":
    main()
