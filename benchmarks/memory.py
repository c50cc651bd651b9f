"""Peak memory of ``plan`` and ``apply`` on one network, in a process of its own: ``python -m benchmarks.memory NET B``.

torch allocates outside Python's sight, so the operating system is asked: resident bytes before, and their high-water
mark, reset before each stage (Linux; elsewhere the process's highest ever, an upper bound).
"""

import contextlib
import ctypes
import gc
import json
import os
import resource
import sys
from pathlib import Path

import torch
from torch import nn

import tenfold
from benchmarks import nets


def main() -> None:
    """Print one JSON object."""
    name, budget = sys.argv[1], tenfold.Budget(params=float(sys.argv[2]))
    torch.set_num_threads(1)
    small = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 300)).eval()
    tenfold.apply(small, tenfold.plan(small, tenfold.ALDS(), budget))  # libraries load at the first call
    model = nets.network(name)
    bytes_, before = nets.size(model), _reset()
    plan = tenfold.plan(model, tenfold.ALDS(), budget)
    planned, between = _peak() - before, _reset()
    compressed = tenfold.apply(model, plan)
    applied = _peak() - between
    extra = max(planned, applied)
    print(
        json.dumps(
            {
                "model_bytes": bytes_,
                "small_bytes": nets.size(compressed),
                "plan_extra_bytes": planned,
                "apply_extra_bytes": applied,
                "extra_over_model": round(extra / bytes_, 3),
                "peak_over_model": round(1 + extra / bytes_, 3),
            }
        )
    )


def _reset() -> int:
    """Give freed memory back, restart the high-water mark, and return the resident bytes."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return _peak()


def _peak() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
