"""Tables of accuracy, from the result files of experiments."""

import statistics

from tools.pages.cells import DATA, markdown, percent, results, spread


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
    found: dict[tuple[str, str, float], dict[str, list[dict]]] = {}
    for net in (net for result in results("proxies") for net in result["nets"]):
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
    rows = []
    for row in (row for result in results("pretrained") for row in result["results"]):
        budget = ", ".join(f"{k} {v:g}" for k, v in (row.get("budget") or {}).items()) or "its own ranks"
        if "failure" in row:
            rows.append([row["method"], budget, "", "", "not reached", "", ""])
            continue
        shares = [f"{row['kept share'][key]:.3f}" for key in ("params", "macs")]
        kept, anew = row["kept"], row.get("anew") or {}
        cells = [percent(kept["agreement"], 1), percent(kept["top-1"], 1), percent(anew.get("agreement"), 1)]
        rows.append([row["method"], budget, *shares, *cells])
    return markdown(["method", "budget", "parameters", "MACs", "agreement", "top-1", "agreement, norms anew"], rows)


def label_free(limit: str) -> str:
    """A trained network and a few hundred unlabelled images: test accuracy at shares of one cost, mean over draws."""
    found: dict[tuple[str, str], dict[float, list[dict]]] = {}
    files = results("label-free")
    for row in (row for result in files for row in result["rows"] if row["limit"] == limit):
        found.setdefault((row["method"], row["way"]), {}).setdefault(row["share"], []).append(row)
    shares = sorted({share for cells in found.values() for share in cells}, reverse=True)
    if not found:
        return markdown([], [])
    names = {"": "", "refit": ", refitted", "steps": ", 100 steps"}
    rows = [["dense", *[percent(result["dense"]) for result in files[:1]], *[""] * (len(shares) - 1), ""]]
    for (method, way), cells in sorted(found.items()):
        line = [method + names[way]]
        for share in shares:
            good = [row["accuracy"] for row in cells.get(share, []) if "failure" not in row]
            missing = "not reached" if share in cells else ""
            line.append(f"{percent(statistics.mean(good))} ({len(good)})" if good else missing)
        took = [row["seconds"] for each in cells.values() for row in each if "failure" not in row]
        rows.append([*line, f"{statistics.median(took):.0f} s" if took else ""])
    return markdown(["method (draws)", *(f"{share:.0%} of the {limit}" for share in shares), "seconds"], rows)


def training() -> str:
    """Training methods at a quarter of the parameters: accuracy as trained, and after batch norm is estimated again."""
    rows = []
    for result in results("training"):
        for run in sorted(result["runs"], key=lambda run: -run["accuracy"]["before"]):
            price = run["price"]
            as_trained = [percent(run["accuracy"][stage]) for stage in ("before", "reestimated")]
            shares = [f"{price['params'] / price['dense_params']:.1%}", f"{price['macs'] / price['dense_macs']:.1%}"]
            minutes = f"{run['seconds']['training'] / 60:.0f}"
            rows.append([run["label"], *shares, *as_trained, percent(run["test"]["accuracy"]), minutes])
    head = ["", "parameters", "MACs", "validation, as trained", "re-estimated", "test, re-estimated", "minutes"]
    return markdown(head, rows)


def sentences() -> str:
    """A sentence encoder without labels: how far embeddings move; the mean over the draws of the texts."""
    rows = []
    for result in results("sentences"):
        found: dict[tuple[float, str, str], list[dict]] = {}
        for row in result["rows"]:
            found.setdefault((row["share"], row["method"], row["way"]), []).append(row)
        words = {"": "", "refit": ", refitted", "steps": f", {result['steps']} steps"}
        for (share, method, way), each in sorted(found.items(), key=lambda item: (-item[0][0], item[0][1:])):
            good = [row for row in each if "failure" not in row]
            figures = ("cosine", "rank correlation", "nearest")
            cells = [f"{statistics.mean(row[name] for row in good):.3f}" if good else "" for name in figures]
            seconds = f"{statistics.median(row['seconds'] for row in good):.0f} s" if good else "not reached"
            rows.append([f"{share:.0%}", f"{method}{words[way]} ({len(good)})", *cells, seconds])
    head = ["linear weights", "method (draws)", "cosine", "rank correlation", "nearest kept", "seconds"]
    return markdown(head, rows)


def int8() -> str:
    """A trained network dense, in int8, with low rank, and both: bytes, milliseconds and accuracy in ONNX Runtime."""
    rows = []
    for result in results("int8"):
        for row in result["rows"]:
            sizes = [f"{row['macs'] / 1e6:.1f} M", f"{row['bytes'] / 1e3:,.0f} kB", percent(row["accuracy"])]
            times = [
                f"{found['ms']:.2f} ms ({found['speedup']:.2f}x)" if found else ""
                for found in (row.get("latency", {}).get(size) for size in ("1", "8"))
            ]
            rows.append([row["name"], *sizes, *times])
    return markdown(["ResNet-20", "MACs", "file", "accuracy", "batch 1", "batch 8"], rows)


def detector() -> str:
    """A text detector and the small one, in float and in int8: bytes, milliseconds, and what they find."""
    names = {"dense": "dense", "dense-int8": "int8", "small": "low rank", "small-int8": "low rank, int8"}
    rows = []
    for result in results("text-detector"):
        for row in result["rows"]:
            speed = [f"{row['bytes'] / 1e6:.1f} MB", f"{row['ms']:.0f} ms", f"{row['speedup']:.2f}x"]
            rows.append([names[row["name"]], *speed, f"{row['f1']:.3f}", f"{row['agreement']['page']:.3f}"])
    head = ["CRAFT", "file", "288 x 384", "times as fast", "F1, scenes", "agreement, photographed page"]
    return markdown(head, rows)


def norms() -> str:
    """A network and cuts of it, batch norm kept and estimated again, from plain and from augmented images."""
    columns = ("kept", "plain", "augmented")
    rows = [
        ["as trained" if row["share"] == 1 else percent(row["share"], 0), *(percent(row[name]) for name in columns)]
        for result in results("statistics")
        for row in result["rows"]
    ]
    head = ["MACs kept", "statistics of the training", "from plain images", "from images as trained on"]
    return markdown(head, rows)
