"""Your own PyTorch loop, untouched: train, compress, fine-tune, save. tenfold needs five of these lines.

python examples/plain_loop.py --out runs/plain-loop
"""

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

import tenfold


def loop(model, x, y, epochs, lr):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            cross_entropy(model.train()(x[batch]), y[batch]).backward()
            optimizer.step()


def accuracy(model, x, y):
    with torch.inference_mode():
        return f"{(model.eval()(x).argmax(1) == y).float().mean():.1%}"


def main(out: Path, epochs: int, recovery: int) -> None:
    torch.manual_seed(0)
    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    y = torch.tensor(digits.target)
    train, test = (x[:1400], y[:1400]), (x[1400:], y[1400:])  # the last 397 were written by other people

    model = tenfold.build_model("cnn", 10, 1, 8)  # or any nn.Module of your own
    loop(model, *train, epochs, lr=0.1)
    print("trained        ", accuracy(model, *test))

    small, plan, report = tenfold.compress(model, tenfold.ALDS(), tenfold.Budget(params=0.25))
    print("right after    ", accuracy(small, *test), f"with {report.kept['params']:.1%} of the parameters")

    tenfold.reestimate_(small, train[0].split(64))  # batch norm
    print("re-estimated   ", accuracy(small, *test))

    loop(small, *train, recovery, lr=0.01)  # plain layers, plain parameters: the same loop
    print("fine-tuned     ", accuracy(small, *test))

    tenfold.save(small, out, plan)
    loaded = tenfold.load(out, model=tenfold.build_model("cnn", 10, 1, 8))
    with torch.inference_mode():
        assert torch.equal(loaded.eval()(test[0]), small.eval()(test[0]))
    print("saved and loaded, bit for bit:", out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/plain-loop"), help="where the network goes")
    parser.add_argument("--epochs", type=int, default=10, help="of training")
    parser.add_argument("--recovery", type=int, default=3, help="epochs after compression")
    arguments = parser.parse_args()
    main(arguments.out, arguments.epochs, arguments.recovery)
