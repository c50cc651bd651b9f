"""A trained network dense, in int8, with low rank, and both: what each costs in bytes and time, and what it gets right.

    python experiments/int8/run.py experiments/networks/resnet20 --files FOLDER --out experiments/int8/results/a.json
    python experiments/int8/run.py ... --timing

Low rank is `Calibrated` on 512 unlabelled training images; int8 is static, by the same images. All four are files for
ONNX Runtime, batch norm folded, and accuracy is what these files get right of all test images. Rows that the result
file holds are not made again. Milliseconds are taken by ``--timing`` afterwards, of all files in turns, one thread, its
own processor time; ratios are medians over turns. The files stay in FOLDER.
"""

import argparse
import itertools
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tenfold
from tenfold.bench.environment import place
from tenfold.bench.export import export
from tenfold.bench.int8 import FileModel, timed_files
from tenfold.files import write_json
from tenfold.runtimes.optimize import optimized
from tenfold.train import Data, Recipe, evaluate, load_data
from tenfold.train.calibration import CalibrationBatches

IMAGES, BATCH, SHARE = 512, 64, 0.5
NAMES = ("dense", "int8", "low rank", "low rank, int8")
ROUNDS = 60


def row_of(name: str, model: nn.Module, images: list[tuple[Tensor, Tensor]], file: Path, data: Data) -> dict[str, Any]:
    """One row; the file is written along."""
    x = images[0][0][:1]
    costs = tenfold.cost(model, x)
    fast = optimized(model, x, runtime="onnxruntime").model
    int8 = {"int8": "static", "data": images} if "int8" in name else {}
    made = export(fast, x, file, reference=model, **int8)
    found = {} if made.int8 is None else {"error": made.int8.error, "same_top": made.int8.same_top}
    kept = {"params": costs.params, "macs": costs.macs, "bytes": made.bytes, "opset": made.opset}
    return {"name": name, **kept, "accuracy": evaluate(FileModel(file.read_bytes(), 1), data.test).accuracy, **found}


def timings(files: list[Path], shape: tuple[int, ...], size: int) -> list[dict[str, float]]:
    """Milliseconds of each file, and how many times as fast as the first it is; in turns."""
    found = timed_files([file.read_bytes() for file in files], torch.randn(size, *shape), threads=1, rounds=ROUNDS)
    return [{"ms": ms, "speedup": speedup} for ms, speedup in found]


def quality(
    body: dict[str, Any], model: nn.Module, data: Data, files: dict[str, Path], save: Callable[[], None]
) -> None:
    """Make the rows that are missing."""
    images = list(itertools.islice(CalibrationBatches(data, Recipe(batch_size=BATCH)), IMAGES // BATCH))
    done = {row["name"] for row in body["rows"] if files[row["name"]].exists()}
    body["rows"] = [row for row in body["rows"] if row["name"] in done]
    small: nn.Module | None = None
    for name in (name for name in NAMES if name not in done):
        if small is None and "low rank" in name:
            method = replace(tenfold.Calibrated(), loss="logits")
            unlabelled, budget = [x for x, _ in images], tenfold.Budget(macs=SHARE)
            small = tenfold.compress(model, method, budget, example_inputs=images[0][0][:1], data=unlabelled).model
        chosen = small if small is not None and "low rank" in name else model
        body["rows"].append(row_of(name, chosen.eval().cpu(), images, files[name], data))
        save()
        print(body["rows"][-1], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the folder of a training")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--files", type=Path, required=True, help="where the networks go")
    parser.add_argument("--timing", action="store_true", help="time the files, after all rows are there")
    parser.add_argument("--beside", default="", help="what else ran on the machine while it was timed")
    parser.add_argument("--data-root", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    settings = json.loads((given.run / "run.json").read_text())
    data = load_data(settings["data"]["name"], given.data_root)
    here = asdict(place(__file__, device="cpu", packages=["onnx", "onnxruntime"]))
    body: dict[str, Any] = {"network": given.run.name, "images": IMAGES, "share": SHARE, "place": here, "rows": []}
    if given.out.exists():
        body = json.loads(given.out.read_text())
    files = {name: given.files / f"{name.replace(', ', '-').replace(' ', '-')}.onnx" for name in NAMES}

    def save() -> None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(given.out, body)

    if given.timing:
        paths = [files[row["name"]] for row in body["rows"]]
        body["timing"] = {"place": here, "rounds": ROUNDS, "beside": given.beside}
        for size in (1, 8):
            for row, found in zip(
                body["rows"], timings(paths, (data.channels, data.size, data.size), size), strict=True
            ):
                row.setdefault("latency", {})[str(size)] = found
        save()
        return
    model = tenfold.build_model(settings["network"], data.classes, data.channels, data.size)
    quality(body, tenfold.load(given.run / "model", model=model).eval(), data, files, save)


if __name__ == "__main__":
    main()
