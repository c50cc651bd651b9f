"""``tenfold compare`` and ``tenfold report``."""

import json

import pytest
from typer.testing import CliRunner

from tenfold.bench.compare.results import Results
from tenfold.cli.app import app

FAST = ("--epochs", 2, "--recovery", 1, "--batch-size", 128, "--examples", 256)
SMALL = ("compare", "--methods", "svd", "--budgets", "0.5,params=0.4+macs=0.3", *FAST)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A small comparison, made once: its folder and what it said."""
    folder = tmp_path_factory.mktemp("compared") / "x"
    done = CliRunner().invoke(app, [str(word) for word in (*SMALL, "--out", folder, "--json")])
    assert done.exit_code == 0, done.stderr
    return folder, json.loads(done.stdout)


def test_one_line_compares(compared):
    folder, said = compared
    assert [run["id"] for run in said["runs"]] == ["dense-s0", "svd-params0.5-s0", "svd-params0.4-macs0.3-s0"]
    results = Results.read(said["results"])
    assert [run.epochs for run in results.runs] == [
        {"training": 2, "recovery": 0},
        {"training": 1, "recovery": 1},
        {"training": 1, "recovery": 1},
    ]
    kept = said["runs"][2]["kept"]
    assert kept["params"] <= 0.4
    assert kept["macs"] <= 0.3
    assert said["runs"][1]["test"] == results.runs[1].test.accuracy
    assert (folder / "report.html").read_text(encoding="utf-8").lower().startswith("<!doctype html>")


def test_the_same_line_again_reads_and_shows_a_table(compared, tenfold):
    folder, _ = compared
    again = tenfold(*SMALL, "--out", folder)
    assert again.exit_code == 0, again.stderr
    for word in ("dense", "svd", "params=0.5", "macs=0.3", "estimated", "results.json", "report.html"):
        assert word in again.stdout


def test_a_file_and_the_options_say_the_same(compared, tenfold, tmp_path):
    folder, _ = compared
    file = tmp_path / "config.yaml"
    file.write_text(
        "data: {name: digits, examples: 256}\nmodel: cnn\nmethods: [svd]\nrecipe: {epochs: 2, batch_size: 128}\n"
        "recovery: 1\nbudgets: [{params: 0.5}, {params: 0.4, macs: 0.3}]\n"
    )
    done = tenfold("compare", "--experiment", file, "--out", folder, "--json")
    assert done.exit_code == 0, done.stderr
    assert len(json.loads(done.stdout)["runs"]) == 3


def test_the_report_is_written_again(compared, tenfold, tmp_path):
    folder, _ = compared
    words = ("--out", tmp_path / "page.html", "--pictures", tmp_path / "pictures", "--json")
    done = json.loads(tenfold("report", folder / "results.json", *words).stdout)
    assert done["runs"] == 3
    assert {str(path) for path in (tmp_path / "pictures").iterdir()} == set(done["pictures"]) != set()
    assert (tmp_path / "page.html").stat().st_size > 1000
    refused = tenfold("report", folder, "--out", tmp_path / "page.html")
    assert refused.exit_code == 1
    assert "--force" in refused.stderr
    assert tenfold("report", folder, "--out", tmp_path / "page.html", "--force").exit_code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--budgets", "0.5"), "`--methods` must be given"),
        (("--methods", "svd"), "`--budgets` must be given"),
        (("--methods", "svdd", "--budgets", "0.5"), "`--methods` must be one of"),
        (("--methods", "alds:measure=l2", "--budgets", "0.5"), "measure"),
        (("--methods", "svd,svd", "--budgets", "0.5"), "`--methods` must be different"),
        (("--methods", "svd", "--budgets", "1.5"), "`--budget params` must be"),
        (("--methods", "svd", "--budgets", "0.5,0.5"), "`--budgets` must be different"),
        (("--methods", "svd", "--budgets", "half"), "must be a number"),
        (("--methods", "svd", "--budgets", "0.5", "--seeds", "a"), "`--seeds` must be integers"),
        (("--methods", "svd", "--budgets", "0.5", "--recovery", "3"), "`--recovery` must be below"),
        (("--methods", "svd", "--budgets", "0.5", "--data", "digitz"), "`--data` must be a known data set"),
        (("--methods", "svd", "--budgets", "0.5", "--model", "cmm"), "`--model` must be a known network"),
        (("--methods", "svd", "--budgets", "0.5", "--examples", "9999"), "`--examples` must be in"),
        (("--methods", "svd", "--experiment", "x.yaml"), "`--methods` is what the file"),
        (("--experiment", "x.yaml"), "x.yaml"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(tenfold, tmp_path, words, said):
    done = tenfold("compare", *words, *(() if "--experiment" in words else ("--epochs", 3)), "--out", tmp_path / "x")
    assert done.exit_code == 1
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_out_must_be_given_and_hold_no_run(tenfold, runs):
    words = ("compare", "--methods", "svd", "--budgets", "0.5")
    assert "`--out` must be given" in tenfold(*words).stderr
    assert "holds a run" in tenfold(*words, "--out", runs / "a").stderr


def test_it_fails_where_every_run_fails(tenfold, tmp_path):
    done = tenfold("compare", "--methods", "svd", "--budgets", "0.5", *FAST, "--lr", "1e9", "--out", tmp_path / "x")
    assert done.exit_code == 1
    assert "every run failed, the first with: dense-s0: The loss is" in done.stderr
    assert (tmp_path / "x" / "results.json").exists()


def test_stopped_it_says_how_to_go_on(tenfold, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tenfold.train.loop.save_checkpoint", stop)
        stopped = tenfold(*SMALL, "--out", tmp_path / "x")
    assert stopped.exit_code == 130
    assert "the same command goes on" in stopped.stderr
    assert tenfold(*SMALL, "--out", tmp_path / "x").exit_code == 0
