"""Which method, at which budget? Train, compress, recover, compare, on one page. Under two minutes.

python examples/demo.py --out runs/demo
"""

import argparse
from pathlib import Path

import torch
from rich.console import Console

import tenfold
from tenfold.bench.compare.experiment import DataChoice, Entry, Experiment, LatencyProtocol
from tenfold.bench.compare.run import NETWORKS
from tenfold.bench.compare.scheduler import compare
from tenfold.bench.report import write_report
from tenfold.cli.compare import table
from tenfold.train import Recipe, evaluate, load_data

METHODS = (tenfold.ALDS(), tenfold.SVD(), tenfold.LRPET())  # two that work after training, and one that works during it
BUDGETS = (tenfold.Budget(params=0.5), tenfold.Budget(params=0.25))  # what to keep of the whole network


def main(out: Path, epochs: int, recovery: int) -> None:
    console = Console()

    # 1. What is compared: methods x budgets on a network and its data, the same epochs for all. As data: this is also
    #    what a YAML file holds, and what `tenfold compare` makes of its options.
    experiment = Experiment(
        name="demo",
        data=DataChoice("digits"),
        model="cnn",
        methods=tuple(Entry(method) for method in METHODS),
        budgets=BUDGETS,
        recipe=Recipe(epochs=epochs, batch_size=64, lr=0.1),
        recovery=recovery,
        latency=LatencyProtocol(batch=64),
        keep=True,
    )

    # 2. Train, compress, re-estimate batch norm, recover, measure. What an earlier call has done is not done again.
    seen = set()

    def tell(name: str, epochs_done: float) -> None:
        if name not in seen:
            seen.add(name)
            console.print(f"{name}  ({epochs_done:.0f} of {experiment.epochs} epochs done)")

    results = compare(experiment, out, watch=tell)

    # 3. What came of it: a table, and a page with plots of accuracy, ranks and spectra.
    console.print("", table(results))
    write_report(results, out / "report.html")

    # 4. One of the networks, back from its folder: plain torch layers, to train, export or compile like any other.
    data = load_data("digits")
    net = tenfold.build_model("cnn", data.classes, data.channels, data.size)
    small = tenfold.load(out / NETWORKS / "alds-params0.25-s0", model=net)
    cost = tenfold.cost(small, torch.zeros(1, data.channels, data.size, data.size))
    console.print(
        f"ALDS, loaded again: {cost.params:,} parameters, {cost.macs:,} MACs per image, "
        f"{evaluate(small, data.test).accuracy:.2%} on the test set.\n\n"
        "Fewer MACs are not always less time: slices are grouped convolutions, slow on many CPUs.\n"
        f"Saved: the networks, the figures, and the page with plots, {out / 'report.html'}."
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="where networks, figures and report go")
    parser.add_argument("--epochs", type=int, default=12, help="of each run, all in all")
    parser.add_argument("--recovery", type=int, default=4, help="how many of them come after a compression")
    arguments = parser.parse_args()
    main(arguments.out, arguments.epochs, arguments.recovery)
