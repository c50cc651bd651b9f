"""Recurrent layers with low-rank matrices beside the dense ones: two levels, both directions, 512 inputs, 256 features.

*input* has factors in the input matrices alone, *all* in the recurrences as well. One thread, its own processor time,
in turns, medians; random weights, for which time does not ask.

The floor
---------
An LSTM's four input matrices are two thirds of its multiply-adds, 2.10 of 3.15 million a step; torch's kernel runs them
for the whole sequence at once, and the recurrences step by step. At rank 64 of the inputs 46 % of all are left: 2.2
times as fast at most, less for what is not multiplied. A recurrence of rank 64 has 31 % of its multiply-adds, and gains
only where they are done through the factors, in steps that cost more by themselves.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import tenfold
from tenfold.bench.latency import compare
from tenfold.layers.open_recurrent import opened
from tenfold.layers.swap import apply
from tenfold.optim.factorise import LayerForm
from tenfold.runtimes.timing import undisturbed_clock

KINDS = {"LSTM": nn.LSTM, "GRU": nn.GRU}
INPUTS, FEATURES, STEPS, ROUNDS = 512, 256, 80, 9
RANKS = (64, 128)
SETTINGS = {
    "inputs": INPUTS,
    "features": FEATURES,
    "levels": 2,
    "directions": 2,
    "steps": STEPS,
    "rounds": ROUNDS,
    "seed": 0,
    "clock": "processor time of one thread, in turns, medians",
}


class Outputs(nn.Module):
    """A recurrent layer without its last states."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.rnn: nn.Module = layer

    def forward(self, x: Tensor) -> Tensor:
        """Sequences ``(T, N, in)`` to outputs."""
        return self.rnn(x)[0]


def cases() -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Each kind in each runtime, for one sequence and for eight."""
    for kind in KINDS:
        for runtime in ("eager", "onnxruntime"):
            for count in (1, 8):
                yield f"{kind} {runtime} {count}", partial(measured, kind, runtime, count)


def line(result: dict[str, Any]) -> str:
    """One result in words."""
    return ", ".join(f"{name} {ms:.1f} ms" for name, ms in result["ms"].items())


def measured(kind: str, runtime: str, count: int) -> dict[str, Any]:
    """Milliseconds and parameters of the dense layer, and of those with factors, each in turns with the dense one."""
    torch.manual_seed(0)
    dense = Outputs(KINDS[kind](INPUTS, FEATURES, 2, bidirectional=True)).eval()
    x = torch.randn(STEPS, count, INPUTS)
    clock = undisturbed_clock(x, 1)
    result: dict[str, Any] = {
        "kind": kind,
        "runtime": runtime,
        "sequences": count,
        "ms": {},
        "speedup": {},
        "params": {},
    }
    result["params"]["dense"] = tenfold.cost(dense).params
    for rank in RANKS:
        for which, wanted in (("input", "weight_ih"), ("all", "weight_")):
            names = [n for n, m in opened(dense).named_modules() if isinstance(m, nn.Linear) and wanted in n]
            small = apply(opened(dense), {n: LayerForm("low-rank", rank, 1, "channel") for n in names})
            found = compare(dense, small, x, rounds=ROUNDS, clock=clock, runtime=runtime)
            key = f"{which} {rank}"
            result["ms"].setdefault("dense", found.dense_ms)
            result["ms"][key], result["speedup"][key] = found.small_ms, found.speedup
            result["params"][key] = tenfold.cost(small).params
    return result
