"""The names of the reference networks, and the way to a user's own."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from tenfold.errors import TenfoldError, check
from tenfold.train.models.external import EXTERNAL
from tenfold.train.models.own import own_network

Factory = Callable[[int, int, int], nn.Module]


@dataclass(frozen=True)
class _Network:
    make: Factory
    minimum: int


_NETWORKS: dict[str, _Network] = {}


def network(name: str, *, minimum: int) -> Callable[[Factory], Factory]:
    """Register a factory ``(classes, channels, size) -> nn.Module`` under ``name``.

    Args:
        name: what users write, e.g. ``"resnet20"``.
        minimum: the smallest input side, in pixels, that the network accepts.
    """

    def register(make: Factory) -> Factory:
        _NETWORKS[name] = _Network(make, minimum)
        return make

    return register


def model_names() -> list[str]:
    """The names that `build_model` knows, sorted."""
    return sorted(_networks())


def build_model(name: str, classes: int = 10, channels: int = 3, size: int = 32) -> nn.Module:
    """A freshly initialised reference network, or a user's own.

    The initial weights come from torch's global generator: call ``torch.manual_seed`` first for a known start.

    Args:
        name: one of `model_names`; or ``"timm:NAME"``, ``"torchvision:NAME"`` (both freshly initialised) or
            ``"hf:NAME"`` (with its weights), where that library is installed, see `tenfold.train.models.external`; or
            ``"module.path:factory"`` or ``"path/to/file.py:factory"``: a user's factory is called with those of
            ``classes``, ``channels`` and ``size`` that its signature takes, as keywords.
        classes: number of outputs, >= 1.
        channels: number of input channels, >= 1.
        size: side of the square input in pixels, at least the network's minimum.

    Returns:
        The network, in training mode, on the CPU: ``(batch, channels, size, size) -> (batch, classes)``.

    Raises:
        TenfoldError: an unknown name (the nearest ones are listed), a library that is missing, or a factory that
            cannot be used.
        ArgumentError: a number outside its range.
    """
    check(classes >= 1, "classes", ">= 1", classes)
    check(channels >= 1, "channels", ">= 1", channels)
    library, colon, rest = name.partition(":")
    if colon and library in EXTERNAL:
        return EXTERNAL[library](rest, classes, channels, size)
    if colon:
        return own_network(name, classes=classes, channels=channels, size=size)
    known = _networks()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or sorted(known)
        raise TenfoldError(
            f"`name` must be a known network, `timm:NAME`, `torchvision:NAME`, `hf:NAME`, `module.path:factory` or "
            f"`file.py:factory`; "
            f"got {name!r}. Nearest: {', '.join(near)}."
        )
    found = known[name]
    check(size >= found.minimum, "size", f">= {found.minimum} for {name}", size, "Enlarge the images, or use `cnn`.")
    return found.make(classes, channels, size)


def _networks() -> dict[str, _Network]:
    package = importlib.import_module(__package__ or "")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return _NETWORKS
