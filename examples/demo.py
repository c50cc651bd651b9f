"""The whole path on one page: train, compress by two methods to two budgets, recover, compare. Under two minutes.

python examples/demo.py --out runs/demo
"""

import argparse
import itertools
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

import tenfold
from tenfold.bench.latency import milliseconds
from tenfold.bench.picture import draw_spectra
from tenfold.train import Recipe, batches, evaluate, fit, load_data

METHODS = {"ALDS": tenfold.ALDS(), "SVD": tenfold.SVD()}
BUDGETS = (0.5, 0.25)  # shares of the parameters to keep
BATCH = 64


def main(out: Path, epochs: int, recovery: int) -> None:
    console = Console()
    torch.set_num_threads(1)  # for batches this small more threads only get into each other's way

    # 1. A trained network. Any torch module will do; this one takes half a minute.
    console.print(f"dense: training for {epochs} epochs")
    torch.manual_seed(0)
    data = load_data("digits")
    recipe = Recipe(epochs=epochs, batch_size=BATCH, lr=0.1)
    net = tenfold.build_model("cnn", data.classes, data.channels, data.size)
    dense = fit(net, tenfold.Dense(), data, recipe).model.cpu()
    nets, plans, accuracy = {"dense": dense}, {}, {"dense": ["", "", percent(dense, data)]}

    # 2. Its layers, their spectra and costs: looked at once, for all methods and budgets.
    example = torch.zeros(1, data.channels, data.size, data.size)  # MACs are counted for one image
    problem = tenfold.survey(dense, example_inputs=example)

    for method, share in itertools.product(METHODS, BUDGETS):
        name = f"{method} {share:.0%}"
        console.print(f"{name}: compressing, recovering for {recovery} epochs")

        # 3. Which rank for which layer: a plan. Nothing has happened to the network yet.
        plan = METHODS[method].plan(problem, tenfold.Budget(params=share))

        # 4. Build it: a new network of plain torch layers.
        small = tenfold.apply(dense, plan)
        right_after = percent(small, data)

        # 5. Batch norm still remembers the dense activations. Averages over training data mend that.
        tenfold.reestimate_(small, batches(data.train, BATCH))
        reestimated = percent(small, data)

        # 6. Recovery: a few more epochs, at the learning rates of the training's last epochs.
        small = fit(small, tenfold.Dense(), data, recipe.rewound(recovery)).model.cpu()

        # 7. Save it. tenfold.load(folder, model=net) builds it again.
        tenfold.save(small, out / name.strip("%").replace(" ", "-").lower(), plan)
        nets[name], plans[name], accuracy[name] = small, plan, [right_after, reestimated, percent(small, data)]

    draw_spectra(problem, plans, out / "spectra.png")
    console.print("", table(nets, plans, accuracy, example))
    console.print(
        "\nAccuracy on the test set. 16 × 12: rank 12 in each of 16 slices of the input.\n"
        "Fewer MACs are not always less time: slices are grouped convolutions, and slow\n"
        "on many CPUs. Saved: the networks, and a picture of their ranks, spectra.png, in\n"
        f"{out}."
    )


def percent(model, data) -> str:
    return f"{evaluate(model, data.test).accuracy:.1%}"


def table(nets, plans, accuracy, example) -> Table:
    """One column per network: how good it is, what it costs, what each layer became."""
    costs = [tenfold.cost(net, example) for net in nets.values()]
    times = milliseconds(nets, torch.randn(BATCH, *example.shape[1:]))  # one thread, in turns
    made = Table("", *nets, box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for i, stage in enumerate(("right after", "re-estimated", "recovered")):
        made.add_row(f"accuracy, {stage}", *(stages[i] for stages in accuracy.values()))
    made.add_row("parameters", *(f"{cost.params:,}" for cost in costs))
    made.add_row("MACs per image", *(f"{cost.macs:,}" for cost in costs))
    made.add_row(f"ms per {BATCH} images", *(f"{ms:.2f}" for ms in times.values()))
    made.add_section()
    for layer in next(iter(plans.values())).layers:
        made.add_row(layer, "dense", *(became(plan.layers[layer]) for plan in plans.values()))
    for column in made.columns[1:]:
        column.justify, column.no_wrap = "right", True
    return made


def became(layer) -> str:
    if layer.decomposition == "dense":
        return "dense"
    return f"rank {layer.rank}" if layer.groups == 1 else f"{layer.groups} × {layer.rank}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="where the networks and the picture go")
    parser.add_argument("--epochs", type=int, default=15, help="of training")
    parser.add_argument("--recovery", type=int, default=5, help="epochs after compression, at most those of training")
    arguments = parser.parse_args()
    main(arguments.out, arguments.epochs, arguments.recovery)
