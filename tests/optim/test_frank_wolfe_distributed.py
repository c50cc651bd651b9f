"""Two processes with different seeds and the same gradients keep the same weights, bit for bit."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch import distributed

SCRIPT = """
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
import tenfold
from tenfold import balls

distributed.init_process_group("gloo")
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
    wrapped(torch.randn(4, 3, 8, 8)).square().mean().backward()  # data of its own on each
    optimizer.step()
mine = torch.cat([p.detach().flatten() for p in model.parameters()])
others = [torch.empty_like(mine) for _ in range(2)]
distributed.all_gather(others, mine)
assert torch.equal(others[0], others[1])
print("equal")

from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from tenfold.optim.frank_wolfe import FrankWolfe

sharded = nn.Parameter(distribute_tensor(torch.ones(4, 2), init_device_mesh("cpu", (2,)), [Shard(0)]))
try:
    FrankWolfe([sharded], 0.1, constraint=balls.L2(), radius=1.0)
except tenfold.TenfoldError as error:
    assert "sharded" in str(error)
    print("refused")
distributed.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.skipif(not distributed.is_available(), reason="torch is built without distributed")
def test_two_processes_with_different_seeds_stay_equal_and_sharded_tensors_are_refused(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("equal") == done.stdout.count("refused") == 2
