"""What the tables are made of: result files, and Markdown."""

import json
import statistics
from pathlib import Path

ROOT = Path(__file__).parents[2]
NOTHING_YET = "Not measured yet.\n"
DATA = {"fashion-mnist": "Fashion-MNIST", "cifar10-jpeg": "CIFAR-10 (JPEG)", "digits": "digits"}


def results(experiment: str) -> list[dict]:
    """The result files of an experiment, by name."""
    return [json.loads(p.read_text()) for p in sorted((ROOT / "experiments" / experiment / "results").glob("*.json"))]


def benchmark(name: str, part: str = "results") -> list[dict]:
    """The results of a benchmark, or another part of its file; none where it has not been run."""
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    return json.loads(path.read_text())[part] if path.exists() else []


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; all columns but the first to the right. Without rows it says so."""
    if not rows:
        return NOTHING_YET
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def percent(share: float | None, digits: int = 2) -> str:
    """A share in per cent; nothing for None."""
    return "" if share is None else f"{share:.{digits}%}"


def spread(values: list[float]) -> str:
    """The mean, and the range behind it where there are several."""
    mean = f"{statistics.mean(values):.2%}"
    return mean if len(values) == 1 else f"{mean} ({100 * min(values):.1f}-{100 * max(values):.1f})"
