"""What TRP and LRPET share: when they project, what they leave alone, and how a run survives being stopped."""

import copy
import math
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import tenfold
from methods.projection_by_hand import HYPER, batch, close, rank_of, train
from nets import TiedConvs, conv_chain, conv_norm_chain
from tenfold.errors import TenfoldWarning
from tenfold.linalg.fold import Fold
from tenfold.methods.contract import projected_model
from tenfold.methods.contract.method import Goal
from tenfold.methods.contract.projection import STATE

METHODS = {
    "trp": lambda **f: tenfold.TRP(**{"energy": 0.8, "every": 2, "nuclear": 0.05} | f),
    "lrpet": lambda **f: tenfold.LRPET(**{"prune_ratio": 0.5, "every": 2} | f),
}


@pytest.fixture(params=METHODS)
def make(request):
    return METHODS[request.param]


def fresh(method, *, start=None, goal=None, base=torch.optim.SGD, **hyper):
    model = method.begin(conv_norm_chain() if start is None else start)
    return model, method.optimizer(model, base=base, goal=goal, **(hyper or HYPER))


def state_of(optimizer):
    return optimizer.param_groups[0][STATE]


# ---- when


def test_every_so_many_steps(make):
    model, optimizer = fresh(make(every=3))
    low = []
    train(model, optimizer, range(9), lambda i: low.append(rank_of(model.mid.weight) < 12))
    assert low == [i % 3 == 2 for i in range(9)]
    assert (state_of(optimizer)["steps"], state_of(optimizer)["projections"]) == (9, 3)


def test_every_epoch_by_the_length_that_the_goal_tells(make):
    model, optimizer = fresh(make(every="epoch"), goal=Goal(steps_per_epoch=4))
    low = []
    train(model, optimizer, range(9), lambda i: low.append(rank_of(model.mid.weight) < 12))
    assert low == [i % 4 == 3 for i in range(9)]


def test_an_epoch_of_unknown_length_is_250_steps_with_a_warning(make):
    with pytest.warns(TenfoldWarning, match=r"projects every 250 steps.*steps_per_epoch"):
        model, optimizer = fresh(make(every="epoch"))
    state_of(optimizer)["steps"] = 248
    low = []
    train(model, optimizer, range(3), lambda i: low.append(rank_of(model.mid.weight) < 12))
    assert low == [False, True, False]


def test_accumulated_gradients_count_as_the_step_that_they_make(make):
    """Two halves of a batch per step: the same projections at the same steps."""
    model, optimizer = fresh(make())
    low = []
    for i in range(4):
        optimizer.zero_grad()
        x, y = batch(i)
        for half in (slice(4), slice(4, None)):
            nn.functional.cross_entropy(model(x[half]), y[half]).backward()
        optimizer.step()
        low.append(rank_of(model.mid.weight) < 12)
    assert low == [False, True, False, True]


# ---- optimizers

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "sgd fused": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, fused=True),
    "sgd foreach": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, foreach=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.001),
}


