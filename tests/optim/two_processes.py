"""Run in two processes: what they end up with, as JSON; see test_integrator_distributed.py."""

import hashlib
import json
import os
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import tenfold
from optim.networks import Net, around, batch, net
from optim.toys import Kernel, integrator, kernel, normal, run, teacher
from tenfold.layers.tucker_protocol import factorised
from tenfold.optim.tucker.settings import IntegratorSettings

SETTINGS = {
    "cycle": IntegratorSettings(0.2, every=2),
    "one-pass": IntegratorSettings(0.2, every=1),
    "two-pass": IntegratorSettings(0.2, twice=True),
}

CYCLES = 10

NETWORKS = {
    "cycle": IntegratorSettings(0.25, every=3),
    "one-pass": IntegratorSettings(0.02, every=1),
    "two-pass": IntegratorSettings(0.02, twice=True),
    "fixed": IntegratorSettings(0.0, every=3, pinned=True),
}


def start(name: str) -> tuple[nn.ModuleList, object]:
    model = nn.ModuleList([kernel((6, 5, 3), (3, 2)), kernel((7, 6), (2, 2), 5), kernel((5, 4, 3), (2, 2), 8)])
    return model, integrator(model, SETTINGS[name], lr=0.05, momentum=0.9)


def loss(half: int | None):
    """A batch of two examples, or one of them: the mean over the halves is the whole."""
    targets = [teacher((6, 5, 3), (4, 3)), teacher((7, 6), (4, 4)), teacher((5, 4, 3), (3, 3))]

    def one(model: nn.ModuleList, step: int, i: int) -> torch.Tensor:
        return sum(
            (m() - t - 0.1 * normal(*t.shape, seed=2 * step + i)).square().sum()
            for m, t in zip(model, targets, strict=True)
        )

    def value(model: nn.ModuleList, step: int) -> torch.Tensor:
        return (one(model, step, 0) + one(model, step, 1)) / 2 if half is None else one(model, step, half)

    return value


def digest(model: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    tensors = [*model.state_dict().values()]
    tensors += [v for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    return hashlib.sha256(
        b"".join(str(x.shape).encode() + x.contiguous().numpy().tobytes() for x in tensors)
    ).hexdigest()


def flip_signs() -> None:
    """As on another machine: singular vectors with other signs."""
    svd = torch.linalg.svd

    def other(*args, **kwargs):
        u, s, vh = svd(*args, **kwargs)
        return -u, s, -vh

    torch.linalg.svd = other


def networked(name: str, rank: int, *, wrapped: bool, clip: float | None = None) -> dict:
    """Train a network for some cycles, each step on two batches; static in its wrapper, ordinary without."""
    model = net(static=wrapped).eval()
    for tensor in model.state_dict().values():
        distributed.broadcast(tensor, 0)  # the start, which has other signs too
    optimizer = around(model, NETWORKS[name], base=torch.optim.AdamW, lr=0.02, weight_decay=0.1)
    host = DistributedDataParallel(model, gradient_as_bucket_view=name == "cycle") if wrapped else model
    seen = []
    for step in range(8):

        def closure(step=step) -> torch.Tensor:
            optimizer.zero_grad()
            for part in range(2):
                x, y = batch(100 * step + 10 * part + rank)
                with host.no_sync() if wrapped and part == 0 else nullcontext():
                    value = F.cross_entropy(host(x), y)
                    value.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            return value

        if optimizer.settings.twice:
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
        seen.append(optimizer.ranks)
    digests: list = [None, None]
    distributed.all_gather_object(digests, digest(model, optimizer))
    kernels = [layer.kernel.detach().flatten().tolist() for layer in factorised(model).values()]
    return {"digests": digests, "ranks": seen, "kernels": kernels, "head": model.head.bias.tolist()}


def entered(rank: int) -> dict:
    """Train a dense network that is brought into Tucker format on the way."""
    torch.manual_seed(0)
    method, goal = tenfold.TDLRT(start=0.4, every=2, tau=0.2, floor=1, negligible=0.0), tenfold.Goal(steps=10)
    model = method.begin(Net().double().eval(), goal=goal)
    optimizer = method.optimizer(model, goal=goal, lr=0.05, momentum=0.9)
    enter, dense = optimizer.settings.enter, not factorised(model)

    def otherwise() -> nn.Module:
        """As another machine might make it: the same weights from a core and a basis of other signs."""
        made = enter()
        for layer in factorised(made).values():
            core, first, *rest = (factor.detach() for factor in (layer.core, *layer.bases))
            layer.set_factors(-core, -first, *rest)
        return made

    if rank == 1:
        optimizer.settings = replace(optimizer.settings, enter=otherwise)
    for step in range(10):
        x, y = batch(10 * step + rank)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    digests: list = [None, None]
    distributed.all_gather_object(digests, digest(model, optimizer))
    return {"digests": digests, "dense": dense, "layers": list(factorised(model))}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    results = {}
    saved = torch.load(folder / "saved.pt", weights_only=True)
    model, optimizer = start("cycle")
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    run(model, optimizer, loss(None), 9)  # both the same data: the mean of equals is exact
    results["resumed"] = digest(model, optimizer)
    if rank == 1:
        flip_signs()
    for name in SETTINGS:
        model, optimizer = start(name)
        run(model, optimizer, loss(rank), CYCLES * (2 if name == "cycle" else 1))
        digests: list = [None, None]
        distributed.all_gather_object(digests, digest(model, optimizer))
        results[name] = {"digests": digests, "ranks": optimizer.ranks, "steps": optimizer.report["steps"]}
        torch.save([m.full.detach() for m in model if isinstance(m, Kernel)], folder / f"{name}-{rank}.pt")
    for name in NETWORKS:
        results[f"ordinary {name}"] = networked(name, rank, wrapped=False)
        results[f"wrapped {name}"] = networked(name, rank, wrapped=True)
    results["entered"] = entered(rank)
    results["clipped"] = networked("one-pass", rank, wrapped=False, clip=0.1)
    if rank == 0:
        (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    distributed.barrier()
    os._exit(0)  # at once: taking down a process group that wrappers have used now and then aborts under load


if __name__ == "__main__":
    main(Path(sys.argv[1]))
