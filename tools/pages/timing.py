"""Tables of speed, from the result files of benchmarks."""

from tools.pages.cells import benchmark, markdown


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
    """Forward passes in three runtimes: speed-ups over the dense network in each, and best against best."""
    rows = []
    for row in benchmark("inference"):
        each = [f"{row['runtimes'][name]['speedup']:.2f}x" for name in ("eager", "compile", "onnxruntime")]
        best = [f"{row['best']['dense_ms']:.2f}", f"{row['best']['small_ms']:.2f}", f"{row['speedup']:.2f}x"]
        ratio = [f"{row['mac_ratio']:.1f}x", f"{row['quotient']:.2f}"]
        rows.append([row["net"], f"{row['batch']}", f"{row['budget']['macs']:.0%}", *each, *best, *ratio])
    head = ["network", "batch", "MACs kept", "eager", "compile", "ONNX Runtime", "best dense, ms", "best small, ms"]
    return markdown([*head, "best / best", "MAC ratio", "quotient"], rows)


def inference_summary() -> str:
    """Speed-ups best against best beside the MAC ratios, a row for each network and batch."""
    found: dict[tuple[str, int], dict[float, str]] = {}
    for row in benchmark("inference"):
        cell = f"{row['speedup']:.2f}x of {row['mac_ratio']:.1f}x"
        found.setdefault((row["net"], row["batch"]), {})[row["budget"]["macs"]] = cell
    shares = (0.5, 0.25, 0.1)
    rows = [[net, f"{batch}", *(cells.get(share, "") for share in shares)] for (net, batch), cells in found.items()]
    return markdown(["network", "batch", *(f"{share:.0%} of the MACs" for share in shares)], rows)


def latency_budgets() -> str:
    """Budgets on latency: what was planned, and what the built network takes, timed anew; shares of the dense time."""
    rows = []
    for row in benchmark("latency_budget"):
        about = [row["net"], row["runtime"], f"{row['batch']}", row["method"], f"{row['share']:.0%}"]
        if "refused" in row:
            least = row["refused"]["latency"]
            rows.append([*about, f"{least:.0%} at least" if least < 1 else "nothing is faster", "", "", ""])
            continue
        figures = [f"{100 * row[name]:.1f}%" for name in ("planned", "timed", "macs")]
        rows.append([*about, *figures, f"{row['seconds']:.0f} s"])
    head = ["network", "runtime", "batch", "rule", "budget", "planned", "timed anew", "MACs kept", "took"]
    return markdown(head, rows)


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


def oracle_speed() -> str:
    """The oracle of the spectral k-support ball, for all convolutions of a network."""
    rows = []
    for row in benchmark("spectral_oracle"):
        seconds = [f"{1000 * row['seconds'][name]:.0f}" for name in ("full svd", "exact", "warm")]
        ratios = [f"{row['ratio'][name]:.1f}x" for name in ("exact", "warm")]
        rows.append([f"{row['k']:.0%}", *seconds, *ratios, f"{row['accuracy']:.4f}"])
    head = ["k", "SVD per layer, ms", "exact, ms", "warm, ms", "exact", "warm", "warm value / optimum, worst layer"]
    return markdown(head, rows)


def sfw_step() -> str:
    """A training step of Frank-Wolfe beside one of SGD."""
    rows = []
    for row in benchmark("sfw_step"):
        seconds = [f"{row['seconds'][name]:.2f}" for name in ("sgd", "sfw")]
        own = [f"{1000 * row['own'][name]:.0f}" for name in ("sgd", "sfw")]
        rows.append([row["set"], *seconds, *own, f"{row['ratio']:.3f}"])
    head = ["set", "step of SGD, s", "step of SFW, s", "SGD alone, ms", "SFW alone, ms", "SFW / SGD"]
    return markdown(head, rows)


def recurrent() -> str:
    """Recurrent layers with factors beside the dense one: milliseconds, and how many times as fast; parameters."""
    rows, names = [], list[str]()
    for row in benchmark("recurrent"):
        names = [name for name in row["ms"] if name != "dense"]
        if not any(cells[0] == row["kind"] for cells in rows):
            sizes = [f"{row['params'][name] / 1e6:.2f} M" for name in ("dense", *names)]
            rows.append([row["kind"], "parameters", "", *sizes])
        times = [f"{row['ms'][name]:.1f} ({row['speedup'][name]:.2f}x)" for name in names]
        rows.append([row["kind"], row["runtime"], str(row["sequences"]), f"{row['ms']['dense']:.1f}", *times])
    return markdown(["layer", "runtime", "sequences", "dense", *names], rows)


def tucker_step() -> str:
    """A whole training step in Tucker format beside the dense one: how much faster, and the share of algebra."""
    rows = []
    for row in benchmark("tucker_step"):
        if "faster" in row:
            cells = [f"{row['faster'][name]:.2f}x ({row['algebra'][name]:.0%})" for name in row["faster"]]
            rows.append([row["net"], f"{row['fewer']:.0%}", f"{row['seconds']['dense']:.2f}", *cells])
    names = next((list(row["faster"]) for row in benchmark("tucker_step") if "faster" in row), [])
    return markdown(["network", "fewer weights", "dense step, s", *names], rows)


def tucker_memory() -> str:
    """Peak memory of training in Tucker format beside that of dense training."""
    rows = []
    for row in benchmark("tucker_memory"):
        sizes = [f"{size / 2**20:.0f}" for size in row["peak_bytes"].values()]
        needed = [f"{size / 2**20:.0f}" for size in row["needed_peak_bytes"].values()]
        ratios = [[f"{ratio:.2f}" for ratio in row[key].values()] for key in ("needed_over_dense", "over_dense")]
        rows.append([row["net"], f"{row['fewer']:.0%}", *needed, *ratios[0], *sizes, *ratios[1]])
    kinds, ratio = ("dense", "cycle", "narrow"), ("cycle / dense", "narrow / dense")
    names = [[*(f"{name}, MiB" for name in kinds), *ratio], [*(f"{name}, with glibc" for name in kinds), *ratio]]
    return markdown(["network", "fewer weights", *names[0], *names[1]], rows)
