"""Budgets on latency: kept by the whole network as measured, with every layer faster than dense, and spent."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import tenfold
from helpers import random_batches
from plans.counted import CountingWatch, time_of
from tenfold.layers.swap import structure_of
from tenfold.plans import within_latency as subject
from tenfold.plans.candidates import candidates
from tenfold.plans.network_times import NetworkTimes, sketch
from tenfold.ranks.measures import MEASURES


def net():
    """Wide enough for ranks to choose from; the last convolution is used twice."""
    torch.manual_seed(0)
    tied = nn.Conv2d(32, 32, 3, padding=1)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 48, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Conv2d(48, 32, 1),
        tied,
        nn.ReLU(),
        tied,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 40),
        nn.ReLU(),
        nn.Linear(40, 10),
    ).eval()


def image():
    return torch.randn(2, 3, 12, 12)


@pytest.fixture
def watches(monkeypatch):
    """The counting stopwatches that are made in place of real ones."""
    made = []

    def make(runtime, *, threads, memory_format, device):
        made.append(CountingWatch())
        return made[-1]

    monkeypatch.setattr(subject, "stopwatch", make)
    return made


METHODS = {
    "svd": tenfold.SVD(fold="spatial"),
    "alds": tenfold.ALDS(measure="fro"),
    "svd-energy": tenfold.SVDEnergy(),
    "l-rank": tenfold.LRank(fold="spatial"),
    "tucker": tenfold.Tucker(),
    "vbmf": tenfold.VBMF(),
    "pca": tenfold.PCA(),
    "activation-svd": tenfold.ActivationSVD(),
    "fisher-svd": tenfold.FisherSVD(),
    "alds-output": tenfold.ALDS(measure="output", slices=(1, 2)),
    "tucker-output": tenfold.Tucker(measure="output"),
    "calibrated": tenfold.Calibrated(loss="logits"),
}


def data_for(method):
    if not method.needs_data:
        return None
    labels = torch.arange(16) % 10
    return [(x, labels) for x in random_batches(16, 3, 12, 12, count=4, seed=1)]


def measured(model, plan, x):
    """What the counting stopwatch says of the network that is really built."""
    small = tenfold.fold_batchnorm(tenfold.apply(model, plan), example_inputs=x)
    return CountingWatch().network("", lambda: small, x) / 1e6


@pytest.mark.filterwarnings("ignore:.*smallest layers.*", "ignore:.*tell enough.*")
@pytest.mark.parametrize("share", [0.7, 0.5])
@pytest.mark.parametrize("name", METHODS)
def test_the_built_network_is_within_the_limit_and_spends_it(name, share, watches):
    model, x, method = net(), image(), METHODS[name]
    plan = tenfold.plan(model, method, tenfold.Budget(latency=share), example_inputs=x, data=data_for(method))
    assert plan.latency_ms == pytest.approx(measured(model, plan, x), rel=1e-6)
    assert 0.75 * share <= plan.latency_ms / plan.dense_latency_ms <= share
    assert plan.budget == {"latency": share}


@pytest.mark.filterwarnings("ignore:.*smallest layers.*")
@pytest.mark.parametrize("name", ["alds", "l-rank", "tucker", "svd"])
def test_no_layer_is_replaced_by_a_slower_one(name, watches):
    model, x = net(), image()
    plan = tenfold.plan(model, METHODS[name], tenfold.Budget(latency=0.6), example_inputs=x)
    folded = tenfold.fold_batchnorm(model, example_inputs=x)
    inputs = {}
    for layer in plan.layers:
        model.get_submodule(layer).register_forward_pre_hook(lambda m, a, n=layer: inputs.setdefault(n, a[0]))
    model(x)
    small = sketch(folded, {n: p for n, p in plan.layers.items() if p.decomposition != "dense"})
    assert any(p.decomposition != "dense" for p in plan.layers.values())
    for layer, made in plan.layers.items():
        before, after = (time_of(m.get_submodule(layer), inputs[layer]) for m in (folded, small))
        assert after < before or made.decomposition == "dense", layer


def test_the_sum_of_losses_is_the_least_of_all_choices_within_the_limit(watches):
    model, x = net(), image()
    problem = subject.with_times(tenfold.survey(model, example_inputs=x, target_modules=["0", "3", "5"]))
    tables = candidates(problem, MEASURES["fro"], folds=("spatial",), slices=(1,))
    method, budget = tenfold.LRank(fold="spatial"), tenfold.Budget(latency=0.6)
    plan = method.choose(problem, budget)
    limit = problem.limits(budget)["latency"]
    energy = [float(site.kernel.double().square().sum()) for site in problem.sites]
    best = min(
        sum(float(t.error[i]) ** 2 * e for t, i, e in zip(tables, choice, energy, strict=True))
        for choice in itertools.product(*(range(len(t.error)) for t in tables))
        if sum(int(t.costs["latency"][i]) for t, i in zip(tables, choice, strict=True)) <= limit
    )
    chosen = sum(plan.layers[s.name].error ** 2 * e for s, e in zip(problem.sites, energy, strict=True))
    assert chosen == pytest.approx(best, rel=2e-4)
    assert plan.gap is not None
    assert plan.gap <= 1e-4


def test_several_limits_hold_at_once(watches):
    model, x = net(), image()
    budget = tenfold.Budget(latency=0.7, params=0.5, macs=0.6)
    plan = tenfold.plan(model, METHODS["l-rank"], budget, example_inputs=x)
    assert plan.latency_ms <= 0.7 * plan.dense_latency_ms
    assert plan.params <= 0.5 * plan.dense_params
    assert plan.macs <= 0.6 * plan.dense_macs


def test_milliseconds_are_a_limit_too(watches):
    model, x = net(), image()
    dense = tenfold.plan(model, METHODS["l-rank"], tenfold.Budget(latency=0.9), example_inputs=x).dense_latency_ms
    plan = tenfold.plan(model, METHODS["l-rank"], tenfold.Budget(latency_ms=0.6 * dense), example_inputs=x)
    assert 0.5 * dense <= plan.latency_ms <= 0.6 * dense


def test_what_cannot_be_reached_is_refused_and_what_is_named_can_be(watches):
    model, x = net(), image()
    with pytest.raises(tenfold.BudgetError, match=r"latency=0\.01 asked") as caught:
        tenfold.plan(model, METHODS["l-rank"], tenfold.Budget(latency=0.01), example_inputs=x)
    reachable = caught.value.smallest["latency"]
    assert 0.01 < reachable < 1
    tenfold.plan(model, METHODS["l-rank"], tenfold.Budget(latency=reachable * 1.03), example_inputs=x)


def test_calibrated_refuses_before_it_looks_at_data(watches):
    def looked():
        raise AssertionError
        yield

    class Unread:
        def __iter__(self):
            return looked()

    with pytest.raises(tenfold.BudgetError):
        tenfold.plan(net(), METHODS["calibrated"], tenfold.Budget(latency=0.01), example_inputs=image(), data=Unread())


def test_inputs_are_asked_for(watches):
    with pytest.raises(tenfold.ArgumentError, match="`example_inputs`"):
        tenfold.plan(net(), METHODS["svd"], tenfold.Budget(latency=0.5))


def test_a_plan_travels_with_its_times_and_loses_them_when_edited(watches):
    model, x = net(), image()
    plan = tenfold.plan(model, METHODS["l-rank"], tenfold.Budget(latency=0.6), example_inputs=x)
    again = tenfold.Plan.from_json(plan.to_json())
    assert again == plan
    assert again.conditions["inputs"] == [[2, 3, 12, 12]]
    changed = next(name for name, layer in plan.layers.items() if layer.decomposition != "dense")
    edited = plan.edit(changed, rank=1)
    assert edited.latency_ms is None
    assert edited.layers[changed].latency_ms is None
    assert "ms" in str(plan)
    assert "times as fast" in str(plan)


def test_the_same_budget_gives_the_same_plan_and_nothing_is_measured_twice(watches):
    problem = tenfold.survey(net(), example_inputs=image())
    first = METHODS["alds"].plan(problem, tenfold.Budget(latency=0.6))
    seen = [(len(w.layers), len(w.networks)) for w in watches]
    second = METHODS["alds"].plan(problem, tenfold.Budget(latency=0.6))
    assert not first.diff(second)
    assert [(len(w.layers), len(w.networks)) for w in watches] == seen


def test_tied_uses_add_up(watches):
    problem = tenfold.survey(net(), example_inputs=image())
    times = NetworkTimes(problem, CountingWatch())
    [site] = [s for s in problem.sites if s.name == "6"]
    times.timed(site, candidates(problem, MEASURES["fro"])[list(problem.sites).index(site)])
    once = time_of(times.model.get_submodule("6"), torch.randn(2, 32, 6, 6))
    assert times.of_layer("6", None) == pytest.approx(2 * once, rel=1e-4)


def test_ranks_between_measured_ones_are_interpolated(watches):
    problem = tenfold.survey(nn.Sequential(nn.Linear(512, 512)), example_inputs=torch.randn(4, 512))
    watch = CountingWatch()
    times = NetworkTimes(problem, watch)
    table = times.timed(problem.sites[0], candidates(problem, MEASURES["fro"], slices=(1,))[0])
    asked = len(watch.layers[0][1])
    assert len(table.rank) > asked
    x = torch.randn(4, 512)
    forms = [{"0": tenfold.LayerPlan("low-rank", int(rank), 1, "channel")} for rank in table.rank[1:]]
    exact = [time_of(sketch(times.model, form), x) for form in forms]
    assert np.allclose(table.costs["latency"][1:], exact, rtol=1e-3)


def test_a_budget_on_latency_is_a_share_or_milliseconds():
    with pytest.raises(tenfold.ArgumentError, match="`latency`"):
        tenfold.Budget(latency=3)
    with pytest.raises(tenfold.ArgumentError, match="`latency_ms`"):
        tenfold.Budget(latency_ms=0)
    assert tenfold.Budget(latency="50%").latency == 0.5
    assert tenfold.Budget(latency=0.5, latency_ms=2.0).allowed("latency", 3_000_000) == 1_500_000
    assert tenfold.Budget(latency=0.5, latency_ms=1).allowed("latency", 3_000_000) == 1_000_000


TRAINING = {
    "factors": tenfold.Factors(fold="spatial"),
    "lrpet": tenfold.LRPET(every=2, fold="spatial"),
    "trp": tenfold.TRP(every=2, fold="spatial"),
    "l-rank": tenfold.LRank(every=2, fold="spatial"),
    "tdlrt": tenfold.TDLRT(every=2),
}


@pytest.mark.filterwarnings("ignore:.*smallest layers.*")
@pytest.mark.parametrize("name", TRAINING)
def test_what_trains_towards_a_latency_ends_within_it(name, watches):
    model, x = net().train(), image()
    budget = tenfold.Budget(latency=0.6)
    run = tenfold.begin(model, TRAINING[name], budget, example_inputs=x, steps=10, steps_per_epoch=5)
    optimizer = run.optimizer(torch.optim.SGD, lr=0.01)
    for _ in range(10):
        optimizer.zero_grad()
        run.model(x).square().mean().backward()
        optimizer.step()
    result = run.finish()
    plan = result.plan
    assert plan.latency_ms <= 0.6 * plan.dense_latency_ms
    assert plan.latency_ms == pytest.approx(measured(net(), plan, x), rel=1e-6)
    assert plan.compresses
    # the ranks of the training are those of the end: nothing is cut untrained
    if name == "factors":
        trained = {n: layer.rank for n, layer in structure_of(run.model).items()}
        assert trained.items() <= {n: p.rank for n, p in plan.layers.items()}.items()
    if name == "lrpet":
        again = TRAINING[name].plan(tenfold.survey(net(), example_inputs=x), budget)
        assert {n: p.rank for n, p in again.layers.items()} == {n: p.rank for n, p in plan.layers.items()}


def test_timing_leaves_the_random_numbers_alone(watches):
    model, x = net(), image()
    before = torch.get_rng_state()
    tenfold.plan(model, METHODS["l-rank"], tenfold.Budget(latency=0.6), example_inputs=x)
    assert torch.equal(torch.get_rng_state(), before)


class UsedTwice(nn.Module):
    """No tracer follows it, and what the norm is given is used elsewhere as well: it cannot be folded."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 3, padding=1)
        self.more = nn.Conv2d(32, 48, 3, padding=1)
        self.norm = nn.BatchNorm2d(48)
        self.norm.running_mean.fill_(0.5)

    def forward(self, x):
        if float(x.sum()) > 1e9:
            return x
        y = self.more(self.conv(x))
        return self.norm(y) + y


