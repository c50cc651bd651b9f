"""What a layer in Tucker format offers to whoever changes its ranks while it trains.

::

    W = C x_1 U_1 x_2 U_2 ...        core C (r_1, r_2, ..., *rest),  bases U_i (n_i, r_i), orthonormal columns

``W (n_1, n_2, ..., *rest)`` is the kernel in the one layout ``(out, in / groups, *k)``. A linear layer has no rest:
``W = U_1 C U_2^T`` with a square C. A layer with g groups has one core and one set of bases for each, of the same
ranks, stacked as convolutions stack them: core ``(g r_1, r_2, ..., *rest)``, out basis ``(out, r_1)`` and in basis
``(in, r_2)`` with the rows of the first group first.

A layer may store its factors at larger sizes than its ranks, padded with zeros: then no parameter ever changes its
shape. Zeros stay: on the padding ``grad_C = G x_i U_i^T`` is a product with zeros of the bases, and
``grad_{U_i} = Mat_i(G x_{j != i} U_j^T) Mat_i(C)^T`` one with zeros of the core; and optimizers leave alone what is
zero and has no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from tenfold.linalg.change_of_basis import leading


@runtime_checkable
class Factorised(Protocol):
    """Protocol of a layer in Tucker format whose ranks can change while it trains. See `TrainedTucker`.

    ``core`` and ``bases`` are Parameters that live as long as the module: whoever changes a rank calls `set_factors`.
    Loading a state of other ranks resizes them first. Nothing but an integrator changes the bases.
    """

    groups: int
    constant_bases: bool
    """The forward pass takes the bases for constants: their gradients are zero and cost nothing. A static layer does
    not look at it."""
    precision: torch.dtype
    """The type that the last forward pass multiplied in: under autocast a coarser one than that of the parameters."""
    augmented: Tensor
    """A bool buffer ``()``, saved with the rest: the ranks have grown, and the cut that follows has not been made."""

    @property
    def core(self) -> nn.Parameter:
        """The core ``C (g r_1, r_2, ..., *rest)``, as stored."""
        ...

    @property
    def bases(self) -> Sequence[nn.Parameter]:
        """The bases ``U_i (g n_i, r_i)`` of the active modes, the first of the kernel: out, in, spatial; as stored."""
        ...

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks ``r_i`` of the active modes."""
        ...

    @property
    def static(self) -> bool:
        """Whether the parameters keep their shapes, zero beyond the ranks, and gradients of the bases are computed."""
        ...

    def set_factors(self, core: Tensor, *bases: Tensor) -> None:
        """Copy core and bases, and take their ranks; gradients of another shape are dropped."""
        ...


def active(layer: Factorised) -> tuple[Tensor, ...]:
    """Core and bases of a layer without padding."""
    ranks = layer.ranks
    return (leading(layer.core, ranks, layer.groups), *(u[:, :r] for u, r in zip(layer.bases, ranks, strict=True)))


def factorised(model: nn.Module) -> dict[str, Factorised]:
    """The modules of a model in Tucker format by name; of several that share a core, the first."""
    found: dict[int, tuple[str, Factorised]] = {}
    for name, module in model.named_modules():
        if isinstance(module, Factorised):
            found.setdefault(id(module.core), (name, cast("Factorised", module)))
    return dict(found.values())


def put_(parameter: nn.Parameter, value: Tensor) -> None:
    """Set ``parameter.data = value``, of any shape; a gradient of another shape is dropped.

    While the graph of the last loss is alive, autograd keeps what it knows of the parameter, its old shape too, and the
    next backward pass would fail. It forgets that where the type changes: hence the detour.
    """
    if value.shape != parameter.shape:
        parameter.grad = None
        other = torch.float32 if parameter.dtype == torch.float64 else torch.float64
        parameter.data = torch.empty(0, dtype=other, device=parameter.device)
    parameter.data = value
