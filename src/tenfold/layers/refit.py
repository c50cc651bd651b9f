"""Sequential refit: the factors of a compressed network fitted to what the dense network's layers put out.

The layers are taken in the order in which they run. Each is fitted, by least squares and without labels, to the outputs
of the dense layer of the same name on the same examples, *given what the layer gets in the compressed network as it is
by then*: what earlier layers have lost, later ones make good as far as they can. For the mathematics see
`tenfold.linalg.refit`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tenfold.errors import ArgumentError, DataError, check, is_count
from tenfold.layers.calibration_runs import Source, device_of, evaluating, hooked
from tenfold.layers.decomposed import Decomposed
from tenfold.layers.dense_outputs import DenseOutputs
from tenfold.layers.find import kind_of
from tenfold.layers.open_recurrent import opened
from tenfold.layers.refit_layer import RefitLayer
from tenfold.layers.spec import spec_of
from tenfold.layers.swap import structure_of
from tenfold.layers.usable import refuse_unusable, refuse_unwritable
from tenfold.linalg.refit import RIDGE

PASSES = 32
"""Over the data: one for each layer of a small network."""


@dataclass(frozen=True)
class LayerRefit:
    """The output error of one layer before and after its refit.

    Args:
        before: mean squared error of its outputs against the dense layer's, given its inputs in the compressed network,
            relative to their variance.
        after: the same afterwards.
        factors: which were fitted, ``"last"`` or ``"both"``.
    """

    before: float
    after: float
    factors: str


@dataclass(frozen=True)
class RefitReport:
    """The result of `refit_`.

    Args:
        layers: by name, in the order in which they were fitted; of layers that share their factors the first.
        skipped: layers that no example reaches, left as they were.
        passes: how often the data went through both networks.
        examples: in each pass.
    """

    layers: dict[str, LayerRefit] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    passes: int = 0
    examples: int = 0


def refit_(
    small: nn.Module,
    dense: nn.Module,
    data: Iterable[Any],
    *,
    factors: Literal["last", "both"] = "last",
    samples: int | None = None,
    passes: int = PASSES,
    memory: int = 1 << 30,
    rounds: int = 2,
    ridge: float = RIDGE,
    progress: Callable[[str, int, int], None] | None = None,
) -> RefitReport:
    """Fit the factors of ``small``, layer after layer, to the layer outputs of ``dense``, by least squares.

    It takes no labels and no gradients.

    Both networks run in eval mode, batch norm and all else stays as it is. Biases move with the factors. A layer
    without bias is fitted without one, as is a layer whose bias other layers use: no parameter is added. To allow for
    more, plan with the bias in the price: layers of a plan with ``bias=True`` have one.

    On the data, each layer's error given its actual inputs never grows; at full rank nothing changes. Work: each pass
    runs the compressed network on all data, as far as its last layer that is fitted, and the dense one; that only once
    for as many passes as its outputs fit in ``memory``, where the data are a list. Memory: beyond these outputs, or one
    batch's, the moments of the layers that share a pass, ``8 (m^2 + m f)`` bytes for a factor with m inputs (kernel
    entries included) and f outputs; in all ``memory``, or as much as one layer takes, and three times that while
    moments are added up or a layer is solved. Of maps of 16 positions and more along each axis every second one along
    each is looked at, wherever that leaves 4 vectors for each of their numbers and the number of examples is known.

    Args:
        small: the compressed network of plain layers, changed in place.
        dense: the network that it was made from, with layers of the same names; left as it is.
        data: calibration batches, as for `tenfold.plan`; gone through several times: a list or a loader, no generator.
        factors: ``"last"`` fits the factor that puts the outputs together; ``"both"`` alternates over all of them, for
            more work and memory. Layers whose input moments alone exceed ``memory``, and those in the decoupled fold,
            are fitted in the last factor all the same.
        samples: use the first so many examples; None: all.
        passes: over the data, >= 1, if ``memory`` lets. With fewer passes than layers, consecutive layers share one,
            and are fitted given the inputs before it.
        memory: for moments, and as much for outputs of the dense network, in bytes.
        rounds: of alternation, where both factors are fitted.
        ridge: how strongly factors are held to what they were, relative to the variance of their inputs.
        progress: called as ``progress(name, done, layers)`` after each layer.

    Returns:
        the errors of each layer before and after.

    Raises:
        ArgumentError: a number out of range; networks that do not fit to each other; a wrapped network, or one in the
            form in which Tucker layers are trained.
        DataError: no example; a generator; outputs that are not finite; layers that are used in other ways or numbers
            in the two networks. Layers that were fitted before it was raised stay fitted.

    Source: ours; layer by layer on the compressed network's own inputs it follows the asymmetric reconstruction of
    Zhang et al. 2016 (arXiv 1505.06798, section 3.2), without its nonlinearity.
    """
    check(factors in ("last", "both"), "factors", "'last' or 'both'", factors)
    check(samples is None or is_count(samples), "samples", "an integer >= 1, or None", samples)
    check(is_count(passes), "passes", "an integer >= 1", passes)
    check(is_count(memory), "memory", "a number of bytes >= 1", memory)
    check(ridge >= 0, "ridge", ">= 0", ridge)
    check(rounds >= 0, "rounds", ">= 0", rounds)
    if isinstance(data, Iterator):
        raise DataError("`data` must last for several passes; a generator is used up by one. Pass a list or a loader.")
    refuse_unusable(dense)
    dense = opened(dense)
    layers = _layers(small, dense, factors, memory)
    source = Source(data, samples)
    with torch.no_grad(), evaluating(small, dense):
        order = _order(small, layers, source) if layers else []
        groups = _shared(order, -(-len(order) // passes), memory)
        report = RefitReport(skipped=tuple(x.name for x in layers if x not in order), passes=len(groups))
        known, blocks = None, [[group] for group in groups]
        if isinstance(data, list | tuple) and groups:  # each pass sees the same batches: what is kept stays right
            known = sum(map(len, source.batches(small)))
            sizes = DenseOutputs(dense, [name for layer in order for name in layer.modules]).bytes(source)
            blocks = _lasting(groups, sizes, memory)
        for block in blocks:
            names = [name for group in block for layer in group for name in layer.modules]
            outputs = DenseOutputs(dense, names, keep=len(block) > 1)
            for group in block:
                report = replace(report, examples=_collect(small, group, source, outputs, known))
                for layer in group:
                    before, after = layer.solve_(ridge, rounds)
                    report.layers[layer.name] = LayerRefit(before, after, layer.factors)
                    if progress is not None:
                        progress(layer.name, len(report.layers), len(order))
    return report


def _layers(small: nn.Module, dense: nn.Module, factors: str, memory: int) -> list[RefitLayer]:
    """One for all modules that share their factors."""
    refuse_unusable(small)
    refuse_unwritable(small)
    there = dict(dense.named_modules(remove_duplicate=False))
    found: dict[int, dict[str, Decomposed]] = {}
    for name, layer in structure_of(small).items():
        other = there.get(name)
        spec = None if other is None else other.spec if isinstance(other, Decomposed) else spec_of(other)
        if spec is None or (spec.kind, spec.shape, spec.groups) != (
            layer.spec.kind,
            layer.spec.shape,
            layer.spec.groups,
        ):
            what = "no such layer" if other is None else kind_of(other) + " there that computes something else"
            raise ArgumentError(
                f"`dense` must be the network that `small` was made from: for '{name}', with kernel "
                f"{layer.spec.shape}, it has {what}."
            )
        found.setdefault(id(layer.factors[-1]), {})[name] = layer
    holders: dict[int, set[int]] = {}
    for module in small.modules():
        for parameter in module.parameters(recurse=False):
            holders.setdefault(id(parameter), set()).add(id(module))
    return [RefitLayer(named, there, holders, factors, memory) for named in found.values()]


class _Enough(BaseException):
    """Ends a forward pass of which no more is needed. No Exception: a network may catch those."""


def _order(small: nn.Module, layers: Sequence[RefitLayer], source: Source) -> list[RefitLayer]:
    """The layers in the order in which they are first used."""
    used: dict[int, RefitLayer] = {}

    def note(layer: RefitLayer) -> Callable[..., None]:
        return lambda *_: used.setdefault(id(layer), layer) and None

    batch = next(source.batches(small))
    with hooked([m.register_forward_pre_hook(note(x)) for x in layers for m in x.modules.values()]):
        batch.to(device_of(small)).run(small)
    return list(used.values())


def _shared(order: Sequence[RefitLayer], size: int, memory: int) -> list[list[RefitLayer]]:
    """Runs of consecutive layers, so many at most, whose moments fit in memory together."""
    groups: list[list[RefitLayer]] = []
    for layer in order:
        last = groups[-1] if groups else []
        if groups and len(last) < size and sum(x.bytes for x in last) + layer.bytes <= memory:
            last.append(layer)
        else:
            groups.append([layer])
    return groups


def _lasting(groups: Sequence[list[RefitLayer]], sizes: Mapping[str, int], memory: int) -> list[list[list[RefitLayer]]]:
    """Runs of consecutive groups whose wanted outputs, of so many bytes each, fit in memory together."""
    blocks: list[list[list[RefitLayer]]] = []
    held = 0
    for group in groups:
        size = sum(sizes[name] for layer in group for name in layer.modules)
        if blocks and held + size <= memory:
            blocks[-1].append(group)
            held += size
        else:
            blocks.append([group])
            held = size
    return blocks


def _collect(
    small: nn.Module,
    group: Sequence[RefitLayer],
    source: Source,
    outputs: DenseOutputs,
    known: int | None,
) -> int:
    """One pass: the moments of a group of layers; returns how many examples there were.

    Args:
        small: the compressed network.
        group: of its layers.
        source: the data.
        outputs: of the dense network.
        known: how many examples there are; None where nobody knows.
    """
    wanted: dict[str, list[Tensor]] = {name: [] for layer in group for name in layer.modules}
    examples = 0

    def use(layer: RefitLayer, name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            if not wanted[name]:
                raise DataError(f"`data` makes the compressed network use '{name}' more often than the dense one.")
            size = kwargs.get("output_size", args[1] if len(args) > 1 else None)
            x, y = next(iter((*args, *kwargs.values()))), wanted[name].pop(0)
            layer.add(name, x, y, size, first=examples, examples=known)

        return hook

    def stop(*_: Any) -> None:
        if not any(wanted.values()):
            raise _Enough

    batches = source.batches(small)
    handles: list[Any] = []
    for layer in group:
        for name, module in layer.modules.items():
            handles.append(layer.source(module).register_forward_pre_hook(use(layer, name), with_kwargs=True))
            handles.append(module.register_forward_hook(stop))
    with hooked(handles):
        for batch in batches:
            found = outputs.of(batch)
            for name in wanted:
                wanted[name] = list(found[name])
            with suppress(_Enough):
                batch.to(device_of(small)).run(small)
            examples += len(batch)
            missed = next((name for name, left in wanted.items() if left), None)
            if missed is not None:
                raise DataError(f"`data` makes the dense network use '{missed}' more often than the compressed one.")
    return examples
