"""DenseNet-BC for small images (Huang et al., 2017).

DenseNet-22 is the one that the pruning papers call by this name: depth 22, growth 12, *with* bottlenecks (B) and with
transitions that halve the channels (C): three dense blocks of three layers, 71,686 parameters with ten classes. (Some
tables mean the same depth and growth without B and C, which has several times as many.)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tenfold.train.models.blocks import conv3x3, initialise_
from tenfold.train.models.registry import network


class DenseLayer(nn.Module):
    """A dense layer ``cat(x, conv2(relu(bn2(conv1(relu(bn1(x)))))))``: 1x1 to ``4 growth``, 3x3 to ``growth``."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(4 * growth), conv3x3(4 * growth, growth)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(batch, inputs, h, w) -> (batch, inputs + growth, h, w)``."""
        y = self.conv1(F.relu(self.bn1(x)))
        return torch.cat((x, self.conv2(F.relu(self.bn2(y)))), 1)


class Transition(nn.Module):
    """Norm, ReLU, a 1x1 convolution to half of the channels, 2x2 average pool."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, inputs // 2, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(batch, inputs, h, w) -> (batch, inputs // 2, h // 2, w // 2)``."""
        return F.avg_pool2d(self.conv1(F.relu(self.bn1(x))), 2)


class DenseNet(nn.Module):
    """A 3x3 stem of ``2 growth`` channels, three dense blocks with transitions between, norm, ReLU, pool, Linear.

    Args:
        depth: ``6 n + 4`` with ``n`` >= 1 layers in each dense block.
        growth: channels that each layer adds, >= 1.
        classes: number of outputs.
        channels: number of input channels.
    """

    def __init__(self, depth: int, growth: int, *, classes: int, channels: int) -> None:
        super().__init__()
        width = 2 * growth
        self.conv1 = conv3x3(channels, width)
        blocks, transitions = [], []
        for block in range(3):
            if block > 0:
                transitions.append(Transition(width))
                width //= 2
            layers = [DenseLayer(width + index * growth, growth) for index in range((depth - 4) // 6)]
            blocks.append(nn.Sequential(*layers))
            width += len(layers) * growth
        self.dense1, self.dense2, self.dense3 = blocks
        self.trans1, self.trans2 = transitions
        self.bn = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, classes)
        initialise_(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``(batch, classes)`` of images ``(batch, channels, height, width)``."""
        x = self.trans1(self.dense1(self.conv1(x)))
        x = self.dense3(self.trans2(self.dense2(x)))
        return self.fc(F.relu(self.bn(x)).mean((2, 3)))


@network("densenet22", minimum=4)
def densenet22(classes: int, channels: int, size: int) -> nn.Module:
    """DenseNet-BC of depth 22 and growth 12; any ``size`` >= 4."""
    return DenseNet(22, 12, classes=classes, channels=channels)
