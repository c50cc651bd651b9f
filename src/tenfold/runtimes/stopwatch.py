"""The stopwatch of latency budgets: times of layers and of networks in a runtime, in nanoseconds of one steady clock.

All of them are relative to a yardstick convolution measured in the same round, times the yardstick's own time, measured
once; see `tenfold.runtimes.rounds`. What was measured is kept, see `tenfold.runtimes.time_cache`.
"""

from __future__ import annotations

import contextlib
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from tenfold.errors import TenfoldError
from tenfold.layers.copy_model import duplicate
from tenfold.runtimes import get_runtime
from tenfold.runtimes.optimize import CHANNELS_LAST, CONTIGUOUS
from tenfold.runtimes.rounds import Call, Clock, ColdCaches, relative_times
from tenfold.runtimes.runtime import running
from tenfold.runtimes.time_cache import TimeCache, cache_folder
from tenfold.runtimes.timing import undisturbed_clock

Make = Callable[[], nn.Module]
_PROTOCOL = 4
_LAYER_ROUNDS = 11
_NETWORK_SECONDS, _FEWEST, _MOST = 2.0, 5, 25
"""What measuring a network may take, and rounds of it at least and at most."""
_WARM, _YARDSTICK_ROUNDS = 3, 25
_CACHE_BYTES = 1 << 20
"""Of the second level, where the system does not tell."""
_FORMATS = {CONTIGUOUS: torch.contiguous_format, CHANNELS_LAST: torch.channels_last}


@dataclass(frozen=True)
class Conditions:
    """The conditions that a latency was measured under.

    Args:
        runtime: see `tenfold.runtimes.get_runtime`.
        version: of it.
        threads: that it may use.
        memory_format: of weights and inputs with four axes: "contiguous" or "channels_last".
        device: "cpu", or the name of a GPU.
    """

    runtime: str
    version: str
    threads: int
    memory_format: str
    device: str


