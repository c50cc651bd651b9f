"""Comparisons: every run once, whatever happens; what is measured; failures as results."""

import contextlib
import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from compare_stubs import Broken, experiment, process, read

import tenfold
from plans.counted import CountingWatch
from tenfold.bench.compare import run as module_of_runs
from tenfold.bench.compare import scheduler as module
from tenfold.bench.compare.experiment import DataChoice, Entry, LatencyProtocol
from tenfold.bench.compare.queue import claim
from tenfold.bench.compare.read_yaml import read_experiment
from tenfold.bench.compare.results import Latency, Results, RunResult
from tenfold.bench.compare.scheduler import compare
from tenfold.bench.export import export
from tenfold.bench.int8 import FileModel
from tenfold.errors import CheckpointError, DataError
from tenfold.plans import within_latency
from tenfold.train import Recipe, evaluate, load_data, loop
from tenfold.train.calibration import CalibrationBatches

ROOT = Path(__file__).parents[2]


def unclaimed(out) -> bool:
    """Whether nobody holds anything of the comparison in ``out``."""
    locks = list((out / "work" / "claims").iterdir())
    assert locks
    with contextlib.ExitStack() as stack:
        return all(stack.enter_context(claim(lock.parent, lock.stem)) for lock in locks)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A comparison that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    done = process(folder)
    done.join()
    assert done.exitcode == 0
    return folder


def test_killed_again_and_again_it_ends_with_the_same_results(whole, tmp_path):
    draw, journal = random.Random(7), tmp_path / "work" / "journal.log"

    def starts() -> int:
        return journal.read_text().count(" start ") if journal.exists() else 0

    for _ in range(4):
        before, worker = starts(), process(tmp_path)
        while worker.is_alive() and starts() == before:  # however slow the machine is
            worker.join(0.02)
        worker.join(draw.uniform(0.0, 0.4))
        worker.kill()
        worker.join()
    last = process(tmp_path)
    last.join()
    assert last.exitcode == 0
    assert read(tmp_path) == read(whole)
    lines = (tmp_path / "work" / "journal.log").read_text().splitlines()
    finished = Counter(line.split()[-1] for line in lines if " done " in line)
    started = Counter(line.split()[-1] for line in lines if " start " in line)
    assert sum(started.values()) > len(started)  # some were cut in the middle
    assert set(finished.values()) == {1}
    assert unclaimed(tmp_path)


def test_two_processes_do_each_run_once_and_both_end_with_all(whole, tmp_path):
    workers = [process(tmp_path), process(tmp_path)]
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert read(tmp_path) == read(whole)
    lines = [line.split() for line in (tmp_path / "work" / "journal.log").read_text().splitlines()]
    assert Counter(line[-1] for line in lines if line[-2] == "done") == dict.fromkeys(
        ("base-s0", "dense-s0", "svd-params0.5-s0", "trp-every=2-params0.5-s0"), 1
    )
    assert len({line[3] for line in lines}) == 2  # both had a part in it


def test_a_finished_comparison_does_nothing_but_read(whole, monkeypatch):
    monkeypatch.setattr(module, "run", lambda *_: pytest.fail("a run was done again"))
    monkeypatch.setattr(module, "train_base", lambda *_: pytest.fail("a training was done again"))
    files = {path: path.stat().st_mtime_ns for path in (whole / "results").iterdir()}
    assert compare(experiment(), whole).runs == Results.read(whole / "results.json").runs
    assert {path: path.stat().st_mtime_ns for path in (whole / "results").iterdir()} == files


def test_each_run_gets_the_same_epochs_and_the_budget_holds(whole):
    runs = {run.method: run for run in Results.read(whole / "results.json").runs}
    assert {name: [len(curve.epochs) for curve in run.curves] for name, run in runs.items()} == {
        "dense": [3],
        "svd": [2, 1],
        "trp": [3],
    }
    for run in runs.values():
        numbers = [epoch.epoch for curve in run.curves for epoch in curve.epochs]
        assert numbers == [1, 2, 3]
        assert sum(run.epochs.values()) == 3
        assert run.failure is None
    assert runs["svd"].curves[0].epochs[-1].lr < 0.05 * 0.01  # to the end of the schedule, then the end once more
    assert runs["svd"].curves[1].epochs[-1].lr == runs["dense"].curves[0].epochs[-1].lr
    assert runs["svd"].price.kept["params"] <= 0.5
    assert runs["trp"].price.kept["params"] <= 0.5
    assert runs["dense"].price.kept == {"params": 1.0, "macs": 1.0}


