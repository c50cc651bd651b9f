"""Peak memory of training in Tucker format, beside dense training: the networks, ranks and cycles of `tucker_step`.

Peak memory is that of building the model and of two steps, the second in the grown bases, in a process of its own. It
is taken twice: with glibc's allocator as it is, which holds on to blocks that fit nothing any more, and with one that
gives every block of 256 KiB back at once, which is what the steps need.

The floor
---------
Norms and activations keep their maps as in the dense network, and a chain keeps its input, as the dense layer does. On
top come w of each layer in steps that ask for gradients of bases, and z where it costs too much to compute again. So
the floor is the dense network without the weights, gradients and momenta that are saved: of ResNet-18's 712 MiB at 90 %
some 115, a ratio of 0.84.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from benchmarks import nets
from benchmarks.record import ROOT
from benchmarks.tucker_step import BATCH, NETS

FEWER = 0.9
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": str(2**18)}
SETTINGS = {"batch": BATCH, "seed": nets.SEED, "fewer": FEWER, "allocator": GIVES_BACK, "goals": {"memory": 1}}


def cases() -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Every network."""
    for net in NETS:
        yield f"{net} {FEWER:.0%} fewer", partial(peaks, net, FEWER)


def line(result: dict[str, Any]) -> str:
    """One result in words."""
    size = {name: f"{bytes_ / 2**20:.0f} MiB" for name, bytes_ in result["needed_peak_bytes"].items()}
    ratios = [f"{name} {size[name]}: {ratio:.2f}" for name, ratio in result["needed_over_dense"].items()]
    held = ", ".join(f"{name} {ratio:.2f}" for name, ratio in result["over_dense"].items())
    return f"dense {size['dense']}, {', '.join(ratios)}; with what glibc holds: {held}"


def peaks(net: str, fewer: float) -> dict[str, Any]:
    """Peak memory of model and training, each in a process of its own; once more with no memory held back."""
    found: dict[str, dict[str, Any]] = {}
    for kind, allocator in (("", {}), ("needed_", GIVES_BACK)):
        peak = {}
        for name, share, columns in (("dense", 0.0, 1.0), ("cycle", fewer, 1.0), ("narrow", fewer, 0.25)):
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.tucker_step", net, str(share), str(BATCH), str(columns)],
                cwd=ROOT, capture_output=True, text=True, check=True, env=os.environ | allocator,
            )  # fmt: skip
            peak[name] = json.loads(done.stdout)["peak_bytes"]
        ratios = {name: round(peak[name] / peak["dense"], 3) for name in ("cycle", "narrow")}
        found |= {f"{kind}peak_bytes": peak, f"{kind}over_dense": ratios}
    return {"net": net, "fewer": fewer, **found}
