"""One dense training run per method, then accuracy against the share removed: filters, and ranks, without retraining.

    python experiments/sfw/run.py --out experiments/sfw/results/digits.json
    python experiments/sfw/run.py --out experiments/sfw/results/fashion.json --data fashion-mnist \
        --examples 6000 --test 2500 --epochs 8 --precision bf16

Each ratio is measured right after the cut and with batch norm re-estimated, on copies of the same trained network.
``--part rescaling`` is the ablation of the step size's rescaling and of the learning rate's decay. Networks start from
torch's default initialisation. Failures are results too. The file is rewritten after every run, and a run that it
holds already is not run again.
"""

import argparse
import json
import platform
import time
import warnings
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

import tenfold
from tenfold import balls
from tenfold.files import write_json
from tenfold.optim.frank_wolfe.optimizer import FrankWolfe
from tenfold.train import Data, Recipe, batches, evaluate, fit, load_data

RATIOS = (0.0, 0.2, 0.4, 0.6, 0.8)
GROUP, SPECTRAL = balls.GroupKSupport(k=0.2), balls.SpectralKSupport(k=0.2)


@dataclass(frozen=True)
class Variant:
    """A method with the learning rate that suits it."""

    label: str
    method: tenfold.Method
    lr: float = 0.1
    weight_decay: float = 0.0
    schedule: str = "linear"


METHODS = [
    Variant("sgd", tenfold.Dense(), weight_decay=5e-4),
    Variant("group-lasso", tenfold.GroupLasso(strength=1e-2)),
    Variant("group-lasso-proximal", tenfold.GroupLasso(strength=1e-1, update="proximal")),
    Variant("nuclear-norm", tenfold.NuclearNorm(strength=1e-2)),
    Variant("nuclear-norm-proximal", tenfold.NuclearNorm(strength=1e-1, update="proximal", every=5)),
    Variant("sfw-filters", tenfold.SFW(GROUP, width=1.0), lr=0.5),
    Variant("sfw-rank", tenfold.SFW(SPECTRAL, width=1.0), lr=0.5),
    Variant("sfw-filters-w3", tenfold.SFW(GROUP, width=3.0), lr=0.5),
    Variant("sfw-rank-w3", tenfold.SFW(SPECTRAL, width=3.0), lr=0.5),
    Variant("sfw-filters-w10", tenfold.SFW(GROUP, width=10.0)),
    Variant("sfw-rank-w10", tenfold.SFW(SPECTRAL, width=10.0)),
]
RESCALING = [
    Variant(f"{rescale}, {schedule}", tenfold.SFW(GROUP, width=1.0, rescale=rescale), lr, schedule=schedule)
    for rescale, lr in (("none", 0.05), ("diameter", 1.0), ("gradient", 0.5))
    for schedule in ("linear", "constant")
]
PARTS = {"methods": METHODS, "rescaling": RESCALING}


class Watched:
    """A method whose optimizer can be looked at after training."""

    def __init__(self, method: tenfold.Method) -> None:
        self.method, self.needs_closure, self.begin = method, method.needs_closure, method.begin
        self.made = None

    def __repr__(self) -> str:
        return repr(self.method)

    def optimizer(self, model, *, goal=None, **hyper):
        self.made = self.method.optimizer(model, goal=goal, **hyper)
        return self.made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", choices=PARTS, default="methods")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--model", default="cnn")
    parser.add_argument("--examples", type=int, help="of training; all of them if left out")
    parser.add_argument("--test", type=int, help="examples of testing; all of them if left out")
    parser.add_argument("--epochs", type=int, default=13)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--precision", default="no")
    parser.add_argument("--only", nargs="+", choices=[variant.label for variant in METHODS], help="these methods")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", tenfold.TenfoldWarning)  # starts outside the set are pulled in: w = 1
    data = load_data(given.data, given.data_root).part(given.examples)
    data = data if given.test is None else replace(data, test=data.test.part(given.test))
    body = {"settings": settings(given, data), "rows": []}
    if given.out.exists():
        old = json.loads(given.out.read_text())
        if old["settings"] != body["settings"]:
            raise SystemExit(f"{given.out} holds runs of other settings: {old['settings']}. Move it away.")
        body["rows"] = old["rows"]
    done = {(row["label"], row["seed"]) for row in body["rows"]}
    for seed in range(given.seeds):
        for variant in PARTS[given.part]:
            if (variant.label, seed) not in done and variant.label in (given.only or [variant.label]):
                body["rows"].append(run(variant, seed, data, given))
                write_json(given.out, body)


def settings(given, data: Data) -> dict:
    versions = {"tenfold": version("tenfold"), "torch": torch.__version__, "python": platform.python_version()}
    names = ("part", "data", "model", "epochs", "batch_size", "precision")
    examples = {"train": len(data.train), "test": len(data.test)}
    return {name: getattr(given, name) for name in names} | {"examples": examples, "versions": versions}


def run(variant: Variant, seed: int, data: Data, given) -> dict:
    row = {
        "label": variant.label,
        "seed": seed,
        "lr": variant.lr,
        "weight_decay": variant.weight_decay,
        "schedule": variant.schedule,
        "method": variant.method.to_dict(),
    }
    recipe = Recipe(
        epochs=given.epochs,
        batch_size=given.batch_size,
        lr=variant.lr,
        weight_decay=variant.weight_decay,
        schedule=variant.schedule,
        precision=given.precision,
        seed=seed,
    )
    watched = Watched(variant.method)
    clock = time.process_time()
    try:
        trained = fit(network(given.model, seed, data), watched, data, recipe).model
    except tenfold.TenfoldError as error:
        return row | {"failure": str(error)}
    row |= {"seconds": time.process_time() - clock, "accuracy": evaluate(trained, data.test).accuracy}
    if isinstance(watched.made, FrankWolfe):
        row["tracks"] = [track.to_dict() for track in watched.made.stats()]
    calibration, test = list(batches(data.train, 200))[:10], list(batches(data.test, 500))
    example = calibration[0][0][:1]
    heads = [name for name, m in trained.named_modules() if isinstance(m, nn.Linear)]
    cuts = {"filters": tenfold.FilterCut(example), "rank": tenfold.RankCut(exclude_modules=heads)}
    for name, cut in cuts.items():
        rows = tenfold.sweep(trained, cut, RATIOS, test, data=calibration, example_inputs=example)
        row[name] = [asdict(one) for one in rows]
    return row


def network(name: str, seed: int, data: Data) -> nn.Module:
    """The network, every layer as torch draws it: the sets' sizes are in norms of that."""
    torch.manual_seed(seed)
    model = tenfold.build_model(name, data.classes, data.channels, data.size)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.reset_parameters()
    return model


if __name__ == "__main__":
    main()
