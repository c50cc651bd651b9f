"""Claims on work: never two owners, and none that is dead."""

import threading
import time

import pytest

from processes import FORKED
from tenfold.bench.compare.queue import claim, journal


def hold(folder, ready):
    """A process that claims and never lets go."""
    with claim(folder, "a") as mine:
        assert mine
        ready.set()
        time.sleep(60)


def count(folder, barrier, turns, wins):
    """A process that claims again and again; inside, it alone may touch the counter."""
    barrier.wait()
    while True:
        with claim(folder, "a") as mine:
            if mine:
                value = int((folder / "count").read_text())
                if value >= turns:
                    return
                time.sleep(0.001)
                (folder / "count").write_text(str(value + 1))
                with wins.get_lock():
                    wins.value += 1


def taken(folder):
    with claim(folder, "a") as mine:
        return mine


def test_one_owner_at_a_time_and_free_after(tmp_path):
    with claim(tmp_path, "a") as first, claim(tmp_path, "a") as second, claim(tmp_path, "a.1") as other:
        assert (first, second, other) == (True, False, True)
    with pytest.raises(ValueError, match="stop"), claim(tmp_path, "a"):
        raise ValueError("stop")
    assert taken(tmp_path)


def test_threads_of_one_process_do_not_share_a_claim(tmp_path):
    found = []
    with claim(tmp_path, "a"):
        thread = threading.Thread(target=lambda: found.append(taken(tmp_path)))
        thread.start()
        thread.join()
    assert found == [False]


def test_the_claim_of_a_killed_process_is_taken_over_at_once(tmp_path):
    ready = FORKED.Event()
    holder = FORKED.Process(target=hold, args=(tmp_path, ready), daemon=True)
    holder.start()
    assert ready.wait(60)
    assert not taken(tmp_path)
    holder.kill()
    holder.join()
    assert taken(tmp_path)


def test_many_processes_never_own_together(tmp_path):
    barrier, wins = FORKED.Barrier(4), FORKED.Value("i", 0)
    claims = tmp_path / "claims"
    claims.mkdir()
    (claims / "count").write_text("0")
    workers = [FORKED.Process(target=count, args=(claims, barrier, 60, wins), daemon=True) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert int((claims / "count").read_text()) == wins.value == 60


def test_lines_of_a_journal_stay_whole(tmp_path):
    threads = [threading.Thread(target=journal, args=(tmp_path / "log", f"did {i}")) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = (tmp_path / "log").read_text().splitlines()
    assert sorted(int(line.split()[-1]) for line in lines) == list(range(20))
