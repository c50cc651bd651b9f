"""Small networks, each named after what is special about it.

Weights come from the global generator, which is in the same state when a test starts. A network that misbehaves in the
way that one test is about stands beside that test.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# ---- chains


def chain() -> nn.Sequential:
    """Layers whose MACs are proportional to their parameters, some of it strided, padded and grouped; see `image`."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3, stride=2, groups=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 10),
    )


def image() -> Tensor:
    """Two images with three channels."""
    return torch.randn(2, 3, 8, 8)


def labelled_images(seed: int) -> tuple[Tensor, Tensor]:
    """A batch for `chain`: eight images and a class of ten for each."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(8, 3, 8, 8, generator=g), torch.randint(10, (8,), generator=g)


def transposed() -> nn.Sequential:
    """Layers whose MACs are *not* proportional to their parameters: a transposed convolution, an uneven stride; see
    `small_image`."""
    return nn.Sequential(
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(6, 4, 4, stride=2),
        nn.Conv2d(4, 4, 3, stride=(1, 3), bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def small_image() -> Tensor:
    """Two images with four channels."""
    return torch.randn(2, 4, 7, 7)


def conv_chain(*channels: int, size: int, classes: int, padding: int = 0, groups: int = 1) -> nn.Sequential:
    """3 x 3 convolutions with a ReLU between, the last in ``groups``, and a head that sees every place of images of
    ``size``."""
    layers: list[nn.Module] = []
    pairs = list(pairwise(channels))
    for i, (n_in, n_out) in enumerate(pairs, 1):
        last = i == len(pairs)
        layers.append(nn.Conv2d(n_in, n_out, 3, padding=padding, groups=groups if last else 1))
        layers += [] if last else [nn.ReLU()]
    places = (size - len(pairs) * (2 - 2 * padding)) ** 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(places * channels[-1], classes))


def linear_chain(*widths: int) -> nn.Sequential:
    """Linear layers with a ReLU between."""
    layers = [m for n_in, n_out in pairwise(widths) for m in (nn.Linear(n_in, n_out), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def conv_norm_chain(dtype: torch.dtype = torch.float64, seed: int = 3) -> nn.Sequential:
    """``mid`` alone is larger than 1x1 and not the first convolution; a norm follows all three."""
    torch.manual_seed(seed)
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


def norm_dropout(
    channels: int = 2, classes: int = 3, *, norm: bool = True, dropout: float = 0.0, seed: int = 7
) -> nn.Sequential:
    """What evaluation does otherwise than training, a batch norm and dropout, between a convolution and a head."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1),
        nn.BatchNorm2d(6) if norm else nn.Identity(),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(24, classes),
    )


# ---- more than one way through


class ResidualBlock(nn.Module):
    """A residual block: fan-out at its input, a projection on the shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.down = nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.down(x))


class Residual(nn.Module):
    """Stem, two residual blocks, pooling, a linear head; every convolution has its batch norm."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = nn.Sequential(ResidualBlock(width, width, 1), ResidualBlock(width, 2 * width, 2))
        self.fc = nn.Linear(2 * width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer1(torch.relu(self.bn1(self.conv1(x))))
        return self.fc(x.mean((-2, -1)))


class PreActivation(nn.Module):
    """Norms come before the convolutions: only the first convolution has a norm behind it."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, channels, 3, padding=1)
        self.bn2, self.conv2 = nn.BatchNorm2d(channels), nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(torch.relu(self.bn2(self.conv1(torch.relu(self.bn1(x))))))


class FanOut(nn.Module):
    """A convolution whose output goes into a norm, and past it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), lived(nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + y


class SumConcatDepthwise(nn.Module):
    """A residual sum, a concatenation, a depthwise convolution, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.n1 = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.inner = nn.Conv2d(6, 8, 3, padding=1)
        self.back = nn.Conv2d(8, 6, 1)
        self.deep = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.side = nn.Conv2d(3, 4, 1)
        self.head = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.n1(self.first(x)))
        y = y + self.back(F.relu(self.inner(y)))
        y = F.relu(self.deep(y))
        return self.head(torch.cat([y, F.relu(self.side(x))], 1).mean((2, 3)))


# ---- inputs and outputs that are no single tensor


class WordAndImage(nn.Module):
    """Two inputs, one of them integers, by keyword; a dict of two outputs; a batch norm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.table, self.head, self.drop = nn.Embedding(7, 8), nn.Linear(8, 5), nn.Dropout(0.5)
        self.norm.running_mean.normal_()

    def forward(self, image: Tensor, word: Tensor) -> dict[str, Tensor]:
        features = self.norm(self.conv(image)).relu().mean((2, 3))
        return {"logits": self.head(self.drop(features + self.table(word))), "features": features}


# ---- tied weights


class Tied(nn.Module):
    """Two linear layers with one weight, an embedding tied to a head, a grouped convolution, a plain layer; see
    `tokens`."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 16)
        self.first = nn.Linear(16, 16)
        self.second = nn.Linear(16, 16, bias=False)
        self.second.weight = self.first.weight
        self.mix = nn.Conv1d(16, 16, 3, padding=1, groups=2)
        self.plain = nn.Linear(16, 24)
        self.back = nn.Linear(24, 16)
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.second(torch.relu(self.first(self.table(tokens))))
        x = self.mix(x.mT).mT
        return self.head(self.back(torch.relu(self.plain(x))))[:, -1]


def tokens() -> Tensor:
    """Three sequences of five."""
    return torch.randint(20, (3, 5))


class TiedLinears(nn.Module):
    """Two linear layers with one weight, each with a bias of its own, none, or the one of both."""

    def __init__(self, size: int = 8, a: bool = True, b: bool = True, *, one_bias: bool = False) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(size, size, bias=a), nn.Linear(size, size, bias=b)
        self.b.weight = self.a.weight
        if one_bias:
            self.b.bias = self.a.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


class TwoNames(nn.Module):
    """One linear layer under two names."""

    def __init__(self, size: int = 8, bias: bool = True) -> None:
        super().__init__()
        self.a = nn.Linear(size, size, bias=bias)
        self.b = self.a

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


class ThreeTiedLinears(nn.Module):
    """One weight, a bias each but for the last."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.c = nn.Linear(8, 8, bias=False)
        self.b.weight = self.c.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(torch.relu(self.a(x))))


