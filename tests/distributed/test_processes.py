"""Two processes that train copies of one network stay bitwise equal through every projection."""

import json
from pathlib import Path

import pytest
import torch

from processes import in_two_processes

WORKER = Path(__file__).parent / "worker.py"
METHODS = ("lrpet keep", "lrpet project", "lrpet reset", "lrpet warm", "lrpet spatial", "trp keep", "trp project",
           "trp reset")  # fmt: skip
PULLED = [name for name in METHODS if name.startswith("trp")]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed"),
]


@pytest.fixture(scope="session")
def found(tmp_path_factory) -> list[dict]:
    """What both processes have found; they are started once."""
    folder = tmp_path_factory.mktemp("processes")
    in_two_processes(WORKER, folder)
    return [json.loads((folder / f"{process}.json").read_text()) for process in (0, 1)]


@pytest.mark.parametrize("name", METHODS)
def test_the_weights_are_bitwise_equal_after_every_step(found, name):
    one, two = (each[name] for each in found)
    assert one["projections"] == two["projections"] == 6
    assert one["weights"] == two["weights"]
    assert len(set(one["weights"])) == 12  # and they move


@pytest.mark.parametrize("name", METHODS)
def test_so_are_ranks_and_moments_and_what_the_next_step_adds(found, name):
    one, two = (each[name] for each in found)
    for what in ("ranks", "momentum", "pull", "measured"):
        assert one[what] == two[what]
    assert one["ranks"]


def test_every_process_has_all_warm_bases_for_its_checkpoint(found):
    one, two = (each["lrpet warm"] for each in found)
    assert one["bases"] == two["bases"]
    assert set(one["bases"]) == set(one["ranks"])


@pytest.mark.parametrize("name", METHODS)
def test_every_layer_has_its_rank_in_both(found, name):
    """The last step ends with a projection."""
    for each in found:
        if "spatial" not in name:
            assert {n: each[name]["measured"][n] for n in each[name]["ranks"]} == each[name]["ranks"]
        assert set(each[name]["ranks"]) == ({"0", "3", "6", "9"} if "lrpet" in name else {"3", "6", "9"})


@pytest.mark.parametrize("name", METHODS)
def test_the_work_is_shared_and_nothing_is_done_twice(found, name):
    one, two = (set(each[name]["projected here"]) for each in found)
    assert one
    assert two
    assert not one & two
    assert one | two == set(found[0][name]["ranks"])


@pytest.mark.parametrize("name", METHODS)
def test_the_statistics_differ_as_they_would_in_training(found, name):
    """Else equal weights would be no wonder."""
    assert found[0][name]["statistics"] != found[1][name]["statistics"]


@pytest.mark.parametrize("name", PULLED)
def test_there_is_a_pull(found, name):
    assert found[0][name]["pull"] != found[0]["lrpet keep"]["pull"]


def test_one_process_may_project_and_export_by_itself(found):
    assert all(each["alone"]["came back"] for each in found)


def test_where_nothing_is_projected_nobody_waits(found):
    assert [each["nothing"]["projections"] for each in found] == [12, 12]


def test_a_wrapped_model_is_refused_by_name(found):
    for each in found:
        assert "`model` must not be wrapped in DistributedDataParallel" in each["refused"]["error"]
        assert "`.module`" in each["refused"]["error"]


def test_an_allocation_is_made_once_for_all_processes(found):
    one, two = (each["allocated"] for each in found)
    assert one["weights"] == two["weights"]
    assert one["ranks"] == two["ranks"]
    assert one["folds"] == two["folds"]
    assert one["folds"]
    assert one["projections"] == (12 - 4) // 2 + 1


def test_factors_that_come_later_are_refused_in_several_processes(found):
    assert all("start=0" in each["factors to come"]["error"] for each in found)
