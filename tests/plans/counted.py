"""A stopwatch that counts instead of measuring: a staircase in blocks of channels, and a charge for each layer.

It disagrees with itself as a machine does: a whole network takes more than its layers one by one, the more weights it
has.
"""

import torch
from torch import nn

from tenfold.layers.cost import call_arguments

BLOCK = 4
CHARGE = 400.0


class CountingWatch:
    """See `tenfold.runtimes.stopwatch.Stopwatch`."""

    def __init__(self, crowding=0.3):
        self.about = {"runtime": "counted", "threads": 1, "memory_format": "contiguous"}
        self.crowding = crowding
        self.layers, self.networks = [], []
        self.kept = {}

    def layer(self, key, options, shape, dtype):
        self.layers.append((key, tuple(options)))
        x = torch.randn(shape, dtype=dtype)
        return {name: time_of(make(), x) for name, make in options.items()}

    def network(self, key, make, inputs, beside=None):
        if key not in self.kept:
            net = make()
            weights = sum(p.numel() for p in net.parameters())
            self.kept[key] = time_of(net, inputs) + 5000.0 + self.crowding * weights
            self.networks.append(self.kept[key])
        return self.kept[key]


def time_of(module, inputs):
    """Multiply-adds, with the outputs of each layer rounded up to blocks, and a charge for each layer."""
    found = []

    def count(layer, args, y):
        weight = layer.weight
        wide = -(-weight.shape[0] // BLOCK) * BLOCK / weight.shape[0]
        positions = y.numel() / weight.shape[0]
        found.append(CHARGE + wide * weight.numel() * positions)

    leaves = [m for m in module.modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and not list(m.children())]
    handles = [m.register_forward_hook(count) for m in leaves]
    args, kwargs = call_arguments(inputs)
    with torch.no_grad():
        module(*args, **kwargs)
    for handle in handles:
        handle.remove()
    return sum(found)
