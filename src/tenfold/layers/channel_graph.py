"""Which layers share which channels: `torch-pruning`'s dependency graph, whose word is never taken on trust.

The graph follows channels through residual sums, concatenations and norms, from one run of the model. It errs where
channels are cut apart, turned or looked up by number (``chunk``, ``roll``, indices), and some modules make it fail. So
`fault` compares what it made, a model without some channels, with the model as it was whose following layers have
weight zero for the same channels: the two compute the same, or the channels have to stay.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map_only

from tenfold.errors import ArgumentError, TenfoldError, UnsupportedLayer
from tenfold.layers.copy_model import duplicate
from tenfold.layers.cost import call_arguments
from tenfold.layers.model_outputs import output_tensors
from tenfold.layers.spec import CONVS, TRANSPOSED

TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-3}
"""Largest difference of outputs relative to the largest output, by the type that they are computed in."""
COARSE = 5e-2
"""For the shorter types."""


@dataclass(frozen=True)
class Affected:
    """One module that is narrowed when channels go.

    Args:
        name: of the module; None for operations and bare parameters.
        module: itself.
        channels: of the module that go.
        roots: for each of them, the channel of the root that it goes with.
        puts_out: whether they are channels that it puts out.
        takes_in: whether they are channels that it takes in.
        moved: whether their numbers may be others than in the module before.
    """

    name: str | None
    module: Any
    channels: tuple[int, ...]
    roots: tuple[int, ...]
    puts_out: bool
    takes_in: bool
    moved: bool


class ChannelGraph:
    """The dependency graph of one model, from one run in eval mode.

    Args:
        model: is put into eval mode.
        inputs: a tensor, a tuple of positional or a dict of keyword arguments.

    Raises:
        ArgumentError: inputs that the model does not run on.
        UnsupportedLayer: `torch-pruning` fails on the model.
        TenfoldError: it is missing.
    """

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        pruning = import_pruning()
        args, kwargs = call_arguments(inputs)
        try:
            model.eval()(*args, **kwargs)
        except Exception as error:
            raise ArgumentError(
                f"`example_inputs` must be inputs that the model accepts; its forward pass failed with "
                f"{type(error).__name__}: {error}."
            ) from error
        self.model = model
        self.names = {m: name for name, m in model.named_modules()}
        # A graph needs gradients: parameters that are frozen have none, and their layers would be missing.
        frozen = [p for p in model.parameters() if not p.requires_grad]
        for p in frozen:
            p.requires_grad_(True)
        try:
            with warnings.catch_warnings(), torch.enable_grad():
                warnings.simplefilter("ignore")  # of parameters that belong to no layer: `fault` sees to that
                self._graph: Any = pruning.DependencyGraph().build_dependency(model, kwargs or args, verbose=False)
        except Exception as error:
            raise UnsupportedLayer(
                f"`model` has channels that torch-pruning cannot follow: it fails with {type(error).__name__}: "
                f"{error}. "
                "Use a method that chooses ranks, tenfold.SVD() say: it needs no graph."
            ) from error
        for p in frozen:
            p.requires_grad_(False)

    def affected(self, root: str, channels: Sequence[int]) -> list[Affected]:
        """The modules that lose channels when the layer ``root`` loses these output channels, itself first.

        Raises:
            UnsupportedLayer: torch-pruning fails; the message is the reason.
        """
        found = [
            Affected(
                self.names.get(item.dep.target.module),
                item.dep.target.module,
                tuple(item.idxs),
                tuple(item.root_idxs),
                self._graph.is_out_channel_pruning_fn(item.dep.handler),
                self._graph.is_in_channel_pruning_fn(item.dep.handler),
                any(mapping is not None for mapping in item.dep.index_mapping),
            )
            for item in self._group(root, channels).items
        ]
        for one in found:
            width = _width(one.module, puts_out=one.puts_out)
            if width is not None and one.channels and not 0 <= min(one.channels) <= max(one.channels) < width:
                raise UnsupportedLayer(
                    f"torch-pruning cannot follow its channels: it takes them for channel {max(one.channels)} of "
                    f"'{one.name}', which has {width}"
                )
        return found

    def remove_(self, root: str, channels: Sequence[int]) -> None:
        """Remove these output channels of ``root`` from the model, in place.

        Raises:
            UnsupportedLayer: torch-pruning fails; the message is the reason.
        """
        group = self._group(root, channels)
        try:
            group.prune()
        except Exception as error:
            raise UnsupportedLayer(_failed(error)) from error

    def _group(self, root: str, channels: Sequence[int]) -> Any:
        layer = self.model.get_submodule(root)
        try:
            pruner = self._graph.get_pruner_of_module(layer)
            return self._graph.get_pruning_group(layer, pruner.prune_out_channels, list(channels))
        except Exception as error:
            raise UnsupportedLayer(_failed(error)) from error


def removed(model: nn.Module, inputs: Any, gone: Mapping[str, Sequence[int]]) -> nn.Module:
    """A copy of the model without these channels, not verified. ``gone``: by layer, the output channels to remove.

    Raises:
        UnsupportedLayer: torch-pruning fails.
        TenfoldError: it is missing.
    """
    import_pruning()
    copy = duplicate(model)
    if not any(gone.values()):
        return copy
    modes = {m: m.training for m in copy.modules()}
    trained = {name: p.requires_grad for name, p in copy.named_parameters()}
    graph = ChannelGraph(copy, inputs)
    for root, channels in gone.items():
        if channels:
            graph.remove_(root, channels)
    for module, training in modes.items():
        module.training = training
    for name, p in copy.named_parameters():  # narrower ones are new, and would all be trained
        p.requires_grad_(trained[name])
    return copy


@torch.no_grad()
def silenced(model: nn.Module, graph: ChannelGraph, gone: Mapping[str, Sequence[int]]) -> nn.Module:
    """A copy of the model in which the weights that read these channels are zero.

    Args:
        model: of any values.
        graph: of a model of the same structure.
        gone: channels by the layer that puts them out.
    """
    copy = duplicate(model)
    for root, channels in gone.items():
        for one in graph.affected(root, channels) if channels else ():
            if one.takes_in and not one.puts_out and one.name is not None:
                layer = copy.get_submodule(one.name)
                weight = cast("Tensor", layer.weight)
                (weight if isinstance(layer, TRANSPOSED) else weight.transpose(0, 1))[list(one.channels)] = 0
    return copy


def fault(model: nn.Module, graph: ChannelGraph, inputs: Any, gone: Mapping[str, Sequence[int]]) -> str | None:
    """Why removing these channels computes something else than silencing them; None where it does not.

    Args:
        model: of any values, see `generic`.
        graph: of a model of the same structure.
        inputs: that the model runs on.
        gone: channels by the layer that puts them out.
    """
    try:
        expected = outputs(silenced(model, graph, gone), inputs)
        small = removed(model, inputs, gone)
    except UnsupportedLayer as error:
        return str(error)
    try:
        found = outputs(small, inputs)
    except Exception as error:  # noqa: BLE001 - whatever a foreign forward raises at another width
        return f"without some of its channels the model does not run: {type(error).__name__}: {error}"
    return _difference(expected, found)


def require_same(model: nn.Module, small: nn.Module, inputs: Any, gone: Mapping[str, Sequence[int]]) -> None:
    """Raise `UnsupportedLayer` unless ``small`` computes what ``model`` does with channels silenced; see `fault`."""
    graph = ChannelGraph(duplicate(model), inputs)
    expected = outputs(silenced(model, graph, gone), inputs)
    difference = _difference(expected, outputs(duplicate(small), inputs))
    if difference is not None:
        names = ", ".join(f"'{name}'" for name, channels in gone.items() if channels)
        raise UnsupportedLayer(f"`model` cannot lose these channels of {names}: {difference}. Use `exclude_modules`.")


@torch.no_grad()
def generic(model: nn.Module, inputs: Any) -> tuple[nn.Module, Any]:
    """A copy of the model and its inputs in float64 with generic values, for `fault`; unchanged if it fails there.

    At fresh norms, ones and zeros everywhere, one channel is as good as another, and a zero at the end of a block hides
    all that is in it.
    """
    draw = torch.Generator().manual_seed(0)

    def noise(like: Tensor) -> Tensor:
        return (0.5 + torch.rand(like.shape, generator=draw)).to(like)

    try:
        copy = duplicate(model).double()
        for p in copy.parameters():
            if p.numel() > 1 and bool((p == p.flatten()[0]).all()):
                p.add_(0.2 * noise(p))
        for norm in copy.modules():
            if isinstance(norm, _BatchNorm) and norm.running_mean is not None:
                mean, variance = norm.running_mean, cast("Tensor", norm.running_var)
                mean.add_(0.2 * noise(mean))
                variance.mul_(noise(variance))
        wide = tree_map_only(Tensor, lambda t: t.double() if t.is_floating_point() else t, inputs)
        if all(bool(t.isfinite().all()) for t in outputs(copy, wide)):
            return copy, wide
    except Exception:  # noqa: BLE001 - a forward that insists on float32
        return model, inputs
    return model, inputs


@torch.no_grad()
def outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    """All output tensors of the model in eval mode, from one fixed state of the random generators."""
    args, kwargs = call_arguments(inputs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return output_tensors(model.eval()(*args, **kwargs))


def import_pruning() -> Any:
    """The package `torch-pruning`.

    Raises:
        TenfoldError: it is not installed.
    """
    try:
        import torch_pruning
    except ImportError as error:
        raise TenfoldError("removing filters needs torch-pruning: pip install 'tenfold[prune]'.") from error
    return torch_pruning


def _width(module: Any, *, puts_out: bool) -> int | None:
    """How many channels a module puts out, or takes in; None where it has no weight for them."""
    if isinstance(module, (*CONVS, *TRANSPOSED)):
        return cast("int", module.out_channels if puts_out else module.in_channels)
    if isinstance(module, nn.Linear):
        return module.out_features if puts_out else module.in_features
    return module.num_features if isinstance(module, _BatchNorm) else None


def _difference(expected: Sequence[Tensor], found: Sequence[Tensor]) -> str | None:
    if [t.shape for t in expected] != [t.shape for t in found]:
        for a, b in zip(expected, found, strict=False):
            unlike = [i for i, (m, n) in enumerate(zip(a.shape, b.shape, strict=False)) if m != n]
            if a.ndim == b.ndim and len(unlike) == 1 and unlike[0] in (1, a.ndim - 1):
                return "its channels are the model's output"
        return "without some of its channels the model puts out other shapes"
    for a, b in zip(expected, found, strict=True):
        size = a.double().abs().max().clamp(min=1e-300) if a.numel() else torch.ones(())
        off = (a.double() - b.double()).abs().max() / size if a.numel() else torch.zeros(())
        if not off <= TOLERANCES.get(a.dtype, COARSE if a.is_floating_point() else 0):
            return (
                "without some of its channels the model computes something else than with these silenced: off by "
                f"{float(off):.2g} of the largest output"
            )
    return None


def _failed(error: Exception) -> str:
    return f"torch-pruning cannot follow its channels: it fails with {type(error).__name__}: {error}"
