"""The short form of ``make stress``: a few kills; and that it sees windows and what is left."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tools.stress.cases import Case
from tools.stress.kills import trial
from tools.stress.run import stress

ROOT = Path(__file__).parents[2]


def test_killed_trainings_and_saves_go_on_to_the_same_end(tmp_path):
    words = ["--seconds", "999", "--most", "2", "--examples", "0", "--only", "train --force", "save"]
    command = [sys.executable, "-m", "tools.stress", *words, "--out", str(tmp_path / "stress.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "stress.json").read_text())["results"]
    assert {row["case"] for row in rows} == {"train --force", "save"}
    for row in rows:
        assert row["kills"]["at"] == row["kills"]["moment"] == 2
        assert row["operations"] > 15
        assert row["failures"] == []


def write(text, *, careful):
    if careful:
        Path("a.tmp").write_text(text)
        os.replace("a.tmp", "a")
    else:
        with open("a", "w") as file:
            file.write(text)
            os.fsync(file.fileno())


def reads():
    assert Path("a").read_text() in ("old", "new")


@pytest.mark.parametrize(("careful", "after"), [(False, True), (True, False), (True, True)])
def test_a_window_and_a_leftover_are_seen(tmp_path, careful, after):
    def mend():
        if after:
            write("new", careful=careful)
            Path("a.tmp").unlink(missing_ok=True)

    case = Case("a", lambda: write("old", careful=True), lambda: write("new", careful=careful), mend, reads)
    found = stress(case, tmp_path, seconds=999, most=2, seed=0)
    assert found.counts["at"] == found.operations == 2
    assert bool(found.failures) == (not (careful and after))


def test_a_trial_is_killed_before_the_operation_that_is_named(tmp_path):
    def work():
        for name in "abc":
            Path(name).touch()

    assert trial(work, tmp_path).operations == 3
    for name in "abc":
        (tmp_path / name).unlink()
    assert trial(work, tmp_path, at=1).killed
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
