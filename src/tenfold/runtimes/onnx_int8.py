"""ONNX graphs with int8 weights, by ONNX Runtime's quantiser.

Static: activations are int8 too, in ranges that are seen on data before; dynamic: linear layers alone, activations
rounded in ranges that are measured in each run. Convolutions stay as they are there: ONNX Runtime's ConvInteger took
nine times as long as float convolutions (ResNet-20, AVX2).
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from numpy import ndarray

from tenfold.errors import TenfoldError
from tenfold.runtimes.foreign import foreign_errors, silenced
from tenfold.runtimes.onnx_capture import onnx_runtime

STATIC, DYNAMIC = "static", "dynamic"
KINDS = (STATIC, DYNAMIC)
Feed = dict[str, ndarray]
"""The inputs of a graph, by name."""

_REMEDY = "Leave `int8` out, or export with another `opset`."


def int8_model(content: bytes, kind: str, feeds: Iterable[Feed] = ()) -> tuple[bytes, int]:
    """Quantise an ONNX file: weights int8, one scale for each output channel; what it computes changes a little.

    Weights have seven of the eight bits, and static activations are unsigned: of the pairs of types that CPUs are fast
    at, the one that does not overflow on those without VNNI.

    Args:
        content: of an ONNX file below 2 GB; its batch norms are folded on the way.
        kind: "static" (operators in QDQ format) or "dynamic" (linear layers alone).
        feeds: for "static": batches that the ranges of activations are taken from, smallest and largest.

    Returns:
        the content of the new file, and its opset.

    Raises:
        TenfoldError: a package is missing, the quantiser fails, or nothing in the graph is of a kind that it knows.
    """
    onnx_runtime()
    with foreign_errors("the model cannot be quantised: ONNX Runtime", _REMEDY), silenced():
        with tempfile.TemporaryDirectory(prefix="tenfold-") as folder:
            new = _quantised(Path(folder), content, kind, feeds)
        onnx: Any = importlib.import_module("onnx")
        graph = onnx.load_model_from_string(new)
        opset = max(each.version for each in graph.opset_import if each.domain in ("", "ai.onnx"))
        weights = [w for w in graph.graph.initializer if w.data_type == onnx.TensorProto.INT8 and len(w.dims) > 1]
    if not weights:
        others = "Dynamic quantisation is for linear layers alone; try static." if kind == DYNAMIC else "Leave it out."
        raise TenfoldError(f"`int8` finds nothing in the model to quantise. {others}")
    return new, opset


def _quantised(folder: Path, content: bytes, kind: str, feeds: Iterable[Feed]) -> bytes:
    quantiser: Any = importlib.import_module("onnxruntime.quantization")
    start, ready, end = (folder / name for name in ("float.onnx", "ready.onnx", "int8.onnx"))
    start.write_bytes(content)
    # torch has written the shapes of all tensors: symbolic inference would only be one more thing that may fail
    quantiser.quant_pre_process(str(start), str(ready), skip_symbolic_shape=True)
    both = {"per_channel": True, "reduce_range": True, "weight_type": quantiser.QuantType.QInt8}
    if kind == DYNAMIC:
        _without_shapes_of_weights(ready)
        quantiser.quantize_dynamic(str(ready), str(end), op_types_to_quantize=["MatMul", "Gemm"], **both)
    else:
        reader = _reader(quantiser.CalibrationDataReader, iter(feeds))
        both |= {"quant_format": quantiser.QuantFormat.QDQ, "activation_type": quantiser.QuantType.QUInt8}
        quantiser.quantize_static(str(ready), str(end), reader, **both)
    return end.read_bytes()


def _without_shapes_of_weights(path: Path) -> None:
    """Drop what a file says of the shapes of its weights beside them: the quantiser transposes some, and would fail."""
    onnx: Any = importlib.import_module("onnx")
    model = onnx.load(path)
    weights = {each.name for each in model.graph.initializer}
    kept = [each for each in model.graph.value_info if each.name not in weights]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)
    onnx.save(model, path)


def _reader(base: Any, feeds: Iterator[Feed]) -> Any:
    """What the quantiser reads batches from: an object of a class of its own."""

    class Reader(base):
        def get_next(self) -> Feed | None:
            return next(feeds, None)

    return Reader()
