"""Random states saved and restored, so that a step computed twice draws the same random numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class RandomState:
    """The state of torch's random generators, of the CPU and of the devices that a model is on."""

    cpu: Tensor
    devices: dict[torch.device, Tensor]

    @classmethod
    def of(cls, model: nn.Module) -> RandomState:
        """The present state."""
        devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
        return cls(torch.get_rng_state(), {d: torch.cuda.get_rng_state(d) for d in devices})

    def restore(self) -> None:
        """Put the generators back to this state."""
        torch.set_rng_state(self.cpu)
        for device, state in self.devices.items():
            torch.cuda.set_rng_state(state, device)
