"""What is measured, and that measuring changes nothing. No test looks at how fast anything is."""

import time

import pytest
import torch
from torch import nn

from tenfold.bench import latency
from tenfold.errors import ArgumentError


class Sleeper(nn.Module):
    def __init__(self, seconds):
        super().__init__()
        self.seconds, self.calls = seconds, 0

    def forward(self, x):
        assert not self.training
        assert torch.get_num_threads() == 1
        self.calls += 1
        time.sleep(self.seconds)
        return x


def test_the_ratio_is_that_of_the_times():
    found = latency.compare(Sleeper(0.006), Sleeper(0.002), torch.zeros(3, 1), rounds=5)
    assert (found.batch, found.rounds, found.threads) == (3, 5, 1)
    assert found.dense_ms >= 6
    assert found.small_ms >= 2
    assert found.dense_ms > found.small_ms
    low, high = found.speedup_quartiles
    assert 1 < low <= found.speedup <= high


def test_every_model_is_measured():
    models = {"a": Sleeper(0.001), "b": Sleeper(0.0), "c": Sleeper(0.002)}
    found = latency.milliseconds(models, torch.zeros(1), rounds=3)
    assert list(found) == ["a", "b", "c"]
    assert found["a"] >= 1
    assert found["c"] >= 2
    assert models["b"].calls > models["a"].calls  # a short pass is repeated until the clock can see it


def test_modes_and_threads_are_put_back(monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    before = torch.get_num_threads()
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout())
    model[0].eval()
    latency.compare(model, model, torch.zeros(2, 4), threads=2, rounds=3)
    assert (model.training, model[0].training, model[1].training) == (True, False, True)
    assert seen == [2, before]


def test_a_model_that_fails_leaves_no_trace():
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(RuntimeError):
        latency.compare(model, model, torch.zeros(2, 5), rounds=3)
    assert model.training


def test_what_other_programs_take_is_left_out_where_one_thread_computes():
    x = torch.zeros(1)
    assert latency.undisturbed_clock(x, 1) is time.thread_time
    assert latency.undisturbed_clock({"a": x}, 2) is time.perf_counter
    assert latency.undisturbed_clock(x.to("meta"), 1) is time.perf_counter
    asleep = latency.milliseconds({"a": Sleeper(0.004)}, x, rounds=3, clock=time.thread_time)
    assert asleep["a"] < 4


@pytest.mark.parametrize(("name", "value"), [("threads", 0), ("rounds", 2)])
def test_numbers_out_of_range_are_refused(name, value):
    with pytest.raises(ArgumentError, match=name):
        latency.compare(nn.Identity(), nn.Identity(), torch.zeros(1), **{name: value})
