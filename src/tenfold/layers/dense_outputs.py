"""What layers of a network put out, batch by batch, and kept where it will be asked for again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from tenfold.layers.calibration_batches import Batch
from tenfold.layers.calibration_runs import Source, device_of, hooked


class DenseOutputs:
    """The outputs of some layers of a network, call after call.

    Args:
        dense: the network, left as it is; in the mode in which it is to run.
        names: of the layers.
        keep: whether batches come again and again, in one order: then they are run once.
    """

    def __init__(self, dense: nn.Module, names: Sequence[str], *, keep: bool = False) -> None:
        self.dense, self.names, self.keep = dense, names, keep
        self._kept: dict[int, dict[str, list[Tensor]]] = {}

    def of(self, batch: Batch) -> dict[str, list[Tensor]]:
        """By layer, the outputs on this batch."""
        if batch.number in self._kept:
            return self._kept[batch.number]
        found: dict[str, list[Tensor]] = {name: [] for name in self.names}

        def note(name: str) -> Callable[..., None]:
            # A clone: an activation that works in place would write to what is kept.
            return lambda _, __, output: found[name].append(output.clone())

        with hooked([self.dense.get_submodule(name).register_forward_hook(note(name)) for name in self.names]):
            batch.to(device_of(self.dense)).run(self.dense)
        if self.keep:
            self._kept[batch.number] = found
        return found

    def bytes(self, source: Source) -> dict[str, int]:
        """By layer, about what its outputs on all batches take, told by those on the first."""
        first, *others = source.batches(self.dense)
        times = 1 + sum(map(len, others)) / max(len(first), 1)
        found = self.of(first)
        return {name: int(times * sum(t.numel() * t.element_size() for t in each)) for name, each in found.items()}
