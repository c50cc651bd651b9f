"""A training step of stochastic Frank-Wolfe beside one of SGD: ResNet-18 at 3 x 32 x 32, batch 128, float32.

A step is forward, backward and the optimizer's own work, the first two alike for all. SFW has its set on every
convolution (spectral k-support at 10 and 30 %, group k-support at 20 %), an L2 ball on the classifier, and SGD for
biases and norms. One thread, CPU time, in turns, medians, after a first step that is not counted (it starts the bases).

The floor
---------
Forward and backward take three times 0.56 G multiply-adds per image, 214 G for the batch: 5 s at 40 G/s. SGD with
momentum passes three times over 45 MB: 20 ms. SFW passes some ten times (momentum, vertex, distance, step): 70 ms; a
spectral set adds the warm oracle, 60 ms at 10 % and 140 ms at 30 %. Expected: 1.02 to 1.04 times SGD. Goal: 1.15.
"""

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

import tenfold
from benchmarks import nets
from benchmarks.record import interleaved
from tenfold import balls

NET, BATCH, ROUNDS = "resnet18", 128, 3
SETS = {
    "spectral k-support, 10 %": balls.SpectralKSupport(0.1),
    "spectral k-support, 30 %": balls.SpectralKSupport(0.3),
    "group k-support, 20 %": balls.GroupKSupport(0.2),
}
SETTINGS = {
    "net": NET,
    "batch": BATCH,
    "seed": nets.SEED,
    "weights": nets.SPECTRUM,
    "clock": "CPU time, one thread, in turns, medians",
    "goal": 1.15,
}


def cases() -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """One per set."""
    for name in SETS:
        yield name, partial(step, name)


def line(result: dict[str, Any]) -> str:
    """One result in words."""
    seconds = result["seconds"]
    own = ", ".join(f"{1000 * result['own'][name]:.0f} ms" for name in ("sgd", "sfw"))
    return f"sgd {seconds['sgd']:.2f} s, sfw {seconds['sfw']:.2f} s: {result['ratio']:.3f}; the optimizers alone {own}"


def step(name: str) -> dict[str, Any]:
    """Seconds of whole steps and of the optimizers alone, and the ratio."""
    made = {
        "sgd": (tenfold.Dense(), {"weight_decay": 5e-4}),
        "sfw": (tenfold.SFW(SETS[name], width=10.0), {}),
    }
    runs, own = {}, {}
    for key, (method, hyper) in made.items():
        model = method.begin(nets.network(NET)).train()
        optimizer = method.optimizer(model, lr=1e-3, momentum=0.9, **hyper)
        runs[key] = partial(train, model, optimizer)
        own[key] = optimizer.step
        runs[key]()
    seconds = {key: statistics.median(s) for key, s in interleaved(runs, ROUNDS).items()}
    alone = {key: statistics.median(s) for key, s in interleaved(own, ROUNDS).items()}
    return {"set": name, "seconds": seconds, "own": alone, "ratio": seconds["sfw"] / seconds["sgd"]}


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """One step on noise."""
    x = torch.randn(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), torch.arange(BATCH) % 10).backward()
    optimizer.step()
