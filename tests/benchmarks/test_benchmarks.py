import importlib
import json
import types

import pytest
import torch

import tenfold
from nets import conv_chain

nets = importlib.import_module("benchmarks.nets")
record = importlib.import_module("benchmarks.record")
reference = importlib.import_module("benchmarks.reference")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return conv_chain(4, 12, 8, size=6, classes=10).eval()


@pytest.mark.parametrize("kept", [0.4, 0.6, 0.8])
def test_the_reference_solves_the_same_problem(model, kept):
    budget = tenfold.Budget(params=kept)
    level, layers = reference.compress(model, budget)
    plan = tenfold.plan(model, tenfold.ALDS(), budget)
    assert level == pytest.approx(plan.level, rel=1e-5)
    small = tenfold.apply(model, plan)
    assert {n for n, layer in plan.layers.items() if layer.decomposition != "dense"} == set(layers)
    for name, layer in layers.items():
        torch.testing.assert_close(layer.weight, small.get_submodule(name).weight, rtol=0, atol=1e-5)


def test_a_failing_case_is_recorded_and_the_others_run(tmp_path):
    def fails():
        raise ValueError("no such net")

    fake = types.SimpleNamespace(
        SETTINGS={"seed": 0}, cases=lambda: [("a", fails), ("b", lambda: {"value": 1})], line=lambda result: "done"
    )
    written = json.loads(record.record("fake", fake, tmp_path).read_text())
    assert written["results"] == [{"case": "b", "value": 1}]
    assert [f["case"] for f in written["failures"]] == ["a"]
    assert "no such net" in written["failures"][0]["error"]
    assert {"commit", "dirty", "cpu", "cores", "threads"} <= set(written["place"])
    assert {"tenfold", "torch", "numpy", "scipy"} <= set(written["place"]["versions"])
    assert written["place"]["device"] == "cpu"
    assert written["date"]


def test_more_keeps_rows_and_says_which_came_later(tmp_path):
    def fake(*names, seed=0):
        cases = [(name, lambda name=name: {"value": len(ran), "ran": ran.append(name)}) for name in names]
        return types.SimpleNamespace(SETTINGS={"seed": seed}, cases=lambda: cases, line=lambda result: "done")

    ran = []
    record.record("fake", fake("a", "b"), tmp_path)
    written = json.loads(record.record("fake", fake("a", "b", "c"), tmp_path, more=True).read_text())
    assert ran == ["a", "b", "c"]
    assert [row["case"] for row in written["results"]] == ["a", "b", "c"]
    assert [part["cases"] for part in written["later"]] == [["c"]]
    assert written["later"][0]["place"].keys() == written["place"].keys()
    with pytest.raises(ValueError, match="other settings"):
        record.record("fake", fake("a", seed=1), tmp_path, more=True)


def test_weights_have_the_spectrum_that_is_said(model):
    torch.manual_seed(1)
    weight = torch.randn(16, 8, 3, 3)
    before = weight.norm()
    nets._set_spectrum_(weight, torch.Generator().manual_seed(0))
    s = torch.linalg.svdvals(weight.flatten(1).double())
    rank = torch.arange(1, 17).log().double()
    slope = -(s / s[0]).log()[1:] / rank[1:]
    torch.testing.assert_close(slope, slope[:1].expand(15), rtol=1e-4, atol=0)
    assert 0.5 <= slope[0] <= 1
    torch.testing.assert_close(weight.norm(), before)
