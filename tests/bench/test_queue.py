"""Claims on work: never two owners, and none that is dead."""

import json
import os
import threading
import time

import pytest
from compare_stubs import SPAWN

from tenfold.bench.compare import queue
from tenfold.bench.compare.queue import Claims, machine, started


def hold(folder, ready):
    """A process that claims and never lets go."""
    with Claims(folder).claim("a") as mine:
        assert mine
        ready.set()
        time.sleep(60)


def count(folder, barrier, turns, wins):
    """A process that claims again and again; inside, it alone may touch the counter."""
    claims = Claims(folder)
    barrier.wait()
    while True:
        with claims.claim("a") as mine:
            if mine:
                value = int((folder / "count").read_text())
                if value >= turns:
                    return
                time.sleep(0.001)
                (folder / "count").write_text(str(value + 1))
                with wins.get_lock():
                    wins.value += 1


def left(folder, **changes):
    """A claim as some process left it."""
    who = {"machine": machine(), "pid": os.getpid(), "started": started(os.getpid())}
    (folder / "a.1").write_text(json.dumps(who | changes))
    return folder / "a.1"


def taken(folder, **options):
    with Claims(folder, **options).claim("a") as mine:
        return mine


def test_one_owner_at_a_time_and_free_after(tmp_path):
    claims = Claims(tmp_path)
    with claims.claim("a") as first, claims.claim("a") as second, claims.claim("a.1") as other:
        assert (first, second, other) == (True, False, True)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="stop"), claims.claim("a"):
        raise ValueError("stop")
    assert taken(tmp_path)


def test_the_claim_of_a_killed_process_is_taken_over_at_once(tmp_path):
    ready = SPAWN.Event()
    holder = SPAWN.Process(target=hold, args=(tmp_path, ready), daemon=True)
    holder.start()
    assert ready.wait(60)
    assert not taken(tmp_path)
    holder.kill()
    holder.join()
    assert len(list(tmp_path.iterdir())) == 1
    assert taken(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_number_that_another_process_has_now_is_no_life(tmp_path):
    left(tmp_path, started="0")
    assert taken(tmp_path)


def test_a_living_process_keeps_its_claim_however_long_it_is_silent(tmp_path):
    os.utime(left(tmp_path), (0, 0))
    assert not taken(tmp_path)


def test_on_another_machine_the_touches_decide(tmp_path):
    claim = left(tmp_path, machine="elsewhere")
    assert not taken(tmp_path, stale=60)
    os.utime(claim, (time.time() - 61, time.time() - 61))
    assert taken(tmp_path, stale=60)
    assert list(tmp_path.iterdir()) == []


def test_a_claim_that_is_not_written_yet_counts(tmp_path):
    (tmp_path / "a.1").touch()
    assert not taken(tmp_path)
    os.utime(tmp_path / "a.1", (0, 0))
    assert taken(tmp_path)


def test_an_owner_touches_its_claim(tmp_path):
    claims = Claims(tmp_path, beat=0.01)
    with claims.claim("a"):
        os.utime(tmp_path / "a.1", (0, 0))
        for _ in range(500):
            if (tmp_path / "a.1").stat().st_mtime > 0:
                break
            time.sleep(0.01)
        assert (tmp_path / "a.1").stat().st_mtime > 0


def test_a_claim_created_beside_a_living_one_is_withdrawn(tmp_path, monkeypatch):
    claims = Claims(tmp_path)
    see = claims._generations

    def late(name):  # another process creates its claim between our look and our creation
        found = see(name)
        if not found:
            left(tmp_path).rename(tmp_path / "a.7")
        return found

    monkeypatch.setattr(claims, "_generations", late)
    with claims.claim("a") as mine:
        assert not mine
    assert [path.name for path in tmp_path.iterdir()] == ["a.7"]


def test_many_processes_never_own_together(tmp_path):
    barrier, wins = SPAWN.Barrier(4), SPAWN.Value("i", 0)
    claims = tmp_path / "claims"
    claims.mkdir()
    (claims / "count").write_text("0")
    workers = [SPAWN.Process(target=count, args=(claims, barrier, 60, wins), daemon=True) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert int((claims / "count").read_text()) == wins.value == 60


def test_lines_of_a_journal_stay_whole(tmp_path):
    threads = [threading.Thread(target=queue.journal, args=(tmp_path / "log", f"did {i}")) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = (tmp_path / "log").read_text().splitlines()
    assert sorted(int(line.split()[-1]) for line in lines) == list(range(20))