@pytest.mark.parametrize("momentum", ["keep", "project", "reset"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_any_optimizer_is_projected_at_every_turn(make, kind, momentum):
    method = make(momentum=momentum)
    model = method.begin(conv_norm_chain(torch.float32))
    optimizer = OPTIMIZERS[kind](model.parameters())
    assert method.attach(model, optimizer) is optimizer
    low = []
    train(model, optimizer, range(6), lambda i: low.append(rank_of(model.mid.weight, 1e-5) < 12))
    assert low == [False, True] * 3
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_optimizers_that_write_through_data_are_noticed_too(make):
    """They raise no version of the weights."""

    class Old(torch.optim.Optimizer):
        def __init__(self, params) -> None:
            super().__init__(params, {})

        def step(self, closure=None):
            for p in self.param_groups[0]["params"]:
                p.data.add_(p.grad, alpha=-0.05)

    method = make(every=1)
    model = method.begin(conv_norm_chain())
    optimizer = method.attach(model, Old(model.parameters()))
    train(model, optimizer, range(4), lambda _: rank_of(model.mid.weight) < 12 or pytest.fail("not projected"))


def test_keep_leaves_the_moments_bit_for_bit_and_the_others_do_not(make):
    moments = {}
    for momentum in ("keep", "project", "reset"):
        model, optimizer = fresh(make(momentum=momentum, every=3))
        train(model, optimizer, range(3))
        plain = tenfold.Dense().begin(conv_norm_chain())
        other = torch.optim.SGD(plain.parameters(), **HYPER)
        train(plain, other, range(3))
        moments[momentum] = optimizer.state[model.mid.weight].get("momentum_buffer")
        for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
            if momentum == "keep" or name in ("head.weight", "mid.bias", "norm1.weight"):
                assert torch.equal(optimizer.state[p]["momentum_buffer"], other.state[q]["momentum_buffer"])
    assert moments["reset"].abs().max() == 0
    assert rank_of(moments["project"]) == rank_of(model.mid.weight) < rank_of(moments["keep"])


def test_an_optimizer_of_other_weights_is_refused(make):
    method, start = make(), conv_norm_chain()
    model = method.begin(start)
    with pytest.raises(tenfold.ArgumentError, match="`optimizer` must train the layers of `model`"):
        method.attach(model, torch.optim.SGD(start.parameters(), lr=0.1))


# ---- what is left alone


@pytest.mark.parametrize("layer", ["first", "mid"])
@pytest.mark.parametrize("how", ["frozen", "left out"])
def test_weights_that_are_not_trained_are_not_projected_in_training(make, how, layer):
    method, goal = make(), Goal(target_modules=["first", "mid"])
    model = method.begin(conv_norm_chain())
    before = model.get_submodule(layer).weight.detach().clone()
    model.get_submodule(layer).requires_grad_(how != "frozen")
    trained = [p for name, p in model.named_parameters() if how == "frozen" or not name.startswith(layer)]
    optimizer = method.attach(model, torch.optim.SGD(trained, **HYPER), goal=goal)
    train(model, optimizer, range(4))
    assert torch.equal(model.get_submodule(layer).weight, before)
    assert {layer, *state_of(optimizer)["ranks"]} == {"first", "mid"}
    assert layer not in state_of(optimizer)["ranks"]
    assert set(method.project_(model, goal)) == {"first", "mid"}  # asked for, it is
    assert not torch.equal(model.get_submodule(layer).weight, before)


def test_weights_that_are_unfrozen_later_are_projected_from_then_on(make):
    method = make()
    goal = Goal(target_modules=["first", "mid"])
    model = method.begin(conv_norm_chain())
    model.mid.weight.requires_grad_(False)
    optimizer = method.attach(model, torch.optim.SGD(model.parameters(), **HYPER), goal=goal)
    train(model, optimizer, range(2))
    assert "mid" not in state_of(optimizer)["ranks"]
    model.mid.weight.requires_grad_(True)
    train(model, optimizer, range(2, 4))
    assert rank_of(model.mid.weight) == state_of(optimizer)["ranks"]["mid"] < 12


def test_a_tied_weight_is_projected_once_and_stays_tied(make):
    torch.manual_seed(2)
    method = make()
    model = method.begin(TiedConvs().double())
    optimizer = method.optimizer(model, **HYPER)
    train(model, optimizer, range(2))
    assert model.one.weight is model.two.weight
    assert "two" not in state_of(optimizer)["ranks"]
    assert rank_of(model.one.weight) == state_of(optimizer)["ranks"]["one"] < 8
    small = method.finish(model).model
    assert small.one.encoder.weight is small.two.encoder.weight


@pytest.mark.parametrize("policy", ["skip", "raise"])
def test_a_layer_that_is_not_finite_is_named_and_the_others_are_projected(make, policy):
    method = make(nonfinite=policy, ranks={"first": 3, "mid": 3})
    model, optimizer = fresh(method, lr=0.0)
    train(model, optimizer, range(1))
    model.mid.weight.data[0, 0, 0, 0] = float("nan")
    before = model.mid.weight.detach().clone()
    optimizer.zero_grad(set_to_none=False)
    if policy == "skip":
        with pytest.warns(TenfoldWarning, match=r"did not project 'mid': NaN or infinite entries"):
            optimizer.step()
    else:
        with pytest.raises(tenfold.TenfoldError, match=r"did not project 'mid'"):
            optimizer.step()
    torch.testing.assert_close(model.mid.weight.detach(), before, rtol=0, atol=0, equal_nan=True)
    assert rank_of(model.first.weight) == 3
    assert set(state_of(optimizer)["ranks"]) == {"first"}


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")], ids=["data parallel", "compiled"]
)
def test_a_wrapped_model_is_refused(make, wrap):
    model = conv_norm_chain()
    wrapped = wrap(model)
    with pytest.raises(tenfold.ArgumentError, match="`model` must not be wrapped"):
        make().attach(wrapped, torch.optim.SGD(model.parameters(), lr=0.1))


def test_a_factorised_model_is_refused(make):
    small = tenfold.compress(conv_norm_chain(), tenfold.SVD(), tenfold.Budget(params=0.6)).model
    with pytest.raises(tenfold.ArgumentError, match="must be dense"):
        make().attach(small, torch.optim.SGD(small.parameters(), lr=0.1))


def test_a_model_of_which_every_layer_is_left_dense_is_refused(make):
    linear = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    for use in (
        lambda m: m.plan(tenfold.survey(linear)),
        lambda m: m.finish(linear),
        lambda m: m.optimizer(linear, lr=0.1),
        lambda m: m.project_(linear),
    ):
        with pytest.raises(tenfold.UnsupportedLayer, match=r"'0', '2': a linear layer.*name it in target_modules"):
            use(make())
    assert make().project_(linear, Goal(target_modules=["0"])).keys() <= {"0"}


def test_ranks_must_name_layers_that_there_are(make):
    with pytest.raises(tenfold.ArgumentError, match=r"`ranks` must name layers.*'middle'"):
        make(ranks={"middle": 3}).plan(tenfold.survey(conv_norm_chain()))


# ---- the smallest layers


def growing() -> nn.Sequential:
    """Convolutions of 4, 10, 44 and 39 % of the parameters, and 15, 39, 44 and 1 % of the MACs."""
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, padding=1, bias=False),
        nn.AvgPool2d(2),
        nn.Conv2d(8, 36, 3, padding=1, bias=False),
        nn.AvgPool2d(3),
        nn.Conv2d(36, 16, 2, bias=False),
        nn.Flatten(),
        nn.Linear(16, 10),
    ).double()


