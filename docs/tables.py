"""Write the tables of README.md and docs/ from the result files: ``python -m docs.tables``, ``--check`` only compares.

A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``; NAME is a function here. No figure is typed by
hand.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]
MARK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def results(experiment: str) -> list[dict]:
    """The result files of an experiment, by name."""
    return [json.loads(p.read_text()) for p in sorted((ROOT / "experiments" / experiment / "results").glob("*.json"))]


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; all columns but the first to the right."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def first_path() -> str:
    """ResNet-20 on Fashion-MNIST: trained, compressed, recovered."""
    rows = []
    for result in results("first-path"):
        stages = {stage["stage"].split(" (")[0]: f"{stage['test']['accuracy']:.2%}" for stage in result["stages"]}
        kept, share = result["cost"]["kept"], result["cost"]["share"]
        method, budget = result["method"]["method"], result["budget"]
        name = "dense" if not budget else f"{method}, " + ", ".join(f"{k} {v:g}" for k, v in budget.items())
        rows.append(
            [
                name,
                f"{kept['params']:,} ({share['params']:.1%})",
                f"{kept['macs'] / 1e6:.1f} M ({share['macs']:.1%})",
                stages.get("right after compression", ""),
                stages.get("batch norm re-estimated", ""),
                stages.get("recovered", stages.get("trained", "")),
            ]
        )
    return markdown(["", "parameters", "MACs", "right after", "re-estimated", "trained or recovered"], rows)


def post_training() -> str:
    """Every post-training method on one trained network."""
    rows = []
    for result in results("post-training"):
        rows.append(["dense", "1.00", "", "", f"{result['dense']['accuracy']:.2%}", ""])
        for row in result["rows"]:
            fields = {k: v for k, v in row["method"].items() if k in ("measure", "slices") and v not in (None, "max")}
            name = ", ".join([row["method"]["method"], *(f"{k}={v}" for k, v in fields.items())])
            if "failure" in row:
                rows.append([name, f"{row['budget']}", "", "", "not reached", ""])
                continue
            shares = [f"{row['params']:.3f}", f"{row['macs']:.3f}"]
            rows.append([name, f"{row['budget']}", *shares, f"{row['right_after']:.2%}", f"{row['reestimated']:.2%}"])
    return markdown(["method", "budget", "parameters", "MACs", "right after", "re-estimated"], rows)


def sfw() -> str:
    """Training methods on one network: mean accuracy by share removed, right after / re-estimated."""
    return _cuts("digits")


def sfw_rescaling() -> str:
    """The ablation of the step size."""
    return _cuts("digits-rescaling")


def _cuts(name: str) -> str:
    found = json.loads((ROOT / "experiments" / "sfw" / "results" / f"{name}.json").read_text())
    runs: dict[str, list[dict]] = {}
    for row in found["rows"]:
        runs.setdefault(row["label"], []).append(row)
    ratios = [one["ratio"] for one in next(r for r in found["rows"] if "filters" in r)["filters"]]
    rows = []
    for label, all_seeds in runs.items():
        seeds = [row for row in all_seeds if "failure" not in row]
        for cut in ("filters", "rank") if seeds else ():
            cells = []
            for i in range(len(ratios)):
                both = [[100 * row[cut][i][key] for row in seeds] for key in ("accuracy", "reestimated")]
                cells.append(" / ".join(f"{sum(values) / len(values):.1f}" for values in both))
            rows.append([label, cut, f"{len(seeds)}", *cells])
        if len(seeds) < len(all_seeds):
            rows.append([label, "failed", f"{len(all_seeds) - len(seeds)}", *[""] * len(ratios)])
    return markdown(["method", "removed", "seeds", *(f"{ratio:.0%}" for ratio in ratios)], rows)


TABLES: dict[str, Callable[[], str]] = {
    "first_path": first_path,
    "post_training": post_training,
    "sfw": sfw,
    "sfw_rescaling": sfw_rescaling,
}


def main() -> int:
    """Rewrite the pages; with ``--check``, say which are out of step and fail."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 where a page is out of step")
    check = parser.parse_args().check
    stale = []
    for name in PAGES:
        page = ROOT / name
        text = page.read_text(encoding="utf-8")
        new = MARK.sub(lambda m: m[1] + TABLES[m[2]]() + m[3], text)
        if new != text:
            stale.append(name)
            if not check:
                page.write_text(new, encoding="utf-8")
    for name in stale:
        sys.stdout.write(f"{name}: {'out of step, run make docs' if check else 'rewritten'}\n")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
