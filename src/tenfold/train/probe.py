"""The precision and memory format that a training is fastest in, measured before it begins."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tenfold.methods.contract.method import Goal
from tenfold.train.data.augment import AUGMENTATIONS
from tenfold.train.data.batching import batches
from tenfold.train.data.split import Split
from tenfold.train.engine import engine
from tenfold.train.recipe import AUTO, Recipe

if TYPE_CHECKING:
    from tenfold.train.loop import Trainable

Way = tuple[str, str]
"""A precision and a memory format."""
PLAIN: Way = ("no", "contiguous")
LEAST = 1_000_000_000
"""MACs of a batch's forward pass below which nothing is measured: a pass is too short to tell from noise."""
_MACS, _EXAMPLES = 1_500_000_000, 16
"""MACs and examples that one timed pass has at least, out of a batch: of fewer the weights' layout decides, not the
maps', and the whole batch may take long."""
_WORTH, _WORTH_ROUNDING = 1.05, 1.25
"""A memory format changes nothing but time; a coarser type is taken for a clear gain only."""
_ROUNDS = 4
_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
_NAMES = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True)
class Probed:
    """The outcome of a probe.

    Args:
        precision: as in a recipe.
        memory_format: as in a recipe.
        times_as_fast: by way, "float32, channels_last", how many times as fast as the plain one, in all rounds but
            one at least; empty where nothing was measured.
        reason: why nothing was measured; "" where it was.
    """

    precision: str
    memory_format: str
    times_as_fast: Mapping[str, float]
    reason: str = ""

    @property
    def sentence(self) -> str:
        """The choice in one line."""
        chosen = _named((self.precision, self.memory_format))
        if self.reason:
            return f"Trained in {chosen}: {self.reason}."
        tried = ", ".join(f"{name} {ratio:.2f}x" for name, ratio in self.times_as_fast.items())
        return f"Trained in {chosen}, by a probe: {tried}."


