"""Batches of a user's own, by reference: gone through as often as is needed."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tenfold.cli.option_names import renamed
from tenfold.errors import ArgumentError, DataError
from tenfold.layers.calibration_batches import calibration_batches
from tenfold.own_code import call_own, load_own

_END = object()


@dataclass(frozen=True)
class OwnBatches:
    """Batches that can be gone through again: of a list, a loader, or a function that is called anew for each pass.

    Args:
        reference: where they come from, for errors.
        source: an iterable that is no iterator, or a function that returns an iterator.
    """

    reference: str
    source: Any

    def __iter__(self) -> Iterator[Any]:
        made = call_own(self.source, "inputs", self.reference) if callable(self.source) else self.source
        iterator = call_own(iter, "inputs", self.reference, made)
        while (batch := call_own(next, "inputs", self.reference, iterator, _END)) is not _END:
            yield batch


def own_batches(reference: str) -> OwnBatches:
    """The batches that ``reference`` leads to: an iterable, or a function that returns one; runs its module.

    Raises:
        ArgumentError: it leads to nothing, the function fails, or what it gives is no iterable of batches.
    """
    source: Any = load_own(reference, "inputs")
    made = source
    if callable(source) and not (isinstance(source, Iterable) and not inspect.isclass(source)):
        made = call_own(source, "inputs", reference)
    if isinstance(made, (Tensor, Mapping, str)) or not isinstance(made, Iterable):
        raise ArgumentError(
            f"`inputs` must lead to batches: a list or a loader of them, or a function that returns one; {reference!r} "
            f"gives a {type(made).__name__}. For one batch x, [x]."
        )
    if isinstance(made, Iterator):
        if made is source:
            raise ArgumentError(
                f"`inputs` are gone through more than once; {reference!r} is a {type(made).__name__}. "
                f"Name a list, a loader, or the function that makes it."
            )
        return OwnBatches(reference, source)
    return OwnBatches(reference, made)


def first_inputs(batches: OwnBatches, model: nn.Module) -> Any:
    """The inputs of the first batch: a tensor, a tuple of positional or a dict of keyword arguments.

    Raises:
        DataError: no batch, or one that `tenfold.layers.calibration_batches` cannot read.
    """
    with renamed(data="--inputs"):
        for batch in calibration_batches(model, batches):
            return dict(batch.kwargs) or (batch.args[0] if len(batch.args) == 1 else batch.args)
    raise DataError(f"`inputs` must hold at least one batch; {batches.reference!r} gives none.")
