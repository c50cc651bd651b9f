"""How much an ill-conditioned start costs: TDLRT at fixed rank beside plain training of factors.

    python experiments/tdlrt/conditioning.py --seeds 0 1 2 --out experiments/tdlrt/results/conditioning.json

LeNet-5 on a part of Fashion-MNIST, rank 20, SGD without momentum. All start from the same function: orthonormal bases
drawn at random, and singular values that fall by a factor of 1, 2 or 10 from one to the next, scaled to the norm of the
usual initialisation. Plain training is SGD on the three factors of a Tucker layer, or on the two of ``W = A B``, with
the root of each singular value in either. The design is that of Schotthoefer et al. 2022 (arXiv 2205.13571, two
factors), who train on all of MNIST, at a learning rate of 0.01 and for longer. The loss of each epoch and the test
accuracy in the end go into the JSON file, the curves into a PNG beside it. Both are rewritten after each run, and runs
that the file holds already are not run again.

A script, and no file for ``tenfold compare``: that begins from networks as they are built, and trains all of them by
one loop with momentum, a schedule and a validation set. Here is nothing of these: what counts is the training loss.
"""

import argparse
import itertools
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tenfold
from tenfold.bench.environment import place
from tenfold.files import write_json
from tenfold.layers import deploy
from tenfold.layers.tucker_protocol import factorised
from tenfold.linalg.subspace import orthonormalise
from tenfold.train import Data, batches, evaluate, load_data

RANKS = {"conv2": 20, "fc1": 20, "fc2": 10}
DECAYS = (1.0, 2.0, 10.0)
WAYS = {"tdlrt": "TDLRT, rank fixed", "tucker": "SGD on Tucker factors", "matrix": "SGD on two factors"}
METHOD = tenfold.TDLRT(integrator="fixed", every=1, ranks=RANKS, scratch=True)


def start(decay: float, seed: int) -> nn.Module:
    """LeNet-5 whose layers have the spectra asked for, in Tucker format."""
    torch.manual_seed(seed)
    model = METHOD.begin(tenfold.build_model("lenet5", channels=1, size=28))
    generator = torch.Generator().manual_seed(seed)
    for layer in factorised(model).values():
        core, rank = layer.core, layer.ranks[0]
        rows = torch.randn(core[0].numel(), rank, dtype=torch.float64, generator=generator)
        spectrum = decay ** -torch.arange(rank, dtype=torch.float64)
        new = spectrum[:, None] * orthonormalise(rows)[0].mT
        core.data.copy_((new * (core.detach().double().norm() / new.norm())).reshape(core.shape))
    return model


def two_factors(model: nn.Module) -> nn.Module:
    """The same function, each layer that becomes smaller by it as a pair."""
    dense = tenfold.build_model("lenet5", channels=1, size=28)
    mine = dict(dense.named_parameters())
    for name, value in model.named_parameters():
        if name in mine:
            mine[name].data.copy_(value)
    for name, layer in factorised(model).items():
        mine[f"{name}.weight"].data.copy_(cast("Tensor", layer.to_layer().weight))
    return tenfold.TRP(ranks=RANKS).finish(dense).model  # the singular value decomposition, at these ranks


def train(model: nn.Module, optimizer: torch.optim.Optimizer, data: Data, epochs: int, batch: int, seed: int) -> dict:
    """Loss by epoch, test accuracy in the end, and the seconds of processor time that the training took."""
    order = torch.Generator().manual_seed(seed)
    losses, clock = [], time.process_time()
    for _ in range(epochs):
        model.train()
        total = 0.0
        for x, y in batches(data.train, batch, shuffle=True, generator=order, drop_last=True):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            total += float(loss.detach())
        losses.append(total / (len(data.train) // batch))
    seconds = time.process_time() - clock
    return {"loss": losses, "accuracy": evaluate(model, data.test).accuracy, "seconds": seconds}


def draw(rows: list[dict], path: Path) -> None:
    """Training loss against epochs: a panel for each way, a colour for each decay, a line for each seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.4), layout="constrained")
    axes = figure.subplots(1, len(WAYS), sharey=True)
    for ax, (way, title) in zip(axes, WAYS.items(), strict=True):
        for colour, decay in zip(("#0072B2", "#E69F00", "#D55E00"), DECAYS, strict=True):
            for i, row in enumerate(r for r in rows if r["way"] == way and r["decay"] == decay):
                label = f"spectrum falls by {decay:g}" if i == 0 else None
                ax.plot(range(1, len(row["loss"]) + 1), row["loss"], color=colour, label=label)
        ax.set(title=title, xlabel="epoch")
        ax.grid(alpha=0.3)
        if ax.lines:
            ax.legend()
    axes[0].set_ylabel("training loss")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--examples", type=int, default=6400)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--data-root", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = load_data("fashion-mnist", given.data_root).part(given.examples)
    names = ("examples", "epochs", "batch", "lr")
    body: dict = {
        "settings": {name: getattr(given, name) for name in names} | {"method": METHOD.to_dict()},
        "place": asdict(place(__file__)),
        "rows": [],
    }
    if given.out.exists():
        body["rows"] = json.loads(given.out.read_text())["rows"]
    rows = body["rows"]
    done = {(row["seed"], row["decay"], row["way"]) for row in rows}
    for seed, decay, way in itertools.product(given.seeds, DECAYS, WAYS):
        if (seed, decay, way) in done:
            continue
        model = start(decay, seed)
        if way == "tdlrt":
            optimizer = METHOD.optimizer(model, lr=given.lr)
        else:
            model = deploy(model) if way == "tucker" else two_factors(model)
            optimizer = torch.optim.SGD(model.parameters(), lr=given.lr)
        row = train(model, optimizer, data, given.epochs, given.batch, seed)
        rows.append({"seed": seed, "decay": decay, "way": way} | row)
        given.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(given.out, body)
        draw(rows, given.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
