"""A whole training step in Tucker format, beside the dense one: forward, backward, and all that the integrator does.

ResNet-18 and VGG-16 (batch norm) at 3 x 32 x 32, batch 128, SGD with momentum. Every convolution with spatial axes gets
the ranks ``max(1, round(alpha n))`` with one alpha, the largest at which so many fewer convolution weights are left in
the deployed form; pointwise and linear layers stay dense. Ranks are pinned, so that every step costs what it says. The
three steps of a short cycle are timed one by one: the first (bases grow), one in between and the last (cut); a cycle of
m = 10 is ``(first + 8 between + last) / 10``. "narrow" is a cycle whose bases grow by a quarter of their columns
(``columns=0.25``), not by as many again. "one_pass" is a cycle of one step, and costs what "fixed" costs. Linear
algebra is the time inside growing and cutting. One thread, CPU time, after a first step that is not counted.

The floor
---------
A square 3x3 layer at r = alpha n has ``(2 alpha + 9 alpha^2) / 9`` of the dense MACs, forward and backward. At 90 %
fewer weights alpha is about 0.22, the rank doubles while the bases are grown, and so the steps between cost
``(0.88 + 1.74) / 9 = 0.29`` of dense in a cycle, 0.14 in a narrow one, 0.1 in "fixed", two passes 0.39. Norms,
activations, the loss and the layers that stay dense cost the same in both: a tenth of a step. Linear algebra per layer:
a QR and a subspace step of an ``n x 2r`` basis and an eigenproblem of order 2r, some 20 n r^2 multiply-adds in float64;
for n = 512 a tenth of a second for each mode, once in a cycle. Expected: a cycle 2 to 3 times faster than dense at
90 %, a narrow one 3 to 4 times, "fixed" less, since it pays the linear algebra in every step.
"""

import functools
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks import memory, nets
from tenfold.layers.cost import layer_cost
from tenfold.layers.spec import spec_of
from tenfold.layers.tucker_model import to_tucker
from tenfold.layers.tucker_protocol import factorised
from tenfold.linalg.multilinear import feasible
from tenfold.optim.tucker import integrator as integration
from tenfold.train.models import build_model

Ranks = dict[str, tuple[int, ...]]

NETS = ("resnet18", "vgg16_bn")
FEWER = (0.5, 0.75, 0.9, 0.95)
BATCH, CYCLE = 128, 10
INTEGRATORS = {
    "cycle": integration.IntegratorSettings(tau=0.1, every=3, pinned=True),
    "narrow": integration.IntegratorSettings(tau=0.1, every=3, pinned=True, columns=0.25),
    "one_pass": integration.IntegratorSettings(tau=0.1, every=1, pinned=True),
    "two_pass": integration.IntegratorSettings(tau=0.1, every=1, pinned=True, twice=True),
}
SETTINGS = {
    "batch": BATCH,
    "seed": nets.SEED,
    "cycle": CYCLE,
    "clock": "CPU time, one thread, one step of each kind after one that is not counted",
    "goals": {"faster": 2, "at": 0.9},
}


