"""The rival of low rank is quantisation: what comes out as files in float and in int8, beside the dense network's."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tenfold.bench.compare.findings import Int8
from tenfold.bench.export import export
from tenfold.bench.int8 import FileModel, timed_files
from tenfold.layers.copy_model import duplicate
from tenfold.layers.swap import multiplied_back
from tenfold.runtimes.optimize import optimized


def in_int8(
    small: nn.Module,
    example: Tensor,
    kind: str,
    data: Iterable[Any],
    accuracy: Callable[[nn.Module], float],
    *,
    rounds: int,
) -> Int8:
    """Export ``small`` and its dense equivalent, quantise the former, and measure the files on the CPU.

    Torch's present number of threads is used.

    Args:
        small: the final network; untouched.
        example: the batch that is timed.
        kind: "static" or "dynamic".
        data: batches that the ranges of activations are taken from; see `tenfold.bench.int8`.
        accuracy: of a model, on the test set.
        rounds: turns of each file.

    Raises:
        TenfoldError: a package is missing, or the network cannot be exported or quantised.
    """
    threads, x = torch.get_num_threads(), example.cpu()
    model = duplicate(small).cpu().eval()
    with tempfile.TemporaryDirectory(prefix="tenfold-") as folder:

        def content(of: nn.Module, **quantised: Any) -> bytes:
            fast = optimized(of, x, runtime="onnxruntime", threads=threads).model
            return export(fast, x, Path(folder) / "model.onnx", reference=of, **quantised).path.read_bytes()

        files = [content(multiplied_back(model)), content(model), content(model, int8=kind, data=data)]
    (dense_ms, _), (float_ms, float_speedup), (ms, speedup) = timed_files(files, x, threads=threads, rounds=rounds)
    sizes = len(files[1]), len(files[2])
    reached = accuracy(FileModel(files[2], threads))
    times = dense_ms, float_ms, ms, float_speedup, speedup
    return Int8(kind, *sizes, reached, *times, batch=len(x), threads=threads)
