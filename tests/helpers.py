"""What tests of several folders ask of models and tensors."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def state(model: nn.Module) -> dict[str, Tensor]:
    """A copy of everything that a query must leave alone."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same_state(a: nn.Module | Mapping[str, Tensor], b: nn.Module | Mapping[str, Tensor]) -> bool:
    """Whether two models, or what `state` kept of them, have the same names in the same order, types and bits."""
    left, right = (x.state_dict() if isinstance(x, nn.Module) else x for x in (a, b))
    return list(left) == list(right) and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


def relative(a: Tensor, b: Tensor) -> float:
    """``|a - b| / |b|`` in float64."""
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm().clamp(min=1e-300))


def random_batches(*shape: int, count: int, seed: int = 0) -> Iterator[Tensor]:
    """``count`` batches of ``shape``."""
    g = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield torch.randn(*shape, generator=g)


def counted_macs(model: nn.Module, *inputs: Tensor) -> int:
    """MACs of a run on numbers, by torch's own counter."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*inputs)
    return counter.get_total_flops() // 2


def counted(model: nn.Module, inputs: Tensor) -> tuple[int, int]:
    """Parameters (tied ones once) and MACs of a model, which is left in eval mode."""
    seen = {id(p): p.numel() for p in model.parameters()}
    return sum(seen.values()), counted_macs(model.eval(), inputs)


def passes_alone(check: Callable[[], None]) -> None:
    """Run ``check`` in a process of its own: dynamo cannot see through the shape checker that tests install."""
    done = subprocess.run(
        [sys.executable, "-c", f"from {check.__module__} import {check.__name__} as check; check()"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
