"""Forward passes of compressed networks beside the dense one: is a MAC saved a millisecond saved?

ALDS with plain SVDs (``slices=(1,)``), ALDS as it is, and SVD, at 50, 25 and 10 % of the MACs; batches of 1 and 32;
one thread, CPU time (the wall clock of a shared machine measures its other users), in turns, medians. ``quotient`` is
speed-up over MAC ratio: 1 where a MAC costs the same in either model. Goal: 0.8 where the layers are wide (256 channels
or more, on both sides).

The floor
---------
A float32 core with AVX2 multiplies and adds 16 to 32 numbers per cycle: ResNet-18 at 32 x 32 (0.56 G MACs) takes 12 ms
or more per image. The weights are 45 MB, read once per batch: 3 ms at 15 GB/s. Batch 32 is bound by arithmetic; batch 1
also by memory in the last stage, where 4 x 4 outputs use each weight 16 times: 8 MACs per byte read or fewer.

A decomposed layer writes and reads ``k j`` channels more, and runs two convolutions for one. Expected quotients:
0.9 for unsliced layers of 256 channels and more at batch 32; below 0.8 for the first layers (inner channels of 10 to 30
fill neither the registers nor the blocks of 8 channels that the kernels work in), for encoders in many groups (every
group is a small convolution of its own), and at 10 % of the MACs, where batch norm, ReLU and residual sums, which
nobody compresses, take a growing part.

What came
---------
The other jobs of the machine ran beside it; ratios of CPU time in turns stand that, but expect a tenth of scatter.
Wide layers reach 0.8 at half of the MACs at batch 1 with plain factors (ResNet-18 0.91 to 0.98, VGG-16-BN 0.96 to
0.97) and come near it at batch 32 (0.76 to 0.80); whole networks reach 0.72 to 1.15. VGG-16-BN at batch 1 reads 59 MB
of weights per image, so a smaller network gains by its bytes too: 0.92 at a quarter. At a tenth of the MACs nothing
reaches 0.8: factors have 2 to 14 MACs per byte, and a layer's time no longer falls with its rank; what nobody
compresses takes its share. Sliced layers (ALDS as it is) reach half of that at batch 32 (0.2 to 0.45): every group is a
small convolution of its own. Who wants speed on a CPU takes ``ALDS(slices=(1,))``, and measures.
"""

import copy
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import tenfold
from benchmarks import nets
from benchmarks.record import interleaved
from tenfold.layers.swap import structure_of

METHODS = {"alds, one slice": tenfold.ALDS(slices=(1,)), "alds": tenfold.ALDS(), "svd": tenfold.SVD()}
BUDGETS, BATCHES = (0.5, 0.25, 0.1), {1: 15, 32: 5}
WIDE, GOAL = 256, 0.8
SETTINGS = {
    "methods": {name: method.to_dict() for name, method in METHODS.items()},
    "seed": nets.SEED,
    "weights": nets.SPECTRUM,
    "input": "(batch, 3, 32, 32), normal",
    "clock": "CPU time, one thread, dense and compressed in turns, medians",
    "goals": {"quotient_wide": GOAL, "wide": f"{WIDE} channels or more on both sides"},
}


