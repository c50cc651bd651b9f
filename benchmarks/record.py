"""What every result file holds beside the figures: versions, commit, hardware, seeds, threads, and failures."""

import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

from tenfold.bench.environment import place
from tenfold.files import write_json

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def record(name: str, benchmark: ModuleType, folder: Path = RESULTS) -> Path:
    """Run ``benchmark.cases()`` one by one and write them all, a case that raised with its traceback."""
    path = folder / f"{name}.json"
    here = asdict(place(str(ROOT / "benchmarks" / "*.py"), device="cpu"))
    head = {"benchmark": name, "date": time.strftime("%Y-%m-%d", time.gmtime()), "place": here, **benchmark.SETTINGS}
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
