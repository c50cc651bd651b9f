"""A method and a data set of one's own, by reference, on every verb and in experiment files."""

import json

import pytest
from typer.testing import CliRunner

import tenfold as library
from tenfold.cli.app import app
from tenfold.methods import get_method

METHOD = '''
from dataclasses import dataclass
from typing import ClassVar
import torch
import tenfold
from tenfold.plans.plan import LayerPlan
from tenfold.train import make_data

@dataclass(frozen=True)
class Halve(tenfold.Method):
    """A share of the full rank everywhere.

    Args:
        divisor: of the full rank.
    """
    divisor: int = 2
    name: ClassVar[str] = "halve"
    needs_budget: ClassVar[bool] = False

    def choose(self, problem, budget):
        rows = [min(site.cost.shape[0], site.cost.shape[1]) for site in problem.sites]
        return problem.plan(self.name, [LayerPlan("low-rank", max(1, n // self.divisor), error=None) for n in rows])

class Nameless(tenfold.Method):
    def choose(self, problem, budget): ...

def sets():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 3
    x = torch.randn(60, 1, 8, 8, generator=generator) + y[:, None, None, None]
    return (x, y), (x[:30], y[:30])

def whole(): return make_data("anything", *sets())
def number(): return 3
'''
FAST = ("--epochs", 2, "--batch-size", 16)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("method") / "mine.py"
    path.write_text(METHOD)
    return path


@pytest.fixture(scope="module")
def run(file):
    """A training on the data set of the file."""
    words = ("train", "--data", f"{file}:whole", *FAST, "--out", file.with_name("a"), "--json")
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.stderr
    return file.with_name("a")


def refused(result, *words):
    assert result.exit_code == 1, result.output
    assert (result.stdout, result.stderr.count("\n")) == ("", 1)
    for word in words:
        assert word in result.stderr


@pytest.mark.parametrize("verb", ["plan", "compress"])
def test_a_method_of_ones_own_is_taken_by_every_verb_with_its_fields(tenfold, runs, file, verb):
    out = ("--out", runs / "c") if verb == "compress" else ()
    words = (verb, runs / "a", "--method", f"{file}:Halve", "--set", "divisor=4", *out, "--json")
    made = json.loads(tenfold(*words).stdout)
    assert made["method"] == {"method": f"{file}:Halve", "divisor": 4}
    assert {layer["rank"] for layer in made["plan"]["layers"].values()} == {1, 8, 16, 32, 2}


def test_it_trains_and_is_made_again_on_the_users_word(tenfold, file, tmp_path):
    words = ("train", "--data", f"{file}:sets", "--method", f"{file}:Halve", *FAST, "--out", tmp_path / "run", "--json")
    made = json.loads(tenfold(*words).stdout)
    assert [stage["stage"] for stage in made["stages"]] == ["trained", "compressed"]
    refused(
        tenfold("train", "--out", tmp_path / "run", "--resume"), "your word", "mine.py:Halve", "--data and --method"
    )
    assert tenfold("train", "--out", tmp_path / "run", "--resume", "--trust").exit_code == 0
    again = ("train", "--out", tmp_path / "run", "--resume", "--data", f"{file}:sets")
    assert tenfold(*again).exit_code == 0  # the file is vouched for
    assert tenfold("eval", tmp_path / "run", "--trust").exit_code == 0  # no method is made


def test_a_data_set_of_ones_own_is_opened_on_the_users_word(tenfold, run, file):
    record = json.loads((run / "run.json").read_text())
    assert record["data"]["name"] == f"{file}:whole"
    refused(tenfold("eval", run), "your word", "mine.py:whole", "--data")
    found = json.loads(tenfold("eval", run, "--trust", "--json").stdout)
    assert found["test"] == json.loads((run / "results.json").read_text())["stages"][0]["test"]
    refused(tenfold("eval", run, "--data", "digits"), "other contents")


def test_a_network_of_ones_own_takes_a_data_set_in_place_of_inputs_and_score(tenfold, run, file, tmp_path):
    weights = run / "model" / "model.safetensors"
    words = ("--model", "cnn", "--weights", weights, "--data", f"{file}:whole")
    found = json.loads(tenfold("eval", *words, "--json").stdout)
    assert found["test"] == json.loads((run / "results.json").read_text())["stages"][0]["test"]
    cut = ("--method", "pca", "--budget", "macs=0.6", "--finetune", 1, "--batch-size", 16, "--lr", 0.01)
    made = json.loads(tenfold("compress", *words, *cut, "--out", tmp_path / "b", "--json").stdout)
    assert made["stages"][0]["test"] == found["test"]
    assert made["stages"][-1]["stage"] == "recovered (1 epoch)"
    assert tenfold("eval", tmp_path / "b", "--trust").exit_code == 0


def test_it_is_compared_without_touching_the_package(tenfold, file, tmp_path):
    experiment = file.with_name("config.yaml")
    experiment.write_text(
        "name: mine\ndata: {name: 'mine.py:sets'}\nmodel: cnn\nmethods: [{method: 'mine.py:Halve', divisor: 4}]\n"
        "budgets: [{params: 0.5}]\nrecipe: {epochs: 2, batch_size: 16}\nrecovery: 1\nlatency: {rounds: 3}\n"
    )
    done = tenfold("compare", "--experiment", experiment, "--out", tmp_path / "x", "--json")
    assert done.exit_code == 0, done.stderr
    said = json.loads(done.stdout)["runs"]
    assert [run["method"] for run in said] == ["dense", "halve divisor=4"]
    words = (
        "--methods",
        f"{file}:Halve:divisor=4",
        "--data",
        f"{file}:sets",
        "--budgets",
        "0.5",
        "--recovery",
        1,
        *FAST,
    )
    typed = json.loads(tenfold("compare", *words, "--out", tmp_path / "y", "--json").stdout)["runs"]
    assert [(run["id"], run["test"]) for run in typed] == [(run["id"], run["test"]) for run in said]


def test_a_record_of_it_makes_it_again(file):
    made = get_method(f"{file}:Halve", divisor=3)
    assert isinstance(made, library.Method)
    from tenfold.methods.contract.own import record

    kept = json.loads(json.dumps(record(made)))
    assert get_method(kept.pop("method"), **kept) == made


@pytest.mark.parametrize(
    ("words", "first", "second"),
    [
        (("--method", "FILE:Half", "--budget", "params=0.5"), "`--method`", "Halve"),
        (("--method", "FILE:Nameless", "--budget", "params=0.5"), "`--method`", "`name`"),
        (("--method", "FILE:sets", "--budget", "params=0.5"), "`--method`", "tenfold.Method"),
        (("--method", "FILE:Halve", "--set", "divider=3"), "`divider`", "divisor"),
        (("--method", "FILE:Halve", "--set", "divisor=x"), "`--set divisor`", "an integer"),
        (("--method", "mine.py:Halve"), "`--method`", "no file"),
        (("--data", "FILE:number"), "`--data`", "returned int"),
        (("--data", "FILE:nothing"), "`--data`", "nothing"),
        (("--data", "FILE:sets", "--data-root", "/"), "`--data-root`", "takes no"),
    ],
)
def test_what_is_no_method_and_no_data_is_one_sentence(tenfold, file, tmp_path, monkeypatch, words, first, second):
    monkeypatch.chdir(tmp_path)
    given = [word.replace("FILE", str(file)) for word in words]
    refused(tenfold("train", "--epochs", 1, "--out", tmp_path / "run", *given), first, second)
    assert list(tmp_path.iterdir()) == []
