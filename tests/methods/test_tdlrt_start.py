"""TDLRT after a dense start: weights, momentum, checkpoints and budgets go through the change of form."""

import copy
import io

import pytest
import torch
from torch import nn

import tenfold
from optim.networks import Net, batch
from tenfold.errors import ArgumentError
from tenfold.layers.tucker_protocol import factorised
from tenfold.methods.contract.method import Goal

STEPS = 8
FULL = {"conv": (12, 3), "group": (6, 6), "point": 12}
"""Ranks at which all bases are square."""


def dense():
    torch.manual_seed(0)
    return Net().double().eval()


def begun(method, goal, base=torch.optim.SGD, **hyper):
    model = method.begin(dense(), goal=goal)
    hyper = {"lr": 0.05} | hyper
    return model, method.optimizer(model, base=base, goal=goal, **hyper)


def train(model, optimizer, steps, schedule=None):
    for step in steps:
        x, y = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()


def weights(model):
    return [p.detach() for _, p in sorted(tenfold.to_dense(model).named_parameters())]


def same(a, b, **close):
    for x, y in zip(weights(a), weights(b), strict=True):
        torch.testing.assert_close(x, y, **close)


@pytest.mark.parametrize("hyper", [{"momentum": 0.9, "weight_decay": 0.01}, {"momentum": 0.9, "nesterov": True}])
def test_at_full_rank_it_is_the_dense_training_with_its_momentum(hyper) -> None:
    """Square orthonormal bases: heavy ball in the core is heavy ball in the weight, from the first step after."""
    model, optimizer = begun(tenfold.TDLRT(integrator="fixed", ranks=FULL, start=0.5), Goal(steps=STEPS), **hyper)
    whole = dense()
    plain = torch.optim.SGD(whole.parameters(), lr=0.05, **hyper)
    assert not factorised(model)
    train(model, optimizer, range(4))
    assert set(factorised(model)) == set(FULL)
    train(model, optimizer, range(4, STEPS))
    train(whole, plain, range(STEPS))
    same(model, whole, rtol=1e-9, atol=1e-12)


def test_momentum_goes_into_the_core_as_its_projection() -> None:
    model, optimizer = begun(
        tenfold.TDLRT(ranks={"conv": (4, 2), "head": 4}, start=0.5), Goal(steps=STEPS), momentum=0.9
    )
    train(model, optimizer, range(3))
    before = {n: optimizer.state[p]["momentum_buffer"].clone() for n, p in model.named_parameters()}
    twin, other = copy.deepcopy((model, optimizer))
    x, y = batch(3)
    for m, o in ((model, optimizer), (twin, other)):
        o.zero_grad()
        nn.functional.cross_entropy(m(x), y).backward()
    held = {n: 0.9 * before[n] + p.grad for n, p in twin.named_parameters()}
    optimizer.step()
    for name, layer in factorised(model).items():
        outer, inner = (b.detach() for b in layer.bases)
        kept = torch.einsum("oi...,or,is->rs...", held[f"{name}.weight"], outer, inner)
        torch.testing.assert_close(optimizer.state[layer.core]["momentum_buffer"], kept)
        assert not any(basis in optimizer.state for basis in layer.bases)
    assert torch.equal(optimizer.state[model.group.weight]["momentum_buffer"], held["group.weight"])


@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.AdamW])
def test_groups_and_schedules_go_on_and_ranks_adapt_from_there(base) -> None:
    hyper = {"momentum": 0.9} if base is torch.optim.SGD else {}
    method = tenfold.TDLRT(start=0.25, every=1, tau=0.4, first=0.5, floor=1, freeze=0.1, negligible=0.0)
    model, optimizer = begun(method, Goal(steps=20), base, **hyper)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    train(model, optimizer, range(5), schedule)
    entered = {n: layer.ranks for n, layer in factorised(model).items()}
    train(model, optimizer, range(5, 20), schedule)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05 * 0.9**20)
    assert optimizer.report["steps"] == 20
    assert {n: layer.ranks for n, layer in factorised(model).items()} != entered
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}
    for layer in factorised(model).values():
        for basis in layer.bases:
            parts = basis.detach().unflatten(0, (layer.groups, -1))
            torch.testing.assert_close(parts.mT @ parts, torch.eye(basis.shape[1]).double().expand(len(parts), -1, -1))


