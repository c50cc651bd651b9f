"""Times on disk: found again under the same conditions, and believed only of the same machine."""

import json

from tenfold.runtimes.time_cache import TimeCache, cache_folder

HERE = {"runtime": "eager", "threads": 1}


def filled(folder):
    cache = TimeCache(HERE, folder)
    cache.agree(1e-4)
    cache.keep("layer", {"dense": 10.0, "channel/1/8": 4.0})
    return cache


def test_times_are_found_again_under_the_same_conditions_alone(tmp_path):
    filled(tmp_path)
    assert TimeCache(HERE, tmp_path).times == {"layer": {"dense": 10.0, "channel/1/8": 4.0}}
    assert not TimeCache(HERE | {"threads": 2}, tmp_path).times


def test_a_machine_of_another_speed_is_another_machine(tmp_path):
    filled(tmp_path)
    near, far = TimeCache(HERE, tmp_path), TimeCache(HERE, tmp_path)
    assert near.agree(1.05e-4) == 1e-4
    assert near.times
    assert far.agree(1.2e-4) == 1.2e-4
    assert not far.times


def test_a_damaged_file_or_a_folder_that_cannot_be_made_is_none(tmp_path):
    cache = filled(tmp_path)
    for text in ("", "{", "[]", json.dumps({"format": "tenfold-times/1", "conditions": HERE, "times": 3})):
        cache.file.write_text(text)
        assert not TimeCache(HERE, tmp_path).times
    (tmp_path / "file").write_text("")
    filled(tmp_path / "file" / "below")  # no folder: nothing is kept, nothing fails


def test_the_folder_is_the_users_own(monkeypatch, tmp_path):
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("TENFOLD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert str(cache_folder()) == "/x/tenfold"
