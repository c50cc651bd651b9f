"""The parts of one run's result. With `tenfold.bench.compare.results`, the schema of the files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tenfold.bench.sweep import SweepRow
from tenfold.train.history import Epoch

POINTS = 32
"""Singular values that are kept of a layer, at most."""


@dataclass(frozen=True)
class Curve:
    """The epochs of one phase of a run.

    Args:
        phase: "training", or "recovery" after a compression.
        epochs: in order; their numbers go on from the phase before.
    """

    phase: str
    epochs: list[Epoch]


@dataclass(frozen=True)
class Accuracy:
    """Accuracy on the validation set by stage; None where there is no such stage, or it was not reached.

    Args:
        before: of the network as training left it, before compression. A dense run has this alone.
        right_after: right after compression.
        reestimated: after batch norm is re-estimated on training data. As ``right_after`` in networks without, and
            where a refit, after which statistics are kept, is part of the entry.
        recovered: after the epochs of recovery; None for methods that compress while they train.
    """

    before: float | None = None
    right_after: float | None = None
    reestimated: float | None = None
    recovered: float | None = None


@dataclass(frozen=True)
class Verdict:
    """Accuracy and loss on the test set, measured once, of the final model.

    Args:
        accuracy: in [0, 1].
        loss: mean cross-entropy in nats; None where it is not finite.
    """

    accuracy: float
    loss: float | None


@dataclass(frozen=True)
class Price:
    """Parameters and MACs of the whole model, dense and compressed.

    Args:
        dense_params: parameters of the dense network.
        params: parameters of the final model.
        dense_macs: multiply-adds of the dense network for one example.
        macs: multiply-adds of the final model.
    """

    dense_params: int
    params: int
    dense_macs: int
    macs: int

    @property
    def kept(self) -> dict[str, float]:
        """The kept shares: ``{"params": ..., "macs": ...}``."""
        return {"params": self.params / self.dense_params, "macs": self.macs / self.dense_macs}


@dataclass(frozen=True)
class Latency:
    """Latency of a forward pass, dense and compressed, measured in turns; medians.

    Args:
        device: "cpu" or "cuda".
        batch: examples in the batch.
        threads: that torch might use.
        dense_ms: milliseconds of the dense network.
        small_ms: milliseconds of the final model.
        speedup: median of the ratios of neighbouring turns.
        quartiles: of the same ratios, two numbers.
        runtime: that both ran in.
        version: of its package, and settings; None where that was not recorded.
        memory_formats: of dense and compressed, each as measured fastest; None where both ran as they were built.
    """

    device: str
    batch: int
    threads: int
    dense_ms: float
    small_ms: float
    speedup: float
    quartiles: list[float]
    runtime: str = "eager"
    version: str | None = None
    memory_formats: list[str] | None = None


@dataclass(frozen=True)
class Int8:
    """The final model as a file for ONNX Runtime, in float and in int8, beside the dense float file.

    Both are exported as `tenfold.optimize_for_inference` makes them, batch norm folded.

    Args:
        kind: "static" or "dynamic".
        float_bytes: size of the float file.
        bytes: of the int8 file.
        accuracy: of the int8 file on the test set, in [0, 1]; measured once.
        dense_ms: milliseconds of the dense float file, median.
        float_ms: of the float file, in turns with it.
        ms: of the int8 file, in the same turns.
        float_speedup: median of the ratios of neighbouring turns, dense float / float.
        speedup: dense float / int8.
        batch: examples in the batch.
        threads: that ONNX Runtime might use.
    """

    kind: str
    float_bytes: int
    bytes: int
    accuracy: float
    dense_ms: float
    float_ms: float
    ms: float
    float_speedup: float
    speedup: float
    batch: int
    threads: int


@dataclass(frozen=True)
class Layer:
    """The decomposition of one layer in a result.

    Args:
        name: of the module.
        kernel: shape of the dense kernel ``(out, in / groups, *kernel_size)``; None for layers of an unknown kind.
        decomposition: "dense", "low-rank", ...
        rank: an int; a list for one rank per mode; None for dense.
        slices: of the input channels, each with its own factors.
        fold: how the kernel was made a matrix; None for dense.
        dense_params: weights of the dense kernel.
        params: weights of what it became.
        dense_macs: multiply-adds of the dense layer; None where unknown.
        macs: of what it became.
        error: predicted, in the method's measure; None where unknown.
        reason: why it stays dense.
    """

    name: str
    kernel: list[int] | None
    decomposition: str
    rank: int | list[int] | None
    slices: int
    fold: str | None
    dense_params: int
    params: int
    dense_macs: int | None
    macs: int | None
    error: float | None
    reason: str | None


@dataclass(frozen=True)
class LayerSpectrum:
    """Singular values of one matrix, sampled: the first, the last, and others between, at most `POINTS`.

    Args:
        index: positions, from 1, ascending.
        value: the singular values there, descending.
    """

    index: list[int]
    value: list[float]


@dataclass(frozen=True)
class Spectra:
    """Singular values of one layer's kernel as a matrix ``(out, rest)``, before and after compression.

    Of a factorised layer they are those of its dense equivalent.

    Args:
        layer: name of the module.
        before: as training left it, before compression.
        after: of the final model.
    """

    layer: str
    before: LayerSpectrum
    after: LayerSpectrum


@dataclass(frozen=True)
class Evolution:
    """The ranks epoch by epoch of a method that changes them while it trains.

    Args:
        epochs: after which they were read, ascending.
        ranks: by layer name, one rank (or a list, per mode) per epoch of ``epochs``; None where it had none then.
    """

    epochs: list[int]
    ranks: dict[str, list[Any]]


@dataclass(frozen=True)
class CutCurve:
    """Accuracy on the validation set against the share that is removed, of the network as training left it.

    Args:
        kind: what is removed: "rank" or "filter".
        rows: one per removed share, in the order of the experiment.
    """

    kind: str
    rows: list[SweepRow]
