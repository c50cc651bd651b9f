"""Wide residual networks for small images (Zagoruyko & Komodakis, 2016), without dropout.

WRN-d-k has three stages of ``(d - 4) / 6`` blocks with ``16 k``, ``32 k`` and ``64 k`` channels. Norm and ReLU come
*before* each convolution, and one more pair after the last block.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tenfold.train.models.blocks import conv3x3, initialise_
from tenfold.train.models.registry import network


class WideBlock(nn.Module):
    """A block ``conv2(relu(bn2(conv1(y)))) + x``, ``y = relu(bn1(x))``; ``+ shortcut(y)`` where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv3x3(inputs, outputs, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), conv3x3(outputs, outputs)
        same = inputs == outputs and stride == 1
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(batch, inputs, h, w) -> (batch, outputs, ceil(h / stride), ceil(w / stride))``."""
        y = F.relu(self.bn1(x))
        short = x if self.shortcut is None else self.shortcut(y)
        return self.conv2(F.relu(self.bn2(self.conv1(y)))) + short


class WideResNet(nn.Module):
    """A 3x3 stem of 16 channels, stages ``block1`` to ``block3``, norm, ReLU, global average pool, Linear.

    Args:
        depth: ``6 n + 4`` with ``n`` >= 1 blocks in each stage.
        widen: the factor k on 16, 32 and 64 channels, >= 1.
        classes: number of outputs.
        channels: number of input channels.
    """

    def __init__(self, depth: int, widen: int, *, classes: int, channels: int) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        self.conv1 = conv3x3(channels, 16)
        inputs, stages = 16, []
        for stride, width in ((1, 16 * widen), (2, 32 * widen), (2, 64 * widen)):
            rest = [WideBlock(width, width, 1) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(WideBlock(inputs, width, stride), *rest))
            inputs = width
        self.block1, self.block2, self.block3 = stages
        self.bn1 = nn.BatchNorm2d(inputs)
        self.fc = nn.Linear(inputs, classes)
        initialise_(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``(batch, classes)`` of images ``(batch, channels, height, width)``."""
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(F.relu(self.bn1(x)).mean((2, 3)))


@network("wrn16_8", minimum=4)
def wrn16_8(classes: int, channels: int, size: int) -> nn.Module:
    """WRN-16-8, 11.0 M parameters; any ``size`` >= 4."""
    return WideResNet(16, 8, classes=classes, channels=channels)


@network("wrn28_10", minimum=4)
def wrn28_10(classes: int, channels: int, size: int) -> nn.Module:
    """WRN-28-10, 36.5 M parameters; any ``size`` >= 4."""
    return WideResNet(28, 10, classes=classes, channels=channels)
