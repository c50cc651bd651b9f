"""What a recipe leaves to the machine: measured once, chosen by rules, and nothing else changes."""

import json
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn
from train_stubs import Plain, Recorder

from helpers import blobs, same_state, state
from nets import norm_dropout
from tenfold.errors import ArgumentError
from tenfold.methods import get_method
from tenfold.methods.contract.method import Goal
from tenfold.train import Recipe, fit, probe
from tenfold.train.data.split import Data
from tenfold.train.probe import compared, fastest, settled

PLAIN, LAST = ("no", "contiguous"), ("no", "channels_last")
LOW, LOW_LAST = ("bf16", "contiguous"), ("bf16", "channels_last")
OPEN = Recipe(epochs=2, batch_size=8, lr=0.05, precision="auto", memory_format="auto")
QUIET = {"progress": False}


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], float]:
    """What a pass takes by way, as the probe is to believe; passes are made, and small networks measured."""
    believed = dict.fromkeys((PLAIN, LAST, LOW, LOW_LAST), 1.0)
    taken: list[str] = []
    real = probe._pass

    def passing(model: nn.Module, x: torch.Tensor, y: torch.Tensor, precision: str) -> None:
        real(model, x, y, precision)
        last = any(p.ndim == 4 and not p.is_contiguous() for p in model.parameters())
        taken[:] = [precision, "channels_last" if last else "contiguous"]

    def clock(work, device: torch.device) -> float:
        work()
        return believed[taken[0], taken[1]]

    monkeypatch.setattr(probe, "LEAST", 0)
    monkeypatch.setattr(probe, "_pass", passing)
    monkeypatch.setattr(probe, "_seconds", clock)
    monkeypatch.setattr(probe, "_rounds_fast", lambda device: True)
    return believed


def decided(recipe: Recipe, data: Data | None = None) -> Recipe:
    return settled(recipe, norm_dropout(), Plain(), (data or blobs()).train)[0]


@pytest.mark.parametrize(
    ("speeds", "expected"),
    [
        ({PLAIN: 1.0, LAST: 1.04}, PLAIN),
        ({PLAIN: 1.0, LAST: 1.06}, LAST),
        ({PLAIN: 1.0, LAST: 1.5, LOW: 0.1, LOW_LAST: 0.2}, LAST),
        ({PLAIN: 1.0, LAST: 1.5, LOW: 1.0, LOW_LAST: 1.8}, LAST),  # rounding has to be worth it
        ({PLAIN: 1.0, LAST: 1.5, LOW: 1.0, LOW_LAST: 1.9}, LOW_LAST),
        ({PLAIN: 1.0, LAST: 0.5, LOW: 1.3, LOW_LAST: 1.2}, LOW),
        ({LOW: 1.0, LOW_LAST: 1.06}, LOW_LAST),
    ],
)
def test_the_fastest_way_is_taken_that_is_worth_it(speeds, expected) -> None:
    assert fastest(speeds, next(iter(speeds))) == expected


def test_ways_take_turns_are_compared_round_by_round() -> None:
    calls: list[tuple[str, str]] = []
    drift = iter(range(1, 1000))

    def run(way: tuple[str, str]) -> float:
        calls.append(way)
        return {PLAIN: 1.0, LAST: 0.8, LOW: 4.0}[way] * (1 + next(drift) / 1000)

    found = compared([PLAIN, LAST, LOW], run, PLAIN)
    assert found[PLAIN] == 1
    assert found[LAST] == pytest.approx(1.25, rel=0.01)
    assert calls == [PLAIN, LAST, LOW] * 5


def test_one_round_that_was_disturbed_changes_no_choice_and_noise_makes_none() -> None:
    seconds = iter([1, 1, 1, 0.8, 1, 3.0, 1, 0.8, 1, 0.8])
    assert compared([PLAIN, LAST], lambda way: next(seconds), PLAIN)[LAST] == pytest.approx(1.25)
    seconds = iter([1, 1, 1, 0.7, 1, 1.2, 1, 1.3, 1, 0.6])
    assert compared([PLAIN, LAST], lambda way: next(seconds), PLAIN)[LAST] < 1


def test_what_is_measured_faster_is_trained_in(seconds) -> None:
    seconds[LAST] = 0.5
    assert decided(OPEN) == replace(OPEN, precision="no", memory_format="channels_last")
    seconds[LOW] = 0.1
    assert decided(OPEN) == replace(OPEN, precision="bf16", memory_format="contiguous")


