"""Reads calibration batches: what users pass as ``data`` becomes calls of the model, and labels beside them.

One reader for everything that looks at data. A batch means what `example_inputs` means, labels may stand beside it:

====================================  ===================================  ==============================
a batch                               the call                             its target
====================================  ===================================  ==============================
a tensor ``x``                        ``model(x)``                         none
a dict ``d``                          ``model(**d)``                       ``labels`` in it, if there are any
``(inputs, target)``, where inputs    as ``inputs`` alone: ``model(*t)``,  ``target``; None for none
is a tuple, a list or a dict          ``model(**d)``
another tuple or list of ``n``        the first ``n`` or ``n - 1`` of it   the last, if it is not an input
====================================  ===================================  ==============================

In the last case the model's ``forward`` decides. It takes between ``least`` and ``most`` positional arguments. If only
``n`` or only ``n - 1`` lies between, that is it: ``(ids, mask)`` are two inputs of ``forward(ids, mask)``, and ``(x,
y)`` an input and its target for ``forward(x)``. If both do, as for ``forward(x, mask=None)``, an argument that is
called label, labels, target, targets or y takes a target; otherwise both are tried on the first batch. Where one of
them fails, or both give the same outputs, the answer is known; else the batch is ambiguous, and refused. Entries
beyond ``most`` are part of the target: ``(x, y, weight)``. Of a dict, keys of those names that ``forward`` does not
take are its target and not passed.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from tenfold.errors import DataError, TenfoldError
from tenfold.layers.model_outputs import output_tensors

TARGETS = ("label", "labels", "target", "targets", "y")
"""What arguments and keys that hold no input are called."""


@dataclass(frozen=True)
class Batch:
    """The arguments of one call of a model, and its target.

    Args:
        number: of the batch, from 0.
        args: positional arguments.
        kwargs: keyword arguments.
        target: labels or whatever else stands beside the inputs; None for none.
    """

    number: int
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    target: Any = None

    def __len__(self) -> int:
        """The number of examples: the length of the first tensor, 1 where there is none with an axis."""
        return next((len(t) for t in tree_leaves((self.args, dict(self.kwargs))) if _has_axis(t)), 1)

    @property
    def described(self) -> Any:
        """The second argument of a loss: the target, or the inputs as they were given where there is none."""
        if self.target is not None:
            return self.target
        return dict(self.kwargs) or (self.args[0] if len(self.args) == 1 else self.args)

    def first(self, examples: int) -> Batch:
        """The first so many examples; the whole batch where not every tensor has an axis of examples."""
        return self.split(examples)[0]

    def split(self, examples: int) -> tuple[Batch, Batch | None]:
        """The first so many examples of it, and the others; the whole batch and None where it cannot be divided."""
        count = len(self)
        values = [*self.args, *self.kwargs.values()]
        nested = any(isinstance(v, (tuple, list, Mapping)) for v in values)
        if examples >= count or nested or any(len(t) != count for t in values if _has_axis(t)):
            return self, None

        def part(which: slice) -> Batch:
            def cut(value: Any) -> Any:
                return value[which] if _has_axis(value) and len(value) == count else value

            kwargs = {key: cut(value) for key, value in self.kwargs.items()}
            return replace(self, args=tuple(map(cut, self.args)), kwargs=kwargs, target=_mapped(cut, self.target))

        return part(slice(examples)), part(slice(examples, None))

    def to(self, device: torch.device | str) -> Batch:
        """A copy of the batch on a device."""

        def move(t: Tensor) -> Tensor:
            return t.to(device)

        kwargs = {key: _mapped(move, value) for key, value in self.kwargs.items()}
        return replace(self, args=_mapped(move, self.args), kwargs=kwargs, target=_mapped(move, self.target))

    def run(self, model: nn.Module) -> Any:
        """The outputs of ``model`` on this batch.

        Raises:
            DataError: the model does not run on it; the message carries what it raised.
        """
        try:
            return model(*self.args, **self.kwargs)
        except (TenfoldError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise DataError(
                f"`data` must hold batches that the model runs on; on batch {self.number} its forward pass failed with "
                f"{type(error).__name__}: {error}. A batch is what `example_inputs` is, or (inputs, target)."
            ) from error


def calibration_batches(model: nn.Module, data: Iterable[Any]) -> Iterator[Batch]:
    """The batches of ``data`` as calls of ``model``, one at a time; the first is read at once.

    Args:
        model: its ``forward`` tells inputs from targets. Run at most twice, in eval mode and on copies of the first
            batch, and only where that does not; untouched. Register hooks afterwards.
        data: batches, see above; gone through once.

    Raises:
        DataError: ``data`` is no iterable of batches; a batch that is ambiguous, or has NaN or infinite entries.
    """
    if isinstance(data, Tensor):
        raise DataError(f"`data` must be batches, not one tensor {tuple(data.shape)}. Pass [x], or a DataLoader.")
    odd = isinstance(data, (Mapping, str, bytes, nn.Module))
    try:
        entries = iter(() if odd else data)
    except TypeError:
        odd, entries = True, iter(())
    if odd:
        raise DataError(f"`data` must be an iterable of batches; got a {type(data).__name__}. Pass [batch].")
    start = list(itertools.islice(entries, 1))
    reader = _Reader(model)
    first = [reader.read(0, start.pop())] if start else []

    def rest() -> Iterator[Batch]:
        if first:
            yield first.pop()
            for number, entry in enumerate(entries, start=1):
                batch = reader.read(number, entry)
                del entry
                yield batch
                del batch

    return rest()


class _Reader:
    """Turns entries into batches, all of them by the same decision."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        try:
            signature = inspect.signature(model.forward)
        except (TypeError, ValueError):  # scripted and other foreign callables have none: whatever they take is tried
            signature = inspect.Signature([inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL)])
        kinds = inspect.Parameter
        self.parameters = list(signature.parameters.values())
        self.positional = [p for p in self.parameters if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
        self.least = sum(p.default is p.empty for p in self.positional)
        self.most = 10**6 if any(p.kind is kinds.VAR_POSITIONAL for p in self.parameters) else len(self.positional)
        self.any_keyword = any(p.kind is kinds.VAR_KEYWORD for p in self.parameters)
        self.decided: dict[int, int] = {}

    @property
    def signature(self) -> str:
        return f"forward({', '.join(map(str, self.parameters))})"

    def read(self, number: int, entry: Any) -> Batch:
        if isinstance(entry, Tensor):
            batch = Batch(number, (entry,), {})
        elif isinstance(entry, Mapping):
            batch = self._keywords(number, entry)
        elif isinstance(entry, (tuple, list)):
            batch = self._entries(number, tuple(entry))
        else:
            raise DataError(
                f"`data` must hold batches that are tensors, tuples or dicts of them, or pairs (inputs, target); batch "
                f"{number} is a {type(entry).__name__}."
            )
        _require_finite(batch)
        return batch

    def _keywords(self, number: int, entry: Mapping[Any, Any]) -> Batch:
        if not all(isinstance(key, str) for key in entry):
            raise DataError(f"`data` must hold dicts with names for keys; batch {number} has {list(entry)}.")
        known = {p.name for p in self.parameters if p.kind is not inspect.Parameter.POSITIONAL_ONLY}
        strange = [] if self.any_keyword else [key for key in entry if key not in known]
        beside = [key for key in strange if key in TARGETS]
        if len(beside) < len(strange):
            odd = [key for key in strange if key not in TARGETS]
            raise DataError(
                f"`data` must hold dicts of what the model takes, as {self.signature} does not take "
                f"{', '.join(map(repr, odd))} of batch {number}. Leave it out of the batches."
            )
        targets = [entry[key] for key in (beside or [key for key in entry if key in TARGETS])]
        target = None if not targets else targets[0] if len(targets) == 1 else tuple(targets)
        return Batch(number, (), {key: value for key, value in entry.items() if key not in beside}, target)

    def _entries(self, number: int, entries: tuple[Any, ...]) -> Batch:
        if not entries:
            raise DataError(f"`data` must hold batches with inputs in them; batch {number} is empty.")
        if len(entries) == 2 and isinstance(entries[0], Mapping):
            batch = self._keywords(number, entries[0])
            return batch if entries[1] is None else replace(batch, target=entries[1])
        if len(entries) == 2 and isinstance(entries[0], (tuple, list)):
            return Batch(number, tuple(entries[0]), {}, entries[1])
        count = self._inputs_among(number, entries)
        beside = entries[count:]
        return Batch(number, entries[:count], {}, beside[0] if len(beside) == 1 else beside or None)

    def _inputs_among(self, number: int, entries: tuple[Any, ...]) -> int:
        """How many of the entries are inputs."""
        n = len(entries)
        fitting = [count for count in (n, n - 1) if count >= 1 and self.least <= count <= self.most]
        if len(fitting) == 1:
            return fitting[0]
        if not fitting:
            if 1 <= self.most < n:
                return self.most
            raise DataError(
                f"`data` must hold as many inputs as the model takes: {self.signature} does not fit batch {number}, "
                f"which has {n}."
            )
        if n <= len(self.positional) and self.positional[n - 1].name in TARGETS:
            return n - 1
        if n not in self.decided:
            if number > 0:
                raise DataError(
                    f"`data` must hold batches of one form; batch {number} has {n} entries, unlike the first."
                )
            self.decided[n] = self._tried(entries)
        return self.decided[n]

    def _tried(self, entries: tuple[Any, ...]) -> int:
        n = len(entries)
        whole, fewer = (self._attempt(Batch(0, entries[:count], {})) for count in (n, n - 1))
        if isinstance(whole, DataError):
            if isinstance(fewer, DataError):
                raise fewer
            return n - 1
        if isinstance(fewer, DataError):
            return n
        same = len(whole) == len(fewer) and all(map(_same, whole, fewer))
        if same:
            return n - 1
        raise DataError(
            f"`data` is ambiguous: of a tuple of {n}, {self.signature} can take {n} inputs, or {n - 1} with a target "
            f"beside. Write ((x, ...), target) with a target, ((x, ...), None) without, or a dict of the arguments."
        )

    @torch.no_grad()
    def _attempt(self, batch: Batch) -> list[Tensor] | DataError:
        modes = {module: module.training for module in self.model.modules()}
        where = next(itertools.chain(self.model.parameters(), self.model.buffers()), torch.empty(0)).device
        try:
            with torch.random.fork_rng(devices=[]):
                self.model.eval()
                copied = replace(batch, args=_mapped(lambda t: t.detach().clone().to(where), batch.args))
                return output_tensors(copied.run(self.model))
        except DataError as error:
            return error
        finally:
            for module, training in modes.items():
                module.training = training


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(torch.allclose(a.double(), b.double(), rtol=1e-6, atol=0, equal_nan=True))


def _has_axis(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0


def _mapped(change: Any, values: Any) -> Any:
    return tree_map_only(Tensor, change, values)


def _require_finite(batch: Batch) -> None:
    """No NaN anywhere; no infinity in a tensor that is the only input: a mask may well hold some."""
    tensors = [t for t in tree_leaves((batch.args, dict(batch.kwargs))) if isinstance(t, Tensor)]
    floating = [t for t in tensors if t.is_floating_point() or t.is_complex()]
    for t in floating:
        bad = not torch.isfinite(t).all() if len(tensors) == 1 else t.isnan().any()
        if bad:
            raise DataError(f"`data` has NaN or infinite entries in batch {batch.number}, shape {tuple(t.shape)}.")