def settled(
    recipe: Recipe, model: nn.Module, method: Trainable, train: Split, goal: Goal | None = None
) -> tuple[Recipe, Probed | None]:
    """Decide what a recipe leaves to the machine (`AUTO`), by forward and backward passes of a begun model.

    Ways are taken in turns, on examples of the first batch, and the fastest counts: where it is faster by 5 %, by 25 %
    where it rounds to bfloat16. Model, random numbers and data stay as they are. Networks of less than `LEAST` MACs a
    batch are trained plainly, and those with other parameters than float32 in their own type.

    Args:
        recipe: of the training.
        model: the network to start from; it is not changed.
        method: makes of it what is trained.
        train: the training set.
        goal: what the training leads to.

    Returns:
        The recipe without `AUTO`, and what was measured; None where the recipe leaves nothing open.
    """
    if not recipe.left_open:
        return recipe, None
    first = _filled(recipe, PLAIN)
    with engine(first[0]) as accelerator, warnings.catch_warnings():
        device = accelerator.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            warnings.simplefilter("ignore")  # the training says it, too
            torch.manual_seed(recipe.seed)
            steps = max(1, len(train) // recipe.batch_size)
            ahead = replace(goal or Goal(), steps_per_epoch=steps, steps=steps * recipe.epochs)
            begun = method.begin(model, goal=ahead).to(device).train()
            choice = _chosen(recipe, begun, train.to(device), device)
    return replace(recipe, precision=choice.precision, memory_format=choice.memory_format), choice


def _filled(recipe: Recipe, way: Way) -> Way:
    """``way``, but for what the recipe says."""
    precision = way[0] if recipe.precision == AUTO else recipe.precision
    return precision, way[1] if recipe.memory_format == AUTO else recipe.memory_format


def _chosen(recipe: Recipe, model: nn.Module, train: Split, device: torch.device) -> Probed:
    plain = _filled(recipe, PLAIN)
    size = min(recipe.batch_size, len(train))
    order = torch.Generator().manual_seed(recipe.seed)
    x, y = next(iter(batches(train, size, shuffle=True, generator=order, augment=AUGMENTATIONS[recipe.augment])))
    x, y = x.chunk(recipe.accumulate)[0], y.chunk(recipe.accumulate)[0]
    macs = _macs(model, x[:2]) / len(x[:2])
    if macs * len(x) < LEAST:
        return Probed(*plain, {}, "the network is too small to measure")
    ways = [PLAIN, ("no", "channels_last")]
    if recipe.precision == AUTO and all(p.dtype == torch.float32 for p in model.parameters()) and _rounds_fast(device):
        ways += [("bf16", "contiguous"), ("bf16", "channels_last")]
    ways = list(dict.fromkeys(_filled(recipe, way) for way in ways))
    if len(ways) == 1:
        return Probed(*plain, {}, "there is nothing to choose from")
    count = min(len(x), max(_EXAMPLES, round(_MACS / max(macs, 1))))
    x, y = x[:count], y[:count]

    def run(way: Way) -> float:
        model.to(memory_format=_FORMATS[way[1]])  # pyright: ignore[reportCallIssue] - the stub lacks it
        return _seconds(lambda: _pass(model, x, y, way[0]), device)

    speeds = compared(ways, run, plain)
    return Probed(*fastest(speeds, plain), {_named(way): ratio for way, ratio in speeds.items()})


def compared(ways: list[Way], run: Callable[[Way], float], plain: Way) -> dict[Way, float]:
    """Speed-ups by way over the plain one, as they were at least in all rounds but one; in a round all take turns.

    Noise that comes and goes therefore chooses nothing.

    Args:
        ways: the plain one among them.
        run: takes one way, and returns its seconds.
        plain: the one that others are compared with.
    """
    for way in ways:
        run(way)  # libraries prepare what they need at the first call
    rounds = [{way: run(way) for way in ways} for _ in range(_ROUNDS)]
    return {way: sorted(seconds[plain] / seconds[way] for seconds in rounds)[1] for way in ways}


def fastest(speeds: Mapping[Way, float], plain: Way) -> Way:
    """The fastest way that is worth it.

    Args:
        speeds: speed-ups by way over the plain one.
        plain: the way that is kept where no other is worth it.
    """
    same = {way: ratio for way, ratio in speeds.items() if way[0] == plain[0]}
    best = max(same, key=lambda way: same[way])
    best = best if same[best] > _WORTH else plain
    coarse = {way: ratio for way, ratio in speeds.items() if way[0] != plain[0]}
    other = max(coarse, key=lambda way: coarse[way], default=best)
    return other if speeds[other] > _WORTH_ROUNDING * speeds[best] else best


def _rounds_fast(device: torch.device) -> bool:
    """Whether one convolution in bfloat16 is no slower than in float32: without the instructions for it, 10 times."""
    layer, x = nn.Conv2d(64, 64, 3, padding=1).to(device), torch.zeros(4, 64, 16, 16, device=device)
    layer, x = layer.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    y = torch.zeros(4, dtype=torch.long, device=device)
    model = nn.Sequential(layer, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    turns = [[_seconds(lambda p=p: _pass(model, x, y, p), device) for p in ("no", "bf16")] for _ in range(4)]
    return min(low / plain for plain, low in turns[1:]) < 1


def _macs(model: nn.Module, x: torch.Tensor) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    return counter.get_total_flops() / 2


def _pass(model: nn.Module, x: torch.Tensor, y: torch.Tensor, precision: str) -> None:
    kind = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    with torch.enable_grad():
        with torch.autocast(x.device.type, kind, enabled=kind is not None):
            loss = F.cross_entropy(model(x), y)
        loss.backward()
    model.zero_grad()


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    """Seconds of ``work``: of this thread, where it alone computes."""
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.thread_time if alone else time.perf_counter
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = clock()
    work()
    wait()
    return clock() - start


def _named(way: Way) -> str:
    return f"{_NAMES[way[0]]}, {way[1]}"
