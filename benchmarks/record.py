"""What every result file holds beside the figures: versions, commit, hardware, seeds, threads, and failures."""

import json
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


def record(name: str, benchmark: ModuleType, folder: Path = RESULTS, *, more: bool = False) -> Path:
    """Run ``benchmark.cases()`` one by one and write them all, a case that raised with its traceback.

    With ``more``, rows that the file holds stay, and only cases without one are run; the file says under ``later``
    which these were, when and where. Raises ValueError if the file's rows were made under other settings.
    """
    path = folder / f"{name}.json"
    here = asdict(place(str(ROOT / "benchmarks" / "*.py"), device="cpu"))
    today = time.strftime("%Y-%m-%d", time.gmtime())
    body: dict[str, Any] = {"benchmark": name, "date": today, "place": here, **benchmark.SETTINGS, "results": []}
    later: dict[str, Any] = {"date": today, "place": here, "cases": []}
    if more and path.exists():
        settings = json.loads(json.dumps(benchmark.SETTINGS))
        body = json.loads(path.read_text())
        alike = {key: body.get(key) for key in settings} == settings
        if not alike or not all("case" in row for row in body["results"]):
            raise ValueError(f"{path} was made under other settings: run it without --more")
        body.setdefault("later", []).append(later)
    body["failures"] = []
    known = {row["case"] for row in body["results"]}
    for case, run in benchmark.cases():
        if case in known:
            continue
        later["cases"].append(case)
        try:
            body["results"].append({"case": case, **run()})
            print(f"{name} {case}: {benchmark.line(body['results'][-1])}", flush=True)
        except Exception:  # noqa: BLE001 - a failure is a result
            body["failures"].append({"case": case, "error": traceback.format_exc(limit=3).replace(str(ROOT), "")})
            print(f"{name} {case}: FAILED\n{body['failures'][-1]['error']}", flush=True)
        write_json(path, body)
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
