"""Every result says where it was made: by which code, on what, with what. No file that is committed leaves it out."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from result_stubs import synthetic

import tenfold
from tenfold.bench.environment import place
from tenfold.cli import runs

ROOT = Path(__file__).parents[2]
COMMITTED = sorted([*ROOT.glob("experiments/*/results/*.json"), *ROOT.glob("benchmarks/results/*.json")])
IGNORED = "experiment.json"
"""What a comparison leaves beside its results; git ignores it."""
OLDER = {
    "experiments/first-path/results/0-dense.json",
    "experiments/first-path/results/1-alds-25.json",
    "experiments/first-path/results/2-svd-25.json",
    "experiments/post-training/results/cifar10-jpeg-resnet20.json",
    "experiments/post-training/results/fashion-resnet20.json",
    "experiments/pretrained/results/pretrained.json",
    "experiments/projection/results/cifar10-jpeg-resnet20.json",
    "experiments/projection/results/fashion-resnet20.json",
    "experiments/proxies/results/small-nets.json",
    "experiments/sfw/results/cifar.json",
    "experiments/sfw/results/digits-rescaling.json",
    "experiments/sfw/results/digits.json",
    "experiments/sfw/results/fashion.json",
    "experiments/tdlrt/results/compression.json",
    "experiments/tdlrt/results/conditioning.json",
}
"""Files that are older than the rule. What they do not say is null, ``recorded`` says why, and ``added_in`` is the
commit that the file came with, later than the code that made it. The list only gets shorter."""
FACTS = {
    "commit": lambda v: isinstance(v, str) and re.fullmatch(r"[0-9a-f]{40}", v) is not None,
    "dirty": lambda v: isinstance(v, bool),
    "cpu": lambda v: isinstance(v, str) and v != "",
    "threads": lambda v: isinstance(v, int) and v >= 1,
    "versions": lambda v: isinstance(v, dict) and {"python", "torch", "tenfold"} <= set(v),
}


def places(body):
    """Of a file: its own, or that of each of its runs."""
    return [run.get("place", {}) for run in body["runs"]] if "runs" in body else [body.get("place", {})]


def unsaid(body):
    """The facts that a result file does not say, or not for all its runs."""
    return {fact for where in places(body) for fact, good in FACTS.items() if not good(where.get(fact))}


def committed():
    return {str(file.relative_to(ROOT)): file for file in COMMITTED if file.name != IGNORED}


@pytest.mark.parametrize("name", sorted(set(committed()) - OLDER))
def test_every_committed_result_says_where_it_was_made(name):
    assert unsaid(json.loads(committed()[name].read_text(encoding="utf-8"))) == set()


@pytest.mark.parametrize("name", sorted(OLDER))
def test_results_older_than_the_rule_say_that_and_nothing_that_nobody_knows(name):
    body = json.loads(committed()[name].read_text(encoding="utf-8"))
    assert unsaid(body), "it says all: take it off the list"
    where = body["place"]
    assert where["recorded"].startswith("not when this was measured")
    assert re.fullmatch(r"[0-9a-f]{40}", where["added_in"])
    assert {where[fact] for fact in ("commit", "dirty", "cpu", "threads")} == {None}


def test_nothing_new_can_claim_to_be_older():
    claims = {name for name, file in committed().items() if '"added_in"' in file.read_text(encoding="utf-8")}
    assert claims == OLDER


def test_the_law_sees_what_is_missing():
    good = asdict(place()) | {"commit": "0" * 40, "dirty": False}
    assert unsaid({"place": good}) == set()
    for fact in FACTS:
        assert unsaid({"place": good | {fact: None}}) == {fact}
        assert unsaid({"runs": [{"place": good}, {"place": {k: v for k, v in good.items() if k != fact}}]}) == {fact}
    assert unsaid({}) == set(FACTS)


def test_what_a_comparison_and_the_command_line_write_says_it(tmp_path):
    synthetic(seeds=(0,)).write(tmp_path / "results.json")
    assert unsaid(json.loads((tmp_path / "results.json").read_text())) == set()
    model = torch.nn.Sequential(torch.nn.Linear(8, 8))
    plan = tenfold.plan(model, tenfold.SVD(), tenfold.Budget(params=1.0))
    settings = runs.Settings("train", {}, "x", {}, {}, {})
    returned = runs.write_training(tmp_path / "run", settings, model, plan, {"seconds": {}})
    written = json.loads((tmp_path / "run" / "results.json").read_text())
    assert written == json.loads(json.dumps(returned))
    assert written["seconds"] == {}
    assert unsaid(written) <= {"commit", "dirty"}  # no git here is no fault of theirs
    assert written["place"] == json.loads(json.dumps(asdict(place())))


def test_more_packages_and_another_device_are_recorded_as_they_are_asked_for():
    where = place(device="cpu", packages=("pillow", "no-such-package"))
    assert where.device == "cpu"
    assert where.versions["no-such-package"] == "unknown"
    assert where.versions["pillow"] != "unknown"
