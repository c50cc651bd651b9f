"""What every result file holds beside the figures: versions, commit, hardware, seeds, threads, and failures."""

import os
import platform
import shutil
import subprocess
import time
import traceback
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from tenfold.files import write_json

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def record(name: str, benchmark: ModuleType, folder: Path = RESULTS) -> Path:
    """Run ``benchmark.cases()`` one by one and write them all, a case that raised with its traceback."""
    path = folder / f"{name}.json"
    head = {"benchmark": name, "environment": environment(), **benchmark.SETTINGS}
    results: list[dict[str, Any]] = []
    failures: list[dict[str, Any]] = []
    for case, run in benchmark.cases():
        try:
            results.append(run())
            print(f"{name} {case}: {benchmark.line(results[-1])}", flush=True)
        except Exception:  # noqa: BLE001 - a failure is a result
            failures.append({"case": case, "error": traceback.format_exc(limit=3).replace(str(ROOT), "")})
            print(f"{name} {case}: FAILED\n{failures[-1]['error']}", flush=True)
        write_json(path, head | {"results": results, "failures": failures})
    return path


def environment() -> dict[str, Any]:
    """Versions, commit, processor, threads."""
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": _git("rev-parse", "HEAD"),
        "changed": bool(_git("status", "--porcelain", "--", "src", "benchmarks/*.py")),
        "python": platform.python_version(),
        **{name: version(name) for name in ("tenfold", "torch", "numpy", "scipy")},
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def interleaved(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of this process for each run, in turns A B A B."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
    return seconds


def rounded(values: Iterable[float], digits: int = 4) -> list[float]:
    """For the file: nobody reads the rest."""
    return [round(float(v), digits) for v in values]


def _git(*arguments: str) -> str | None:
    git = shutil.which("git")
    if git is None:
        return None
    done = subprocess.run([git, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        fields = dict(line.split(":", 1) for line in info.read_text().split("\n\n")[0].splitlines() if ":" in line)
        named = {key.strip(): value.strip() for key, value in fields.items()}
        return f"{named.get('model name')}, family {named.get('cpu family')}, model {named.get('model')}"
    return platform.processor() or platform.machine()
