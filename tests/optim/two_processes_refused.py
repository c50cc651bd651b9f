"""Run in two processes: a scaler that overflows in one of them, and sharded models, as JSON."""

import hashlib
import json
import os
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import distributed
from torch.distributed.fsdp import fully_shard

from optim.networks import around, batch, net
from tenfold.errors import ArgumentError
from tenfold.layers.tucker_protocol import factorised
from tenfold.optim.tucker.settings import IntegratorSettings

CYCLE = IntegratorSettings(0.25, every=3)


def overflowing(rank: int, *, early: bool) -> dict:
    """Steps with a scaler; the loss of the third overflows in the first process. Clipped, unscaled by hand, or not."""
    model = net(torch.float32).eval()
    for tensor in model.state_dict().values():
        distributed.broadcast(tensor, 0)
    optimizer = around(model, CYCLE, lr=0.05, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    moved = []
    for step in range(8):
        x, y = batch(10 * step + rank, torch.float32)
        optimizer.zero_grad()
        value = F.cross_entropy(model(x), y)
        scaler.scale(value * float("inf") if step == 2 and rank == 0 else value).backward()
        if early:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1e3)
        before = [p.detach().clone() for p in model.parameters()]
        scaler.step(optimizer)
        scaler.update()
        after = list(model.parameters())
        moved.append(not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(before, after, strict=True)))
    weights = b"".join(layer.kernel.detach().contiguous().numpy().tobytes() for layer in factorised(model).values())
    mine = {"moved": moved, "steps": optimizer.report["steps"], "digest": hashlib.sha256(weights).hexdigest()}
    both: list = [None, None]
    distributed.all_gather_object(both, mine | {"scale": scaler.get_scale()})
    return {"processes": both, "nonfinite": optimizer.report["nonfinite"]}


def message(act) -> str:
    try:
        act()
    except ArgumentError as error:
        return str(error)
    return "nothing was said"


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    results: dict = {"overflow": overflowing(rank, early=False), "clipped": overflowing(rank, early=True)}
    model = net()
    fully_shard(model)
    results["sharded"] = message(lambda: around(model, CYCLE, lr=0.1))
    model = net()
    optimizer = around(model, CYCLE, lr=0.1)
    fully_shard(model)
    results["sharded after"] = message(optimizer.step)
    if rank == 0:
        (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    distributed.barrier()
    os._exit(0)  # see two_processes.py


if __name__ == "__main__":
    main(Path(sys.argv[1]))