CONVS = {"0": 216, "2": 576, "4": 2592, "6": 2304}
LEFT = {"lrpet": {"0", "2", "4", "6"}, "trp": {"2", "4", "6"}}
"""What each method takes of itself."""


def images(i: int):
    g = torch.Generator().manual_seed(i)
    return torch.randn(6, 3, 12, 12, generator=g).double(), torch.randint(10, (6,), generator=g)


def learn(model, optimizer, steps):
    for i in range(steps):
        x, y = images(i)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def small_of(plan) -> set[str]:
    return {name for name, layer in plan.layers.items() if "smallest layer" in (layer.reason or "")}


@pytest.mark.parametrize("share", [0.0, 0.05, 0.15, 0.2, 0.3])
@pytest.mark.parametrize("limits", [None, {"params": 0.8}, {"macs": 0.8}, {"params": 0.9, "macs": 0.9}], ids=str)
def test_the_smallest_layers_stay_dense_and_are_the_same_in_training_and_in_the_end(make, limits, share):
    method, x = make(negligible=share, every=1), torch.randn(1, 3, 12, 12).double()
    budget = None if limits is None else tenfold.Budget(**limits)
    run_ = tenfold.begin(growing(), method, budget, example_inputs=x)
    optimizer = run_.optimizer(lr=0.01)
    learn(run_.model, optimizer, 3)
    plan, dense = run_.finish().plan, tenfold.cost(growing(), x)
    small = small_of(plan)
    taken = LEFT[method.name]
    macs = {"0": 216 * 144, "2": 576 * 144, "4": 2592 * 36, "6": 2304}
    sizes = {"params": {n: CONVS[n] / dense.params for n in taken}, "macs": {n: macs[n] / dense.macs for n in taken}}
    costs = [sizes[name] for name in limits or ["params"]]
    size = {n: max(cost[n] for cost in costs) for n in taken}
    for n in taken:  # the definition: those no larger than it fit, together
        smaller = [m for m in taken if size[m] <= size[n]]
        assert (n in small) == all(sum(cost[m] for m in smaller) <= share for cost in costs)
    assert set(state_of(optimizer)["ranks"]).isdisjoint(small)
    assert all(rank_of(run_.model.get_submodule(n).weight) == min(CONVS[n] // f, f) for n, f in _filters(small))
    assert {n for n, layer in plan.layers.items() if layer.rank} <= set(state_of(optimizer)["ranks"]) <= taken - small


def _filters(names):
    return [(n, {"0": 8, "2": 8, "4": 36, "6": 16}[n]) for n in names]


def test_by_default_it_is_one_per_cent_and_what_the_user_names_is_cut(make):
    assert make().negligible == 0.01
    model = growing()
    assert small_of(tenfold.plan(model, make(negligible=0.15)))
    ranks = tenfold.plan(model, make(negligible=0.15, ranks={"2": 2, "6": 2})).layers
    assert (ranks["2"].rank, ranks["6"].rank) == (2, 2)
    named = tenfold.plan(model, make(negligible=0.15), target_modules=list(CONVS))
    assert not small_of(named)
    assert "2" in make(negligible=0.15).project_(model, Goal(target_modules=list(CONVS)))


def test_a_budget_that_needs_the_smallest_layers_takes_them_back_and_says_so_wherever_it_is_told(make):
    method = make(negligible=0.15)
    with pytest.raises(tenfold.BudgetError) as caught:
        tenfold.plan(growing(), method, tenfold.Budget(params=2))
    budget = tenfold.Budget(params=caught.value.smallest["params"])
    with pytest.warns(TenfoldWarning, match=f"can be kept only if {method.name} cuts the smallest layers too"):
        plan = tenfold.plan(growing(), method, budget)
    assert plan == tenfold.plan(growing(), make(negligible=0.0), budget)
    with pytest.warns(TenfoldWarning, match=f"can be kept only if {method.name} cuts the smallest layers too"):
        model, optimizer = fresh(method, start=growing(), goal=Goal(budget=budget), lr=0.01)
    learn(model, optimizer, 2)
    assert set(state_of(optimizer)["ranks"]) == {name for name, layer in plan.layers.items() if layer.rank}


def test_where_every_layer_is_small_beside_the_rest_of_the_model_that_is_said(make):
    model = nn.Sequential(nn.Embedding(5000, 24), nn.Unflatten(1, (1, 24)), *growing()).double()
    method = make(negligible=0.1)
    for use in (lambda: tenfold.plan(model, method), lambda: method.optimizer(model, lr=0.1)):
        with pytest.raises(tenfold.UnsupportedLayer, match=r"smallest layers, together .* % of the params"):
            use()


# ---- averages


def test_averaged_weights_are_of_the_ranks_once_they_are_projected(make):
    method = make()
    model, optimizer = fresh(method)
    ema = AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.7))
    train(model, optimizer, range(6), lambda _: ema.update_parameters(model))
    assert rank_of(model.mid.weight) < 12
    assert rank_of(ema.module.mid.weight) == 12
    weights = model.mid.weight.detach().clone()
    ranks = method.project_(ema.module)
    assert rank_of(ema.module.mid.weight) == ranks["mid"] < 12
    assert torch.equal(model.mid.weight, weights)
    frozen = copy.deepcopy(ema.module).requires_grad_(False)  # as some averages are
    assert method.project_(frozen).keys() == ranks.keys()


