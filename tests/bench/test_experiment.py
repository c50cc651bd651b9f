"""Experiments as data: what a file says, and what is said to a file that says something wrong."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

import tenfold
from tenfold.bench.compare.experiment import AFTER, ALL, DENSE, DURING, DataChoice, Entry, Experiment
from tenfold.bench.compare.read_yaml import read_experiment
from tenfold.errors import ArgumentError
from tenfold.train import Recipe, data_names, model_names
from tenfold.train.schedule import make_schedule

EXPERIMENTS = Path(__file__).parents[2] / "experiments"

TEXT = """
data: {name: digits, examples: 100}
model: cnn
methods:
  - alds
  - {method: alds, measure: fro, slices: [1, 2]}
  - {method: lrpet, after: true}
  - {method: trp, energy: 0.9, every: 5}
budgets:
  - {params: 0.5}
  - {params: 70000, macs: 0.4}
seeds: [0, 3]
recipe: {epochs: 10, lr: 5e-2, weight_decay: 1e-4, schedule: multistep, milestones: [5, 8]}
recovery: 2
exclude: [linear]
"""


@pytest.fixture
def read(tmp_path):
    """An experiment from a text."""

    def from_text(text):
        (tmp_path / "mine").mkdir(exist_ok=True)
        file = tmp_path / "mine" / "config.yaml"
        file.write_text(text)
        return read_experiment(file)

    return from_text


def test_a_file_means_what_it_says(read):
    found = read(TEXT)
    assert found.name == "mine"
    assert found.data == DataChoice("digits", None, 100)
    assert [entry.method for entry in found.methods] == [
        tenfold.ALDS(),
        tenfold.ALDS(measure="fro", slices=(1, 2)),
        tenfold.LRPET(),
        tenfold.TRP(energy=0.9, every=5),
    ]
    assert [entry.kind for entry in found.methods] == [AFTER, AFTER, AFTER, DURING]
    assert found.budgets == (tenfold.Budget(params=0.5), tenfold.Budget(params=70000, macs=0.4))
    assert (found.seeds, found.recovery, found.exclude) == ((0, 3), 2, ["linear"])
    assert found.recipe == Recipe(epochs=10, lr=0.05, weight_decay=1e-4, schedule="multistep", milestones=(5, 8))


def test_it_goes_through_json(read):
    found = read(TEXT)
    assert Experiment.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_rows_are_all_combinations_dense_first_and_their_names_are_fit_for_files(read):
    rows = read(TEXT).rows
    assert len(rows) == 2 + 4 * 2 * 2
    assert [row.id for row in rows][:4] == ["dense-s0", "dense-s3", "alds-params0.5-s0", "alds-params0.5-s3"]
    assert "trp-every=5-energy=0.9-params70000-macs0.4-s3" in {row.id for row in rows}
    assert len({row.id for row in rows}) == len(rows)
    assert all(set(row.id) <= set("abcdefghijklmnopqrstuvwxyz0123456789=.-_") for row in rows)
    long = tenfold.TRP(ranks={f"layer{i}": i + 1 for i in range(100)})
    names = {Entry(long).label, Entry(tenfold.TRP(ranks={"a": 1})).label}
    assert len(names) == 2
    found = read(TEXT)
    grown = Experiment.from_dict(found.to_dict() | {"methods": [{"method": "trp", "ranks": dict(long.ranks)}]})
    assert max(len(row.id) for row in grown.rows) < 150


def test_methods_are_told_apart_by_what_they_do_while_a_network_trains():
    kinds = {name: Entry(method()).kind for name, method in tenfold.list_methods().items()}
    assert kinds["dense"] == DENSE
    assert {kinds[name] for name in ("alds", "svd", "pca", "vbmf", "fisher-svd")} == {AFTER}
    assert {kinds[name] for name in ("trp", "lrpet", "l-rank")} == {DURING}
    assert Entry(tenfold.TRP(), after=True).kind == AFTER


def test_all_means_every_method_there_is(read):
    found = read(TEXT.replace(TEXT[TEXT.index("methods:") : TEXT.index("budgets:")], f"methods: {ALL}\n"))
    assert [entry.method.name for entry in found.methods] == sorted(tenfold.list_methods())
    assert sum(row.entry.method.name == "dense" for row in found.rows) == len(found.seeds)


def test_epochs_are_the_same_for_all_and_schedules_reach_their_ends(read):
    found = read(TEXT)
    whole, short, end = found.whole(3), found.shortened(3), found.recovering(3)
    assert short.epochs + end.epochs == whole.epochs == 10
    assert {whole.seed, short.seed, end.seed} == {3}
    assert short.milestones == (4.0, 6.4)  # 5 and 8 of 10 epochs, in 8
    shape = make_schedule("multistep", 10, warmup=0, milestones=(5, 8), gamma=0.1)
    for t in (0.1, 1.0, 1.9):
        assert math.isclose(end.factor()(t), shape(8 + t))
    for t in (1, 3.9, 4.1, 6.3, 6.5, 7.9):
        assert math.isclose(short.factor()(t), shape(t * 10 / 8))
    assert found.epochs == 2 * 8 + 2 * 10 + 3 * 2 * 2 * 2 + 2 * 2 * 10


def test_only_the_recovery_is_taught():
    found = Experiment("x", DataChoice("digits"), "cnn", (Entry(tenfold.SVD()),), (tenfold.Budget(params=0.5),),
                       recipe=Recipe(epochs=4, distill=0.5), recovery=1)  # fmt: skip
    assert (found.whole(0).distill, found.shortened(0).distill, found.recovering(0).distill) == (0, 0, 0.5)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("recovery: 2", "recovery: 10", "`recovery:` must be below the 10 epochs"),
        ("recovery: 2", "recovery: -1", "`recovery:`"),
        ("recovery: 2", "recoverey: 2", "recoverey"),
        ("recovery: 2", "recovery: two", "`recovery:` must be of type int"),
        ("recovery: 2", "recovery: 2\nrecovery: 3", "'recovery' twice"),
        ("lr: 5e-2", "lr: -1", "`lr:` must be > 0"),
        ("lr: 5e-2", "lr: fast", "`lr:` must be of type float"),
        ("lr: 5e-2", "learning_rate: 0.1", "learning_rate"),
        ("lr: 5e-2", "seed: 3", "`seeds:`"),
        ("lr: 5e-2", "total: 30", "`total:`"),
        ("epochs: 10", "epochs: 1.5", "epochs"),
        ("recipe: {", "recipe: [", "YAML"),
        ("recipe: {", "recipe: 3 #", "`recipe:` must be a mapping"),
        ("- alds", "- aldss", "Did you mean 'alds'"),
        ("- alds", "- {measure: fro}", "mappings"),
        ("- alds", "- {method: alds, measure: fro, slices: [1, 2]}", "different from one another"),
        ("measure: fro", "mesure: fro", "`mesure:` is no field of alds"),
        ("measure: fro", "measure: l2", "measure"),
        ("after: true", "after: 1", "`after:` must be true or false"),
        ("energy: 0.9", "energy: high", "`energy:`"),
        ("{params: 0.5}", "{params: 1.5}", "`params:` must be a fraction"),
        ("{params: 0.5}", "{parms: 0.5}", "parms"),
        ("{params: 0.5}", "0.5", "each of `budgets:` must be a mapping with keys among params"),
        ("{params: 0.5}", "{params: 0.5}\n  - {params: 0.5}", "`budgets:` must be different"),
        ("seeds: [0, 3]", "seeds: []", "`seeds:` must be a list with at least one entry"),
        ("seeds: [0, 3]", "seeds: 3", "`seeds:` must be a list"),
        ("seeds: [0, 3]", "seeds: [0, 0]", "`seeds:` must be different"),
        ("seeds: [0, 3]", "seeds: [-1]", "`seeds:`"),
        ("seeds: [0, 3]", "seeds: [a]", "`seeds:` must be of type"),
        ("examples: 100", "examples: 0", "`examples:`"),
        ("examples: 100", "validation: 0", "`validation:`"),
        ("model: cnn", "", "lacks fields: model"),
        ("model: cnn", "model: 3", "`model:`"),
        ("model: cnn", "model: cnn\nthreads: 0", "`threads:`"),
        ("model: cnn", "model: cnn\nlatency: {rounds: 1}", "`rounds:`"),
    ],
)
def test_a_mistake_is_named_with_the_file_and_the_key(read, old, new, named):
    assert old in TEXT
    with pytest.raises(ArgumentError) as refused:
        read(TEXT.replace(old, new, 1))
    assert named in str(refused.value)
    assert "config.yaml" in str(refused.value)


def test_what_is_no_file_of_keys_is_refused(read, tmp_path):
    with pytest.raises(ArgumentError, match=r"none\.yaml"):
        read_experiment(tmp_path / "none.yaml")
    for text in ("", "- a\n- b\n", "just words"):
        with pytest.raises(ArgumentError, match="keys and values"):
            read(text)


_BASE = "model: cnn\ndata: digits\nmethods: [alds]\n"


def test_a_merge_key_takes_over_what_its_anchor_has(read):
    found = read(_BASE + "budgets: [&half {params: 0.5}, {<<: *half, macs: 0.4}, {<<: *half, params: 0.3}]\n")
    assert [(b.params, b.macs) for b in found.budgets] == [(0.5, None), (0.5, 0.4), (0.3, None)]


@pytest.mark.parametrize(
    "lines",
    [
        "budgets: [{params: 0,25}]",
        "budgets: [{params: 0.5}]\nrecipe: {5: 1}",
        "budgets: [{params: 0.5}]\nyes: 1",
        "budgets: [{params: 0.5}]\n~: 1",
        "budgets: [{params: 0.5}]\n2024-05-01: 1",
        "budgets: [{params: 0.5}]\n[a]: 1",
    ],
)
def test_a_key_that_is_no_text_is_refused_with_its_line(read, lines):
    with pytest.raises(ArgumentError, match=r"keys must be text.*line \d"):
        read(_BASE + lines)


@pytest.mark.parametrize(
    "file", sorted(EXPERIMENTS.glob("*/*.yaml")), ids=lambda file: f"{file.parent.name}-{file.stem}"
)
def test_experiments_that_come_with_the_project_can_be_read(file):
    found = read_experiment(file)
    assert found.model in model_names()
    assert found.data.name in data_names()
    assert f"tenfold compare --experiment experiments/{file.parent.name}/{file.name}" in file.read_text()


def test_a_method_may_have_a_learning_rate_of_its_own_and_everything_else_is_the_same_for_all() -> None:
    own = {"lr": 0.5, "weight_decay": 0.0}
    body = {"name": "x", "data": "digits", "model": "cnn", "budgets": [{"params": 0.5}]}
    body |= {"methods": [{"method": "sfw", "recipe": own}, "sfw", "svd"]}
    made = Experiment.from_dict(body)
    first, second, _ = made.methods
    assert first.label == "sfw lr=0.5 weight_decay=0"
    assert made.whole(3, first) == replace(made.recipe, lr=0.5, weight_decay=0.0, seed=3)
    assert made.whole(3, second) == made.whole(3) == replace(made.recipe, seed=3)
    assert Experiment.from_dict(made.to_dict()) == made
    for bad, why in (
        ({"method": "sfw", "recipe": {"epochs": 9}}, "keys of a method's own.*epochs"),
        ({"method": "sfw", "recipe": {"lr": -1.0}}, "`lr` must be > 0"),
        ({"method": "sfw", "recipe": 0.1}, "must be a mapping"),
        ({"method": "svd", "recipe": {"lr": 0.5}}, "left out for what is compressed after"),
        ({"method": "sfw", "after": True, "recipe": {"lr": 0.5}}, "left out for what is compressed after"),
    ):
        with pytest.raises(tenfold.ArgumentError, match=why):
            Experiment.from_dict(body | {"methods": [bad]})


def test_what_is_published_does_not_say_where_the_data_were() -> None:
    body = {"name": "x", "data": {"name": "digits", "root": "/home/me"}, "model": "cnn", "methods": ["svd"]}
    made = Experiment.from_dict(body | {"budgets": [{"params": 0.5}]})
    assert made.data.root == "/home/me"
    assert "/home/me" not in json.dumps(made.to_dict())
    assert Experiment.from_dict(made.to_dict()) == replace(made, data=DataChoice("digits"))


@pytest.mark.parametrize("wrong", ["kept", 1, True, ["keep"], None])
def test_a_word_is_one_of_those_that_its_field_takes(read, wrong):
    for word in ("auto", "keep", "reestimate"):
        assert read(f"{TEXT}norms: {word}\n").norms == word
    with pytest.raises(ArgumentError, match=r"`norms:?`.* must be one of 'auto', 'keep', 'reestimate'; got"):
        read(f"{TEXT}norms: {json.dumps(wrong)}\n")


def test_an_entry_may_be_refitted_and_is_another_than_without(read):
    text = TEXT.replace("  - alds\n", "  - alds\n  - {method: alds, refit: both}\n")
    found = read(text)
    assert [entry.refit for entry in found.methods[:2]] == [None, "both"]
    assert found.methods[1].label == "alds refit=both"
    assert Experiment.from_dict(found.to_dict()).methods == found.methods
    with pytest.raises(ArgumentError, match=r"`refit:?` must be 'last', 'both' or None; got 'first'"):
        read(text.replace("refit: both", "refit: first"))


def test_all_runs_have_one_precision_and_each_may_have_the_memory_format_that_it_is_fast_in():
    body = {"name": "x", "data": "digits", "model": "cnn", "methods": ["svd"], "budgets": [{"params": 0.5}]}
    assert Experiment.from_dict(body).recipe.left_open == []
    left = Experiment.from_dict(body | {"recipe": {"memory_format": "auto"}})
    assert left.whole(0).left_open == left.shortened(0).left_open == ["memory_format"]
    with pytest.raises(ArgumentError, match="`precision` must be no, bf16 or fp16: one for all runs"):
        Experiment.from_dict(body | {"recipe": {"precision": "auto"}})
