"""What tests of several folders ask of models and tensors."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tenfold.train import Data, make_data


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


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Generic numbers in float64, the same for every call with this seed."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def basis(n: int, r: int, seed: int = 0) -> Tensor:
    """``r`` orthonormal columns, unlike those numbers that `normal` draws by a near seed."""
    return torch.linalg.qr(normal(n, r, seed=seed + 1000))[0]


def assert_orthonormal(u: Tensor, atol: float = 1e-12) -> None:
    """The columns of one basis, or of a stack of them."""
    eye = torch.eye(u.shape[-1], dtype=torch.float64).expand(*u.shape[:-2], -1, -1)
    torch.testing.assert_close(u.double().mT @ u.double(), eye, rtol=0, atol=atol)


def calibrating(x: Tensor) -> list[Tensor]:
    """Batches like ``x``, enough of them for every layer of the small networks here; tokens alone are enough."""
    if not x.is_floating_point():
        return [x, x.flip(0)]
    return [x, x.flip(0), torch.randn(12, *x.shape[1:], generator=torch.Generator().manual_seed(1), dtype=x.dtype)]


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


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Callable[[int], tuple[Tensor, Tensor]],
    steps: Iterable[int],
    *,
    needs_closure: bool = False,
    watch: Callable[[int], object] | None = None,
) -> list[float]:
    """A plain loop that knows nothing of a method but whether it wants a closure; the loss of every step."""
    losses = []
    for i in steps:
        x, y = batch(i)

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss

        loss = optimizer.step(closure) if needs_closure else closure()
        if not needs_closure:
            optimizer.step()
        losses.append(float(loss.detach()))
        if watch is not None:
            watch(i)
    return losses


def passes_alone(check: Callable[[], None]) -> None:
    """Run ``check`` in a process of its own: dynamo cannot see through the shape checker that tests install."""
    done = subprocess.run(
        [sys.executable, "-c", f"from {check.__module__} import {check.__name__} as check; check()"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


def blobs(n: int = 90, classes: int = 3, size: int = 6, channels: int = 2, seed: int = 0) -> Data:
    """Noise around one random image per class: easy, small, uint8."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randint(40, 200, (classes, channels, size, size), generator=generator).float()
    y = torch.arange(n) % classes
    x = (centres[y] + 15 * torch.randn(n, channels, size, size, generator=generator)).clamp(0, 255).to(torch.uint8)
    half = n // 3
    return make_data("blobs", (x[half:], y[half:]), (x[:half], y[:half]), validation=0.2)
