"""Tables of methods that train, from the result files of their experiments."""

import json
import statistics

from tools.pages.cells import ROOT, markdown

WAYS = {"tdlrt": "TDLRT, rank fixed", "tucker": "SGD on Tucker factors", "matrix": "SGD on two factors"}


def sfw(name: str) -> str:
    """Training methods on one network: mean accuracy by share removed, right after / re-estimated."""
    found, runs = _rows("sfw", name), {}
    for row in found:
        runs.setdefault(row["label"], []).append(row)
    ratios = [one["ratio"] for one in next((r["filters"] for r in found if "filters" in r), [])]
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


def conditioning() -> str:
    """LeNet-5 from starts of different conditioning: test accuracy, and training loss in the last epoch."""
    rows = []
    found = _rows("tdlrt", "conditioning")
    for way, name in WAYS.items():
        for decay in dict.fromkeys(row["decay"] for row in found):
            runs = [row for row in found if row["way"] == way and row["decay"] == decay]
            if runs:
                accuracy = [100 * row["accuracy"] for row in runs]
                cells = [f"{statistics.mean(accuracy):.1f}", f"{min(accuracy):.1f}-{max(accuracy):.1f}"]
                loss = statistics.mean(row["loss"][-1] for row in runs)
                rows.append([name, f"{decay:g}", f"{len(runs)}", *cells, f"{loss:.3f}"])
    head = ["trained by", "spectrum falls by", "seeds", "test accuracy", "range", "training loss"]
    return markdown(head, rows)


def tolerance() -> str:
    """LeNet-5 by TDLRT over tau, beside the dense network: means over seeds."""
    found, runs = _rows("tdlrt", "compression"), {}
    for row in found:
        runs.setdefault(row["method"].get("tau"), []).append(row)
    rows = []
    for tau, seeds in runs.items():
        accuracy = [100 * row["accuracy"] for row in seeds]
        means = [statistics.mean(row[key] for row in seeds) for key in ("params", "factorised", "macs")]
        shares = [f"{mean:.1%}" for mean in means]
        span = f"{min(accuracy):.1f}-{max(accuracy):.1f}"
        rows.append(
            ["dense" if tau is None else f"{tau:g}", f"{len(seeds)}", *shares, f"{statistics.mean(accuracy):.1f}", span]
        )
    head = ["tau", "seeds", "parameters", "of the factorised layers", "MACs", "test accuracy", "range"]
    return markdown(head, rows)


def defaults() -> str:
    """TDLRT without a budget on three networks: how the ranks went, what is left, and the accuracy beside dense."""
    rows = []
    for file in sorted((ROOT / "experiments" / "tdlrt-defaults" / "results").glob("*/results.json")):
        body = json.loads(file.read_text(encoding="utf-8"))
        labels: dict[str, list[dict]] = {}
        for run in body["runs"]:
            labels.setdefault(run["label"], []).append(run)
        for label, runs in labels.items():
            accuracy = [100 * run["test"]["accuracy"] for run in runs]
            kept = [run["price"]["params"] / run["price"]["dense_params"] for run in runs]
            sums = [_rank_sums(run["evolution"]) for run in runs if run["evolution"]]
            ranks = [f"{statistics.mean(x):.0f}" for x in zip(*sums, strict=True)] if sums else ["", "", ""]
            cells = [*ranks, f"{statistics.mean(kept):.1%}", f"{statistics.mean(accuracy):.1f}"]
            rows.append([runs[0]["model"], label, f"{len(runs)}", *cells])
    head = [
        "network",
        "method",
        "seeds",
        "ranks after the first epoch",
        "at the most",
        "in the end",
        "parameters",
        "test",
    ]
    return markdown(head, rows)


def _rank_sums(evolution: dict) -> tuple[int, int, int]:
    """Ranks of all modes of all layers in sum: after the first epoch, at the most, in the end."""
    sums = [sum(map(sum, now)) for now in zip(*evolution["ranks"].values(), strict=True)]
    return sums[0], max(sums), sums[-1]


def _rows(experiment: str, name: str) -> list[dict]:
    path = ROOT / "experiments" / experiment / "results" / f"{name}.json"
    return json.loads(path.read_text())["rows"] if path.exists() else []
