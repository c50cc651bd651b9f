"""What several of the reference networks share."""

from __future__ import annotations

from torch import nn


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that keeps the map's size (divided by ``stride``, rounded up); no bias: a norm follows."""
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


def initialise_(model: nn.Module) -> None:
    """Initialise convolutions as He et al. (2015): normal, variance ``2 / (out_channels kh kw)``. Norms: 1 and 0."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
