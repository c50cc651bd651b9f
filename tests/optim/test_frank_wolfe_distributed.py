"""Two processes: copies of a model stay the same bit for bit; parts of one are trained as the whole would be."""

import json
from pathlib import Path

import pytest
from torch import distributed

from processes import in_two_processes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not distributed.is_available(), reason="torch is built without distributed"),
]
WORKER = Path(__file__).with_name("sharded.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    """What both processes have found; they are started once."""
    folder = tmp_path_factory.mktemp("sharded")
    in_two_processes(WORKER, folder)
    return [json.loads((folder / f"{process}.json").read_text(encoding="utf-8")) for process in (0, 1)]


def test_two_processes_with_different_seeds_and_the_same_gradients_stay_equal(found) -> None:
    assert all(each["copies"] == [True, True] for each in found)


def test_tensors_in_parts_are_trained_as_whole_ones_in_every_rescaling(found) -> None:
    """Even and uneven parts, rows and columns, a process without any, copies; some start outside their sets."""
    assert len(found[0]["beside"]) == 17
    for one, two in zip(*(each["beside"].values() for each in found), strict=True):
        assert one["apart"] < 1e-13
        assert one["moved"] > 0.1
        assert one["digest"] == two["digest"]


def test_so_are_the_warning_the_gaps_and_the_statistics(found) -> None:
    for case, one in found[0]["beside"].items():
        (said, same), (gaps, theirs), (stats, tracks) = one["said"], one["gaps"], one["stats"]
        assert said == same
        assert theirs == pytest.approx(gaps, rel=1e-12)
        assert tracks == {name: pytest.approx(track, rel=1e-6) for name, track in stats.items()}
        if not case.startswith("SGD"):
            assert "started outside" in said[0]
            assert min(gaps) > 0
            # An entry that is not finite holds back the whole step, wherever the entry is.
            assert {track["skipped"] for track in tracks.values()} == {1}
        assert {k: v for k, v in one.items() if k != "apart"} == {
            k: v for k, v in found[1]["beside"][case].items() if k != "apart"
        }


def test_of_tied_entries_in_several_parts_the_first_of_the_whole_is_taken(found) -> None:
    for each in found:
        assert each["tied"] == {"rows": [[[0, 3]], [[0, 3]]], "columns": [[[0, 3]], [[0, 3]]]}


def test_gradients_that_come_as_summands_are_added_up(found) -> None:
    assert all(each["partial"] < 1e-14 for each in found)


def test_a_weight_that_is_not_finite_in_one_process_is_left_alone_in_both(found) -> None:
    assert all(each["broken"] for each in found)


def test_sets_that_need_the_whole_tensor_are_refused_by_name(found) -> None:
    for each in found:
        assert each["refused"].pop("the method").startswith("`constraint` of '0.weight' must be")
        assert set(each["refused"]) == {"SpectralKSupport", "GroupKSupport", "KSparse", "Lp"}
        for ball, text in each["refused"].items():
            assert text.startswith(
                "`constraint` of 'head.weight' must be L1, L2 or LInf, because that tensor is sharded"
            )
            assert f"a vertex of {ball}(" in text
            assert "DistributedDataParallel" in text


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float64", 1e-14)])
@pytest.mark.parametrize("name", ["L1", "L2", "LInf"])
def test_the_method_trains_a_fully_sharded_model_as_one_process_does(found, name, dtype, tolerance) -> None:
    for each in found:
        run = each["fsdp"][f"{name} {dtype}"]
        assert run["apart"] < tolerance
        assert name in run["sets"]  # its layers are found


def test_a_sharded_run_that_is_saved_and_loaded_goes_on_to_the_same_bits(found) -> None:
    """By `state_dict` and by torch's distributed checkpoints; bfloat16 weights with their float32 copies, too."""
    for each in found:
        for run in (*each["fsdp"].values(), each["half"]):
            assert run["equal"] == [True, True]
            assert run["stats"]
