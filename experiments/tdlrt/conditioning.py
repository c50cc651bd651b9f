"""How much an ill-conditioned start costs: TDLRT at fixed rank beside plain training of the same factors.

    python experiments/tdlrt/conditioning.py --seeds 0 1 2 --out experiments/tdlrt/results/conditioning.json

LeNet-5 on a part of Fashion-MNIST, rank 20, SGD. Both start from the same function: orthonormal bases drawn at random,
and singular values that fall by a factor of 1, 2 or 10 from one to the next, scaled to the norm of the usual
initialisation. The design is that of Schotthoefer et al. 2022 (arXiv 2205.13571), who train on all of MNIST, at a
learning rate of 0.01 and for longer. The loss of each epoch and the test accuracy in the end go into the JSON file, the
curves into a PNG beside it. Both are rewritten after each run. Six runs make a seed; where it was tried, one took
17 s of processor time by TDLRT and 7 s on the factors, on one core.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import tenfold
from tenfold.files import write_json
from tenfold.layers import deploy
from tenfold.layers.factors import factorised
from tenfold.linalg.subspace import orthonormalise
from tenfold.train import Data, batches, evaluate, load_data

RANKS = {"conv2": 20, "fc1": 20, "fc2": 10}
DECAYS = (1.0, 2.0, 10.0)
WAYS = ("tdlrt", "factors")


def start(decay: float, seed: int) -> nn.Module:
    """LeNet-5 whose layers have the spectra asked for, in Tucker format."""
    torch.manual_seed(seed)
    method = tenfold.TDLRT(integrator="fixed", ranks=RANKS, scratch=True)
    model = method.begin(tenfold.build_model("lenet5", channels=1, size=28))
    generator = torch.Generator().manual_seed(seed)
    for layer in factorised(model).values():
        core, rank = layer.core, layer.ranks[0]
        rows = torch.randn(core[0].numel(), rank, dtype=torch.float64, generator=generator)
        spectrum = decay ** -torch.arange(rank, dtype=torch.float64)
        new = spectrum[:, None] * orthonormalise(rows)[0].mT
        core.data.copy_((new * (core.detach().double().norm() / new.norm())).reshape(core.shape))
    return model


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


def part(data: Data, examples: int) -> Data:
    """The same training examples every time."""
    chosen = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))[:examples]
    return replace(data, train=replace(data.train, x=data.train.x[chosen], y=data.train.y[chosen]))


def draw(rows: list[dict], path: Path) -> None:
    """Training loss against epochs: a panel for each way, a colour for each decay, a line for each seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, len(WAYS), sharey=True)
    for ax, way in zip(axes, WAYS, strict=True):
        for colour, decay in zip(("#0072B2", "#E69F00", "#D55E00"), DECAYS, strict=True):
            for i, row in enumerate(r for r in rows if r["way"] == way and r["decay"] == decay):
                label = f"spectrum falls by {decay:g}" if i == 0 else None
                ax.plot(range(1, len(row["loss"]) + 1), row["loss"], color=colour, label=label)
        ax.set(title={"tdlrt": "TDLRT, rank fixed", "factors": "plain SGD on the factors"}[way], xlabel="epoch")
        ax.grid(alpha=0.3)
        if ax.lines:
            ax.legend()
    axes[0].set_ylabel("training loss")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--examples", type=int, default=3200)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--data-root", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = part(load_data("fashion-mnist", given.data_root), given.examples)
    settings = {
        "examples": given.examples,
        "epochs": given.epochs,
        "batch": given.batch,
        "lr": given.lr,
        "ranks": RANKS,
    }
    rows: list[dict] = []
    for seed in given.seeds:
        for decay in DECAYS:
            for way in WAYS:
                model = start(decay, seed)
                if way == "tdlrt":
                    optimizer = tenfold.TDLRT(integrator="fixed").optimizer(model, lr=given.lr)
                else:
                    model = deploy(model)
                    optimizer = torch.optim.SGD(model.parameters(), lr=given.lr)
                row = train(model, optimizer, data, given.epochs, given.batch, seed)
                rows.append({"seed": seed, "decay": decay, "way": way} | row)
                given.out.parent.mkdir(parents=True, exist_ok=True)
                write_json(given.out, {"settings": settings, "torch": torch.__version__, "rows": rows})
                draw(rows, given.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