@pytest.mark.parametrize("integrator", ["fixed", "cycle"])
def test_it_ends_within_the_budget_at_ranks_that_were_trained(integrator) -> None:
    budget = tenfold.Budget(params=0.6)
    method = tenfold.TDLRT(integrator=integrator, start=0.4, every=2, floor=1, negligible=0.0)
    model, optimizer = begun(method, Goal(budget, steps=20))
    train(model, optimizer, range(20))
    result = method.finish(model, budget)
    assert result.plan.params <= 0.6 * tenfold.cost(dense()).params
    same(model, result.model)  # nothing is cut in the end


@pytest.mark.parametrize("start", [0.0, 0.4])
@pytest.mark.parametrize("share", [0.5, 0.8, 1.0])
def test_a_budget_that_says_the_first_ranks_is_spent(start, share) -> None:
    """Not capped by what a run without a budget would begin with."""
    budget = tenfold.Budget(params=share)
    method = tenfold.TDLRT(integrator="fixed", start=start, floor=1, negligible=0.0, first=0.25)
    model, optimizer = begun(method, Goal(budget, steps=5))
    train(model, optimizer, range(5))
    kept = method.finish(model, budget).plan.params / tenfold.cost(dense()).params
    assert kept > share - 0.1 or share == 1.0


@pytest.mark.parametrize("first", ["model", "optimizer"])
@pytest.mark.parametrize("stop", [3, 4, 7])
@pytest.mark.parametrize("there", ["dense", "entered"])
def test_a_checkpoint_from_before_or_after_goes_on_to_the_same_bits(first, stop, there) -> None:
    """Into a run that has just begun, and into one that has gone on past the change of form."""
    method, goal = tenfold.TDLRT(start=0.4, every=2, tau=0.2, floor=1, negligible=0.0), Goal(steps=10)
    model, optimizer = begun(method, goal, momentum=0.9)
    train(model, optimizer, range(stop))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    train(model, optimizer, range(stop, 10))
    again, other = begun(method, goal, momentum=0.9)
    if there == "entered":
        train(again, other, range(6))
    saved = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    parts = {"model": again, "optimizer": other}
    for name in (first, *(n for n in parts if n != first)):
        parts[name].load_state_dict(saved[name])
    train(again, other, range(stop, 10))
    assert {n: x.ranks for n, x in factorised(again).items()} == {n: x.ranks for n, x in factorised(model).items()}
    same(again, model, rtol=0, atol=0)


def test_without_the_length_of_the_run_it_is_in_tucker_format_at_once() -> None:
    method = tenfold.TDLRT(start=0.4)
    assert factorised(method.begin(dense()))
    model = method.begin(dense(), goal=Goal(steps=10))
    assert not factorised(model)
    assert factorised(method.begin(tenfold.TDLRT().begin(dense()), goal=Goal(steps=10)))


@pytest.mark.parametrize(
    "fields", [{"start": 0.8}, {"start": 0.5, "freeze": 0.5}, {"start": -0.1}, {"start": 0.2, "scratch": True},
               {"start": 0.2, "static": True}, {"start": True}],
)  # fmt: skip
def test_a_start_that_leaves_nothing_to_follow_is_refused(fields) -> None:
    with pytest.raises(ArgumentError, match="`start`"):
        tenfold.TDLRT(**fields)
    with pytest.raises(tenfold.BudgetError):
        tenfold.TDLRT(start=0.3).begin(dense(), goal=Goal(tenfold.Budget(params=0.01), steps=10))