def test_stages_are_those_that_a_run_has(whole):
    found = {run.method: run.accuracy for run in Results.read(whole / "results.json").runs}
    assert (found["dense"].right_after, found["dense"].reestimated, found["dense"].recovered) == (None, None, None)
    assert found["trp"].recovered is None
    assert None not in (found["svd"].before, found["svd"].right_after, found["svd"].reestimated)
    last = {run.method: run.curves[-1].epochs[-1] for run in Results.read(whole / "results.json").runs}
    assert found["svd"].recovered == last["svd"].validation_accuracy
    assert found["dense"].before == last["dense"].validation_accuracy


def test_what_is_recorded_is_what_came_out(whole):
    runs = {run.method: run for run in Results.read(whole / "results.json").runs}
    spectra = {entry.layer: entry for entry in runs["svd"].spectra}
    for layer in runs["svd"].layers:
        if layer.decomposition == "low-rank" and layer.name in spectra:
            index, value = spectra[layer.name].after.index, spectra[layer.name].after.value
            assert all(v < 1e-4 * value[0] for i, v in zip(index, value, strict=True) if i > layer.rank)
            assert min(v for i, v in zip(index, value, strict=True) if i <= layer.rank) > 0
    dense = tenfold.build_model("cnn", 10, 1, 8)
    assert runs["svd"].price.dense_params == tenfold.cost(dense).params
    assert runs["trp"].evolution.epochs == [1, 2, 3]
    last = {name: ranks[-1] for name, ranks in runs["trp"].evolution.ranks.items()}
    chosen = {layer.name: layer.rank for layer in runs["trp"].layers if layer.rank is not None}
    assert set(chosen) <= set(last)
    assert runs["svd"].evolution is None
    assert runs["svd"].data["checksum"] == load_data("digits").checksum
    assert runs["svd"].data["train"] == 256
    for run in runs.values():
        assert run.peak_memory > 0
        assert run.latency.speedup > 0
        assert run.place.versions["torch"] == torch.__version__


def test_the_figures_are_those_of_the_networks_that_are_kept(whole):
    data = load_data("digits").part(validation=40)
    for run in Results.read(whole / "results.json").runs:
        net = tenfold.load(whole / "networks" / run.id, model=tenfold.build_model("cnn", 10, 1, 8))
        assert run.test.accuracy == evaluate(net, data.test).accuracy
        assert tenfold.cost(net, torch.zeros(1, 1, 8, 8)) == tenfold.Cost(run.price.params, run.price.macs)
        last = run.accuracy.recovered or run.accuracy.reestimated or run.accuracy.before
        assert last == evaluate(net, data.validation).accuracy


def test_it_goes_on_after_the_last_whole_epoch(whole, tmp_path, monkeypatch):
    """Stopped in the second epoch of the dense training before the compressions, then in the second of TRP's."""
    trained = []
    save = loop.save_checkpoint

    def saving(folder, parts, record):
        trained.append((folder.parent.name, record["epoch"]))
        if trained in ([*base, ("base-s0", 2)], [*base, ("base-s0", 2), *dense, *svd, *trp]):
            raise KeyboardInterrupt
        save(folder, parts, record)

    base = [("base-s0", 1)]
    dense = [("base-s0", 2), *(("dense-s0", n) for n in (1, 2, 3))]
    svd = [("svd-params0.5-s0", 1)]
    trp = [("trp-every=2-params0.5-s0", n) for n in (1, 2)]
    monkeypatch.setattr(loop, "save_checkpoint", saving)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            compare(experiment(), tmp_path)
    compare(experiment(), tmp_path)
    assert trained == [*base, ("base-s0", 2), *dense, *svd, *trp, trp[-1], ("trp-every=2-params0.5-s0", 3)]
    assert read(tmp_path) == read(whole)


def test_failures_are_results_and_the_others_go_on(tmp_path):
    both = experiment(Broken(), tenfold.SVD(), budgets=(tenfold.Budget(params=2),), recipe=_short(), recovery=1)
    results = compare(both, tmp_path)
    failed = {run.method: run.failure for run in results.runs}
    assert failed["dense"] is None
    assert (failed["broken"].type, failed["broken"].message) == ("ZeroDivisionError", "of the ranks")
    assert failed["svd"].type == "BudgetError"
    assert RunResult.read(tmp_path / "results" / "svd-params2-s0.json").failure == failed["svd"]
    assert "of the ranks" in (tmp_path / "work" / "broken-params2-s0.failed.txt").read_text()
    # ... and are kept, until they are to be tried again
    done = []
    original = module.run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "run", lambda setting, row, tell: done.append(row.id) or original(setting, row, tell))
        compare(both, tmp_path)
        assert done == []
        compare(both, tmp_path, retry=True)
    assert sorted(done) == ["broken-params2-s0", "svd-params2-s0"]


