"""Folders are replaced without a window: whatever a kill leaves, the next reader finds the old one or the new one."""

import os
from pathlib import Path

import pytest
from safetensors import SafetensorError

from tenfold.errors import ArgumentError
from tenfold.files import atomic_file, atomic_folder, disk_errors, finish_exchange, only_writer


class Killed(BaseException):
    """Stands for a kill: nothing after it may be needed."""


def replaced_until(path: Path, step: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Replace the folder ``path``; from rename ``step`` on, nothing happens any more. Whether it came to that."""
    count, rename = 0, Path.replace

    def replace(self: Path, target: Path) -> Path:
        nonlocal count
        count += 1
        if count > step:
            raise Killed
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        try:
            with atomic_folder(path) as new:
                (new / "text").write_text("new")
        except Killed:
            return True
    return False


@pytest.mark.parametrize("step", range(4))
def test_after_a_kill_at_any_rename_the_reader_finds_the_old_or_the_new_and_nothing_stays(tmp_path, monkeypatch, step):
    path = tmp_path / "run"
    with atomic_folder(path) as first:
        (first / "text").write_text("old")
    killed = replaced_until(path, step, monkeypatch)
    assert killed == (step < 3)
    finish_exchange(path)
    assert (path / "text").read_text() == ("old" if step == 0 else "new")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_temporaries_of_dead_processes_go_and_those_of_living_ones_stay(tmp_path):
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    with atomic_file(tmp_path / "a") as mine:
        left = mine.with_name(mine.name.replace(f"-{os.getpid()}-", f"-{child}-"))
        left.write_text("half")
        with atomic_file(tmp_path / "a") as other:
            other.write_text("whole")
        assert not left.exists()
        assert mine.exists()


def test_a_second_writer_of_one_folder_is_refused(tmp_path):
    with only_writer(tmp_path / "run"):
        with pytest.raises(ArgumentError, match="`out`"), only_writer(tmp_path / "run"):
            pass
        with only_writer(tmp_path / "another"):
            pass
    with only_writer(tmp_path / "run"):
        pass


@pytest.mark.parametrize("message", ["I/O error: No space left on device (os error 28)", "file write failed"])
def test_a_full_disk_is_an_error_of_the_system_and_nothing_else_is(tmp_path, message):
    full = "os error 28" in message
    with pytest.raises(OSError if full else SafetensorError, match="no space left" if full else message):  # noqa: SIM117
        with disk_errors(tmp_path):
            raise SafetensorError(message)
