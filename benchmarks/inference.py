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

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

import tenfold
from benchmarks import nets
from benchmarks.record import interleaved
from tenfold.runtimes import get_runtime

METHOD = tenfold.ALDS(folds=("spatial", "spatial-t"), slices=(1,), measure="fro")
SIZES = {"resnet18": 32, "vgg16_bn": 32, "resnet50": 224, "mobilenet_v2": 160}
BUDGETS, BATCHES = (0.5, 0.25, 0.1), (1, 8)
FORMATS = {"default": torch.contiguous_format, "channels last": torch.channels_last}
RUNTIMES = ("eager", "compile", "onnxruntime")
ROUNDS, SECONDS = 11, 6.0
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
    x = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(nets.SEED))
    small, _, report = tenfold.compress(model, METHOD, tenfold.Budget(macs=budget), example_inputs=x[:1])
    both = {"dense": model, "small": small}
    folded = {name: tenfold.fold_batchnorm(m, example_inputs=x[:1]) for name, m in both.items()}
    rows = {name: in_runtime(name, folded, x) for name in RUNTIMES}
    dense, compressed = (min(row[key] for row in rows.values()) for key in ("dense_ms", "small_ms"))
    ratio = report.dense.macs / report.small.macs
    return {
        "net": net,
        "budget": {"macs": round(budget, 4)},
        "batch": batch,
        "runtimes": rows,
        "speedup": round(dense / compressed, 3),
        "mac_ratio": round(ratio, 3),
        "quotient": round(dense / compressed / ratio, 3),
    }


def in_runtime(name: str, models: dict[str, Any], x: torch.Tensor) -> dict[str, Any]:
    """Milliseconds of both networks, each in its best memory format where the runtime leaves the choice."""
    runtime = get_runtime(name)
    formats = FORMATS if name == "eager" else {"default": torch.contiguous_format}
    calls = {
        (which, form): runtime.prepare(model.to(memory_format=kind), x.contiguous(memory_format=kind))
        for form, kind in formats.items()
        for which, model in ((which, tenfold.fold_batchnorm(model)) for which, model in models.items())
    }
    with torch.inference_mode():
        interleaved(calls, 1)
        once = sum(seconds[0] for seconds in interleaved(calls, 1).values())
        rounds = max(3, min(ROUNDS, round(SECONDS / once)))
        turns = {key: partial(_repeat, call, max(1, round(0.01 / once))) for key, call in calls.items()}
        seconds = interleaved(turns, rounds)
    ms = {key: statistics.median(each) * 1e3 / max(1, round(0.01 / once)) for key, each in seconds.items()}
    dense, small = (min((t, form) for (which, form), t in ms.items() if which == wanted) for wanted in models)
    return {
        "dense_ms": round(dense[0], 4),
        "small_ms": round(small[0], 4),
        "dense_format": dense[1],
        "small_format": small[1],
        "speedup": round(dense[0] / small[0], 3),
        "version": runtime.version,
    }


def _repeat(call: Callable[[], Any], times: int) -> None:
    for _ in range(times):
        call()