def test_a_norm_that_cannot_be_folded_is_timed_where_it_is(watches):
    torch.manual_seed(0)
    model = UsedTwice().eval()
    plan = tenfold.plan(model, METHODS["alds"], tenfold.Budget(latency=0.8), example_inputs=image())
    assert plan.latency_ms <= 0.8 * plan.dense_latency_ms


def refused(share):
    """The error of a budget that is out of reach; None where it can be kept."""
    try:
        tenfold.plan(net(), METHODS["alds"], tenfold.Budget(latency=share), example_inputs=image())
    except tenfold.BudgetError as error:
        return error
    return None


def test_what_is_named_is_always_above_what_was_refused_and_can_be_kept(watches):
    errors = {share: error for share in np.linspace(0.02, 0.12, 6).tolist() if (error := refused(share))}
    assert 0 < len(errors) < 6
    for share, error in errors.items():
        assert error.smallest["latency"] > share
        assert refused(error.smallest["latency"] * 1.03) is None


@pytest.mark.parametrize("wrong", [{"runtime": "tensorflow"}, {"threads": 0}, {"threads": 1.5}])
def test_runtime_and_threads_are_checked_at_the_door(wrong):
    [name] = wrong
    with pytest.raises(tenfold.ArgumentError, match=f"`{name}`"):
        tenfold.plan(net(), METHODS["svd"], tenfold.Budget(params=0.5), **wrong)
