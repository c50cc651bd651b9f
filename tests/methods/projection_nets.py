"""A small network, its training by hand, and projections by one float64 SVD; shared by TRP's and LRPET's tests."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HYPER = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-2}


def net(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """``mid`` alone is larger than 1x1 and not the first convolution; a norm follows all three."""
    torch.manual_seed(3)
    made = nn.Sequential()
    made.add_module("first", nn.Conv2d(3, 8, 3, padding=1, bias=False))
    made.add_module("norm1", nn.BatchNorm2d(8))
    made.add_module("relu1", nn.ReLU())
    made.add_module("mid", nn.Conv2d(8, 12, 3, padding=1))
    made.add_module("norm2", nn.BatchNorm2d(12))
    made.add_module("relu2", nn.ReLU())
    made.add_module("point", nn.Conv2d(12, 16, 1))
    made.add_module("norm3", nn.BatchNorm2d(16))
    made.add_module("pool", nn.AdaptiveAvgPool2d(1))
    made.add_module("flat", nn.Flatten())
    made.add_module("head", nn.Linear(16, 10))
    return made.to(dtype)


def batch(i: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(i)
    return torch.randn(8, 3, 6, 6, generator=g).to(dtype), torch.randint(10, (8,), generator=g)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, watch=None) -> list[float]:
    """A plain loop."""
    losses = []
    for i in steps:
        x, y = batch(i, next(model.parameters()).dtype)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if watch is not None:
            watch(i)
    return losses


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
