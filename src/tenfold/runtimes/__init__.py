"""Runtimes: what runs a model for inference, behind one interface: torch as it is, `torch.compile`, ONNX Runtime."""

from __future__ import annotations

from importlib.util import find_spec

from tenfold.errors import check
from tenfold.runtimes.compiled import Compiled
from tenfold.runtimes.eager import Eager
from tenfold.runtimes.onnx_capture import ONNX_PACKAGES
from tenfold.runtimes.onnx_runtime import OnnxRuntime
from tenfold.runtimes.runtime import Runtime as Runtime

_KINDS: dict[str, type[Runtime]] = {kind.name: kind for kind in (Eager, Compiled, OnnxRuntime)}
NAMES = tuple(_KINDS)


def at_hand() -> tuple[str, ...]:
    """The runtimes that are ready in seconds and whose packages are installed: all but "compile", at most."""
    installed = all(find_spec(name) is not None for name in ONNX_PACKAGES)
    return (Eager.name, OnnxRuntime.name) if installed else (Eager.name,)


def get_runtime(name: str) -> Runtime:
    """The runtime called ``name``: "eager", "compile" or "onnxruntime".

    Args:
        name: one of `NAMES`.

    Raises:
        ArgumentError: another name.
        TenfoldError: a package that it needs is missing, with the command that installs it.
    """
    check(name in NAMES, "runtime", f"one of {', '.join(NAMES)}", name)
    return _KINDS[name]()
