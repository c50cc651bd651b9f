"""Trainings that stop: Ctrl-C, errors, and going on."""

import json

import pytest

from tenfold.train import loop


@pytest.fixture
def stop_at(monkeypatch):
    """Ctrl-C as the checkpoint of the given epoch is about to be written."""

    def arm(epoch):
        save = loop.save_checkpoint

        def stopping(folder, parts, record):
            if record["epoch"] == epoch:
                raise KeyboardInterrupt
            save(folder, parts, record)

        monkeypatch.setattr(loop, "save_checkpoint", stopping)

    return arm


def test_a_stopped_training_goes_on_to_the_same_end(tenfold, tmp_path, stop_at, monkeypatch):
    words = ("train", "--epochs", 2, "--batch-size", 256, "--seed", 5, "--out", tmp_path / "run")
    with monkeypatch.context():
        stop_at(2)
        stopped = tenfold(*words)
    assert stopped.exit_code == 130
    assert "--resume" in stopped.stderr
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"run.json", "checkpoint"}
    unfinished = tenfold("eval", tmp_path / "run")
    assert unfinished.exit_code == 1
    assert "not finished" in unfinished.stderr
    monkeypatch.undo()

    resumed = json.loads(tenfold("train", "--out", tmp_path / "run", "--resume", "--json").stdout)
    whole = json.loads(tenfold(*words[:-1], tmp_path / "whole", "--json").stdout)
    assert resumed["stages"] == whole["stages"]
    assert resumed["recipe"] == whole["recipe"]


def test_stopped_before_the_first_checkpoint_nothing_is_left(tenfold, tmp_path, stop_at):
    stop_at(1)
    assert tenfold("train", "--epochs", 1, "--out", tmp_path / "run").exit_code == 130
    assert list(tmp_path.iterdir()) == []


def test_a_replacement_that_fails_at_once_leaves_the_old_run(tenfold, runs, files):
    before = files(runs)
    result = tenfold("train", "--out", runs / "a", "--epochs", 1, "--lr", "1e9", "--force")
    assert result.exit_code == 1
    assert "loss is" in result.stderr
    assert files(runs) == before
    assert {p.name for p in runs.iterdir()} == {"a", "b"}


def test_force_replaces_a_run(tenfold, runs):
    words = ("--out", runs / "a", "--epochs", 1, "--force", "--json")
    assert len(json.loads(tenfold("train", *words).stdout)["history"]) == 1
    assert {p.name for p in runs.iterdir()} == {"a", "b"}


def test_a_finished_run_is_not_trained_again(tenfold, runs, train_json):
    result = tenfold("train", "--out", runs / "a", "--resume", "--json")
    assert json.loads(result.stdout)["stages"] == train_json["stages"]
    assert "nothing is trained" in result.stderr


@pytest.mark.parametrize("change", [("--lr", "0.01"), ("--epochs", "3"), ("--model", "resnet20")])
def test_going_on_with_other_settings_is_refused(tenfold, runs, files, change):
    before = files(runs / "a")
    result = tenfold("train", "--out", runs / "a", "--resume", *change)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert files(runs / "a") == before


def test_what_compress_wrote_cannot_be_resumed(tenfold, runs):
    result = tenfold("train", "--out", runs / "b", "--resume")
    assert result.exit_code == 1
    assert "tenfold compress" in result.stderr


def test_a_truncated_checkpoint_is_named(tenfold, runs):
    weights = runs / "a" / "checkpoint" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    result = tenfold("train", "--out", runs / "a", "--resume")
    assert result.exit_code == 1
    assert "truncated" in result.stderr


def test_a_compression_that_fails_late_writes_nothing(tenfold, runs, files, monkeypatch):
    before = files(runs)
    monkeypatch.setattr("tenfold.cli.runs.save", lambda *_: (_ for _ in ()).throw(OSError("No space left on device")))
    how = ("--method", "alds", "--budget", "params=0.5")
    result = tenfold("compress", runs / "a", *how, "--out", runs / "c")
    assert result.exit_code == 1
    assert result.stderr == "error: No space left on device\n"
    assert files(runs) == before
    assert {p.name for p in runs.iterdir()} == {"a", "b"}