class TiedStrides(nn.Module):
    """One kernel, used with two strides: the same factors serve both."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(4, 4, 3, stride=1, padding=1)
        self.b = nn.Conv2d(4, 4, 3, stride=2, padding=2, padding_mode="circular")
        self.b.weight = self.a.weight
        self.b.bias = self.a.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))


class TiedConvs(nn.Module):
    """Two convolutions with one weight, between a stem and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.one, self.two = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.two.weight = self.one.weight
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(torch.relu(self.one(torch.relu(self.stem(x))))).mean((2, 3)))


# ---- layers that are used often, or never


class ReusedTwoNames(nn.Module):
    """One module used three times under two names, at two sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(6, 6, 3, padding=1)
        self.b = self.a
        self.down = nn.Conv2d(6, 6, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(self.down(self.b(self.a(x))))


class UsedTwice(nn.Module):
    """One linear layer used twice, on sequences of unlike lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.relu(self.layer(x))[:, :2])


class Pyramid(nn.Module):
    """One convolution, used twice at each of three sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = F.max_pool2d(self.conv(self.conv(x)), 2)
        return x


class Idle(nn.Module):
    """Two layers from ``make``, of which the second is never used."""

    def __init__(self, make: Callable[[], nn.Module] = lambda: nn.Linear(4, 4)) -> None:
        super().__init__()
        self.used, self.idle = make(), make()

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


# ---- forwards that do more than compute


class Remembers(nn.Module):
    """Leaves traces on itself, counts its calls, and draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm, self.drop = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = self.drop(self.norm(self.fc(x))) + torch.randn_like(x)
        return self.last


class DataDependent(nn.Module):
    """Decides by the data, so it can neither be traced nor run on the meta device."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Tensor) -> Any:
        return self.inner(*args) if args[0].sum().item() < 1e9 else args[0]


# ---- weights and statistics as training leaves them


def lived(norm: Any) -> Any:
    """A batch norm with everything other than at the start."""
    for tensor in (*norm.parameters(), norm.running_mean):
        nn.init.normal_(tensor.data)
    norm.running_var.uniform_(0.2, 3.0)
    return norm


@torch.no_grad()
def decaying_(model: nn.Module, rate: float, generator: torch.Generator) -> nn.Module:
    """``model`` with kernels whose spectra fall off by ``rate`` in both modes."""
    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            w = torch.randn(layer.weight.shape, generator=generator, dtype=layer.weight.dtype)
            for mode in (0, 1):
                size = [1] * w.ndim
                size[mode] = w.shape[mode]
                w = w * (rate ** torch.arange(w.shape[mode], dtype=w.dtype)).reshape(size)
            layer.weight.copy_(w)
    return model
