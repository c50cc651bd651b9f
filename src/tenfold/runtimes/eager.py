"""The eager runtime: torch's own kernels, one operator after another. CPU and CUDA."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tenfold.runtimes.runtime import Call, Runtime, in_state, torch_tensors


class Eager(Runtime):
    """Torch as it is."""

    name: ClassVar[str] = "eager"

    @property
    def version(self) -> str:
        """See `Runtime.version`."""
        return f"torch {torch.__version__}, oneDNN {'on' if torch.backends.mkldnn.enabled else 'off'}"

    def outputs(self, result: Any) -> list[Tensor]:
        """See `Runtime.outputs`."""
        return torch_tensors(result)

    def _bind(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], threads: int) -> Call:
        return in_state(lambda: model(*args, **kwargs), threads)