# ---- stop and resume


@pytest.mark.parametrize("solver", ["exact", "warm"])
@pytest.mark.parametrize("momentum", ["keep", "project", "reset"])
@pytest.mark.parametrize("stop", [3, 4])
def test_a_run_that_is_stopped_resumes_to_the_same_bits_and_ranks(make, stop, momentum, solver, tmp_path):
    """At step 4 a pull is pending, at step 3 it is not. Through a file, and nothing unsafe in it."""
    method = make(momentum=momentum, solver=solver)
    if method.name == "trp":
        method = make(momentum=momentum, solver=solver, freeze=0.5, nuclear=0.0 if solver == "warm" else 0.05)
    goal = Goal(steps_per_epoch=6)
    model, optimizer = fresh(method, goal=goal)
    train(model, optimizer, range(stop))
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "run.pt")
    train(model, optimizer, range(stop, 9))
    other, resumed = fresh(method, goal=goal)
    saved = torch.load(tmp_path / "run.pt", weights_only=True)
    other.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    train(other, resumed, range(stop, 9))
    close(other, model, rtol=0, atol=0)
    assert state_of(resumed)["ranks"] == state_of(optimizer)["ranks"]
    assert state_of(resumed)["projections"] == state_of(optimizer)["projections"] == 4


def test_warm_projections_stay_near_the_exact_ones_and_are_exact_from_time_to_time(monkeypatch):
    runs = {}
    for solver in ("exact", "warm"):
        model, optimizer = fresh(tenfold.LRPET(every=1, solver=solver), lr=0.01)
        train(model, optimizer, range(8))
        runs[solver] = model
        assert set(state_of(optimizer)["bases"]) == ({"first", "mid", "point"} if solver == "warm" else set())
    for name in ("first", "mid", "point"):
        exact, warm = (runs[solver].get_submodule(name).weight.detach() for solver in ("exact", "warm"))
        assert (exact - warm).norm() < 1e-3 * exact.norm()
        assert rank_of(warm) == rank_of(exact)
    assert not torch.equal(runs["exact"].mid.weight, runs["warm"].mid.weight)
    monkeypatch.setattr(projected_model, "RENEW", 1)
    model, optimizer = fresh(tenfold.LRPET(every=1, solver="warm"), lr=0.01)
    train(model, optimizer, range(8))
    close(model, runs["exact"], rtol=0, atol=0)