def cases() -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Times of every network and size."""
    for net in NETS:
        for fewer in FEWER:
            yield f"{net} {fewer:.0%} fewer", partial(steps, net, fewer)


def line(result: dict[str, Any]) -> str:
    """One result in words."""
    told = [
        f"{name} {result['seconds'][name]:.2f} s ({result['faster'][name]:.2f}x, {result['algebra'][name]:.0%} algebra)"
        for name in INTEGRATORS
    ]
    return f"dense {result['seconds']['dense']:.2f} s; alpha {result['alpha']:.3f}; " + ", ".join(told)


def steps(net: str, fewer: float) -> dict[str, Any]:
    """Seconds of a step, dense and by each integrator; how much faster; the share in linear algebra."""
    alpha, ranks = _ranks(net, fewer)
    seconds, algebra = {"dense": _dense(net)}, {}
    for name, settings in INTEGRATORS.items():
        clock = _Clock()
        took = []
        train = _training(net, ranks, settings, BATCH)
        with clock:
            for _ in range(settings.every if settings.every > 1 else 2):
                clock.spent = 0.0
                start = time.process_time()
                train()
                took.append((time.process_time() - start, clock.spent))
        if settings.every > 1:
            (first, a), (between, _), (last, b) = took
            seconds[name] = (first + (CYCLE - 2) * between + last) / CYCLE
            algebra[name] = (a + b) / CYCLE / seconds[name]
        else:
            seconds[name] = took[-1][0]
            algebra[name] = took[-1][1] / took[-1][0]
    return {
        "net": net,
        "fewer": fewer,
        "alpha": round(alpha, 4),
        "seconds": {name: round(s, 3) for name, s in seconds.items()},
        "faster": {name: round(seconds["dense"] / seconds[name], 3) for name in INTEGRATORS},
        "algebra": {name: round(share, 3) for name, share in algebra.items()},
    }


class _Clock:
    """Counts what the integrator's growing and cutting take, while it is open."""

    def __init__(self) -> None:
        self.spent = 0.0
        self._parts = {name: getattr(integration, name) for name in ("augment_", "cut_")}

    def __enter__(self) -> None:
        for name, part in self._parts.items():
            setattr(integration, name, functools.partial(self._timed, part))

    def __exit__(self, *_: object) -> None:
        for name, part in self._parts.items():
            setattr(integration, name, part)

    def _timed(self, part: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        try:
            return part(*args, **kwargs)
        finally:
            self.spent += time.process_time() - start


@functools.cache
def _dense(net: str) -> float:
    model = _fresh(net)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    train = _step(model, optimizer, BATCH, closure=False)
    train()
    start = time.process_time()
    train()
    return time.process_time() - start


def _training(net: str, ranks: Ranks, settings: integration.IntegratorSettings, batch: int) -> Callable[[], None]:
    model = to_tucker(_fresh(net), ranks, generator=torch.Generator().manual_seed(nets.SEED)).model
    bases = {id(basis) for layer in factorised(model).values() for basis in layer.bases}
    inner = torch.optim.SGD([p for p in model.parameters() if id(p) not in bases], lr=1e-3, momentum=0.9)
    return _step(model, integration.Integrator(inner, model, settings), batch, closure=settings.twice)


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: int, *, closure: bool) -> Callable[[], None]:
    model.train()
    x = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    y = torch.arange(batch) % 10

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(model(x), y)
        value.backward()
        return value

    def train() -> None:
        if closure:
            optimizer.step(loss)
        else:
            loss()
            optimizer.step()

    return train


def _fresh(net: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(nets.SEED)
        return build_model(net, **nets.NETS[net])


def _ranks(net: str, fewer: float) -> tuple[float, Ranks]:
    """The largest alpha that leaves so many fewer weights in convolutions, by bisection, and its ranks."""
    specs = {n: spec_of(m) for n, m in _fresh(net).named_modules() if isinstance(m, nn.Conv2d)}
    costs = {n: layer_cost(spec) for n, spec in specs.items() if spec is not None}

    def ranks(alpha: float) -> dict[str, tuple[int, ...]]:
        wanted = {n: tuple(max(1, round(alpha * size)) for size in cost.shape[:2]) for n, cost in costs.items()}
        return {n: feasible(r, costs[n].shape[:2], math.prod(costs[n].shape[2:])) for n, r in wanted.items()}

    def kept(alpha: float) -> float:
        chosen = ranks(alpha)
        small = {
            n: cost.dense() if math.prod(cost.shape[2:]) == 1 else cost.tucker(chosen[n]) for n, cost in costs.items()
        }
        return sum(c.params for c in small.values()) / sum(cost.dense().params for cost in costs.values())

    low, high = 0.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if kept(middle) <= 1 - fewer else (low, middle)
    spatial = {n: r for n, r in ranks(low).items() if math.prod(costs[n].shape[2:]) > 1}
    return low, spatial


def main() -> None:
    """Peak memory of two steps as one JSON object: ``python -m benchmarks.tucker_step NET FEWER BATCH COLUMNS``."""
    net, fewer, batch, columns = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    torch.set_num_threads(1)
    ranks = _ranks(net, fewer)[1] if fewer else None
    nn.functional.conv2d(torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, 3, 3))  # libraries load at the first call
    before = memory._reset()
    if ranks is None:
        model = _fresh(net)
        train = _step(model, torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9), batch, closure=False)
    else:
        train = _training(
            net, ranks, integration.IntegratorSettings(tau=0.1, every=2, pinned=True, columns=columns), batch
        )
    train()
    train()
    print(json.dumps({"peak_bytes": memory._peak() - before}))


if __name__ == "__main__":
    main()
