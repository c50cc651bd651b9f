"""Residual networks for small images (He et al., 2016).

ResNet-20, 32, 44, 56 and 110 are section 4.2 of that paper: three stages of 16, 32 and 64 channels, `n` basic blocks
each (depth ``6 n + 2``), parameter-free shortcuts ("option A"). ResNet-18 is the ImageNet network of table 1 in the
shape that is used on CIFAR: a 3x3 stem without pooling, and 1x1 convolutions ("option B") where the shape changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from tenfold.train.models.blocks import conv3x3, initialise_
from tenfold.train.models.registry import network

Shortcut = Callable[[int, int, int], nn.Module]


class PadShortcut(nn.Module):
    """Shortcut of option A: every ``stride``-th pixel, and zeros for the new channels, half on each side."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (outputs - inputs) // 2
        self.after = outputs - inputs - self.before

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(batch, inputs, h, w) -> (batch, outputs, ceil(h / stride), ceil(w / stride))``."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


def conv_shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Shortcut of option B: a 1x1 convolution and its norm."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """A basic block ``relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x))``; identity shortcut where shapes agree.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        stride: of the first convolution.
        shortcut: makes the shortcut where the shape changes, as in `ResNet`.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv3x3(inputs, outputs, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv3x3(outputs, outputs), nn.BatchNorm2d(outputs)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else shortcut(inputs, outputs, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(batch, inputs, h, w) -> (batch, outputs, ceil(h / stride), ceil(w / stride))``."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """A 3x3 stem, stages of basic blocks named ``layer1``, ``layer2``, ..., global average pool, Linear.

    Args:
        widths: channels of each stage; every stage but the first starts with stride 2.
        blocks: blocks in each stage, >= 1.
        shortcut: makes the shortcut where the shape changes: ``(inputs, outputs, stride) -> nn.Module``.
        classes: number of outputs.
        channels: number of input channels.
    """

    def __init__(self, widths: Sequence[int], blocks: int, shortcut: Shortcut, *, classes: int, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv3x3(channels, widths[0]), nn.BatchNorm2d(widths[0])
        self.stages = [f"layer{index + 1}" for index in range(len(widths))]
        inputs = widths[0]
        for index, (name, width) in enumerate(zip(self.stages, widths, strict=True)):
            first = BasicBlock(inputs, width, 1 if index == 0 else 2, shortcut)
            rest = [BasicBlock(width, width, 1, shortcut) for _ in range(blocks - 1)]
            self.add_module(name, nn.Sequential(first, *rest))
            inputs = width
        self.linear = nn.Linear(inputs, classes)
        initialise_(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``(batch, classes)`` of images ``(batch, channels, height, width)``."""
        x = F.relu(self.bn1(self.conv1(x)))
        for name in self.stages:
            x = self.get_submodule(name)(x)
        return self.linear(x.mean((2, 3)))


def _register(depth: int) -> None:
    @network(f"resnet{depth}", minimum=4)
    def make(classes: int, channels: int, size: int) -> nn.Module:
        return ResNet((16, 32, 64), (depth - 2) // 6, PadShortcut, classes=classes, channels=channels)


for _depth in (20, 32, 44, 56, 110):
    _register(_depth)


@network("resnet18", minimum=8)
def resnet18(classes: int, channels: int, size: int) -> nn.Module:
    """ResNet-18 in CIFAR shape: four stages of two blocks, 64 to 512 channels; any ``size`` >= 8."""
    return ResNet((64, 128, 256, 512), 2, conv_shortcut, classes=classes, channels=channels)
