"""What each of two processes does; the last argument is the folder for its findings. Run in two, see the tests.

Gradients are averaged by hand or by DDP; the data, and so the batch norms' statistics, differ from process to process.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

import tenfold
from tenfold.optim.projection import projector

STEPS = 12


def net(seed: int = 0) -> nn.Module:
    """Two layers of one shape, and nearly tied singular values: where processes come apart."""
    torch.manual_seed(seed)
    made = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 10),
    )
    for layer in made:
        if isinstance(layer, nn.Conv2d):
            nn.init.orthogonal_(layer.weight)  # every singular value is 1, up to the rounding
    return made


def digest(tensors) -> str:
    return hashlib.sha256(b"".join(t.detach().numpy().tobytes() for t in tensors)).hexdigest()


def train(method: tenfold.Method, ddp: bool, goal: tenfold.Goal | None = None) -> dict:
    process = dist.get_rank()
    model = method.begin(net(), goal=goal)
    optimizer = method.optimizer(model, lr=0.05, momentum=0.9, weight_decay=1e-3, goal=goal)
    wrapped = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False) if ddp else model
    projected: set[str] = set()
    write = projector._Batch.write

    def noting(self, ranks, *rest):
        projected.update(folded.name for folded in self.weights)
        return write(self, ranks, *rest)

    projector._Batch.write = noting
    after = []
    for step in range(STEPS):
        g = torch.Generator().manual_seed(100 * process + step)
        x = torch.randn(8, 3, 6, 6, generator=g) * (1 + process)
        optimizer.zero_grad()
        F.cross_entropy(wrapped(x), torch.randint(10, (8,), generator=g)).backward()
        if not ddp:
            for p in model.parameters():
                dist.all_reduce(p.grad)
                p.grad /= dist.get_world_size()
        optimizer.step()
        after.append(digest(model.parameters()))
    projector._Batch.write = write
    state = optimizer.param_groups[0]["projection"]
    buffers = [optimizer.state[p]["momentum_buffer"] for p in model.parameters()]
    weights = {n: m.weight.detach() for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    spectra = {
        n: [torch.linalg.svdvals(x.flatten(1)) for x in w.chunk(2 if n == "6" else 1)] for n, w in weights.items()
    }
    return {
        "weights": after,
        "momentum": digest(buffers),
        "pull": digest(state["pull"][n] for n in sorted(state["pull"])),
        "bases": {n: digest([x]) for n, x in state["bases"].items()},
        "statistics": digest(model[1].running_var[None]),
        "ranks": state["ranks"],
        "folds": state["folds"],
        "measured": {n: max(int((s > 1e-4 * s[0]).sum()) for s in each) for n, each in spectra.items()},
        "projections": state["projections"],
        "projected here": sorted(projected),
    }


def alone(method: tenfold.Method) -> dict:
    """One process exports while the other is doing something else: nobody may wait."""
    if dist.get_rank() == 0:
        model = net(1)
        method.project_(model)
        method.finish(model)
    dist.barrier()
    return {"came back": True}


def refused() -> dict:
    model = net()
    wrapped = nn.parallel.DistributedDataParallel(model)
    try:
        tenfold.LRPET(every=2).attach(wrapped, torch.optim.SGD(model.parameters(), lr=0.1))
    except tenfold.ArgumentError as error:
        return {"error": str(error)}
    return {"error": ""}


def factors_to_come() -> dict:
    """A cut to come, which a wrapper would not follow."""
    method, goal = tenfold.Factors(), tenfold.Goal(budget=tenfold.Budget(params=0.6), steps=10)
    try:
        method.optimizer(method.begin(net(), goal=goal), goal=goal, lr=0.1)
    except tenfold.ArgumentError as error:
        return {"error": str(error)}
    return {"error": ""}


def nothing_to_do() -> dict:
    """No rank saves anything: no folded, no message."""
    method = tenfold.LRPET(every=1, prune_ratio=0.0)
    return {"projections": train(method, False)["projections"]}


CASES = {
    "lrpet keep": (tenfold.LRPET(every=2, prune_ratio=0.6), False),
    "lrpet project": (tenfold.LRPET(every=2, prune_ratio=0.6, momentum="project"), False),
    "lrpet reset": (tenfold.LRPET(every=2, prune_ratio=0.6, momentum="reset"), True),
    "lrpet warm": (tenfold.LRPET(every=2, prune_ratio=0.6, solver="warm"), True),
    "lrpet spatial": (tenfold.LRPET(every=2, prune_ratio=0.6, fold="spatial"), False),
    "trp keep": (tenfold.TRP(every=2, energy=0.7, nuclear=0.05), True),
    "trp project": (tenfold.TRP(every=2, energy=0.7, nuclear=0.05, momentum="project"), False),
    "trp reset": (tenfold.TRP(every=2, energy=0.7, nuclear=0.05, momentum="reset"), False),
}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = {name: train(method, ddp) for name, (method, ddp) in CASES.items()}
    found["alone"] = alone(tenfold.LRPET(prune_ratio=0.6))
    found["refused"] = refused()
    found["factors to come"] = factors_to_come()
    goal = tenfold.Goal(budget=tenfold.Budget(params=0.6), steps=STEPS)
    found["allocated"] = train(tenfold.TRP(every=2, nuclear=0.05, ranks="allocated", start=0.3), True, goal)
    found["nothing"] = nothing_to_do()
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[-1]))