def test_what_is_given_stays_and_the_other_is_chosen(seconds) -> None:
    seconds |= {LAST: 0.5, LOW: 0.3, LOW_LAST: 0.1}
    assert decided(replace(OPEN, precision="no")).memory_format == "channels_last"
    assert decided(replace(OPEN, memory_format="contiguous")).precision == "bf16"
    assert decided(replace(OPEN, precision="bf16")).memory_format == "channels_last"


def test_nothing_is_measured_where_nothing_is_open_and_small_networks_are_trained_plainly(monkeypatch) -> None:
    monkeypatch.setattr(probe, "_pass", lambda *_: pytest.fail("measured"))
    given = Recipe(precision="no", memory_format="channels_last")
    assert settled(given, norm_dropout(), Plain(), blobs().train) == (given, None)
    recipe, choice = settled(OPEN, norm_dropout(), Plain(), blobs().train)
    assert (recipe.precision, recipe.memory_format) == PLAIN
    assert choice is not None
    assert choice.sentence == "Trained in float32, contiguous: the network is too small to measure."


def test_without_instructions_for_it_bfloat16_is_not_even_tried(seconds, monkeypatch) -> None:
    seconds[LOW] = 0.1
    monkeypatch.setattr(probe, "_rounds_fast", lambda device: False)
    recipe, choice = settled(OPEN, norm_dropout(), Plain(), blobs().train)
    assert (recipe.precision, list(choice.times_as_fast)) == ("no", ["float32, contiguous", "float32, channels_last"])


def test_parameters_of_another_type_are_not_rounded(seconds) -> None:
    seconds |= {LOW: 0.1, LOW_LAST: 0.1}
    tried: list[str] = []

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = norm_dropout().double()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            tried.append("bf16" if torch.is_autocast_enabled("cpu") else "no")
            return self.net(x.double())

    recipe, _ = settled(OPEN, Net(), Plain(), blobs().train)
    assert recipe.precision == "no"
    assert set(tried) == {"no"}


def test_a_probe_changes_neither_the_model_nor_random_numbers_nor_the_training(seconds) -> None:
    seconds[LAST] = 0.5
    model, data = norm_dropout(dropout=0.3), blobs()
    before, images = state(model), data.train.x.clone()
    torch.manual_seed(1)
    found = fit(model, Plain(), data, OPEN, **QUIET)
    after = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(3))
    assert same_state(model, before)
    assert torch.equal(data.train.x, images)
    assert found.recipe == replace(OPEN, precision="no", memory_format="channels_last")
    again = fit(model, Plain(), data, found.recipe, **QUIET)
    assert same_state(found.model, again.model)
    assert [row.loss for row in found.history] == [row.loss for row in again.history]


def test_a_resumed_run_goes_on_as_it_began_and_measures_nothing(seconds, tmp_path, monkeypatch) -> None:
    seconds[LAST] = 0.5
    data = blobs()
    straight = fit(norm_dropout(), Recorder(), data, OPEN, **QUIET)
    with pytest.raises(KeyboardInterrupt):
        fit(norm_dropout(), Recorder(fail_at=len(data.train) // 8 + 2), data, OPEN, out=tmp_path, **QUIET)
    saved = json.loads((tmp_path / "checkpoint" / "run.json").read_text())["recipe"]
    assert (saved["precision"], saved["memory_format"]) == LAST
    monkeypatch.setattr(probe, "_pass", lambda *_: pytest.fail("measured"))
    resumed = fit(norm_dropout(), Recorder(), data, OPEN, out=tmp_path, resume=True, **QUIET)
    assert same_state(straight.model, resumed.model)


@pytest.mark.parametrize("name", ["tdlrt", "factors", "trp", "sfw"])
def test_it_measures_what_a_method_trains(seconds, name) -> None:
    seconds[LAST] = 0.5
    method = get_method(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what is said, the training says
        recipe, _ = settled(OPEN, norm_dropout(), method, blobs().train, Goal())
    assert recipe.memory_format == "channels_last"


def test_a_format_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ArgumentError, match="`memory_format` must be one of contiguous, channels_last, auto"):
        Recipe(memory_format="nhwc")