def cases() -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Network by budget by method by batch."""
    for net in ("resnet18", "vgg16_bn"):
        for batch in BATCHES:
            for budget in BUDGETS:
                for method in METHODS:
                    name = f"{net}, {method}, {budget:.0%} of the MACs, batch {batch}"
                    yield name, partial(measure, net, method, budget, batch)


def line(result: dict[str, Any]) -> str:
    """A result in a sentence."""
    wide = result["wide"]["quotient"] if result["wide"] else None
    return (
        f"{result['dense_ms']:.1f} -> {result['small_ms']:.1f} ms, {result['speedup']:.2f}x for "
        f"{result['mac_ratio']:.2f}x fewer MACs: quotient {result['quotient']:.2f}, wide layers {wide}"
    )


def measure(net: str, method: str, budget: float, batch: int) -> dict[str, Any]:
    """One comparison, with the layers one by one."""
    model = nets.network(net)
    x = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(nets.SEED))
    small, _, report = tenfold.compress(model, METHODS[method], tenfold.Budget(macs=budget), example_inputs=x[:1])
    found = compare(model, small, x, BATCHES[batch])
    ratio = report.dense.macs / report.small.macs
    layers = by_layer(model, small, x)
    return {
        "net": net,
        "method": method,
        "budget": {"macs": budget},
        "batch": batch,
        "dense_ms": round(found.dense_ms, 3),
        "small_ms": round(found.small_ms, 3),
        "speedup": round(found.speedup, 3),
        "speedup_quartiles": [round(q, 3) for q in found.speedup_quartiles],
        "mac_ratio": round(ratio, 3),
        "quotient": round(found.speedup / ratio, 3),
        "wide": together([layer for layer in layers if layer["wide"]]),
        "narrow": together([layer for layer in layers if not layer["wide"]]),
        "decomposed_share_of_dense_time": round(sum(layer["dense_ms"] for layer in layers) / found.dense_ms, 3),
        "slow_layers": [layer for layer in layers if layer["quotient"] < GOAL],
    }


@dataclass(frozen=True)
class Timing:
    """Medians of both, and of the ratios of neighbouring turns."""

    dense_ms: float
    small_ms: float
    speedup: float
    speedup_quartiles: tuple[float, float]


def compare(dense: nn.Module, small: nn.Module, x: Tensor, rounds: int) -> Timing:
    """Forward passes in turns, each turn of 10 ms or more."""

    def turns(model: nn.Module, calls: int) -> Callable[[], None]:
        def run() -> None:
            for _ in range(calls):
                model(x)

        return run

    models = {"dense": dense, "small": small}
    with torch.inference_mode():
        interleaved({key: turns(m, 1) for key, m in models.items()}, 1)
        once = interleaved({key: turns(m, 2) for key, m in models.items()}, 1)
        calls = {key: max(1, round(0.01 / (seconds[0] / 2))) for key, seconds in once.items()}
        seconds = interleaved({key: turns(m, calls[key]) for key, m in models.items()}, rounds)
    each = {key: [s / calls[key] for s in values] for key, values in seconds.items()}
    ratios = [a / b for a, b in zip(each["dense"], each["small"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    a, b = (statistics.median(each[key]) * 1e3 for key in models)
    return Timing(a, b, middle, (low, high))


def by_layer(model: nn.Module, small: nn.Module, x: Tensor) -> list[dict[str, Any]]:
    """Each decomposed layer alone, on the input it has in the dense model."""
    inputs: dict[str, Tensor] = {}
    dense = copy.deepcopy(model)
    for name in structure_of(small):
        dense.get_submodule(name).register_forward_pre_hook(partial(_keep, inputs, name))
    with torch.inference_mode():
        dense(x)
    return [_layer(name, model.get_submodule(name), new, inputs[name]) for name, new in structure_of(small).items()]


def together(layers: list[dict[str, Any]]) -> dict[str, float] | None:
    """Some layers as if they were one."""
    if not layers:
        return None
    dense, small = (sum(layer[key] for layer in layers) for key in ("dense_ms", "small_ms"))
    macs, fewer = (sum(layer[key] for layer in layers) for key in ("macs", "small_macs"))
    return {
        "layers": len(layers),
        "speedup": round(dense / small, 3),
        "mac_ratio": round(macs / fewer, 3),
        "quotient": round(dense / small * fewer / macs, 3),
    }


def _layer(name: str, old: nn.Module, new: nn.Module, x: Tensor) -> dict[str, Any]:
    found = compare(old, new, x, 3)
    macs, fewer = (tenfold.cost(layer, x).macs for layer in (old, new))
    quotient = found.speedup * fewer / macs
    spec = new.spec
    return {
        "name": name,
        "kernel": list(spec.shape),
        "input": list(x.shape[2:]),
        "rank": new.rank,
        "slices": new.slices,
        "wide": min(spec.in_channels, spec.out_channels) >= WIDE,
        "dense_ms": round(found.dense_ms, 4),
        "small_ms": round(found.small_ms, 4),
        "macs": macs // len(x),
        "small_macs": fewer // len(x),
        "speedup": round(found.speedup, 3),
        "quotient": round(quotient, 3),
        **({"reason": _reason(new, x, fewer)} if quotient < GOAL else {}),
    }


def _reason(layer: nn.Module, x: Tensor, macs: int) -> str:
    """What is known to cost: a guess from the shapes, told as one."""
    inner = layer.rank * layer.slices
    reasons = []
    if layer.slices > 1:
        reasons.append(f"encoder in {layer.slices} groups of {x.shape[1] // layer.slices} to {layer.rank} channels")
    if layer.rank < 32 and layer.slices == 1:
        reasons.append(f"{layer.rank} inner channels")
    if layer.slices > 1 and inner > min(layer.spec.in_channels, layer.spec.out_channels):
        reasons.append(f"{inner} inner channels, more than the layer's own")
    numbers = sum(p.numel() for p in layer.parameters()) + x.numel() + x.numel() // x.shape[1] * inner
    if macs / (4 * numbers) < 16:
        reasons.append(f"{macs / (4 * numbers):.0f} MACs per byte: memory-bound")
    if macs < 3e6:
        reasons.append("so little work that the call itself counts")
    return "; ".join(reasons) or "none known: two convolutions for one"


def _keep(inputs: dict[str, Tensor], name: str, _: nn.Module, args: tuple[Tensor, ...]) -> None:
    inputs[name] = args[0]
