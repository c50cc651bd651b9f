"""Residual networks for large images (He et al., 2016, table 1): a 7x7 stem of stride 2 and a max pool.

Modules are named as in torchvision, so that its weights load. Bottlenecks have their stride in the 3x3 convolution, as
there ("v1.5"; the paper has it in the first 1x1).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tenfold.train.models.blocks import conv3x3, initialise_
from tenfold.train.models.registry import network

WIDTHS = (64, 128, 256, 512)


def _downsample(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    """The shortcut: None, for the identity, where shapes agree; else a 1x1 convolution and its norm."""
    if inputs == outputs and stride == 1:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))


class Basic(nn.Module):
    """Two 3x3 convolutions beside the shortcut."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv3x3(inputs, width, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv3x3(width, width), nn.BatchNorm2d(width)
        self.downsample = _downsample(inputs, width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(batch, inputs, h, w) -> (batch, width, ceil(h / stride), ceil(w / stride))``."""
        short = x if self.downsample is None else self.downsample(x)
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + short)


class Bottleneck(nn.Module):
    """A 1x1 convolution to ``width`` channels, a 3x3, a 1x1 to ``4 width``, beside the shortcut."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv3x3(width, width, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.downsample = _downsample(inputs, outputs, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(batch, inputs, h, w) -> (batch, 4 width, ceil(h / stride), ceil(w / stride))``."""
        short = x if self.downsample is None else self.downsample(x)
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + short)


class ImageNetResNet(nn.Module):
    """Stem, 3x3 max pool of stride 2, stages ``layer1`` to ``layer4``, global average pool, Linear.

    Args:
        block: `Basic` or `Bottleneck`.
        blocks: blocks in each of the four stages, >= 1; every stage but the first starts with stride 2.
        classes: number of outputs.
        channels: number of input channels.
    """

    def __init__(
        self, block: type[Basic | Bottleneck], blocks: tuple[int, int, int, int], *, classes: int, channels: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inputs, stages = 64, []
        for index, (width, count) in enumerate(zip(WIDTHS, blocks, strict=True)):
            first = block(inputs, width, 2 if index else 1)
            inputs = width * block.expansion
            stages.append(nn.Sequential(first, *(block(inputs, width, 1) for _ in range(count - 1))))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.fc = nn.Linear(inputs, classes)
        initialise_(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``(batch, classes)`` of images ``(batch, channels, height, width)``."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


@network("resnet18_imagenet", minimum=16)
def resnet18_imagenet(classes: int, channels: int, size: int) -> nn.Module:
    """ResNet-18 with the ImageNet stem (`resnet18` has the CIFAR one); any ``size`` >= 16."""
    return ImageNetResNet(Basic, (2, 2, 2, 2), classes=classes, channels=channels)


@network("resnet34", minimum=16)
def resnet34(classes: int, channels: int, size: int) -> nn.Module:
    """ResNet-34 with the ImageNet stem; any ``size`` >= 16."""
    return ImageNetResNet(Basic, (3, 4, 6, 3), classes=classes, channels=channels)


@network("resnet50", minimum=16)
def resnet50(classes: int, channels: int, size: int) -> nn.Module:
    """ResNet-50 with the ImageNet stem; any ``size`` >= 16."""
    return ImageNetResNet(Bottleneck, (3, 4, 6, 3), classes=classes, channels=channels)
