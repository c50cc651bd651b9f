"""A comparison that never happened, of the shape of a real one: for tests of what reads results."""

import random
from dataclasses import replace

from tenfold.bench.compare.findings import (
    Accuracy,
    Curve,
    CutCurve,
    Evolution,
    Latency,
    Layer,
    LayerSpectrum,
    Price,
    Spectra,
    Verdict,
)
from tenfold.bench.compare.results import Failure, Place, Results, RunResult
from tenfold.bench.sweep import SweepRow
from tenfold.train.history import Epoch

METHODS = {"alds": "post-training", "svd": "post-training", "lrpet": "training"}
DENSE = {"params": 270_000, "macs": 31_000_000}
EPOCHS, RECOVERY = 8, 2


def synthetic(*, seeds=(0, 1, 2), budgets=(0.5, 0.25), methods=tuple(METHODS), layers=4) -> Results:
    """Every method at every budget with every seed; svd at the smallest budget fails. The figures mean nothing."""
    runs = [_run("dense", "dense", None, seed, layers) for seed in seeds]
    for method in methods:
        for budget in budgets:
            for seed in seeds:
                made = _run(method, METHODS[method], budget, seed, layers)
                if method == "svd" and budget == min(budgets):
                    made = _failed(made)
                runs.append(made)
    experiment = {
        "name": "synthetic",
        "data": {"name": "digits"},
        "model": "cnn",
        "methods": [{"method": name} for name in methods],
        "budgets": [{"params": budget} for budget in budgets],
        "seeds": list(seeds),
        "recipe": {"epochs": EPOCHS},
        "recovery": RECOVERY,
    }
    return Results("synthetic", experiment, runs, len(runs))


def cut(results, kinds=("rank", "filter"), shares=(0.0, 0.5, 0.8)) -> Results:
    """The same with cuts of what was trained; the last share cannot be reached in lrpet's second seed."""

    def curves(run):
        if run.kind == "post-training" or run.failure is not None:
            return []
        draw = random.Random(f"cuts {run.id}")
        made = []
        for kind in kinds:
            rows = [SweepRow(s, 1000, 2000, 0.9 - s * draw.uniform(0.4, 0.6), 0.9 - 0.2 * s) for s in shares]
            if run.label == "lrpet" and run.seed == 1:
                rows[-1] = SweepRow(shares[-1], failure="cannot be reached")
            made.append(CutCurve(kind, rows))
        return made

    return replace(results, runs=[replace(run, cuts=curves(run)) for run in results.runs])


def _run(method, kind, budget, seed, layers) -> RunResult:
    draw = random.Random(f"{method} {budget} {seed}")
    share = budget or 1.0
    final = 0.93 - 0.04 * (1 - share) + draw.gauss(0, 0.004)
    recovery = RECOVERY if kind == "post-training" else 0
    curves = [Curve("training", _epochs(draw, 1, EPOCHS - recovery, final))]
    if recovery:
        curves.append(Curve("recovery", _epochs(draw, EPOCHS - recovery + 1, EPOCHS, final)))
    names = [f"layer{i}.conv" for i in range(layers)]
    made = [_layer(name, share, i) for i, name in enumerate(names)]
    macs = round(DENSE["macs"] * share * draw.uniform(0.7, 1.0)) if budget else DENSE["macs"]
    accuracy = Accuracy(final - 0.01)
    if budget:
        accuracy = Accuracy(final, final - 0.2, final - 0.1, final if recovery else None)
    evolution = None
    if method == "lrpet":
        ranks = {
            layer.name: [None, *sorted((draw.randint(2, 30) for _ in range(EPOCHS - 1)), reverse=True)]
            for layer in made
        }
        evolution = Evolution(list(range(1, EPOCHS + 1)), ranks)
    ms = 4.0 * (0.4 + 0.6 * share)
    return RunResult(
        id="-".join([method, *([f"params{budget}"] if budget else []), f"s{seed}"]),
        label=method,
        method=method,
        fields={},
        kind=kind,
        budget={"params": budget} if budget else {},
        seed=seed,
        model="cnn",
        data={"name": "digits", "root": None, "train": 1293, "checksum": "0" * 64},
        recipe={"epochs": EPOCHS, "lr": 0.1},
        epochs={"training": EPOCHS - recovery, "recovery": recovery},
        place=Place(
            {"tenfold": "0.1.0", "torch": "2.13.0", "python": "3.11.9"}, "0" * 40, False, "A CPU", 2, 1, None, "cpu"
        ),
        curves=curves,
        accuracy=accuracy,
        test=Verdict(final - 0.005, 0.3),
        price=Price(DENSE["params"], int(DENSE["params"] * share), DENSE["macs"], macs),
        latency=Latency("cpu", 1, 1, 4.0, ms, 4.0 / ms, [0.95 * 4.0 / ms, 1.05 * 4.0 / ms]),
        seconds={"training": 40.0, "plan": 0.4, "apply": 0.1} | ({"recovery": 9.0} if recovery else {}),
        peak_memory=500_000_000,
        level=0.3 if method == "alds" else None,
        layers=made,
        spectra=[Spectra(layer.name, _spectrum(draw, None), _spectrum(draw, layer.rank)) for layer in made[:-1]],
        evolution=evolution,
    )


def _failed(run) -> RunResult:
    why = Failure("BudgetError", "the budget params=0.25 cannot be reached: the smallest is 0.31.")
    return replace(
        run, failure=why, accuracy=Accuracy(run.accuracy.before), test=None, price=None, latency=None, layers=[],
        spectra=[], curves=run.curves[:1], seconds={"training": 40.0}, level=None,
    )  # fmt: skip


def _epochs(draw, first, last, final) -> list[Epoch]:
    made = []
    for n in range(first, last + 1):
        reached = final * (1 - 0.5 * 0.5**n) + draw.gauss(0, 0.003)
        made.append(Epoch(n, 0.1 * (1 - n / (EPOCHS + 1)), 2 * 0.7**n, reached, 2.1 * 0.7**n, reached - 0.01, 5.0, 1e3))
    return made


def _layer(name, share, i) -> Layer:
    kernel = [16 * 2 ** (i // 2), 16, 3, 3]
    dense = kernel[0] * 16 * 9
    if share == 1.0 or i == 0:
        reason = "the method is dense" if share == 1.0 else "dense costs no more than what keeps the level"
        return Layer(name, kernel, "dense", None, 1, None, dense, dense, 64 * dense, 64 * dense, 0.0, reason)
    rank = max(1, int(share * dense / (kernel[0] + 144)))
    kept = rank * (kernel[0] + 144)
    return Layer(name, kernel, "low-rank", rank, 1, "channel", dense, kept, 64 * dense, 64 * kept, 0.3, None)


def _spectrum(draw, rank) -> LayerSpectrum:
    index = [1, 2, 3, 4, 6, 8, 11, 16]
    value = sorted((draw.uniform(0.1, 3.0) for _ in index), reverse=True)
    return LayerSpectrum(index, [v if rank is None or i <= rank else 0.0 for i, v in zip(index, value, strict=True)])
