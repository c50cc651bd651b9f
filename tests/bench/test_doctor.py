"""The doctor's counts are right, its reasons are given, and it leaves everything alone. No test looks at the clock."""

import time

import pytest
import torch
from torch import nn

import tenfold
from helpers import same_state, state
from tenfold.bench import doctor
from tenfold.errors import ArgumentError


class EveryReason(nn.Module):
    """A layer that may pay, used at two sizes, beside one for each reason why not."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.depth = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.twice = nn.Conv2d(32, 32, 3, padding=1)
        self.idle = nn.Linear(8, 8)
        self.table = nn.Embedding(4, 4)
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        x = self.depth(self.stem(x)).relu()
        return self.head(self.twice(self.twice(x)[..., ::2, ::2]).mean((2, 3)))


@pytest.fixture
def steady(monkeypatch):
    """A clock by which a module takes its parameters' number of milliseconds, and each odd rank above 8 twice that."""
    asked = []

    def times(models, x, *, threads, rounds, clock):
        assert clock is time.thread_time
        asked.append((tuple(x.shape), list(models)))
        slow = {n: 2.0 if n.isdigit() and int(n) % 2 and int(n) > 8 else 1.0 for n in models}
        return {n: tenfold.cost(m).params * slow[n] for n, m in models.items()}

    monkeypatch.setattr(doctor, "milliseconds", times)
    return asked


def by_name(found):
    return {x.name: x for x in found.layers}


def test_break_even_ranks_are_the_largest_that_are_cheaper(steady):
    model, x = EveryReason(), torch.randn(2, 3, 8, 8)
    found = doctor.diagnose(model, x)
    twice = by_name(found)["twice"]
    problem = tenfold.survey(model, example_inputs=x)
    cost = next(site.cost for site in problem.sites if site.name == "twice")
    for name, rank in (("params", twice.even_params), ("macs", twice.even_macs)):
        assert getattr(cost.low_rank(rank), name) < getattr(cost.dense(), name)
        assert rank == twice.full_rank or getattr(cost.low_rank(rank + 1), name) >= getattr(cost.dense(), name)
    # by that clock a pair takes 320 j + 32 ms, dense 9248, each use: rank 28 is the last that pays, 24 the last aligned
    assert [t.rank for t in twice.timings] == [8, 16, 24]
    assert (twice.even_params, twice.even_ms, twice.ms) == (28, 24, 2 * 9248)
    assert twice.share == twice.ms / found.ms
    assert [t.predicted for t in twice.timings] == pytest.approx(
        [cost.dense().macs / cost.low_rank(j).macs for j in (8, 16, 24)]
    )
    assert twice.reason is None
    assert (twice.step_rank, twice.uneven) == (16, True)
    assert found.reachable == pytest.approx(sum(x.share for x in found.layers if x.reason is None))


def test_layers_are_timed_on_the_shapes_that_they_see(steady):
    doctor.diagnose(EveryReason(), torch.randn(2, 3, 8, 8))
    shapes = [shape for shape, ranks in steady if ranks == ["0", "8", "16", "24", "17"]]
    assert sorted(shapes) == [(2, 32, 4, 4), (2, 32, 8, 8)]
    assert steady[0] == ((2, 3, 8, 8), ["model"])


def test_every_layer_that_cannot_pay_says_why(steady):
    found = by_name(doctor.diagnose(EveryReason(), torch.randn(2, 3, 8, 8), exclude_modules=["head"]))
    assert found["idle"].reason == doctor.UNUSED
    assert found["depth"].reason == doctor.NO_RANK
    assert "Embedding" in found["table"].reason
    assert found["head"].reason == "in exclude_modules"
    assert list(found) == ["stem", "depth", "twice", "idle", "table", "head"]


