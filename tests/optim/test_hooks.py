"""Work in an optimizer's step: counted where a step happened, kept by its state, given the gradients it will use."""

import pytest
import torch
from torch import nn

from tenfold.errors import ArgumentError
from tenfold.optim.hooks import gradient_scale, hook_steps, require_trained, stepped, trained_by

KINDS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "sgd fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "sgd foreach": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, foreach=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
}


@pytest.fixture(params=KINDS)
def optimizer(request):
    return KINDS[request.param]([nn.Parameter(torch.ones(3))])


def weight_of(optimizer) -> nn.Parameter:
    return optimizer.param_groups[0]["params"][0]


def watched(optimizer):
    """What the hooks saw: gradients before, weights and counts after."""
    seen = {"before": [], "after": []}
    p = weight_of(optimizer)
    hook_steps(
        optimizer,
        "watch",
        {"extra": 7},
        before=lambda _: seen["before"].append(p.grad.clone()),
        after=lambda state: seen["after"].append((state["steps"], p.detach().clone())),
    )
    return seen


def test_every_step_is_counted_and_seen_from_both_sides(optimizer):
    seen, p = watched(optimizer), weight_of(optimizer)
    for i in range(3):
        p.grad = torch.full((3,), float(i + 1))
        optimizer.step()
        assert torch.equal(seen["after"][-1][1], p)
    assert [g[0].item() for g in seen["before"]] == [1.0, 2.0, 3.0]
    assert [count for count, _ in seen["after"]] == [1, 2, 3]
    assert optimizer.param_groups[0]["watch"] == {"steps": 3, "extra": 7}


def test_accumulated_gradients_make_one_step(optimizer):
    seen, p = watched(optimizer), weight_of(optimizer)
    for _ in range(2):
        optimizer.zero_grad()
        for _ in range(4):
            p.sum().backward()
        optimizer.step()
    assert [g[0].item() for g in seen["before"]] == [4.0, 4.0]
    assert [count for count, _ in seen["after"]] == [1, 2]


def test_the_count_goes_with_the_optimizers_state_through_a_file(optimizer, tmp_path):
    watched(optimizer)
    weight_of(optimizer).grad = torch.ones(3)
    for _ in range(5):
        optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    for first in (True, False):  # hooked before or after the state is loaded
        other = type(optimizer)([nn.Parameter(torch.ones(3))], lr=0.1)
        seen = watched(other) if first else None
        other.load_state_dict(saved)
        seen = seen or watched(other)
        weight_of(other).grad = torch.ones(3)
        other.step()
        assert [count for count, _ in seen["after"]] == [6]


@pytest.mark.parametrize("unscaled", [False, True])
def test_steps_that_the_scaler_skips_do_not_count_and_the_scale_is_known(optimizer, unscaled):
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, backoff_factor=0.5)
    p, seen = weight_of(optimizer), []
    state = {}
    hook_steps(
        optimizer,
        "watch",
        state,
        before=lambda _: seen.append((p.grad / gradient_scale(optimizer)).clone()),
        after=lambda _: None,
    )
    for bad in (False, True, False, True, True, False):
        optimizer.zero_grad()
        before = p.detach().clone()
        scaler.scale((p * (float("inf") if bad else 3.0)).sum()).backward()
        if unscaled:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(p, before) == bad
    assert optimizer.param_groups[0]["watch"]["steps"] == 3
    finite = [g for g in seen if torch.isfinite(g).all()]
    assert len(finite) == 3
    assert all(torch.equal(g, torch.full((3,), 3.0)) for g in finite)


@pytest.mark.parametrize("by_name", [False, True])
def test_a_closure_has_its_gradients_seen_after_each_call(optimizer, by_name):
    seen, p = watched(optimizer), weight_of(optimizer)

    def closure():
        optimizer.zero_grad()
        loss = 3 * p.sum()
        loss.backward()
        return loss

    loss = optimizer.step(closure=closure) if by_name else optimizer.step(closure)
    assert loss == 9.0
    assert [g.tolist() for g in seen["before"]] == [[3.0] * 3]
    assert [count for count, _ in seen["after"]] == [1]


