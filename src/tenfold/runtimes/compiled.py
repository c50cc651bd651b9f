"""The compiling runtime: `torch.compile` with inductor, weights frozen into the kernels. CPU and CUDA."""

from __future__ import annotations

import builtins
import contextlib
import sys
import weakref
from collections.abc import Iterator
from types import FunctionType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tenfold.runtimes.foreign import foreign_errors, silenced
from tenfold.runtimes.runtime import Call, Runtime, in_state, running, torch_tensors

_MANY = 10_000
"""Compilations of one function that torch may keep. Only parts between graph breaks share one among models."""
_REMEDY = (
    "It needs a C++ compiler (g++ or clang++, or the one that CXX names) and a forward pass that it can trace; take "
    "runtime eager or onnxruntime otherwise."
)


class Compiled(Runtime):
    """Inductor with freezing: batch norms and layouts are settled at compile time. Seconds for each model."""

    name: ClassVar[str] = "compile"

    @property
    def version(self) -> str:
        """See `Runtime.version`."""
        return f"torch {torch.__version__}, inductor, freezing"

    def outputs(self, result: Any) -> list[Tensor]:
        """See `Runtime.outputs`."""
        return torch_tensors(result)

    def _bind(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], threads: int) -> Call:
        with (
            foreign_errors("the model cannot be compiled: torch.compile", _REMEDY),
            silenced(),
            _settings(),
            _generated_freed(),
        ):
            from torch._C._dynamo.eval_frame import reset_code  # loaded by the first compilation otherwise

            function = _own_function(model)
            compiled = torch.compile(function, dynamic=False)
            with running(threads):
                compiled(*args, **kwargs)
        call = in_state(lambda: compiled(*args, **kwargs), threads)
        # what is compiled holds its code object and the other way round, where the collector of garbage cannot look
        weakref.finalize(call, reset_code, function.__code__).atexit = False
        return call


@contextlib.contextmanager
def _settings() -> Iterator[None]:
    """Torch's settings while it compiles. As `options` of torch.compile, freezing would come too late to be heeded."""
    import torch._inductor.config  # loaded by the first compilation otherwise

    many = torch._dynamo.config.patch(recompile_limit=_MANY, accumulated_recompile_limit=_MANY)
    with torch._inductor.config.patch(freezing=True), many:
        yield


@contextlib.contextmanager
def _generated_freed() -> Iterator[None]:
    """Take the modules that inductor generates within the block out of its registers.

    Frozen weights are their attributes: so registered, they would outlive the call and the model, to the end of the
    process. The call itself holds what it needs.
    """
    from torch._inductor.codecache import PyCodeCache

    before = len(PyCodeCache.modules)
    try:
        yield
    finally:
        shared = {id(module) for module in PyCodeCache.modules_no_attr.values()}  # these hold no weights
        for module in PyCodeCache.modules[before:]:
            if id(module) not in shared:
                PyCodeCache.modules.remove(module)
                sys.modules.pop(module.__name__, None)


def _own_function(model: nn.Module) -> FunctionType:
    """The forward pass as a function with a code object and globals of its own.

    Torch keeps what it compiles with the code object, a few for each: models of one class would share them, push each
    other out and be compiled again in the middle of a measurement. It enters graphs, weights and all, into the
    globals. With its own, all of it is freed together with the call.
    """

    def forward(*args: Any, **kwargs: Any) -> Any:
        return model(*args, **kwargs)

    code = forward.__code__.replace(co_name="forward")  # a new one, even with the same name
    return FunctionType(code, {"__name__": __name__, "__builtins__": builtins}, closure=forward.__closure__)
