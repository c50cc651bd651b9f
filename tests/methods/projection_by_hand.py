"""Training by hand and projections by one float64 SVD; shared by TRP's and LRPET's tests."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import helpers

HYPER = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-2}


def batch(i: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(i)
    return torch.randn(8, 3, 6, 6, generator=g).to(dtype), torch.randint(10, (8,), generator=g)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, watch=None) -> list[float]:
    """A plain loop over `batch`, in the type of the model."""
    dtype = next(model.parameters()).dtype
    return helpers.train(model, optimizer, lambda i: batch(i, dtype), steps, watch=watch)


def by_hand(model: nn.Module, steps: int, project_, every: int) -> tuple[nn.Module, list[float]]:
    """SGD with momentum and weight decay written out; ``project_(model) -> {weight: what is added to its gradient}``.

    The projection stands before the forward pass, as in the paper.
    """
    model = copy.deepcopy(model)
    parameters = list(model.parameters())
    velocity = [torch.zeros_like(p) for p in parameters]
    losses = []
    for t in range(steps + 1):
        pull = project_(model) if t and t % every == 0 else {}
        if t == steps:
            break
        x, y = batch(t)
        loss = F.cross_entropy(model(x), y)
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for p, g, v in zip(parameters, gradients, velocity, strict=True):
                v.copy_(HYPER["momentum"] * v + g + pull.get(p, 0) + HYPER["weight_decay"] * p)
                p -= HYPER["lr"] * v
        losses.append(float(loss.detach()))
    return model, losses


def spectrum(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of a convolution in the channel fold."""
    return torch.linalg.svd(weight.detach().double().flatten(1), full_matrices=False)


def energy_rank(s: Tensor, energy: float) -> int:
    """Smallest k with ``sum_{i<=k} s_i^2 >= energy sum s_i^2``, by trying."""
    total = float((s**2).sum())
    return next(k for k in range(1, len(s) + 1) if float((s[:k] ** 2).sum()) >= energy * total - 1e-12 * total)


def rank_of(weight: Tensor, tolerance: float = 1e-6) -> int:
    s = spectrum(weight)[1]
    return int((s > tolerance * s[0]).sum())


def close(a: nn.Module, b: nn.Module, **tolerance) -> None:
    for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        torch.testing.assert_close(x, y, msg=lambda m, n=name: f"{n}: {m}", **tolerance)
