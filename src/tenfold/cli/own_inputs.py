"""Batches of a user's own, by reference: gone through as often as is needed."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tenfold.errors import ArgumentError, DataError
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


def inputs_of(batch: Any, model: nn.Module) -> Any:
    """What of ``batch`` the model is called with: a tensor, a tuple of positional or a dict of keyword arguments.

    A tensor or a dict is the inputs. Of a pair whose first part is a tuple, a list or a dict, that part is. Any other
    tuple is the inputs if ``forward`` takes that many arguments and needs more than one; where it needs one only, it is
    ``(inputs, target)`` if ``forward`` takes no more.

    Raises:
        DataError: a tuple that could be either, or a batch of another kind.
    """
    if isinstance(batch, (Tensor, Mapping)):
        return batch
    if not isinstance(batch, (tuple, list)) or not batch:
        raise DataError(f"`inputs` must hold tensors, tuples or dicts; got a {type(batch).__name__} of nothing usable.")
    if len(batch) == 1 or (len(batch) == 2 and isinstance(batch[0], (tuple, list, Mapping))):
        first = batch[0]
        return tuple(first) if isinstance(first, list) else first
    alone, all_ = (_takes(model, count) for count in (1, len(batch)))
    if alone and all_:
        raise DataError(
            f"`inputs` must say what is an input: the model takes one argument and {len(batch)} alike, so that the "
            f"last of a tuple could be a target. Give dicts by the names of the arguments, or ((inputs, ...), target)."
        )
    return tuple(batch) if all_ else batch[0]


def _takes(model: nn.Module, count: int) -> bool:
    try:
        inspect.signature(model.forward).bind(*[None] * count)
    except TypeError:
        return False
    return True
