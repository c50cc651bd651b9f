"""AlexNet for small images (Krizhevsky, 2014, "One weird trick", with one Linear instead of three)."""

from __future__ import annotations

import torch
from torch import nn

from tenfold.train.models.registry import network

CONVOLUTIONS = ((64, 11, True), (192, 5, True), (384, 3, False), (256, 3, False), (256, 3, True))
"""Of each: channels, kernel size, and whether a 2x2 max pool follows its ReLU."""


class AlexNet(nn.Module):
    """Five convolutions with biases and ReLU, the first with stride 4, three 2x2 max pools, one Linear of 256 inputs.

    The shape that is usual on CIFAR: no norms, 2,472,266 parameters with three channels and ten classes. A pool that
    would shrink the map below one pixel is left out; what is left of the map is averaged before the Linear.
    """

    def __init__(self, classes: int, channels: int, size: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs, side = channels, (size - 1) // 4 + 1
        for index, (width, kernel, pool) in enumerate(CONVOLUTIONS):
            layers.append(nn.Conv2d(inputs, width, kernel, stride=1 if index else 4, padding=kernel // 2))
            layers.append(nn.ReLU())
            if pool and side >= 2:
                layers.append(nn.MaxPool2d(2))
                side //= 2
            inputs = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``(batch, classes)`` of images ``(batch, channels, height, width)``."""
        return self.classifier(self.features(x).mean((2, 3)))


@network("alexnet", minimum=4)
def alexnet(classes: int, channels: int, size: int) -> nn.Module:
    """`AlexNet` for any ``size`` >= 4. Without norms it wants a small learning rate, about 0.01."""
    return AlexNet(classes, channels, size)
