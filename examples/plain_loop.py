"""Your own PyTorch loop, untouched: train, compress, fine-tune, save. tenfold needs five of these lines.

Then the other way round: a network that is trained to be cut, by the same loop with an optimizer from the method.

python examples/plain_loop.py --out runs/plain-loop
"""

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

import tenfold


def loop(model, optimizer, x, y, epochs):
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            cross_entropy(model.train()(x[batch]), y[batch]).backward()
            optimizer.step()


def sgd(model, lr):
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


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
    loop(model, sgd(model, lr=0.1), *train, epochs)
    print("trained        ", accuracy(model, *test))

    small, plan, report = tenfold.compress(model, tenfold.ALDS(), tenfold.Budget(params=0.25))
    print("right after    ", accuracy(small, *test), f"with {report.kept['params']:.1%} of the parameters")

    tenfold.reestimate_(small, train[0].split(64))  # batch norm
    print("re-estimated   ", accuracy(small, *test))

    loop(small, sgd(small, lr=0.01), *train, recovery)  # plain layers, plain parameters: the same loop
    print("fine-tuned     ", accuracy(small, *test))

    tenfold.save(small, out, plan)
    loaded = tenfold.load(out, model=tenfold.build_model("cnn", 10, 1, 8))
    with torch.inference_mode():
        assert torch.equal(loaded.eval()(test[0]), small.eval()(test[0]))
    print("saved and loaded, bit for bit:", out)

    for method in (tenfold.TRP(every=20), tenfold.LRPET(every="epoch")):
        torch.manual_seed(0)
        model, budget = tenfold.build_model("cnn", 10, 1, 8), tenfold.Budget(params=0.25)
        run = tenfold.begin(model, method, budget, steps_per_epoch=-(-1400 // 64))
        optimizer = run.attach(sgd(run.model, lr=0.1))  # or run.optimizer(torch.optim.SGD, lr=0.1, momentum=0.9)
        loop(run.model, optimizer, *train, epochs)
        small, plan, report = run.finish(data=train[0].split(64))
        print(f"{method.name:15}", accuracy(small, *test), f"with {report.kept['params']:.1%}, not fine-tuned")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/plain-loop"), help="where the network goes")
    parser.add_argument("--epochs", type=int, default=10, help="of training")
    parser.add_argument("--recovery", type=int, default=3, help="epochs after compression")
    arguments = parser.parse_args()
    main(arguments.out, arguments.epochs, arguments.recovery)
