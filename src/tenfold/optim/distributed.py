"""Data-parallel training: work on the weights shared out over processes, and the results broadcast.

With one process everything here does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn


def process() -> tuple[int, int]:
    """The rank of this process, and the number of processes that train together; ``(0, 1)`` without a group."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def owners(work: Sequence[float], processes: int) -> list[int]:
    """Assign each piece of work to a process: the longest first, to the process with the least work so far."""
    whose, load = [0] * len(work), [0.0] * processes
    for i in sorted(range(len(work)), key=lambda i: (-work[i], i)):
        whose[i] = load.index(min(load))
        load[whose[i]] += work[i]
    return whose


def shared(tasks: Sequence[Callable[[], list[Tensor]]], work: Sequence[float]) -> list[list[Tensor]]:
    """Run each task in one process and broadcast its tensors; returns the results of all tasks.

    Factorisations come out differently on different machines, in signs and in the order of what is nearly tied; so
    they are made once. What is sent arrives in float64, bit for bit.
    """
    mine, processes = process()
    if processes == 1:
        return [task() for task in tasks]
    whose = owners(work, processes)
    results = [[x.double() for x in task()] if o == mine else [] for task, o in zip(tasks, whose, strict=True)]
    for owner in range(processes):
        indices = [i for i, o in enumerate(whose) if o == owner]
        if not indices:
            continue
        said: list[Any] = [[[tuple(x.shape) for x in results[i]] for i in indices]]
        distributed.broadcast_object_list(said, owner)
        shapes = [torch.Size(shape) for each in said[0] for shape in each]
        own = [x.reshape(-1) for i in indices for x in results[i]]
        device = own[0].device if own else _device()
        flat = torch.cat(own) if owner == mine else torch.empty(sum(s.numel() for s in shapes), dtype=torch.float64)
        flat = flat.to(device)
        distributed.broadcast(flat, owner)
        parts = iter(flat.split([s.numel() for s in shapes]))
        for i, each in zip(indices, said[0], strict=True):
            results[i] = [next(parts).reshape(shape) for shape in each]
    return results


def average_(tensors: Sequence[Tensor]) -> None:
    """Average tensors over all processes, in place; tensors of one dtype and device in one message."""
    _, processes = process()
    if processes == 1:
        return
    kinds: dict[Any, list[Tensor]] = {}
    for x in tensors:
        kinds.setdefault((x.dtype, x.device), []).append(x)
    for same in kinds.values():
        flat = torch.cat([x.reshape(-1) for x in same])
        distributed.all_reduce(flat)
        flat /= processes
        for x, part in zip(same, flat.split([x.numel() for x in same]), strict=True):
            x.copy_(part.reshape(x.shape))


def average_gradients_(parameters: Sequence[nn.Parameter]) -> None:
    """Average gradients over all processes; a process without one counts as zero where another has one."""
    if process()[1] == 1:
        return
    there = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32, device=parameters[0].device)
    distributed.all_reduce(there)
    used = [p for p, count in zip(parameters, there.tolist(), strict=True) if count]
    for p in used:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    average_([p.grad for p in used if p.grad is not None])


def any_process(mine: bool) -> bool:
    """Whether ``mine`` is true in any of the processes."""
    if process()[1] == 1:
        return mine
    said = torch.tensor(mine, dtype=torch.int32, device=_device())
    distributed.all_reduce(said, distributed.ReduceOp.MAX)
    return bool(said)


def _device() -> torch.device:
    """Where messages go: gloo takes CPU tensors, nccl those of the current device."""
    return (
        torch.device("cuda", torch.cuda.current_device())
        if distributed.get_backend() == "nccl"
        else torch.device("cpu")
    )
