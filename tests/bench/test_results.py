"""Results files: what is written is what is read, and nothing else is taken for one."""

import json

import pytest
from result_stubs import synthetic

from tenfold.bench.compare.results import Results, RunResult
from tenfold.errors import CheckpointError


def test_reading_gives_what_was_written(tmp_path):
    results = synthetic()
    results.write(tmp_path / "results.json")
    assert Results.read(tmp_path / "results.json") == results
    for run in results.runs:
        run.write(tmp_path / f"{run.id}.json")
        assert RunResult.read(tmp_path / f"{run.id}.json") == run


def test_files_hold_json_that_anyone_can_read(tmp_path):
    synthetic(seeds=(0,)).write(tmp_path / "results.json")

    def refuse(text):
        raise AssertionError(text)

    body = json.loads((tmp_path / "results.json").read_text(), parse_constant=refuse)
    assert body["format"] == "tenfold-results/1"
    assert [run["id"] for run in body["runs"]][:2] == ["dense-s0", "alds-params0.5-s0"]


@pytest.mark.parametrize(
    ("break_", "named"),
    [
        (lambda body: body.pop("format"), "format"),
        (lambda body: body.update(format="tenfold-plan/1"), "tenfold-plan/1"),
        (lambda body: body.pop("runs"), "lacks fields: runs"),
        (lambda body: body["runs"][0].update(speed=3), "speed"),
        (lambda body: body["runs"][0].update(seed="zero"), "seed"),
        (lambda body: body["runs"][1]["price"].pop("macs"), "macs"),
        (lambda body: body["runs"][1]["curves"][0]["epochs"][0].update(lr="high"), "lr"),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path, break_, named):
    file = tmp_path / "results.json"
    synthetic(seeds=(0,)).write(file)
    body = json.loads(file.read_text())
    break_(body)
    file.write_text(json.dumps(body))
    with pytest.raises(CheckpointError, match=named) as refused:
        Results.read(file)
    assert str(file) in str(refused.value)


def test_a_file_that_is_missing_or_cut_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="tenfold compare"):
        Results.read(tmp_path / "results.json")
    synthetic(seeds=(0,)).write(tmp_path / "results.json")
    text = (tmp_path / "results.json").read_text()
    (tmp_path / "results.json").write_text(text[:-100])
    with pytest.raises(CheckpointError, match=r"results\.json"):
        Results.read(tmp_path / "results.json")
