"""Cuts of a comparison: each is the sweep of the network as its training left it; experiments without budgets."""

import json
import math

import pytest
from compare_stubs import experiment

import tenfold
from tenfold.bench.compare.cuts import Cuts
from tenfold.bench.compare.experiment import Experiment
from tenfold.bench.compare.results import Results
from tenfold.bench.compare.scheduler import compare
from tenfold.errors import ArgumentError, CheckpointError
from tenfold.train import Recipe, batches, load_data
from tenfold.train.calibration import CalibrationBatches

REMOVE = (0.0, 0.4, 0.8)
SHORT = Recipe(epochs=2, batch_size=64, lr=0.05)
BODY = {"name": "x", "data": "digits", "model": "cnn", "methods": ["sfw"]}


def cut_experiment(*methods, **changes):
    given = {"recipe": SHORT, "recovery": 0, "budgets": (), "cuts": (Cuts("rank", REMOVE, exclude=["linear"]),)}
    return experiment(*methods, **(given | changes))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A comparison with cuts of methods of every kind; and its folder."""
    folder = tmp_path_factory.mktemp("cuts")
    budget = (tenfold.Budget(params=0.5),)
    compare(cut_experiment(tenfold.SVD(), tenfold.TRP(every=2), tenfold.Factors(), budgets=budget), folder)
    return folder, {run.method: run for run in Results.read(folder / "results.json").runs}


def test_the_cuts_of_a_run_are_the_sweep_of_its_network(done):
    folder, runs = done
    data = load_data("digits").part(256, 40)
    net = tenfold.load(folder / "networks" / runs["dense"].id, model=tenfold.build_model("cnn", 10, 1, 8))
    loader, seen = list(batches(data.validation, 40)), CalibrationBatches(data, SHORT)
    alone = tenfold.sweep(
        net, tenfold.RankCut(exclude_modules=["linear"]), REMOVE, loader, data=seen, example_inputs=loader[0][0][:1]
    )
    (curve,) = runs["dense"].cuts
    assert curve.kind == "rank"
    assert [(row.removed, row.params, row.macs) for row in curve.rows] == [(r.removed, r.params, r.macs) for r in alone]
    for row, same in zip(curve.rows, alone, strict=True):
        assert row.right_after == same.right_after
        assert math.isclose(row.reestimated, same.reestimated, abs_tol=1 / 40)  # sums of the statistics are rounded
    assert len({row.params for row in alone}) == 3


def test_every_trained_network_is_cut_whole_and_what_is_compressed_afterwards_is_not(done):
    _, runs = done
    assert runs["svd"].cuts == []
    for method in ("dense", "trp", "factors"):
        run = runs[method]
        nothing = run.cuts[0].rows[0]
        assert nothing.removed == 0.0
        assert (nothing.params, nothing.macs) == (run.price.dense_params, run.price.dense_macs)
        assert nothing.right_after == run.accuracy.before
        assert nothing.failure is None
        assert [row.params for row in run.cuts[0].rows] == [row.params for row in runs["dense"].cuts[0].rows]
    assert runs["trp"].price.kept["params"] <= 0.5


def test_without_budgets_methods_choose_for_themselves(tmp_path):
    results = compare(cut_experiment(tenfold.SFW(width=10.0), tenfold.TDLRT(tau=0.3, every=2), cuts=()), tmp_path)
    assert [run.budget for run in results.runs] == [{}, {}, {}]
    assert [run.id.split("-")[0] for run in results.runs] == ["dense", "sfw", "tdlrt"]
    assert {run.id: run.failure for run in results.runs if run.failure} == {}
    assert results.runs[2].price.kept["params"] < 1
    assert all(run.cuts == [] for run in results.runs)


def test_filters_are_cut_too_of_factors_as_well(tmp_path):
    pytest.importorskip("torch_pruning")
    cuts = (Cuts("filter", (0.5,)), Cuts("rank", (0.5,)))
    budgets = (tenfold.Budget(params=0.5),)
    runs = compare(cut_experiment(tenfold.Factors(), budgets=budgets, cuts=cuts), tmp_path).runs
    assert [run.method for run in runs] == ["dense", "factors"]
    for run in runs:
        assert [curve.kind for curve in run.cuts] == ["filter", "rank"]
        assert [curve.rows[0].failure for curve in run.cuts] == [None, None]
        assert all(curve.rows[0].params < run.price.dense_params for curve in run.cuts)


def test_a_folder_without_cuts_is_not_gone_on_with_for_some(tmp_path):
    plain = cut_experiment(tenfold.Dense(), cuts=())
    compare(plain, tmp_path)
    file = tmp_path / "experiment.json"
    body = json.loads(file.read_text())
    for saved in (body, {key: value for key, value in body.items() if key != "cuts"}):  # of today, of before
        file.write_text(json.dumps(saved))
        with pytest.raises(CheckpointError, match="`cuts`"):
            compare(cut_experiment(tenfold.Dense()), tmp_path)
        assert len(compare(plain, tmp_path).runs) == 1


def test_cuts_are_read_from_one_mapping_or_several():
    one = Experiment.from_dict(BODY | {"cuts": {"kind": "rank", "remove": [0, 0.5]}})
    assert one.cuts == (Cuts("rank", (0, 0.5)),)
    several = [{"kind": "rank", "remove": [0.5], "exclude": ["linear"]}, {"kind": "filter", "remove": [0.2, 0.4]}]
    made = Experiment.from_dict(BODY | {"cuts": several})
    assert made.cuts == (Cuts("rank", (0.5,), exclude=["linear"]), Cuts("filter", (0.2, 0.4)))
    assert Experiment.from_dict(json.loads(json.dumps(made.to_dict()))) == made


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"cuts": {"kind": "weight", "remove": [0.5]}}, "`kind` must be one of rank, filter; got 'weight'"),
        ({"cuts": {"kind": "rank", "remove": []}}, "`remove` must be a list with at least one share"),
        ({"cuts": {"kind": "rank", "remove": [1.0]}}, r"`remove` must be numbers in \[0, 1\)"),
        ({"cuts": {"kind": "rank", "remove": [0.5, 0.5]}}, "`remove` must be different"),
        ({"cuts": {"kind": "rank", "remove": 0.5}}, "`remove` must be of type"),
        ({"cuts": {"kind": "rank", "keep": [0.5]}}, "unknown fields: keep"),
        ({"cuts": [{"kind": "rank", "remove": [0.5]}, {"kind": "rank", "remove": [0.2]}]}, "`cuts` must be of differ"),
        ({"cuts": "rank"}, "`cuts` must be a list"),
        ({"methods": ["svd"]}, "`budgets` must be a list with at least one entry for svd"),
    ],
)
def test_a_mistake_in_cuts_is_named(changes, why):
    with pytest.raises(ArgumentError, match=why):
        Experiment.from_dict(BODY | changes)