def test_an_optimizer_that_calls_its_closure_many_times_makes_one_step():
    p = nn.Parameter(torch.full((3,), 2.0))
    optimizer = torch.optim.LBFGS([p], max_iter=4)
    seen = watched(optimizer)

    def closure():
        optimizer.zero_grad()
        loss = (p**4).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert len(seen["before"]) > 1
    assert [count for count, _ in seen["after"]] == [1]


def test_what_is_added_to_the_gradient_is_stepped_along():
    p = nn.Parameter(torch.ones(3))
    for closure in (None, lambda: p.sum()):
        optimizer = torch.optim.SGD([p], lr=1.0)
        hook_steps(optimizer, "x", {}, before=lambda _: p.grad.add_(10.0), after=lambda _: None)
        p.data.fill_(1.0)
        p.grad = torch.ones(3)
        optimizer.step(closure)
        assert p.tolist() == [-10.0] * 3


def test_only_what_requires_a_gradient_is_trained():
    a, b, c = (nn.Parameter(torch.ones(1)) for _ in range(3))
    b.requires_grad_(False)
    optimizer = torch.optim.SGD([{"params": [a]}, {"params": [b]}], lr=0.1)
    assert trained_by(optimizer) == {id(a)}
    b.requires_grad_(True)
    optimizer.add_param_group({"params": [c]})
    assert trained_by(optimizer) == {id(a), id(b), id(c)}


class Wrapped(torch.optim.Optimizer):
    """As trainers wrap an optimizer: one by name alone, whose tables of hooks nobody has made."""

    def __init__(self, optimizer) -> None:
        self.optimizer = optimizer

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    def step(self, closure=None):
        return self.optimizer.step(closure)


def test_what_a_trainer_has_wrapped_is_hooked_inside(optimizer) -> None:
    outer = Wrapped(Wrapped(optimizer))
    assert stepped(outer) is optimizer
    assert stepped(optimizer) is optimizer
    optimizer.grad_scale = torch.tensor(4.0)
    assert gradient_scale(outer) == 4.0
    del optimizer.grad_scale
    seen, p = watched(outer), weight_of(optimizer)
    p.grad = torch.ones(3)
    outer.step()
    assert [count for count, _ in seen["after"]] == [1]


def test_what_holds_no_optimizer_is_refused() -> None:
    for nothing in (object.__new__(Wrapped), nn.ReLU()):
        with pytest.raises(ArgumentError, match=r"`optimizer` must be a torch.optim.Optimizer"):
            hook_steps(nothing, "watch", {}, after=lambda _: None)


def test_a_state_of_a_run_without_the_hooks_starts_the_count_anew(optimizer) -> None:
    bare = type(optimizer)([nn.Parameter(torch.ones(3))], lr=0.1)
    seen = watched(optimizer)
    optimizer.load_state_dict(bare.state_dict())
    weight_of(optimizer).grad = torch.ones(3)
    optimizer.step()
    assert [count for count, _ in seen["after"]] == [1]
    assert optimizer.param_groups[0]["watch"] == {"steps": 1, "extra": 7}


def test_an_optimizer_that_trains_none_of_the_weights_is_refused(optimizer) -> None:
    p = weight_of(optimizer)
    require_trained(optimizer, [p, nn.Parameter(torch.ones(2))], "the method")
    with pytest.raises(ArgumentError, match="`optimizer` must train the layers of `model` that the method works on"):
        require_trained(optimizer, [nn.Parameter(torch.ones(3))], "the method")
    p.requires_grad_(False)
    with pytest.raises(ArgumentError, match="none of them that require a gradient"):
        require_trained(optimizer, [p], "the method")