@pytest.mark.parametrize("whole", [1.0, 10.0**6])
def test_shares_add_up_to_the_time_of_the_model(monkeypatch, whole):
    monkeypatch.setattr(
        doctor, "milliseconds", lambda models, x, **_: {n: whole if n == "model" else 3.0 for n in models}
    )
    found = doctor.diagnose(EveryReason(), torch.randn(1, 3, 8, 8))
    times = [x.ms or 0.0 for x in found.layers]
    assert found.ms == max(whole, sum(times))
    assert found.rest == pytest.approx(1 - sum(times) / found.ms)
    assert found.rest >= -1e-12


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.memory, self.head = nn.LSTM(8, 8, num_layers=2), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.memory(x)[0])


def test_input_matrices_of_recurrent_layers_are_timed_and_recurrences_are_part_of_the_rest(steady):
    found = doctor.diagnose(Recurrent(), torch.randn(3, 2, 8))
    names = ["weight_ih_l0", "weight_hh_l0", "weight_ih_l1", "weight_hh_l1"]
    assert [x.name for x in found.layers] == [*(f"memory.{name}" for name in names), "head"]
    assert [x.ms is None for x in found.layers] == [False, True, False, True, False]
    assert {x.macs for x in found.layers[:4]} == {6 * 32 * 8, None}
    assert "a recurrence" in found.layers[1].reason


def test_a_layer_that_is_slower_at_every_rank_says_so(monkeypatch):
    monkeypatch.setattr(doctor, "milliseconds", lambda models, x, **_: {n: 1.0 + (n != "0") for n in models})
    found = by_name(doctor.diagnose(EveryReason(), torch.randn(1, 3, 8, 8), target_modules=["twice"]))["twice"]
    assert (found.reason, found.even_ms) == (doctor.SLOWER, 0)


@pytest.mark.parametrize("fold", ["spatial", "decoupled"])
def test_it_measures_for_real_and_changes_nothing(fold):
    model, x = EveryReason().train(), torch.randn(1, 3, 8, 8)
    before, drawn = state(model), torch.random.get_rng_state()
    small = tenfold.apply(model, tenfold.plan(model, tenfold.SVD(), tenfold.Budget(params=0.8)))
    seen = []
    found = doctor.diagnose(small.train(), x, rungs=2, rounds=3, fold=fold, report=lambda *words: seen.append(words))
    assert any(layer.timings for layer in found.layers)
    assert all(t.ms > 0 for layer in found.layers for t in layer.timings)
    assert [name for _, _, name in seen] == ["stem", "depth", "twice", "idle", "head"]
    assert small.training and all(not m._forward_pre_hooks for m in small.modules())  # noqa: PT018
    assert same_state(model, before)
    assert torch.equal(drawn, torch.random.get_rng_state())


@pytest.mark.parametrize(("field", "value"), [("rungs", 1), ("rounds", 2), ("threads", 0), ("fold", "channels")])
def test_what_is_out_of_range_is_refused(field, value):
    with pytest.raises(ArgumentError, match=f"`{field}`"):
        doctor.diagnose(EveryReason(), torch.randn(1, 3, 8, 8), **{field: value})


def test_a_model_without_layers_has_nothing_to_examine():
    found = doctor.diagnose(nn.Sequential(nn.ReLU()), torch.randn(1, 3))
    assert (found.layers, found.reachable) == ((), 0)


def test_layers_are_timed_as_a_plan_makes_them_and_all_add_up():
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Conv2d(8, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.Conv2d(64, 4, 1)),
        torch.randn(1, 8, 12, 12),
    )
    plan = tenfold.plan(model, tenfold.ALDS(slices=(2,)), tenfold.Budget(params=0.3))
    found = doctor.diagnose(model, x, rungs=2, rounds=3, plan=plan)
    changed = {name: layer for name, layer in plan.layers.items() if layer.decomposition != "dense"}
    planned = {layer.name: layer.planned for layer in found.layers if layer.planned}
    assert set(planned) == set(changed) != set()
    assert {name: timing.form for name, timing in planned.items()} == {
        name: f"channel/2/{layer.rank}" for name, layer in changed.items()
    }
    saved = sum(layer.ms - layer.planned.ms for layer in found.layers if layer.planned)
    assert found.planned_ms == pytest.approx(found.ms - saved)
    assert doctor.diagnose(model, x, rungs=2, rounds=3).planned_ms is None
