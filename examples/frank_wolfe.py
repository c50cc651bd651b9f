"""Your own loop, one dense run by stochastic Frank-Wolfe, then many sizes of the same network without retraining.

python examples/frank_wolfe.py
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

import tenfold


def main(epochs: int) -> None:
    torch.manual_seed(0)
    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    y = torch.tensor(digits.target)
    train, test = (x[:1400], y[:1400]), (x[1400:], y[1400:])  # the last 397 were written by other people

    method = tenfold.SFW(tenfold.balls.SpectralKSupport(k=0.2), width=3.0)
    run = tenfold.begin(tenfold.build_model("cnn", 10, 1, 8), method)
    model, optimizer = run.model, run.optimizer(lr=0.5, momentum=0.9)
    steps = epochs * (len(train[0]) // 64)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)  # the rate has to fall to 0
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(train[0])).split(64)[: steps // epochs]:
            optimizer.zero_grad()
            cross_entropy(model(train[0][batch]), train[1][batch]).backward()
            optimizer.step()
            schedule.step()

    for track in optimizer.stats():  # structure shows where little is left of the start
        print(f"{track.name:15} {track.kept:8.1e} of the start left, {track.clamped:4.0%} of the steps clipped")
    loader = list(zip(test[0].split(200), test[1].split(200), strict=True))
    for row in tenfold.sweep(model, tenfold.RankCut(), [0, 0.4, 0.8], loader, data=train[0].split(64)):
        print(f"{row.removed:.0%} of the ranks removed: {row.params:,} parameters,", end=" ")
        print(f"{row.right_after:.1%} right after, {row.reestimated:.1%} with batch norm re-estimated")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=12, help="of training")
    main(parser.parse_args().epochs)
