"""Names that strangers chose, places that are no folders, and launchers: one sentence, or printed as they are."""

import os
import sys
from pathlib import Path

import pytest
import torch

from tenfold.bench.diagnosis import Diagnosis, Examined
from tenfold.cli import doctor, figures, tables
from tenfold.cli.command import Outcome, _say
from tenfold.errors import CheckpointError
from tenfold.files import only_writer
from tenfold.plans.serialization import save
from tenfold.train import Score

ODD = "a[/b] [red]x[/red] :smile: [link=x]"
SHOWN = {
    "a sentence": lambda: [f"Saved in {ODD}"],
    "a table": lambda: [_table()],
    "doctor": lambda: doctor._shown(_diagnosis(), ODD),
    "doctor, one rank": lambda: [doctor._shown(_diagnosis(), "here")[0]],
    "stages": lambda: figures.stages(ODD, [figures.SplitAccuracy(ODD, Score(0.1, 0.5), Score(0.1, 0.5))]),
    "scores": lambda: figures.stages("a", [figures.OwnScore(ODD, 0.5)]),
    "described": lambda: tables.described("svd", [{"layer": ODD, "set": ODD}]),
}


def _table():
    made = tables.table(("Layer", "Params"))
    made.add_row(ODD, "3")
    return made


def _diagnosis():
    layer = Examined(ODD, (2, 2), 4, ms=1.0, share=0.5, full_rank=2, reason=None)
    return Diagnosis(2.0, 1, 1, "channel", (layer,))


@pytest.mark.parametrize("what", SHOWN)
def test_names_are_printed_as_they_are(what, capsys):
    _say(Outcome({}, SHOWN[what]()), False)
    assert ODD in " ".join(capsys.readouterr().out.split())


def test_only_one_place_makes_what_prints():
    folder = Path(sys.modules["tenfold.cli.command"].__file__).parent
    makers = [file.name for file in folder.glob("*.py") if "Console(" in file.read_text(encoding="utf-8")]
    assert makers == ["command.py"]
    bars = [file for file in folder.glob("*.py") if "{task.description}" in file.read_text(encoding="utf-8")]
    assert bars
    assert all('"{task.description}", markup=False' in file.read_text(encoding="utf-8") for file in bars)


def refused(result, *words):
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr


@pytest.mark.parametrize("out", ["/", ".", "..", "//", "below/.."])
def test_a_run_is_not_put_where_one_stands(tenfold, tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    refused(tenfold("train", "--epochs", 1, "--force", "--out", out), "`--out` must be another folder")


def test_a_run_is_read_from_the_folder_at_hand(tenfold, runs, monkeypatch):
    monkeypatch.chdir(runs / "a")
    assert tenfold("eval", ".").exit_code == 0


@pytest.mark.parametrize("verb", [("plan", "--budget", "params=0.5"), ("export", "--format", "torch-export")])
def test_no_file_is_put_in_the_place_of_a_pipe_or_a_device(tenfold, runs, verb):
    os.mkfifo(runs / "pipe")
    refused(tenfold(verb[0], runs / "a", *verb[1:], "--out", runs / "pipe", "--force"), "`--out`", "in the way")
    assert (runs / "pipe").is_fifo()


def test_pipes_are_not_read(tenfold, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    pipe, out = tmp_path / "pipe", ("--out", tmp_path / "x")
    refused(tenfold("compare", "--experiment", pipe, *out), "no regular file")
    refused(tenfold("train", "--data", f"npz:{pipe}", *out), "no regular file")
    refused(tenfold("report", pipe), "no regular file")


@pytest.mark.parametrize("model", ["../x:y", ".x:y", "x/../y:z", ":y", "x:", "~nobody/x.py:y", "os:abort()"])
def test_references_that_lead_nowhere_are_one_sentence(tenfold, tmp_path, model):
    refused(tenfold("train", "--model", model, "--out", tmp_path / "x"), "`--model`")


@pytest.mark.parametrize("line", ["raise RuntimeError('x' * 9999)", "sys.exit(3)", "1 / 0"])
@pytest.mark.parametrize("where", ["make", "the module"])
def test_a_factory_that_fails_is_one_short_sentence(tenfold, tmp_path, line, where):
    inside = where == "make"
    text = f"import sys\ndef make():\n    {line}\n" if inside else f"import sys\n{line}\n"
    (tmp_path / "net.py").write_text(text)
    result = tenfold("train", "--model", f"{tmp_path / 'net.py'}:make", "--out", tmp_path / "x")
    refused(result, "`--model` must be code that runs", "failed with")
    assert len(result.stderr) < 800
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"])
@pytest.mark.parametrize(
    "words",
    [("train",), ("compress", "a", "--budget", "params=0.5"), ("compare", "--methods", "svd", "--budgets", "0.5")],
)
def test_one_of_several_processes_is_refused(tenfold, runs, files, monkeypatch, name, words):
    monkeypatch.setenv(name, "2")
    monkeypatch.chdir(runs)
    before = files(runs)
    refused(tenfold(*words, "--out", runs / "new"), "one of 2", "torchrun")
    assert files(runs) == before
    monkeypatch.setenv(name, "1")
    assert "one of" not in tenfold("methods").stderr


@pytest.mark.parametrize("verb", ["train", "compress"])
def test_a_second_writer_is_refused_before_its_work(tenfold, runs, monkeypatch, verb):
    def work(*_, **__):
        raise AssertionError("it worked")

    monkeypatch.setattr("tenfold.cli.compress.open_network", work)
    monkeypatch.setattr("tenfold.cli.train._prepare", work)
    words = ("train",) if verb == "train" else ("compress", runs / "a", "--budget", "params=0.5")
    with only_writer(runs / "new"):
        refused(tenfold(*words, "--out", runs / "new"), "`--out`", "no other process")


@pytest.mark.parametrize("litter", [".DS_Store", "Thumbs.db", "._model", "desktop.ini"])
def test_what_systems_leave_behind_blocks_no_folder(tenfold, runs, litter):
    for folder in (runs / "new", runs / "a" / "model"):
        folder.mkdir(exist_ok=True)
        (folder / litter).write_text("x")
    words = ("compress", runs / "a", "--method", "svd", "--budget", "params=0.5", "--out", runs / "new")
    assert tenfold(*words).exit_code == 0
    assert tenfold("train", "--out", runs / "a", "--resume").exit_code == 0


def test_a_hidden_folder_of_the_users_blocks_a_save(tmp_path):
    (tmp_path / ".git").mkdir()
    with pytest.raises(CheckpointError, match=r"holds \.git"):
        save(torch.nn.Linear(2, 2), tmp_path)


def test_onnx_is_missed_before_the_network_is_opened(tenfold, runs, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.setattr("tenfold.cli.export.open_network", None)
    refused(tenfold("export", runs / "a", "--out", runs / "x.onnx"), "onnx", "pip install 'tenfold[export]'")
