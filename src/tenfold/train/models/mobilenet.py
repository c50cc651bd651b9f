"""MobileNetV2 (Sandler et al., 2018, table 2). Modules are named as in torchvision, so that its weights load."""

from __future__ import annotations

import torch
from torch import nn

from tenfold.train.models.blocks import initialise_
from tenfold.train.models.registry import network

STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Of each stage: expansion, channels, blocks, stride of the first block."""
LAST = 1280


def _conv(inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution that keeps the map's size (divided by ``stride``, rounded up), its norm, ReLU6."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU6())


class InvertedResidual(nn.Module):
    """1x1 to ``expansion inputs`` channels, depthwise 3x3, 1x1 to ``outputs`` without activation.

    Added to ``x`` where shapes agree. With expansion 1 the first 1x1 is left out.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        stride: of the depthwise convolution.
        expansion: factor of the channels inside, >= 1.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        wide = [] if expansion == 1 else [_conv(inputs, hidden, 1)]
        depthwise = _conv(hidden, hidden, 3, stride=stride, groups=hidden)
        narrow = (nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.conv = nn.Sequential(*wide, depthwise, *narrow)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(batch, inputs, h, w) -> (batch, outputs, ceil(h / stride), ceil(w / stride))``."""
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """A 3x3 stem of stride 2, seventeen inverted residuals, a 1x1 to 1280 channels, average, dropout 0.2, Linear."""

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        inputs = 32
        features: list[nn.Module] = [_conv(channels, inputs, 3, stride=2)]
        for expansion, width, blocks, stride in STAGES:
            for block in range(blocks):
                features.append(InvertedResidual(inputs, width, 1 if block else stride, expansion))
                inputs = width
        self.features = nn.Sequential(*features, _conv(inputs, LAST, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(LAST, classes))
        initialise_(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``(batch, classes)`` of images ``(batch, channels, height, width)``."""
        return self.classifier(self.features(x).mean((2, 3)))


@network("mobilenet_v2", minimum=16)
def mobilenet_v2(classes: int, channels: int, size: int) -> nn.Module:
    """`MobileNetV2` of width 1.0 for any ``size`` >= 16."""
    return MobileNetV2(classes, channels)
