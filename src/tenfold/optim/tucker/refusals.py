"""What an integrator cannot train, each said in one sentence before it is touched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor
from torch.optim import Optimizer

from tenfold.errors import ArgumentError
from tenfold.layers.tucker_protocol import Factorised
from tenfold.layers.tucker_training import basis_ids
from tenfold.optim.dtensor import parted


def refuse_sharded(layers: Mapping[str, Factorised], held: Iterable[Tensor]) -> None:
    """Raise `ArgumentError` where a factor is sharded, or a model was sharded after its optimizer was made.

    Args:
        layers: as they are now.
        held: what the optimizer holds.
    """
    known = {id(p) for p in held}
    for name, layer in layers.items():
        if any(map(parted, (layer.core, *layer.bases))):
            raise ArgumentError(
                f"`model` must not be sharded (fully_shard): the ranks of '{name}' change its shapes. Train it whole "
                "in each process, unwrapped, or with static=True inside DistributedDataParallel."
            )
        if id(layer.core) not in known:
            raise ArgumentError(
                f"`model` has another core at '{name}' than its optimizer holds. Call method.optimizer(model, ...) "
                "again, after whatever replaced its parameters."
            )


def refuse_bases(params: Iterable[Tensor]) -> None:
    """Raise `ArgumentError` where one of ``params`` is a basis: it would not stay orthonormal."""
    bases = basis_ids()
    if any(id(p) in bases for p in params):
        raise ArgumentError(
            "`params` must not hold bases of layers in Tucker format. Put all models into one nn.ModuleList before "
            "method.optimizer(...), or give each an optimizer of its own."
        )


def refuse_other_ranks(name: str, layer: Factorised, known: Sequence[int], inner: Optimizer, pinned: bool) -> None:
    """Raise `ArgumentError` where model and optimizer come from different moments.

    Args:
        name: of the layer.
        layer: as it is now.
        known: its ranks as the optimizer left them.
        inner: what remembers something of its core.
        pinned: the ranks to come back to are in the state of the optimizer.
    """
    remembers = any(isinstance(x, Tensor) and x.ndim for x in inner.state.get(layer.core, {}).values())
    if list(layer.ranks) != list(known) and (remembers or pinned):
        raise ArgumentError(
            f"`model` has ranks {tuple(layer.ranks)} at '{name}', and its optimizer is of ranks {tuple(known)}. Load "
            "the states of both from one checkpoint, or make a new optimizer."
        )


def refuse_open_cycle(name: str) -> None:
    """Raise `ArgumentError`: ranks that are to be kept are not known in the middle of another optimizer's cycle."""
    raise ArgumentError(
        f"`model` is in the middle of a cycle of another optimizer at '{name}', which knows the ranks to come back to. "
        "Load that optimizer's state, or call its end_cycle_() first."
    )
