"""Write the tables of README.md and docs/ from the result files: ``python -m docs.tables``, ``--check`` only compares.

A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``; NAME is a function here. No figure is typed by
hand.
"""

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]
DATA = {"fashion-mnist": "Fashion-MNIST", "cifar10-jpeg": "CIFAR-10 (JPEG)", "digits": "digits"}
MARK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def results(experiment: str) -> list[dict]:
    """The result files of an experiment, by name."""
    return [json.loads(p.read_text()) for p in sorted((ROOT / "experiments" / experiment / "results").glob("*.json"))]


def benchmark(name: str) -> list[dict]:
    """The results of a benchmark."""
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())["results"]


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; all columns but the first to the right."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def percent(share: float | None, digits: int = 2) -> str:
    """A share in per cent; nothing for None."""
    return "" if share is None else f"{share:.{digits}%}"


def spread(values: list[float]) -> str:
    """The mean, and the range behind it where there are several."""
    mean = f"{statistics.mean(values):.2%}"
    return mean if len(values) == 1 else f"{mean} ({100 * min(values):.1f}-{100 * max(values):.1f})"


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
    """Every post-training method on trained networks."""
    rows = []
    for result in results("post-training"):
        name, dense = DATA[result["data"]], result["dense"]
        rows.append([name, "dense", "1.00", "", "", f"{dense['accuracy']:.2%}", "", percent(dense.get("recovered"))])
        for row in result["rows"]:
            fields = {k: v for k, v in row["method"].items() if k in ("measure", "slices") and v not in (None, "max")}
            method = ", ".join([row["method"]["method"], *(f"{k}={v}" for k, v in fields.items())])
            if "failure" in row:
                rows.append([name, method, f"{row['budget']}", "", "", "not reached", "", ""])
                continue
            shares = [f"{row['params']:.3f}", f"{row['macs']:.3f}"]
            after = [percent(row.get(stage)) for stage in ("right_after", "reestimated", "recovered")]
            rows.append([name, method, f"{row['budget']}", *shares, *after])
    head = ["data", "method", "budget", "parameters", "MACs", "right after", "re-estimated", "recovered"]
    return markdown(head, rows)


def proxies() -> str:
    """Accuracy without training by error measure, mean over seeds: right after / batch norm estimated again."""
    (result,) = results("proxies")
    found: dict[tuple[str, str, float], dict[str, list[dict]]] = {}
    for net in result["nets"]:
        for row in net["rows"]:
            key = (DATA[net["data"]], net["network"], row["budget"])
            found.setdefault(key, {}).setdefault(row["candidate"], []).append(row)
    names = list(dict.fromkeys(name for cells in found.values() for name in cells))
    rows = []
    for (data, network, budget), cells in found.items():
        line = [f"{data}, {network}", f"{budget}"]
        for name in names:
            good = [row for row in cells.get(name, []) if "failure" not in row]
            after = (
                [statistics.mean(row[stage] for row in good) for stage in ("right_after", "reestimated")]
                if good
                else []
            )
            line.append(" / ".join(f"{100 * x:.1f}" for x in after) or "not reached")
        rows.append(line)
    return markdown(["network", "budget", *names], rows)


def projection() -> str:
    """Projection while training beside cutting afterwards; mean over seeds, and their range."""
    rows = []
    for result in results("projection"):
        for name in result["methods"]:
            runs = [row for row in result["rows"] if row["method"] == name]
            good = [row for row in runs if "failure" not in row]
            if not runs:
                continue
            line = [DATA[result["data"]], name, f"{len(good)} of {len(runs)}"]
            if good:
                means = [statistics.mean(row[key] for row in good) for key in ("params", "macs")]
                line += [f"{x:.3f}" for x in means]
                line += [spread([row[key] for row in good]) for key in ("unfinished", "right_after", "reestimated")]
            rows.append(line + [""] * (8 - len(line)))
    head = ["data", "method", "runs", "parameters", "MACs", "before the cut", "right after", "re-estimated"]
    return markdown(head, rows)


