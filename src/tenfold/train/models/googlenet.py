"""GoogLeNet for small images: the nine inception modules of Szegedy et al. (2015) behind a 3x3 stem.

The shape that the pruning papers use on CIFAR-10: a stem of 192 channels without stride or pool, a norm after every
convolution, two 3x3 convolutions in place of the 5x5, no auxiliary heads. Convolutions have no bias, as a norm would
remove it; with biases the count is the 6,166,250 that is usually quoted.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tenfold.train.models.blocks import conv3x3, initialise_
from tenfold.train.models.registry import network

# channels of the 1x1; reduction and channels of the 3x3; the same of the "5x5"; channels behind the pool
MODULES = {
    "a3": (64, 96, 128, 16, 32, 32),
    "b3": (128, 128, 192, 32, 96, 64),
    "a4": (192, 96, 208, 16, 48, 64),
    "b4": (160, 112, 224, 24, 64, 64),
    "c4": (128, 128, 256, 24, 64, 64),
    "d4": (112, 144, 288, 32, 64, 64),
    "e4": (256, 160, 320, 32, 128, 128),
    "a5": (256, 160, 320, 32, 128, 128),
    "b5": (384, 192, 384, 48, 128, 128),
}
POOL_BEFORE = ("a4", "a5")


def _normed(*convolutions: nn.Conv2d) -> list[nn.Module]:
    """Each convolution, its norm and a ReLU."""
    return [part for c in convolutions for part in (c, nn.BatchNorm2d(c.out_channels), nn.ReLU())]


def _conv1x1(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1, bias=False)


class Inception(nn.Module):
    """Four branches side by side, concatenated: 1x1; 1x1 and 3x3; 1x1 and two 3x3; 3x3 max pool and 1x1.

    Args:
        inputs: channels that come in.
        widths: as in `MODULES`.
    """

    def __init__(self, inputs: int, widths: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        one, reduce3, three, reduce5, five, pool = widths
        self.outputs = one + three + five + pool
        self.b1 = nn.Sequential(*_normed(_conv1x1(inputs, one)))
        self.b2 = nn.Sequential(*_normed(_conv1x1(inputs, reduce3), conv3x3(reduce3, three)))
        deep = (_conv1x1(inputs, reduce5), conv3x3(reduce5, five), conv3x3(five, five))
        self.b3 = nn.Sequential(*_normed(*deep))
        self.b4 = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), *_normed(_conv1x1(inputs, pool)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(batch, inputs, h, w) -> (batch, outputs, h, w)``."""
        return torch.cat((self.b1(x), self.b2(x), self.b3(x), self.b4(x)), 1)


class GoogLeNet(nn.Module):
    """The stem, the nine modules ``a3`` to ``b5``, a 3x3 max pool of stride 2 before ``a4`` and ``a5``, Linear."""

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.pre_layers = nn.Sequential(*_normed(conv3x3(channels, 192)))
        inputs = 192
        for name, widths in MODULES.items():
            module = Inception(inputs, widths)
            self.add_module(name, module)
            inputs = module.outputs
        self.linear = nn.Linear(inputs, classes)
        initialise_(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``(batch, classes)`` of images ``(batch, channels, height, width)``."""
        x = self.pre_layers(x)
        for name in MODULES:
            if name in POOL_BEFORE:
                x = F.max_pool2d(x, 3, stride=2, padding=1)
            x = self.get_submodule(name)(x)
        return self.linear(x.mean((2, 3)))


@network("googlenet", minimum=4)
def googlenet(classes: int, channels: int, size: int) -> nn.Module:
    """`GoogLeNet` for any ``size`` >= 4."""
    return GoogLeNet(classes, channels)