class Stopwatch:
    """Measures layers and networks under some conditions.

    Args:
        runtime: "eager", "compile" or "onnxruntime".
        threads: that it may use on the CPU, >= 1.
        memory_format: see `Conditions`.
        device: where the inputs are.
        folder: where times are kept, see `cache_folder`; None: only as long as this object lives.

    Raises:
        ArgumentError: no such runtime.
        TenfoldError: its package is missing.
    """

    def __init__(
        self,
        runtime: str,
        *,
        threads: int = 1,
        memory_format: str = CONTIGUOUS,
        device: torch.device | str = "cpu",
        folder: Path | None = None,
    ) -> None:
        self.runtime = get_runtime(runtime)
        self.threads, self.device = threads, torch.device(device)
        on = "cpu" if self.device.type == "cpu" else torch.cuda.get_device_name(self.device)
        self.conditions = Conditions(runtime, self.runtime.version, threads, memory_format, on)
        self.format = _FORMATS[memory_format]
        self.clock: Clock = undisturbed_clock(torch.empty(0, device=self.device), threads)
        about = {"protocol": _PROTOCOL, "torch": torch.__version__, "processor": _processor(), "l2": _second_level()}
        self.cache = TimeCache(self.about | about, folder)
        self.cold = ColdCaches(_second_level()) if on == "cpu" else lambda: None
        self._yardstick: Call | None = None
        self._networks: dict[str, Call] = {}
        self._substitute = _substitute(runtime, threads, self.device, folder)

    @property
    def about(self) -> dict[str, Any]:
        """The conditions, as JSON."""
        return asdict(self.conditions)

    def layer(
        self, key: str, options: Mapping[str, Make], shape: Sequence[int], dtype: torch.dtype
    ) -> dict[str, float]:
        """Nanoseconds of one call of each option of a layer.

        Args:
            key: what the layer is, with all that its time depends on.
            options: by name; built only where they have to be measured.
            shape: of the layer's input.
            dtype: of it.
        """
        if self._substitute is not None:
            return self._substitute.layer(key, options, shape, dtype)
        yardstick, unit = self._ready()
        key = f"{key} on {tuple(shape)} {dtype}"
        known = self.cache.times.get(key, {})
        if not set(options) <= set(known):  # all of them in the same rounds, or they could not be compared
            x = torch.randn(tuple(shape), device=self.device).to(dtype)
            calls = {name: self._prepared(make(), x, self.format, layer=True) for name, make in options.items()}
            with running(self.threads):
                found = relative_times(calls, yardstick, rounds=_LAYER_ROUNDS, clock=self.clock, before=self.cold)
            self.cache.keep(key, {name: ratio * unit * 1e9 for name, ratio in found.items()})
            known = self.cache.times[key]
        return {name: known[name] for name in options}

    def network(self, key: str, make: Make, inputs: Any, beside: tuple[str, Make] | None = None) -> float:
        """Nanoseconds of a forward pass; of one that is beside no other, in the memory format that is best for it.

        Args:
            key: what the network is, with all that its time depends on.
            make: builds it, where it has to be measured.
            inputs: a tensor, a tuple of positional or a dict of keyword arguments.
            beside: key and maker of another network for the same inputs that is the yardstick: their ratio is then as
                good as can be. None: the convolution is.
        """
        self._ready()
        if key not in self.cache.times:
            if beside is None:
                self._networks[key] = self._best(key, make, inputs)
            else:
                unit = self.network(*beside, inputs) / 1e9
                if beside[0] not in self._networks:  # its time is known from another process
                    self._networks[beside[0]] = self._best(*beside, inputs)
                calls = {self.conditions.memory_format: self._prepared(make(), inputs, self.format)}
                self._keep_fastest(key, calls, self._networks[beside[0]], unit)
        return min(self.cache.times[key].values())

    def _best(self, key: str, make: Make, inputs: Any) -> Call:
        """The call of a network in the memory format that is fastest for it, measured if need be."""
        formats = _FORMATS if self.conditions.runtime == "eager" else {CONTIGUOUS: torch.contiguous_format}
        calls = {name: self._prepared(duplicate(make()), inputs, form) for name, form in formats.items()}
        if key not in self.cache.times:
            self._keep_fastest(key, calls, *self._ready())
        times = self.cache.times[key]
        return calls[min(times, key=lambda name: times[name])]

    def _keep_fastest(self, key: str, calls: Mapping[str, Call], yardstick: Call, unit: float) -> None:
        """Measure a network in some memory formats, all in the same rounds."""
        with running(self.threads):
            start = self.clock()
            for call in calls.values():
                call()
            rounds = int(min(max(_NETWORK_SECONDS / max(self.clock() - start, 1e-6), _FEWEST), _MOST))
            found = relative_times(calls, yardstick, rounds=rounds, clock=self.clock)
        self.cache.keep(key, {name: ratio * unit * 1e9 for name, ratio in found.items()})

    def _ready(self) -> tuple[Call, float]:
        """The yardstick, and its seconds."""
        if self._yardstick is None:
            x, layer = torch.randn(1, 64, 16, 16, device=self.device), nn.Conv2d(64, 64, 3, padding=1)
            call = self._prepared(layer.to(self.device), x, self.format, layer=True)
            with running(self.threads):
                seconds = [self._cold_seconds(call) for _ in range(_WARM + _YARDSTICK_ROUNDS)][_WARM:]
            self.cache.agree(statistics.median(seconds))
            self._yardstick = call
        assert self.cache.yardstick is not None
        return self._yardstick, self.cache.yardstick

    def _cold_seconds(self, call: Call) -> float:
        self.cold()
        start = self.clock()
        call()
        return self.clock() - start

    def _prepared(self, module: nn.Module, inputs: Any, form: torch.memory_format, *, layer: bool = False) -> Call:
        module = module.eval().to(memory_format=form)  # pyright: ignore[reportCallIssue] - stub lacks the overload
        prepare = self.runtime.prepare_layer if layer else self.runtime.prepare
        call = prepare(module, _placed(inputs, form), threads=self.threads)
        if self.device.type == "cpu":
            return call

        def finished() -> None:
            call()
            torch.cuda.synchronize(self.device)

        return finished


def _placed(inputs: Any, form: torch.memory_format) -> Any:
    """The inputs in a memory format, where they have four axes."""

    def place(x: torch.Tensor) -> torch.Tensor:
        return x.contiguous(memory_format=form) if x.ndim == 4 else x

    return tree_map_only(torch.Tensor, place, inputs)


def _substitute(runtime: str, threads: int, device: torch.device, folder: Path | None) -> Stopwatch | None:
    """The stopwatch of single layers for a runtime that takes seconds to prepare each: that of the nearest other one.

    What its layers take is a little off; the whole networks that are measured correct it.
    """
    if runtime != "compile":
        return None
    if device.type == "cpu":
        with contextlib.suppress(TenfoldError):
            return Stopwatch("onnxruntime", threads=threads, device=device, folder=folder)
    return Stopwatch("eager", threads=threads, memory_format=CHANNELS_LAST, device=device, folder=folder)


def stopwatch(runtime: str, *, threads: int, memory_format: str, device: torch.device | str) -> Stopwatch:
    """A stopwatch that keeps what it measures on disk; arguments as in `Stopwatch`."""
    folder = cache_folder()
    return Stopwatch(runtime, threads=threads, memory_format=memory_format, device=device, folder=folder)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        wanted = ("vendor_id", "cpu family", "model", "model name", "flags")
        lines = info.read_text(encoding="utf-8").split("\n\n")[0].splitlines()
        return "; ".join(line.split(":", 1)[1].strip() for line in lines if line.split("\t")[0] in wanted)
    return platform.processor() or platform.machine()


def _second_level() -> int:
    """Bytes of the second-level cache."""
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        if (index / "level").read_text().strip() == "2":
            size = (index / "size").read_text().strip()
            return int(size.rstrip("KM")) * (1 << 20 if size.endswith("M") else 1 << 10)
    return _CACHE_BYTES
