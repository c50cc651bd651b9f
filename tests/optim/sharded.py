"""Run in two processes: Frank-Wolfe on parts of tensors beside whole ones; see the tests."""

import hashlib
import io
import itertools
import json
import os
import sys
import warnings
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Partial, Placement, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import tenfold
from tenfold import balls
from tenfold.errors import TenfoldError
from tenfold.linalg.frank_wolfe import RESCALINGS
from tenfold.optim.frank_wolfe.optimizer import FrankWolfe

SETS = {"L1": balls.L1(), "L2": balls.L2(), "LInf": balls.LInf(), "SGD": None}
CASES = [f"{name} {rescale} {mu}" for name, rescale, mu in itertools.product(SETS, RESCALINGS, (0.0, 0.9))
         if rescale == "none" or (SETS[name] is not None and mu)]  # fmt: skip
PIECES: list[tuple[tuple[int, ...], Placement]] = [
    ((4, 6), Shard(0)),
    ((4, 6), Shard(0)),
    ((5, 3), Shard(0)),  # three rows and two
    ((4, 3), Shard(0)),  # in the first process of one shape, in the second of another than the last
    ((1, 7), Shard(0)),  # one row and none
    ((3, 5), Shard(1)),
    ((6,), Replicate()),
]


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def spread(x: Tensor, mesh: DeviceMesh, placement: Placement) -> Tensor:
    """Copied: the part of a process would share its memory with the whole."""
    return distribute_tensor(x.clone(), mesh, [placement])


def distance(mine: list[Tensor], whole: list[Tensor]) -> float:
    return max(float((a.detach().full_tensor() - b.detach()).abs().max()) for a, b in zip(mine, whole, strict=True))


def made(name: str, rescale: str, mu: float, params: list[Tensor]) -> FrankWolfe:
    fields = {"weight_decay": 0.01} if SETS[name] is None else {"constraint": SETS[name]}
    size = [(-1) ** i * 2.0 + 3 for i in range(len(params))]  # some start outside
    radius = None if SETS[name] is None else [r * (5 if name == "L1" else 1) for r in size]
    return FrankWolfe(
        [{"params": [(f"p{i}", p) for i, p in enumerate(params)], "radius": radius} | fields],
        0.05,
        momentum=mu,
        rescale=rescale,
    )


def beside(case: str, mesh: DeviceMesh) -> dict:
    """Six steps with the same gradients, whole and in parts; in the fourth one has an infinite entry."""
    name, rescale, mu = case.split()
    starts = [draw(i, *shape) for i, (shape, _) in enumerate(PIECES)]
    whole = [nn.Parameter(x.clone()) for x in starts]
    parts = [nn.Parameter(spread(x, mesh, place)) for x, (_, place) in zip(starts, PIECES, strict=True)]
    optimizers = [made(name, rescale, float(mu), params) for params in (whole, parts)]
    said, gaps = [[], []], [[], []]
    for step in range(6):
        for i, (shape, place) in enumerate(PIECES):
            g = draw(100 * step + i, *shape)
            if step == 3 and i == 2:
                g[-1, -1] = torch.inf  # in the second process alone
            whole[i].grad, parts[i].grad = g, spread(g, mesh, place)
        for i, optimizer in enumerate(optimizers):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                optimizer.step()
            said[i] += [str(w.message) for w in caught]
            if step != 3:
                gaps[i].append(optimizer.fw_gap())
    stats = [{t.name: t.to_dict() | {"name": 0} for t in optimizer.stats()} for optimizer in optimizers]
    return {
        "apart": distance(parts, whole),
        "moved": distance(parts, starts),
        "digest": [hashlib.sha256(p.detach().full_tensor().numpy().tobytes()).hexdigest() for p in parts],
        "said": said,
        "gaps": gaps,
        "stats": stats,
    }


def tied(mesh: DeviceMesh) -> dict:
    """All entries are of one magnitude: the vertex of an L1 ball is at the first of them."""
    found = {}
    for name, place in (("rows", Shard(0)), ("columns", Shard(1))):
        whole, part = nn.Parameter(torch.zeros(4, 6)), nn.Parameter(spread(torch.zeros(4, 6), mesh, place))
        g = torch.ones(4, 6)
        g[0, 1:3] = 0.5
        g[0, 0] = 0  # the columns of the second process begin at 3, so the first entry in whole is (0, 3)
        for p, grad in ((whole, g), (part, spread(g, mesh, place))):
            optimizer = FrankWolfe([p], 1.0, rescale="none", constraint=balls.L1(), radius=2.0)
            p.grad = grad
            optimizer.step()
        found[name] = [p.nonzero().tolist() for p in (whole.detach(), part.detach().full_tensor())]
    return found


def partial(mesh: DeviceMesh) -> float:
    """Gradients that are summands, as a copy of a weight that sees a part of the inputs has them."""
    from torch.distributed.tensor import DTensor

    whole, part = nn.Parameter(draw(0, 6)), nn.Parameter(spread(draw(0, 6), mesh, Replicate()))
    whole.grad = 2 * draw(1, 6)
    part.grad = DTensor.from_local(draw(1, 6), mesh, [Partial()])
    for p in (whole, part):
        FrankWolfe([p], 0.1, constraint=balls.L2(), radius=9.0).step()
    return distance([part], [whole])


