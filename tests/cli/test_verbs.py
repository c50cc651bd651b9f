"""Each verb does what it says, for people and as JSON."""

import json

import pytest
import torch

import tenfold as library
from tenfold.cli import bench
from tenfold.errors import TenfoldError
from tenfold.methods import list_methods
from tenfold.train import evaluate, load_data

VERBS = ("train", "compress", "plan", "eval", "bench", "doctor", "export", "methods")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_and_has_the_shared_options(tenfold, verb, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    result = tenfold(verb, "--help")
    assert result.exit_code == 0
    for word in ("--json", "--seed", "--debug", "Examples:", f"tenfold {verb}"):
        assert word in result.stdout


def test_without_a_verb_the_verbs_are_listed(tenfold):
    assert all(verb in tenfold("--help").stdout for verb in VERBS)
    assert tenfold("--version").stdout.startswith("tenfold ")


def test_train_writes_a_whole_run(runs, train_json):
    assert {p.name for p in (runs / "a").iterdir()} == {"run.json", "results.json", "model", "checkpoint"}
    assert json.loads((runs / "a" / "results.json").read_text()) == train_json
    assert [epoch["epoch"] for epoch in train_json["history"]] == [1, 2]
    assert [stage["stage"] for stage in train_json["stages"]] == ["trained"]
    assert train_json["recipe"]["batch_size"] == 64
    assert "small" in train_json["probe"]["reason"]  # nothing measured, so that this run can be had again
    recorded = json.loads((runs / "a" / "run.json").read_text())["recipe"]
    assert (recorded["precision"], recorded["memory_format"]) == ("no", "contiguous")


def test_compress_shows_every_stage_and_keeps_to_the_budget(runs, train_json, compress_json):
    stages = compress_json["stages"]
    assert [s["stage"] for s in stages] == [
        "before",
        "right after compression",
        "batch norm re-estimated",
        "recovered (1 epoch)",
    ]
    assert stages[0]["validation"] == train_json["stages"][0]["validation"]  # the saved model is the trained one
    assert compress_json["cost"]["share"]["params"] <= 0.4
    assert compress_json["cost"]["dense"] == train_json["cost"]["dense"]
    assert {p.name for p in (runs / "b").iterdir()} == {"run.json", "results.json", "model"}


def test_recovery_goes_at_the_rates_of_the_last_epochs(train_json, compress_json):
    assert [e["lr"] for e in compress_json["history"]] == [train_json["history"][-1]["lr"]]


def test_a_saved_run_is_a_saved_model(runs, compress_json):
    data = load_data("digits")
    small = library.load(runs / "b" / "model", model=library.build_model("cnn", 10, 1, 8))
    assert evaluate(small, data.test).accuracy == compress_json["stages"][-1]["test"]["accuracy"]
    assert library.cost(small).params == compress_json["cost"]["kept"]["params"]


def test_eval_finds_the_recorded_figures_again(tenfold, runs, compress_json):
    result = tenfold("eval", runs / "b", "--json")
    found = json.loads(result.stdout)
    assert found["test"] == pytest.approx(compress_json["stages"][-1]["test"])
    assert found["cost"] == compress_json["cost"]
    assert "Test" in tenfold("eval", runs / "b").stdout


def test_plan_is_a_dry_run_of_compress(tenfold, runs, files, compress_json):
    before = files(runs)
    words = ("plan", runs / "a", "--method", "svd", "--budget", "params=0.4")
    assert json.loads(tenfold(*words, "--json").stdout)["plan"] == compress_json["plan"]
    table = tenfold(*words).stdout
    for word in ("Layer", "Kernel", "Becomes", "Rank", "Slices", "Params", "MACs", "Error", "conv3", "64×64×3×3"):
        assert word in table
    assert files(runs) == before


def test_plan_says_why_a_layer_stays_dense(tenfold, runs):
    table = tenfold("plan", runs / "a", "--budget", "params=0.5", "--exclude", "conv[12]").stdout
    assert "in exclude_modules: conv1, conv2" in table


def test_several_budgets_and_absolute_numbers_hold_at_once(tenfold, runs):
    words = ("plan", runs / "a", "--budget", "params=100_000", "--budget", "macs=0.5", "--json")
    cost = json.loads(tenfold(*words).stdout)["cost"]
    assert cost["kept"]["params"] <= 100_000
    assert cost["share"]["macs"] <= 0.5


def test_a_compressed_run_can_be_compressed_again(tenfold, runs):
    words = ("--method", "svd", "--set", "fold=spatial", "--budget", "params=0.3", "--out", runs / "c", "--json")
    again = json.loads(tenfold("compress", runs / "b", *words).stdout)
    assert again["cost"]["share"]["params"] <= 0.3  # of the dense network, not of the compressed one
    assert {layer["fold"] for layer in again["plan"]["layers"].values()} <= {"spatial", None}
    assert tenfold("eval", runs / "c").exit_code == 0


def test_bench_sets_the_measured_beside_the_promised(tenfold, runs):
    sizes = ("--batch-size", 1, "--batch-size", 4)
    words = ("bench", runs / "b", *sizes, "--rounds", 3, "--threads", 1, "--runtime", "eager")
    found = json.loads(tenfold(*words, "--json").stdout)
    assert [row["batch"] for row in found["latency"]] == [1, 4] == [row["batch"] for row in found["best"]]
    assert {row["small_form"]["memory_format"] for row in found["latency"]} <= {"contiguous", "channels_last"}
    assert all(row["dense_ms"] > 0 and row["small_ms"] > 0 and row["speedup"] > 0 for row in found["latency"])
    share = found["cost"]["share"]["macs"]
    assert found["predicted_speedup"] == pytest.approx(1 / share)
    assert "Speed-up" in tenfold(*words).stdout


def test_bench_measures_in_every_runtime_that_is_named_and_sets_best_beside_best(tenfold, runs):
    pytest.importorskip("onnxruntime")
    words = ("bench", runs / "b", "--batch-size", 2, "--rounds", 3, "--runtime", "onnxruntime, eager")
    found = json.loads(tenfold(*words, "--json").stdout)
    assert [row["small_form"]["runtime"] for row in found["latency"]] == ["onnxruntime", "eager"]
    best = found["best"][0]
    assert best["dense_ms"] == min(row["dense_ms"] for row in found["latency"])
    assert best["small_ms"] == min(row["small_ms"] for row in found["latency"])
    assert "best: " in tenfold("bench", runs / "b", "--batch-size", 2, "--rounds", 3).stdout  # both are at hand
    refused = tenfold("bench", runs / "b", "--runtime", "fast")
    assert refused.exit_code != 0
    assert "`--runtime` must be one of eager, compile, onnxruntime" in refused.stderr


def test_bench_does_without_a_runtime_that_nobody_asked_for(tenfold, runs, monkeypatch):
    pytest.importorskip("onnxruntime")
    real = bench.benchmark

    def without(*given, runtimes, **options):
        if "onnxruntime" in runtimes:
            raise TenfoldError("the model cannot be exported")
        return real(*given, runtimes=runtimes, **options)

    monkeypatch.setattr(bench, "benchmark", without)
    words = ("bench", runs / "b", "--batch-size", 1, "--batch-size", 2, "--rounds", 3)
    shown = tenfold(*words).stdout
    assert shown.count("Not measured in onnxruntime: the model cannot be exported") == 1
    assert shown.count("eager") >= 2
    assert tenfold(*words, "--runtime", "onnxruntime").exit_code != 0


def test_methods_lists_every_method_and_field(tenfold):
    found = json.loads(tenfold("methods", "--json").stdout)["methods"]
    assert set(found) == set(list_methods())
    measure = next(f for f in found["alds"]["fields"] if f["name"] == "measure")
    assert measure["default"] == "'max'"
    assert all(f["doc"] for method in found.values() for f in method["fields"])
    assert all(method["about"] for method in found.values())
    assert "measure" in tenfold("methods").stdout


@pytest.mark.parametrize("verb", [("eval", "b"), ("plan", "a", "--method", "alds", "--budget", "params=0.5")])
def test_json_is_alone_on_standard_output(tenfold, runs, verb):
    name, run, *rest = verb
    result = tenfold(name, runs / run, *rest, "--json")
    assert isinstance(json.loads(result.stdout), dict)
    assert result.stderr == ""


def test_the_seed_decides_a_training(tenfold, tmp_path):
    words = ("train", "--epochs", 1, "--json", "--out")
    one, two, other = (
        json.loads(tenfold(*words, tmp_path / name, "--seed", seed).stdout)["history"][0]["loss"]
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert one == two != other


def test_a_users_own_network_is_found_by_its_path(tenfold, tmp_path, monkeypatch):
    (tmp_path / "own_network.py").write_text(
        "from torch import nn\n"
        "def make(classes, size):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(size * size, 40), nn.ReLU(), nn.Linear(40, classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    words = ("--model", "own_network:make", "--epochs", 1, "--method", "svd", "--budget", "params=0.5", "--json")
    made = json.loads(tenfold("train", *words, "--out", tmp_path / "run").stdout)
    assert [s["stage"] for s in made["stages"]] == ["trained", "compressed"]
    assert made["cost"]["share"]["params"] <= 0.5
    again = tenfold(
        "compress", tmp_path / "run", "--trust", "--budget", "params=0.3", "--out", tmp_path / "b", "--json"
    )
    stages = [s["stage"] for s in json.loads(again.stdout)["stages"]]
    assert stages == ["before", "right after compression"]  # it has no batch norm


def test_a_dense_run_is_saved_as_it_was_trained(runs):
    saved = library.load(runs / "a" / "model", model=library.build_model("cnn", 10, 1, 8)).state_dict()
    from safetensors.torch import load_file

    trained = load_file(runs / "a" / "checkpoint" / "model.safetensors")
    assert all(torch.equal(trained[name], saved[name]) for name in trained)