def pretrained() -> str:
    """EfficientNet-Lite0: agreement with the original on views of real photos."""
    (result,) = results("pretrained")
    rows = []
    for row in result["results"]:
        budget = ", ".join(f"{k} {v:g}" for k, v in (row.get("budget") or {}).items()) or "its own ranks"
        if "failure" in row:
            rows.append([row["method"], budget, "", "", "not reached", "", ""])
            continue
        shares = [f"{row['kept share'][key]:.3f}" for key in ("params", "macs")]
        kept, anew = row["kept"], row.get("anew") or {}
        cells = [percent(kept["agreement"], 1), percent(kept["top-1"], 1), percent(anew.get("agreement"), 1)]
        rows.append([row["method"], budget, *shares, *cells])
    return markdown(["method", "budget", "parameters", "MACs", "agreement", "top-1", "agreement, norms anew"], rows)


def allocation_speed() -> str:
    """Planning and building by ALDS: seconds, and how many times below the references."""
    rows = []
    for row in benchmark("allocation"):
        seconds, ratios = row["seconds"], [row["below_reference"], row["below_authors"]]
        figures = [f"{seconds['tenfold']:.2f}", *(f"{x:.1f}x" for x in ratios), f"{row['second_ms']:.0f}"]
        rows.append([row["net"], *figures, f"{row['memory']['peak_over_model']:.1f}"])
    head = ["network", "seconds", "below an SVD per slice", "below the authors' figures", "second budget, ms"]
    return markdown([*head, "peak memory, models"], rows)


def inference_speed() -> str:
    """Forward passes: speed-up over the dense network, and how much of the MAC ratio that is."""
    rows = []
    for row in benchmark("inference"):
        wide = row["wide"]["quotient"] if row["wide"] else None
        figures = [
            f"{row['dense_ms']:.1f}",
            f"{row['small_ms']:.1f}",
            f"{row['speedup']:.2f}x",
            f"{row['mac_ratio']:.1f}x",
        ]
        quotients = [f"{row['quotient']:.2f}", "" if wide is None else f"{wide:.2f}"]
        rows.append(
            [row["net"], row["method"], f"{row['budget']['macs']:.0%}", f"{row['batch']}", *figures, *quotients]
        )
    head = ["network", "method", "MACs kept", "batch", "dense, ms", "compressed, ms", "speed-up", "MAC ratio"]
    return markdown([*head, "speed-up / ratio", "wide layers"], rows)


def projection_speed() -> str:
    """One projection of a whole network."""
    rows = []
    for row in benchmark("projection"):
        if "ratio" in row:
            seconds = [f"{1000 * row['seconds'][name]:.0f}" for name in ("reference", "exact", "warm")]
            ratios = [f"{row['ratio'][name]:.1f}x" for name in ("exact", "warm")]
            rows.append([row["net"], *seconds, *ratios, *(f"{row['error'][name]:.0e}" for name in row["error"])])
    head = ["network", "SVD per layer, ms", "exact, ms", "warm, ms", "exact", "warm"]
    return markdown([*head, *(f"error, {name}" for name in ("exact", "warm", "SVD"))], rows)


def projection_overhead() -> str:
    """What projections add to training."""
    rows = [
        [row["net"], f"{row['step']:.2f}", f"{1000 * row['projection']:.0f}", f"{row['overhead']:.1%}"]
        for row in benchmark("projection")
        if "overhead" in row
    ]
    return markdown(["network", "training step, s", "projection, ms", "added at m = 20"], rows)


_ALL = (
    first_path,
    post_training,
    proxies,
    projection,
    pretrained,
    allocation_speed,
    inference_speed,
    projection_speed,
    projection_overhead,
)
TABLES: dict[str, Callable[[], str]] = {one.__name__: one for one in _ALL}


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