def broken(mesh: DeviceMesh) -> bool:
    """A weight that is not finite in one process: whether both leave it as it is."""
    start = draw(0, 4, 6).float()
    start[-1, -1] = torch.nan
    part = nn.Parameter(spread(start, mesh, Shard(0)))
    optimizer = FrankWolfe([part], 0.1, constraint=balls.LInf(), radius=0.1)
    part.grad = spread(torch.ones(4, 6), mesh, Shard(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer.step()
    return torch.equal(part.detach().full_tensor().nan_to_num(), start.nan_to_num())


def refused(mesh: DeviceMesh) -> dict:
    found = {}
    sharded = net(torch.float32)
    fully_shard(sharded)
    try:
        tenfold.SFW(linear=True).optimizer(sharded, lr=0.1)
    except TenfoldError as error:
        found["the method"] = str(error)
    for ball in (balls.SpectralKSupport(k=0.5), balls.GroupKSupport(k=2), balls.KSparse(k=2), balls.Lp(p=1.5)):
        part = nn.Parameter(spread(draw(0, 4, 6), mesh, Shard(0)))
        copy = nn.Parameter(spread(draw(0, 4, 6), mesh, Replicate()))
        FrankWolfe([copy], 0.1, constraint=ball, radius=9.0)  # whole in every process
        try:
            FrankWolfe([("head.weight", part)], 0.1, constraint=ball, radius=9.0)
        except TenfoldError as error:
            found[type(ball).__name__] = str(error)
    return found


def net(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)


def train(model: nn.Module, optimizer: FrankWolfe, steps: range, rows: slice) -> None:
    for step in steps:
        optimizer.zero_grad()
        x = draw(step, 8, 6).to(next(model.parameters()).dtype)
        model.eval()(x[rows]).square().mean().backward()
        optimizer.step()


def fsdp(name: str, dtype: torch.dtype) -> dict:
    """Half of a batch in each process, against all of it; saved, loaded and gone on with."""
    rank = distributed.get_rank()
    vectors = "sgd" if name == "L1" else "l2"
    method = tenfold.SFW(SETS[name], width=9.0, linear=True, vectors=vectors)
    whole, sharded, again = net(dtype), net(dtype), net(dtype)
    for model in (sharded, again):
        fully_shard(model)
    one, two, three = (method.optimizer(m, lr=0.05, momentum=0.9) for m in (whole, sharded, again))
    mine = slice(4 * rank, 4 * rank + 4)
    train(whole, one, range(6), slice(None))
    train(sharded, two, range(6), mine)
    apart = distance(list(sharded.parameters()), list(whole.parameters()))
    file = io.BytesIO()
    torch.save(two.state_dict(), file)
    file.seek(0)
    three.load_state_dict(torch.load(file, weights_only=True))
    fourth = net(dtype)
    fully_shard(fourth)
    four = method.optimizer(fourth, lr=0.05, momentum=0.9)
    set_optimizer_state_dict(fourth, four, get_optimizer_state_dict(sharded, two))
    for model in (again, fourth):
        model.load_state_dict(sharded.state_dict())
    for model, optimizer in ((sharded, two), (again, three), (fourth, four)):
        train(model, optimizer, range(6, 9), mine)
    sets = [g["constraint"] and g["constraint"]["ball"] for g in two.param_groups]
    parts = [[p.detach().to_local() for p in m.parameters()] for m in (sharded, again, fourth)]
    equal = [all(torch.equal(a, b) for a, b in zip(parts[0], other, strict=True)) for other in parts[1:]]
    return {"apart": apart, "sets": sets, "equal": equal, "stats": two.stats() == three.stats() == four.stats()}


def copies() -> list[bool]:
    """Data of its own in each process, averaged gradients: whether the weights are the same to the bit."""
    rank = distributed.get_rank()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 10))
    torch.manual_seed(1000 + rank)
    torch.rand(rank + 1)
    method = tenfold.SFW(balls.SpectralKSupport(k=0.5), width=4.0)
    optimizer = method.optimizer(model, lr=0.05)
    wrapped = DistributedDataParallel(model)
    for _ in range(5):
        optimizer.zero_grad()
        wrapped(torch.randn(4, 3, 8, 8)).square().mean().backward()
        optimizer.step()
    mine = torch.cat([p.detach().flatten() for p in model.parameters()])
    others = [torch.empty_like(mine) for _ in range(2)]
    distributed.all_gather(others, mine)
    return [torch.equal(mine, other) for other in others]


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    found = {
        "copies": copies(),
        "beside": {case: beside(case, mesh) for case in CASES},
        "tied": tied(mesh),
        "partial": partial(mesh),
        "broken": broken(mesh),
        "refused": refused(mesh),
        "fsdp": {
            f"{name} {dtype}".replace("torch.", ""): fsdp(name, dtype)
            for name in ("L1", "L2", "LInf")
            for dtype in (torch.float32, torch.float64)
        },
        "half": fsdp("L2", torch.bfloat16),
    }
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(found), encoding="utf-8")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[-1]))
