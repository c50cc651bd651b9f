"""The linear minimisation oracle of the spectral k-support ball, for all convolutions of ResNet-18.

Momentum buffers are stood in for by kernels of a known spectrum, and turn a little from one call to the next. Timed
are ``full svd``, one float32 `torch.linalg.svd` per layer and its leading part; ``exact``, `SpectralKSupport.lmo` (Gram
matrix and eigenvectors); and ``warm``, `SpectralKSupport.warm` from the basis of the call before. Layers of one shape
are stacked for the last two. The accuracy is the least ``value / support`` of a layer, 1 for the optimum. One thread,
CPU time, in turns, medians.

The floor
---------
A warm step is three products of ``p k n`` multiply-adds for a ``p x n`` matrix: at k = p / 10 one tenth of those of a
product of the matrix with itself, three times. All layers together are 0.49 G multiply-adds each at 10 %, 1.46 G at
30 %: at 40 G/s 37 ms and 109 ms. A full SVD of them takes about 2 s. Expected: warm 40 times below it at 10 % and 20
times at 30 %, exact 5 times.
"""

import statistics
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import nets
from benchmarks.record import interleaved
from tenfold import balls

NET, SHARES = "resnet18", (0.1, 0.3)
CHANGE, WARM_UP, ROUNDS = 0.05, 3, 3
SETTINGS = {
    "net": NET,
    "seed": nets.SEED,
    "weights": nets.SPECTRUM,
    "change": CHANGE,
    "clock": "CPU time, one thread, in turns, medians",
    "goal": 20,
}


def cases() -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """One per rank."""
    for share in SHARES:
        yield f"{NET} k={share:.0%}", partial(oracle, share)


def line(result: dict[str, Any]) -> str:
    """One result in words."""
    ratios = ", ".join(f"{name} {ratio:.1f}x below" for name, ratio in result["ratio"].items())
    return f"full svd {result['seconds']['full svd']:.3f} s: {ratios}; accuracy of warm {result['accuracy']:.4f}"


def oracle(share: float) -> dict[str, Any]:
    """Seconds, ratios to the full SVD, and the accuracy of the warm step."""
    ball = balls.SpectralKSupport(share)
    stacks = gradients(0)
    bases: list[Tensor | None] = [None] * len(stacks)
    for seed in range(WARM_UP):
        stacks = gradients(seed)
        bases = [ball.warm(g, 1.0, basis).basis for g, basis in zip(stacks, bases, strict=True)]
    stacks = gradients(WARM_UP)

    def warm() -> list[balls.Warm]:
        return [ball.warm(g, 1.0, basis) for g, basis in zip(stacks, bases, strict=True)]

    runs = {
        "full svd": lambda: [reference(kernel, ball) for g in stacks for kernel in g],
        "exact": lambda: [ball.lmo(g, 1.0, stacked=True) for g in stacks],
        "warm": warm,
    }
    warm()
    seconds = {name: statistics.median(s) for name, s in interleaved(runs, ROUNDS).items()}
    accuracy = [float((w.value / ball.support(g, stacked=True)).min()) for w, g in zip(warm(), stacks, strict=True)]
    ratio = {name: seconds["full svd"] / seconds[name] for name in ("exact", "warm")}
    return {"k": share, "layers": sum(map(len, stacks)), "seconds": seconds, "ratio": ratio, "accuracy": min(accuracy)}


def gradients(seed: int) -> list[Tensor]:
    """All kernels, those of one shape in a stack, with noise of their own for each seed."""
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[torch.Size, list[Tensor]] = {}
    for w in kernels():
        noise = torch.randn(w.shape, generator=generator)
        shapes.setdefault(w.shape, []).append(w + noise * (CHANGE * w.norm() / noise.norm()))
    return [torch.stack(alike) for alike in shapes.values()]


@cache
def kernels() -> list[Tensor]:
    """Of all convolutions."""
    return [m.weight.detach() for m in nets.network(NET).modules() if isinstance(m, nn.Conv2d)]


def reference(kernel: Tensor, ball: balls.SpectralKSupport) -> Tensor:
    """The vertex by a full SVD."""
    u, s, vh = torch.linalg.svd(kernel.flatten(1), full_matrices=False)
    k = ball.count(len(s))
    return ((u[:, :k] * (-s[:k] / s[:k].norm())) @ vh[:k]).view_as(kernel)
