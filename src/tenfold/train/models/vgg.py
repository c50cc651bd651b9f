"""VGG-16 with batch norm for small images (Simonyan & Zisserman, 2015, configuration D; one Linear at the end)."""

from __future__ import annotations

import torch
from torch import nn

from tenfold.train.models.blocks import conv3x3, initialise_
from tenfold.train.models.registry import network

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG(nn.Module):
    """Thirteen 3x3 convolutions with batch norm and ReLU in five stages, each closed by a 2x2 max pool.

    A pool that would shrink the map below one pixel is left out, so that images smaller than 32 pixels pass too: 28
    pixels meet four pools, 8 pixels three. What is left of the map is averaged before the one Linear. Convolutions
    have no bias: the norm that follows would remove it.
    """

    def __init__(self, classes: int, channels: int, size: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = channels
        for stage in STAGES:
            for width in stage:
                layers += [conv3x3(inputs, width), nn.BatchNorm2d(width), nn.ReLU()]
                inputs = width
            if size >= 2:
                layers.append(nn.MaxPool2d(2))
                size //= 2
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs, classes)
        initialise_(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``(batch, classes)`` of images ``(batch, channels, height, width)``."""
        return self.classifier(self.features(x).mean((2, 3)))


@network("vgg16_bn", minimum=4)
def vgg16_bn(classes: int, channels: int, size: int) -> nn.Module:
    """`VGG` for any ``size`` >= 4."""
    return VGG(classes, channels, size)
