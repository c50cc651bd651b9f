"""Modules that are one Tucker tensor, and losses on it: the integrators' laws need no network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tenfold.layers.tucker_protocol import put_
from tenfold.linalg import hosvd
from tenfold.linalg.tucker import tucker_full
from tenfold.optim.tucker.integrator import Integrator
from tenfold.optim.tucker.settings import IntegratorSettings


class Kernel(nn.Module):
    """``W = C x_i U_i`` as it stands; a matrix where C has two axes and two bases."""

    groups, static = 1, False
    constant_bases, precision = False, torch.float64

    def __init__(self, core: Tensor, bases: Sequence[Tensor]) -> None:
        super().__init__()
        self.core = nn.Parameter(core.clone())
        self.bases = nn.ParameterList([nn.Parameter(basis.clone()) for basis in bases])
        self.register_buffer("augmented", torch.tensor(False))

    @property
    def ranks(self) -> tuple[int, ...]:
        return tuple(basis.shape[1] for basis in self.bases)

    def set_factors(self, core: Tensor, *bases: Tensor) -> None:
        for mine, given in zip((self.core, *self.bases), (core, *bases), strict=True):
            put_(mine, given.detach().clone())

    def _load_from_state_dict(self, state_dict, prefix, *rest) -> None:
        bases = [state_dict[f"{prefix}bases.{i}"] for i in range(len(self.bases))]
        self.set_factors(state_dict[f"{prefix}core"], *bases)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @property
    def full(self) -> Tensor:
        bases = [u.detach() for u in self.bases] if self.constant_bases else list(self.bases)
        return tucker_full(self.core, bases)

    def forward(self) -> Tensor:
        return self.full


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def basis(n: int, r: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(normal(n, r, seed=seed + 1000))[0]


def kernel(shape: Sequence[int], ranks: Sequence[int], seed: int = 0) -> Kernel:
    """A random one, its core generic: neither diagonal nor of orthogonal slices."""
    core = normal(*ranks, *shape[len(ranks) :], seed=seed)
    return Kernel(core, [basis(n, r, seed + i) for i, (n, r) in enumerate(zip(shape, ranks, strict=False))])


def teacher(shape: Sequence[int], ranks: Sequence[int], seed: int = 7) -> Tensor:
    return kernel(shape, ranks, seed).full.detach()


def of(w: Tensor, ranks: Sequence[int]) -> Kernel:
    return Kernel(*hosvd(w, ranks))


def turned(model: Kernel, seed: int = 3) -> Kernel:
    """The same tensor in other bases of the same spans."""
    rotations = [basis(r, r, seed + i) for i, r in enumerate(model.ranks)]
    core = tucker_full(model.core.detach(), [q.mT for q in rotations])
    return Kernel(core, [u.detach() @ q for u, q in zip(model.bases, rotations, strict=True)])


def integrator(model: nn.Module, settings: IntegratorSettings, base=torch.optim.SGD, **hyper) -> Integrator:
    bases = {id(b) for m in model.modules() if isinstance(m, Kernel) for b in m.bases}
    return Integrator(base([p for p in model.parameters() if id(p) not in bases], **hyper), model, settings)


def run(model: nn.Module, optimizer: Integrator, loss, steps: int) -> list[float]:
    """Steps on ``loss(model, step)``, with a closure where one is needed."""
    losses = []
    for step in range(steps):

        def closure(step=step) -> Tensor:
            optimizer.zero_grad()
            value = loss(model, step)
            value.backward()
            return value

        value = optimizer.step(closure) if optimizer.settings.twice else closure()
        if not optimizer.settings.twice:
            optimizer.step()
        losses.append(float(value.detach()))
    return losses


def orthonormality(model: nn.Module) -> float:
    """The largest entry of ``U^T U - I`` over all bases."""
    bases = [b.detach() for m in model.modules() if isinstance(m, Kernel) for b in m.bases]
    return max(float((b.mT @ b - torch.eye(b.shape[1], dtype=b.dtype)).abs().max()) for b in bases)
