"""A network in Tucker format, with a layer of every kind that is treated in its own way."""

import torch
from torch import nn

from tenfold.layers.tucker_model import to_tucker
from tenfold.layers.tucker_protocol import factorised
from tenfold.layers.tucker_training import reserve_
from tenfold.optim.tucker.integrator import Integrator
from tenfold.optim.tucker.settings import IntegratorSettings


class Net(nn.Module):
    """Convolutions of every kind that is treated in its own way, batch norm, dropout, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.group = nn.Conv2d(12, 12, 3, stride=2, groups=2, bias=False)
        self.point = nn.Conv2d(12, 12, 1)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(12, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.norm(self.conv(x)))
        x = torch.tanh(self.point(torch.tanh(self.group(x))))
        return self.head(self.drop(x.mean((2, 3))))


def net(dtype: torch.dtype = torch.float64, *, static: bool = False) -> nn.Module:
    torch.manual_seed(0)
    ranks = {"conv": (4, 2), "group": (3, 3), "point": 4, "head": 4}
    model = to_tucker(Net().to(dtype), ranks).model
    if static:
        reserve_(model, lambda layer: layer.sizes[: layer.modes])
    return model


def around(model: nn.Module, settings: IntegratorSettings, base=torch.optim.SGD, **hyper) -> Integrator:
    bases = {id(b) for layer in factorised(model).values() for b in layer.bases}
    return Integrator(base([p for p in model.parameters() if id(p) not in bases], **hyper), model, settings)


def batch(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(16, 3, 7, 7, dtype=torch.float64, generator=g).to(dtype)
    return x, torch.randint(10, (16,), generator=g)
