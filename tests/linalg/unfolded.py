"""Generic layers and their unfolded inputs, made by torch's own unfold: what laws of output-aware forms compare to."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tenfold.linalg.fold import Fold
from tenfold.linalg.joint_moments import JointMoments


@dataclass
class Layer:
    """A kernel, the inputs ``(g, samples, n)`` that it meets, unfolded, and what it puts out ``(g, samples, f)``."""

    kernel: Tensor
    inputs: Tensor
    groups: int = 1

    @property
    def moments(self) -> JointMoments:
        return JointMoments.of(self.inputs, self.inputs.new_zeros(*self.inputs.shape[:2], 0))

    @property
    def covariance(self) -> Tensor:
        return self.moments.xx / self.moments.count

    @property
    def outputs(self) -> Tensor:
        return self.inputs @ self.kernel.reshape(self.groups, -1, self.inputs.shape[-1]).mT

    def error(self, kernel: Tensor) -> float:
        """``E |(W - W_hat) x|^2`` about its mean, from the outputs themselves."""
        gap = self.outputs - Layer(kernel, self.inputs, self.groups).outputs
        return float((gap - gap.mean(1, keepdim=True)).square().sum((0, 2)).sum() / gap.shape[1])


def generic(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def images(generator, channels: int, count: int = 30, size: tuple[int, int] = (7, 6)) -> Tensor:
    """Correlated over channels and over neighbouring positions, of unlike strength, with a mean."""
    x = generic(generator, count, channels, *size)
    x = x + 0.8 * x.roll(1, 2) + 0.5 * x.roll(1, 3)
    mix = generic(generator, channels, channels) * torch.logspace(0, -1, channels, dtype=torch.float64)
    return torch.einsum("ncxy,dc->ndxy", x, mix) + generic(generator, channels)[:, None, None]


def convolution(generator, out=6, channels=4, k=(3, 2), groups=1, **options: Any) -> Layer:
    """A convolution of generic weights on such images; ``options`` are those of `torch.nn.functional.unfold`."""
    kernel = generic(generator, out, channels // groups, *k)
    x = F.unfold(images(generator, channels), k, **options)  # (N, C k1 k2, L), channels first
    flat = x.movedim(1, 2).reshape(-1, groups, x.shape[1] // groups).movedim(1, 0)
    return Layer(kernel, flat, groups)


def linear(generator, out=6, features=8, samples=60) -> Layer:
    strength = torch.logspace(0, -2, features, dtype=torch.float64)
    x = generic(generator, 1, samples, features) * strength @ generic(generator, features, features)
    return Layer(generic(generator, out, features), x + 1)


def forms(layer: Layer, slices=(1, 2)) -> list[Fold]:
    """Every fold of the layer that forms know, in so many slices."""
    axes = layer.kernel.ndim - 2
    names = ("channel", "spatial", "spatial-t", "input") if axes else ("channel",)
    shape = tuple(layer.kernel.shape)
    return [Fold(shape, layer.groups, s, name) for name in names for s in slices if shape[1] % s == 0]
