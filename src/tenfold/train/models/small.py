"""Two small networks: a five-layer CNN for quick runs, and LeNet-5."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tenfold.train.models.blocks import conv3x3, initialise_
from tenfold.train.models.registry import network


class CNN(nn.Module):
    """Five 3x3 convolutions (32, 64, 64, 128, 128), each with batch norm and ReLU, global average pool, Linear.

    The second and fourth have stride 2. Any input of at least 4x4 pixels.
    """

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv3x3(channels, 32), nn.BatchNorm2d(32)
        self.conv2, self.bn2 = conv3x3(32, 64, stride=2), nn.BatchNorm2d(64)
        self.conv3, self.bn3 = conv3x3(64, 64), nn.BatchNorm2d(64)
        self.conv4, self.bn4 = conv3x3(64, 128, stride=2), nn.BatchNorm2d(128)
        self.conv5, self.bn5 = conv3x3(128, 128), nn.BatchNorm2d(128)
        self.linear = nn.Linear(128, classes)
        initialise_(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``(batch, classes)`` of images ``(batch, channels, height, width)``."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(self.bn3(self.conv3(x)))
        x = F.relu(self.bn4(self.conv4(x)))
        x = F.relu(self.bn5(self.conv5(x)))
        return self.linear(x.mean((2, 3)))


class LeNet5(nn.Module):
    """LeNet-5 as the low-rank training papers use it: convolutions 20 and 50 (5x5), Linear 500, Linear ``classes``.

    The shapes of Caffe's example, 430,500 weights at 28x28x1 with ten classes; a ReLU after every hidden layer. The
    first Linear is as wide as the map that the input's ``size`` leaves, so the network takes that size alone.
    """

    def __init__(self, classes: int, channels: int, size: int) -> None:
        super().__init__()
        side = ((size - 4) // 2 - 4) // 2
        self.conv1 = nn.Conv2d(channels, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(50 * side * side, 500)
        self.fc2 = nn.Linear(500, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``(batch, classes)`` of images ``(batch, channels, size, size)``."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


@network("cnn", minimum=4)
def cnn(classes: int, channels: int, size: int) -> nn.Module:
    """`CNN` for any ``size`` >= 4."""
    return CNN(classes, channels)


@network("lenet5", minimum=16)
def lenet5(classes: int, channels: int, size: int) -> nn.Module:
    """`LeNet5` for inputs of ``size`` >= 16."""
    return LeNet5(classes, channels, size)