def test_a_dense_training_that_fails_takes_those_with_it_that_start_from_it(tmp_path):
    results = compare(experiment(tenfold.SVD(), recipe=_short(lr=1e9)), tmp_path)
    dense, svd = results.runs
    assert "loss" in dense.failure.message
    assert svd.failure.message.startswith("the dense training that it starts from failed: The loss is")


def test_a_full_disk_is_no_result(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("tenfold.train.loop.save_checkpoint", full)
    with pytest.raises(OSError, match="No space"):
        compare(experiment(tenfold.SVD(), recipe=_short()), tmp_path)
    assert unclaimed(tmp_path)
    assert not (tmp_path / "results").exists()


def test_another_experiment_is_refused_and_more_methods_are_not(tmp_path):
    small = experiment(tenfold.SVD(), recipe=_short())
    compare(small, tmp_path)
    for changes in ({"model": "resnet20"}, {"recipe": _short(lr=0.02)}, {"recovery": 0}, {"exclude": ["linear"]}):
        with pytest.raises(CheckpointError, match=next(iter(changes))):
            compare(experiment(tenfold.SVD(), **({"recipe": _short()} | changes)), tmp_path)
    for earlier in (True, False):  # files of older versions do not say that nothing was quantised
        if earlier:
            body = json.loads((tmp_path / "experiment.json").read_text())
            assert body.pop("int8") is None
            (tmp_path / "experiment.json").write_text(json.dumps(body))
        with pytest.raises(CheckpointError, match="int8"):
            compare(replace(small, int8="static"), tmp_path)
        compare(small, tmp_path)
    grown = compare(experiment(tenfold.SVD(), Broken(), recipe=_short()), tmp_path)
    assert [run.method for run in grown.runs] == ["dense", "svd", "broken"]


def test_what_cannot_be_had_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(DataError):
        compare(experiment(data=DataChoice("nothing")), tmp_path / "a")
    with pytest.raises(tenfold.TenfoldError, match="known network"):
        compare(experiment(model="nothing"), tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*tell enough")
def test_the_smoke_experiment_runs_with_every_method(tmp_path):
    chosen = read_experiment(ROOT / "experiments" / "smoke" / "config.yaml")
    assert {entry.method.name for entry in chosen.methods} == set(tenfold.list_methods())
    results = compare(chosen, tmp_path)
    assert {run.method for run in results.runs} == set(tenfold.list_methods())
    assert {run.id: run.failure for run in results.runs if run.failure} == {}
    budget = chosen.budgets[0]
    for run in results.runs[len(chosen.seeds) :]:
        assert run.price.params <= budget.allowed("params", run.price.dense_params), run.id
    body = json.loads((tmp_path / "results.json").read_text())
    assert body["expected"] == len(body["runs"]) == len(results.runs)


def _short(**changes):
    return tenfold.train.Recipe(**({"epochs": 2, "batch_size": 128, "lr": 0.05} | changes))


@pytest.mark.filterwarnings("ignore:.*tell enough")
def test_what_is_refitted_keeps_its_norms_and_is_measured_before_and_after(tmp_path):
    methods = (Entry(tenfold.SVD(), refit="both"), Entry(tenfold.Calibrated()))
    recipe = Recipe(epochs=2, batch_size=64, lr=0.05)
    found = compare(experiment(methods=methods, recipe=recipe, recovery=0, norms="auto"), tmp_path).runs
    runs = {run.label: run for run in found}
    svd, calibrated = runs["svd refit=both"], runs["calibrated"]
    assert svd.failure is None
    assert calibrated.failure is None
    assert svd.seconds["refit"] > 0
    for run in (svd, calibrated):
        assert run.price.kept["params"] <= 0.5
        dense = tenfold.load(tmp_path / "networks" / "dense-s0", model=tenfold.build_model("cnn", 10, 1, 8))
        small = tenfold.load(tmp_path / "networks" / run.id, model=tenfold.build_model("cnn", 10, 1, 8))
        norms = [name for name, module in dense.named_modules() if isinstance(module, torch.nn.BatchNorm2d)]
        assert norms
        assert all(torch.equal(small.get_submodule(n).running_var, dense.get_submodule(n).running_var) for n in norms)
    assert calibrated.accuracy.reestimated == calibrated.accuracy.right_after
    assert svd.accuracy.reestimated > svd.accuracy.right_after


def test_a_budget_on_latency_is_planned_under_the_conditions_that_results_are_timed_under(tmp_path, monkeypatch):
    made = []

    class Watch(CountingWatch):
        def network(self, key, make, inputs, beside=None):
            self.batch = len(inputs)
            return super().network(key, make, inputs, beside)

    def make(runtime, *, threads, memory_format, device):
        made.append((runtime, threads, Watch()))
        return made[-1][-1]

    def timed(small, example, *, batch, rounds, runtime):
        asked.append((batch, rounds, runtime))
        return Latency("cpu", batch, 1, 2.0, 1.0, 2.0, [2.0, 2.0], runtime, "", [])

    asked = []
    monkeypatch.setattr(within_latency, "stopwatch", make)
    monkeypatch.setattr(module_of_runs, "speed", timed)
    timing = LatencyProtocol(batch=3, rounds=3, runtime="onnxruntime")
    budget = tenfold.Budget(latency=0.6)
    settings = {"budgets": (budget,), "latency": timing, "recipe": Recipe(epochs=1, batch_size=64, lr=0.05)}
    runs = compare(experiment(tenfold.SVD(), tenfold.LRPET(), recovery=0, keep=False, **settings), tmp_path).runs
    dense, *small = runs
    assert [run.failure for run in small] == [None, None]
    assert {(runtime, threads) for runtime, threads, _ in made} == {("onnxruntime", torch.get_num_threads())}
    assert set(asked) == {(3, 3, "onnxruntime")}
    assert {watch.batch for *_, watch in made if watch.networks} == {3}
    assert {run.price.dense_macs for run in small} == {dense.price.dense_macs}


@pytest.mark.filterwarnings("ignore:.*tell enough")
def test_what_comes_out_is_quantised_where_the_experiment_says_so_the_dense_network_too(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    recipe, calibrated = Recipe(epochs=2, batch_size=64, lr=0.05, augment="crop"), []
    inner = module_of_runs.in_int8

    def watched(small, example, kind, data, *args, **kwargs):
        calibrated.append(data.recipe.augment)
        return inner(small, example, kind, data, *args, **kwargs)

    monkeypatch.setattr(module_of_runs, "in_int8", watched)
    chosen = experiment(tenfold.SVD(), recipe=recipe, recovery=0, int8="static", latency=LatencyProtocol(2, 3))
    runs = {run.method: run for run in compare(chosen, tmp_path).runs}
    test = load_data("digits").part(validation=40).test
    assert {run.failure for run in runs.values()} == {None}
    for run in runs.values():
        made = run.int8
        assert (made.kind, made.batch, made.threads) == ("static", 2, torch.get_num_threads())
        assert made.bytes < 0.5 * made.float_bytes
        assert made.float_speedup == pytest.approx(made.dense_ms / made.float_ms, rel=0.5)
        net = tenfold.load(tmp_path / "networks" / run.id, model=tenfold.build_model("cnn", 10, 1, 8))
        images = list(CalibrationBatches(load_data("digits").part(256, 40), replace(recipe, augment="none")))
        fast = tenfold.optimize_for_inference(net, torch.zeros(2, 1, 8, 8), runtime="onnxruntime")
        file = tmp_path / "again.onnx"
        export(fast, torch.zeros(2, 1, 8, 8), file, reference=net, int8="static", data=images)
        assert made.accuracy == evaluate(FileModel(file.read_bytes(), 1), test).accuracy
    assert calibrated == ["none", "none"]  # ranges are those of inference, which sees no crops
    assert runs["svd"].int8.float_bytes < 0.6 * runs["dense"].int8.float_bytes
    assert RunResult.read(tmp_path / "results" / "svd-params0.5-s0.json").int8 == runs["svd"].int8

    def missing():
        raise tenfold.TenfoldError("ONNX needs a package")

    monkeypatch.setattr(module, "onnx_runtime", missing)
    with pytest.raises(tenfold.TenfoldError, match="needs a package"):
        compare(chosen, tmp_path / "b")
    assert not (tmp_path / "b").exists()
    with pytest.raises(tenfold.TenfoldError, match="`int8`"):
        replace(chosen, int8="four")