def test_nothing_is_said_where_nothing_is_wrong(make):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, optimizer = fresh(make())
        train(model, optimizer, range(4))
        make().finish(model)


# ---- ranks and folds by allocation, after a dense start

ALLOCATED = {
    "lrpet": tenfold.LRPET(every=2, ranks="allocated"),
    "trp": tenfold.TRP(every=2, ranks="allocated", nuclear=0.0),
}


def run_of(method, budget, steps=10, seed=0):
    """A run, and the ranks of the weights' matrices in both spatial folds after each step."""
    torch.manual_seed(seed)
    run = tenfold.begin(conv_chain(3, 16, 24, 16, size=8, classes=4).double(), method, budget, steps=steps)
    optimizer = run.optimizer(torch.optim.SGD, lr=0.05, momentum=0.9)
    history = []
    for step in range(steps):
        x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        optimizer.zero_grad()
        run.model(x).square().mean().backward()
        optimizer.step()
        state = optimizer.param_groups[0]["projection"]
        history.append((state["projections"], dict(state["folds"] or {}), dict(state["ranks"])))
    return run, optimizer, history


@pytest.mark.parametrize("name", ALLOCATED)
@pytest.mark.parametrize("start", [0.0, 0.4, 0.75])
def test_allocated_ranks_are_chosen_at_the_first_projection_and_kept(name, start):
    budget = tenfold.Budget(params=0.5)
    run, _, history = run_of(replace(ALLOCATED[name], start=start), budget)
    first = next(i for i, (count, *_) in enumerate(history) if count)
    assert first + 1 == max(2, 2 * math.ceil(10 * start / 2))
    assert len({str(rest) for count, *rest in history if count}) == 1
    _, folds, ranks = history[-1]
    assert set(folds.values()) <= {"spatial", "spatial-t"}
    for layer, fold in folds.items():
        module = run.model.get_submodule(layer)
        matrices = Fold(tuple(module.weight.shape), 1, 1, fold).matrices(module.weight.detach())
        s = torch.linalg.svdvals(matrices[0])
        assert (s > 1e-10 * s[0]).sum() == ranks[layer]
    result = run.finish()
    assert result.report.small.params <= 0.5 * result.report.dense.params
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(result.model.eval()(x), run.model.eval()(x), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ALLOCATED)
def test_an_allocation_survives_a_checkpoint(name):
    def ends(stop):
        torch.manual_seed(0)
        model = conv_chain(3, 16, 24, 16, size=8, classes=4).double()
        runs = [tenfold.begin(model, ALLOCATED[name], tenfold.Budget(params=0.5), steps=8) for _ in range(2)]
        optimizers = [run.optimizer(lr=0.05, momentum=0.9) for run in runs]
        for step in range(8):
            if step == stop:
                kept = copy.deepcopy([runs[0].model.state_dict(), optimizers[0].state_dict()])
                runs[1].model.load_state_dict(kept[0])
                optimizers[1].load_state_dict(kept[1])
            at = int(step >= stop)
            x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
            optimizers[at].zero_grad()
            runs[at].model(x).square().mean().backward()
            optimizers[at].step()
        return runs[int(stop < 8)].model.state_dict()

    whole, resumed = ends(8), ends(5)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_an_allocation_needs_a_budget():
    run = tenfold.begin(conv_chain(3, 16, 24, size=8, classes=4), tenfold.LRPET(every=2, ranks="allocated"))
    with pytest.raises(tenfold.ArgumentError, match="`budget` must be given for ranks='allocated'"):
        run.optimizer(lr=0.1)
    with pytest.raises(tenfold.ArgumentError, match="'allocated', or None"):
        tenfold.TRP(ranks="best")
    with pytest.raises(tenfold.ArgumentError, match="`start` must be a share"):
        tenfold.TRP(start=1)
