"""Forward passes of compressed networks beside the dense one, in three runtimes: is a MAC saved a millisecond saved?

Unsliced factors in both spatial folds, chosen by ALDS in the Frobenius norm at aligned ranks, at 50, 25 and 10 % of the
MACs; batches of 1 and 8; one thread, CPU time (the wall clock of a shared machine measures its other users), in turns,
medians. Both networks with batch norm folded; eagerly in the faster of two memory formats. The honest ratio is best
against best: the dense network in its best runtime over the compressed one in its own. ``quotient`` is that over the
MAC ratio: 1 where a MAC costs the same in either network.

Goals: in ONNX Runtime, batch 1, at 4.5 times fewer MACs, 3.9x on ResNet-18 and 4.5x on VGG-16-BN; quotients of 0.85 at
half of the MACs and 0.75 at a quarter, best against best, on networks with wide layers.

The floor
---------
A float32 core with AVX2 multiplies and adds 16 to 32 numbers per cycle: ResNet-18 at 32 x 32 (0.56 G MACs) takes 6 to
12 ms per image. The weights are 45 MB, read once per batch: 3 ms at 15 GB/s, which a network at a tenth of the weights,
held by the last cache, saves. A decomposed layer writes and reads its inner channels and runs two convolutions for one;
ReLU and residual sums, which nobody compresses, stay. Expected: 0.85 to 1 at half, 0.75 to 0.9 at a quarter, less at a
tenth; less on ResNet-50, whose 1x1 convolutions become two of a few channels, and next to nothing on MobileNetV2, whose
depthwise layers stay.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import tenfold
from benchmarks import nets
from benchmarks.record import rounded
from tenfold.bench.latency import Comparison, benchmark

METHOD = tenfold.ALDS(folds=("spatial", "spatial-t"), slices=(1,), measure="fro")
SIZES = {"resnet18": 32, "vgg16_bn": 32, "resnet50": 224, "mobilenet_v2": 160, "minilm": 64}
BUDGETS, BATCHES = (0.5, 0.25, 0.1), (1, 8)
RUNTIMES = ("eager", "compile", "onnxruntime")
ROUNDS = 15
SETTINGS = {
    "method": METHOD.to_dict(),
    "seed": nets.SEED,
    "weights": nets.SPECTRUM,
    "sizes": SIZES,
    "clock": "CPU time, one thread, dense and compressed in turns, medians; batch norm folded",
    "goals": {"resnet18 at 1/4.5": 3.9, "vgg16_bn at 1/4.5": 4.5, "quotient at 1/2": 0.85, "quotient at 1/4": 0.75},
}


def cases() -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Network by batch by budget; at the MACs of the goals, too."""
    for net in SIZES:
        for batch in BATCHES:
            more = (1 / 4.5,) if (net, batch) in {("resnet18", 1), ("vgg16_bn", 1)} else ()
            for budget in (*BUDGETS, *more):
                yield f"{net}, {budget:.0%} of the MACs, batch {batch}", partial(measure, net, budget, batch)


def line(result: dict[str, Any]) -> str:
    """A result in a sentence."""
    each = ", ".join(f"{name} {row['speedup']:.2f}x" for name, row in result["runtimes"].items())
    best = f"best against best {result['speedup']:.2f}x for {result['mac_ratio']:.2f}x fewer MACs"
    return f"{each}; {best}: quotient {result['quotient']:.2f}"


def measure(net: str, budget: float, batch: int) -> dict[str, Any]:
    """One network at one budget, in every runtime."""
    model = nets.network(net)
    size = SIZES[net]
    x = nets.example(net, batch, size)
    small, _, report = tenfold.compress(model, METHOD, tenfold.Budget(macs=budget), example_inputs=x[:1])
    found = benchmark(model, small, x, runtimes=RUNTIMES, rounds=ROUNDS)
    ratio = report.dense.macs / report.small.macs
    return {
        "net": net,
        "budget": {"macs": round(budget, 4)},
        "batch": batch,
        "runtimes": {row.dense_form.runtime: as_row(row) for row in found.each},
        "best": as_row(found.best),
        "speedup": round(found.best.speedup, 3),
        "mac_ratio": round(ratio, 3),
        "quotient": round(found.best.speedup / ratio, 3),
    }


def as_row(row: Comparison) -> dict[str, Any]:
    """One comparison: milliseconds of both, the ratio and its middle half, and the forms that were measured."""
    figures = {"dense_ms": row.dense_ms, "small_ms": row.small_ms, "speedup": row.speedup}
    return {name: round(value, 4) for name, value in figures.items()} | {
        "speedup_quartiles": rounded(row.speedup_quartiles),
        "dense": asdict(row.dense_form),
        "small": asdict(row.small_form),
    }
