"""What is measured, and that measuring changes nothing. No test looks at how fast anything is."""

import time

import pytest
import torch
from torch import nn

import tenfold
from nets import Residual
from tenfold.bench import latency
from tenfold.errors import ArgumentError
from tenfold.runtimes.timing import undisturbed_clock


class Calls(list):
    """A record that copies of a model share."""

    def __deepcopy__(self, memo):
        return self


class Sleeper(nn.Module):
    def __init__(self, seconds):
        super().__init__()
        self.seconds, self.calls = seconds, Calls()

    def forward(self, x):
        assert not self.training
        assert torch.get_num_threads() == 1
        self.calls.append(x)
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
    assert len(models["b"].calls) > len(models["a"].calls)  # a short pass is repeated until the clock can see it


def test_modes_and_threads_are_put_back():
    before = torch.get_num_threads()
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout())
    model[0].eval()
    latency.compare(model, model, torch.zeros(2, 4), threads=2, rounds=3)
    assert (model.training, model[0].training, model[1].training) == (True, False, True)
    assert torch.get_num_threads() == before


def test_a_model_that_fails_leaves_no_trace():
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(ArgumentError, match="`inputs` must be inputs that the model accepts"):
        latency.compare(model, model, torch.zeros(2, 5), rounds=3)
    assert model.training


def test_what_other_programs_take_is_left_out_where_one_thread_computes():
    x = torch.zeros(1)
    assert undisturbed_clock(x, 1) is time.thread_time
    assert undisturbed_clock({"a": x}, 2) is time.perf_counter
    assert undisturbed_clock(x.to("meta"), 1) is time.perf_counter
    asleep = latency.milliseconds({"a": Sleeper(0.004)}, x, rounds=3, clock=time.thread_time)
    assert asleep["a"] < 4


@pytest.mark.parametrize(("name", "value"), [("threads", 0), ("rounds", 2)])
def test_numbers_out_of_range_are_refused(name, value):
    with pytest.raises(ArgumentError, match=name):
        latency.compare(nn.Identity(), nn.Identity(), torch.zeros(1), **{name: value})


def compressed():
    dense = Residual().eval()
    return dense, tenfold.compress(dense, tenfold.ALDS(), tenfold.Budget(params=0.7)).model


def test_every_runtime_is_compared_and_the_best_of_dense_with_the_best_of_compressed(monkeypatch):
    pytest.importorskip("onnxruntime")
    dense, small = compressed()
    monkeypatch.setattr(latency, "turns", lambda calls, *_, **__: [(4.0, 2.0, 3.0, 6.0), (8.0, 4.0, 6.0, 12.0)] * 2)
    found = latency.benchmark(dense, small, torch.randn(2, 3, 8, 8), runtimes=["eager", "onnxruntime"], rounds=3)
    assert [row.speedup for row in found.each] == [2.0, 0.5]
    assert [(row.dense_form.runtime, row.small_form.runtime) for row in found.each] == [
        ("eager",) * 2,
        ("onnxruntime",) * 2,
    ]
    best = found.best
    assert (best.dense_form.runtime, best.small_form.runtime, best.speedup) == ("onnxruntime", "eager", 1.5)
    assert (best.dense_ms, best.small_ms) == (4500, 3000)
    assert {row.dense_form.folded for row in found.each} == {7}
    assert {row.small_form.folded for row in found.each} == {7}
    with pytest.raises(ArgumentError, match="`runtimes`"):
        latency.benchmark(dense, small, torch.randn(2, 3, 8, 8), runtimes=[])
