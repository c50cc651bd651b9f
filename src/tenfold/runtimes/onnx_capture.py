"""Models as ONNX: captured by torch, opened in ONNX Runtime."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from tenfold.errors import TenfoldError, check
from tenfold.runtimes.foreign import foreign_errors

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
CAPTURE_REMEDY = "torch.export needs a forward pass without steps that depend on the values."
_TYPES = "Its CPU kernels know few types: float32 runs, convolutions in float64 or bfloat16 do not."
_LARGEST = 2**31 - 2**26
"""Bytes of weights that one ONNX file can hold, less what the graph may take."""


def onnx_runtime() -> Any:
    """ONNX Runtime, once all three packages are known to be there.

    Raises:
        TenfoldError: one is missing, with the command that installs it.
    """
    try:
        return [importlib.import_module(name) for name in ONNX_PACKAGES][-1]
    except ImportError as error:
        name = error.name or "a package"
        raise TenfoldError(f"ONNX needs {name}, which is missing: pip install 'tenfold[export]'.") from error


def onnx_model(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, shapes: Any = None, opset: int | None = None
) -> tuple[bytes, int]:
    """Capture a model as the content of an ONNX file, and the opset that it is written in.

    Args:
        model: in eval mode.
        args: positional inputs.
        kwargs: inputs by keyword.
        shapes: the axes that are dynamic, as `torch.export.export` takes them; None: all are as they are.
        opset: of ONNX; None: torch's own choice.

    Raises:
        ArgumentError: a model too large for one file, an opset that torch cannot write.
        TenfoldError: torch cannot capture the model.
    """
    size = sum(t.numel() * t.element_size() for t in model.state_dict().values() if isinstance(t, Tensor))
    check(size <= _LARGEST, "model", "below 2 GB for one ONNX file", f"{size:,} bytes", "Use torch-export.")
    with foreign_errors("the model cannot be exported: ONNX", CAPTURE_REMEDY):
        program = torch.onnx.export(
            model, args, kwargs=kwargs, dynamo=True, verbose=False, opset_version=opset, dynamic_shapes=shapes
        )
    assert program is not None
    written = int(program.model.opset_imports[""])
    check(opset in (None, written), "opset", "one that torch can write for this model", opset, f"It wrote {written}.")
    return program.model_proto.SerializeToString(), written


def open_session(content: bytes, *, threads: int = 0) -> Any:
    """An ONNX Runtime session on the CPU.

    Args:
        content: of an ONNX file.
        threads: that one operator may use; 0: one for each core.

    Raises:
        TenfoldError: ONNX Runtime does not take the file.
    """
    runtime = onnx_runtime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # errors: they come back as exceptions, too
    with foreign_errors("the model cannot be exported: ONNX Runtime", _TYPES):
        return runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
