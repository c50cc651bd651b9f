"""Where a run takes place: versions, code, hardware, memory."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from tenfold.bench.compare.results import Place

_PACKAGES = ("tenfold", "torch", "numpy", "scipy", "accelerate")
_HERE = Path(__file__).parents[1]


def place(*more: str, device: str | None = None, packages: Sequence[str] = ()) -> Place:
    """The code, versions and hardware of this process, for results.

    Args:
        more: code beside the package that takes part, as git's path patterns: whether it is committed counts, too.
        device: "cpu" or "cuda", what it runs on; None: the GPU if there is one, as in training.
        packages: whose versions count beside those that always do.
    """
    commit = _git("rev-parse", "HEAD") if _git("ls-files", "--error-unmatch", "errors.py") else None
    gpu = torch.cuda.is_available()
    return Place(
        versions={"python": platform.python_version()} | {name: _version(name) for name in (*_PACKAGES, *packages)},
        commit=commit,
        dirty=None if commit is None else bool(_git("status", "--porcelain", "--", ".", *more)),
        cpu=cpu(),
        cores=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        gpu=torch.cuda.get_device_name() if gpu else None,
        device=device or ("cuda" if gpu else "cpu"),
    )


def cpu() -> str:
    """The model name of the CPU."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        fields = dict(line.split(":", 1) for line in info.read_text().split("\n\n")[0].splitlines() if ":" in line)
        named = {key.strip(): value.strip() for key, value in fields.items()}
        if "model name" in named:
            return f"{named['model name']}, family {named.get('cpu family')}, model {named.get('model')}"
    return platform.processor() or platform.machine()


def forget_peak() -> None:
    """Reset `peak_memory`, where the system can do that."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory() -> int:
    """The peak memory in bytes since `forget_peak`: of torch on a GPU, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("VmHWM:"))) * 1024
    import resource  # POSIX alone has it

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _git(*arguments: str) -> str | None:
    """What git says in the folder of the code; None where it says nothing, or there is none."""
    git = shutil.which("git")
    if git is None:
        return None
    command = [git, *arguments]
    done = subprocess.run(command, cwd=_HERE, capture_output=True, text=True, check=False)  # noqa: S603 - our own words
    return done.stdout.strip() if done.returncode == 0 else None
