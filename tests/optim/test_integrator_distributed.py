"""Two processes, each with half of the batch: one launch, and the laws of what came out."""

import json
from pathlib import Path

import pytest
import torch

from optim.networks import net
from optim.toys import run
from optim.two_processes import CYCLES, NETWORKS, SETTINGS, digest, loss, start
from processes import in_two_processes
from tenfold.layers.tucker_protocol import factorised

STALLS = pytest.mark.filterwarnings("ignore:the ranks of .* cannot grow")
SCRIPT = Path(__file__).with_name("two_processes.py")


@pytest.fixture(scope="module")
def launched(tmp_path_factory) -> tuple[Path, dict, str]:
    """The folder with what the processes wrote, their results, and the digest that a resumed run must have."""
    folder = tmp_path_factory.mktemp("processes")
    model, optimizer = start("cycle")
    run(model, optimizer, loss(None), 5)  # in the middle of a cycle of two
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, folder / "saved.pt")
    run(model, optimizer, loss(None), 9)
    in_two_processes(SCRIPT, folder)
    return folder, json.loads((folder / "results.json").read_text(encoding="utf-8")), digest(model, optimizer)


@pytest.mark.parametrize("name", SETTINGS)
def test_after_many_cycles_two_processes_are_bitwise_equal(launched, name) -> None:
    """Though one of them has singular vectors with other signs: each layer is factorised once, and sent."""
    _, results, _ = launched
    first, second = results[name]["digests"]
    assert first == second
    assert results[name]["steps"] == CYCLES * (2 if name == "cycle" else 1)


@STALLS
@pytest.mark.parametrize("name", SETTINGS)
def test_two_processes_with_half_of_the_batch_each_do_what_one_does_with_all_of_it(launched, name) -> None:
    folder, results, _ = launched
    model, optimizer = start(name)
    run(model, optimizer, loss(None), results[name]["steps"])
    assert {k: list(v) for k, v in optimizer.ranks.items()} == results[name]["ranks"]
    for mine, theirs in zip(model, torch.load(folder / f"{name}-0.pt", weights_only=True), strict=True):
        torch.testing.assert_close(mine.full.detach(), theirs, rtol=0, atol=1e-8)


def test_a_run_that_was_saved_in_the_middle_of_a_cycle_goes_on_in_a_new_process_to_the_same_bits(launched) -> None:
    _, results, expected = launched
    assert results["resumed"] == expected


def test_processes_that_come_into_tucker_format_on_their_way_stay_bitwise_equal(launched) -> None:
    _, results, _ = launched
    found = results["entered"]
    assert found["dense"]
    assert found["layers"]
    assert found["digests"][0] == found["digests"][1]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_wrapper_stays_around_static_layers_while_their_ranks_change(launched, name) -> None:
    """Gradients accumulate, and the wrapper averages them: what comes out is the unwrapped training of each storage."""
    _, results, _ = launched
    ordinary, wrapped = results[f"ordinary {name}"], results[f"wrapped {name}"]
    for each in (ordinary, wrapped):
        assert each["digests"][0] == each["digests"][1]
    assert wrapped["ranks"] == ordinary["ranks"]
    assert wrapped["ranks"][-1] != {n: list(layer.ranks) for n, layer in factorised(net()).items()}
    for what in ("kernels", "head"):
        for a, b in zip(ordinary[what], wrapped[what], strict=True):
            torch.testing.assert_close(torch.tensor(b), torch.tensor(a), rtol=0, atol=1e-6)


def test_processes_that_clip_by_norms_of_their_own_stay_bitwise_equal(launched) -> None:
    """Each scales its part of the gradient of a basis as it did that of the core, before they are averaged."""
    first, second = launched[1]["clipped"]["digests"]
    assert first == second


@pytest.fixture(scope="module")
def refused(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("refused")
    in_two_processes(SCRIPT.with_name("two_processes_refused.py"), folder)
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["overflow", "clipped"])
def test_where_a_scaler_overflows_in_one_process_all_skip_and_go_on_together(refused, name) -> None:
    first, second = refused[name]["processes"]
    assert first["moved"] == second["moved"] == [step != 2 for step in range(8)]
    assert first["steps"] == second["steps"] == 7
    assert first["digest"] == second["digest"]
    assert first["scale"] < second["scale"]  # each scaler heeds the overflows of its own process
    assert refused[name]["nonfinite"] == 0


@pytest.mark.parametrize("name", ["sharded", "sharded after"])
def test_a_sharded_model_is_refused_in_one_sentence_before_the_first_step(refused, name) -> None:
    assert refused[name].startswith("`model` must not be sharded (fully_shard")
