"""ONNX Runtime on the CPU: the graph captured by torch, inputs and outputs bound beforehand."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tenfold.errors import check
from tenfold.runtimes.foreign import foreign_errors, silenced
from tenfold.runtimes.onnx_capture import CAPTURE_REMEDY, onnx_model, onnx_runtime, open_session
from tenfold.runtimes.onnx_layer import onnx_layer
from tenfold.runtimes.runtime import Call, Runtime, torch_tensors


class OnnxRuntime(Runtime):
    """ONNX Runtime with all graph optimisations, on the CPU.

    Raises:
        TenfoldError: one of its packages is missing.
    """

    name: ClassVar[str] = "onnxruntime"

    def __init__(self) -> None:
        self._package = onnx_runtime()

    @property
    def version(self) -> str:
        """See `Runtime.version`."""
        return f"onnxruntime {self._package.__version__}, CPU, all optimisations"

    def prepare_layer(self, module: nn.Module, inputs: Tensor, *, threads: int = 1) -> Call:
        """See `Runtime.prepare_layer`: the graph is written directly, in milliseconds, where that can be done."""
        with self._ready(module, inputs, threads) as own:
            content = onnx_layer(own, inputs)
            if content is not None:
                return self.prepare_graph(content, [inputs], threads=threads)
        return self.prepare(module, inputs, threads=threads)

    def prepare_graph(self, content: bytes, tensors: list[Tensor], *, threads: int = 1) -> Call:
        """Make ready one pass of an ONNX file; outputs go where those of the first run are.

        Args:
            content: of the file.
            tensors: its inputs, in their order, on the CPU.
            threads: as in `prepare`.

        Raises:
            ArgumentError: inputs elsewhere.
            TenfoldError: ONNX Runtime does not take the file.
        """
        for tensor in tensors:
            check(tensor.device.type == "cpu", "inputs", "on the CPU for ONNX Runtime", str(tensor.device))
        session = open_session(content, threads=threads)
        binding = session.io_binding()
        with foreign_errors("the model cannot be run: ONNX Runtime", CAPTURE_REMEDY):
            for value, tensor in zip(session.get_inputs(), tensors, strict=True):
                array = tensor.detach().contiguous().numpy()
                binding.bind_ortvalue_input(value.name, self._package.OrtValue.ortvalue_from_numpy(array))
            names = [value.name for value in session.get_outputs()]
            for name in names:
                binding.bind_output(name)
            session.run_with_iobinding(binding)
            found = binding.get_outputs()
            for name, value in zip(names, found, strict=True):
                binding.bind_ortvalue_output(name, value)

        def run() -> Any:
            session.run_with_iobinding(binding)
            return found

        return run

    def outputs(self, result: Any) -> list[Tensor]:
        """See `Runtime.outputs`."""
        return [torch.from_numpy(value.numpy()) for value in result]

    def _bind(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], threads: int) -> Call:
        with silenced():
            content, _ = onnx_model(model, args, kwargs)
        return self.prepare_graph(content, torch_tensors((args, kwargs)), threads=threads)
