"""Group lasso and nuclear norm: what one step adds is what the pure functions say, whatever the optimizer."""

import warnings

import pytest
import torch
from torch import nn

import tenfold
from nets import conv_chain
from tenfold.linalg import nuclear_subgradient, row_subgradient, shrink_rows, shrink_spectrum
from tenfold.optim.projection.penalty import folded_weights

METHODS = [tenfold.GroupLasso, tenfold.NuclearNorm]
PURE = {
    tenfold.GroupLasso: (row_subgradient, shrink_rows),
    tenfold.NuclearNorm: (lambda a: nuclear_subgradient(a, min(a.shape[-2:])), shrink_spectrum),
}


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return conv_chain(3, 6, size=8, classes=4).double()


def loss(model, seed=0) -> torch.Tensor:
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return model(x).square().sum()


def step(model, optimizer, seed=0) -> None:
    optimizer.zero_grad()
    loss(model, seed).backward()
    optimizer.step()


@pytest.fixture(params=METHODS, ids=lambda m: m.name)
def kind(request):
    return request.param


def test_the_subgradient_is_added_to_the_gradient(kind) -> None:
    model, plain = net(), net()
    step(model, kind(strength=0.01).optimizer(model, lr=0.1))
    w = plain[0].weight
    (pulled,) = torch.autograd.grad(loss(plain), w)
    wanted = w - 0.1 * (pulled + 0.01 * PURE[kind][0](w.detach().flatten(1)).view_as(w))
    torch.testing.assert_close(model[0].weight, wanted, rtol=1e-10, atol=1e-12)
    step(plain, torch.optim.SGD(plain.parameters(), 0.1))
    assert torch.equal(model[2].weight, plain[2].weight)  # linear layers are left alone


def test_the_proximal_map_follows_the_step_with_the_thresholds_added_up(kind) -> None:
    model, plain = net(), net()
    optimizer = kind(strength=0.3, update="proximal", every=2).optimizer(model, lr=1e-3)
    sgd = torch.optim.SGD(plain.parameters(), 1e-3)
    for seed, lr in ((0, 1e-3), (1, 2e-3)):
        for one in (optimizer, sgd):
            one.param_groups[0]["lr"] = lr
        step(model, optimizer, seed)
        step(plain, sgd, seed)
        if seed == 0:
            assert torch.equal(model[0].weight, plain[0].weight)
    w = plain[0].weight.detach()
    wanted = PURE[kind][1](w.flatten(1), 0.3 * 3e-3).view_as(w)
    torch.testing.assert_close(model[0].weight.detach(), wanted, rtol=1e-10, atol=1e-12)


def test_a_strong_proximal_penalty_makes_exact_zeros() -> None:
    for kind, count in ((tenfold.GroupLasso, lambda w: w.norm(dim=1)), (tenfold.NuclearNorm, torch.linalg.svdvals)):
        model = net()
        optimizer = kind(strength=40.0, update="proximal").optimizer(model, lr=1e-2)
        for seed in range(3):
            step(model, optimizer, seed)
        values = count(model[0].weight.detach().flatten(1))
        assert (values <= 1e-12).any()


def test_strength_zero_is_the_optimizer_itself(kind) -> None:
    for update in ("subgradient", "proximal"):
        model, plain = net(), net()
        mine = kind(strength=0.0, update=update).optimizer(model, lr=0.01, momentum=0.9)
        other = torch.optim.SGD(plain.parameters(), 0.01, momentum=0.9)
        for seed in range(3):
            step(model, mine, seed)
            step(plain, other, seed)
        assert torch.equal(model[0].weight, plain[0].weight)


def test_a_held_subgradient_is_made_anew_every_so_many_steps(kind) -> None:
    model = net()
    optimizer = kind(strength=0.1, every=2).optimizer(model, lr=0.01)
    held = []
    for seed in range(4):
        step(model, optimizer, seed)
        held.append(
            next(v for k, v in optimizer.param_groups[0].items() if k == kind.name.replace("-", "_"))["held"]["0"]
        )
    assert torch.equal(held[0], held[1])
    assert not torch.equal(held[1], held[2])
    assert torch.equal(held[2], held[3])


def test_groups_of_a_convolution_are_matrices_of_their_own() -> None:
    model = nn.Conv2d(4, 6, 3, groups=2, bias=False).double()
    w = model.weight.detach().clone()
    optimizer = tenfold.NuclearNorm(strength=1.0).optimizer(model, lr=1.0)
    optimizer.zero_grad()
    (model(torch.zeros(1, 4, 3, 3).double()).sum()).backward()
    optimizer.step()
    for part, before in zip(model.weight.detach().chunk(2), w.chunk(2), strict=True):
        wanted = before - nuclear_subgradient(before.flatten(1), 3).view_as(before)
        torch.testing.assert_close(part, wanted, rtol=1e-10, atol=1e-12)


class Part(torch.Tensor):
    """What is no plain tensor, as a sharded one."""


@pytest.mark.parametrize("kind", METHODS)
def test_a_weight_that_is_no_plain_tensor_is_refused_and_a_hook_is_no_reason_to_leave_a_layer_out(kind) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3))
    model[0].register_forward_hook(lambda *_: None)
    assert [folded.name for folded in folded_weights(model, linear=False)] == ["0", "1"]
    model[1].weight = nn.Parameter(torch.randn(5, 4, 3, 3).as_subclass(Part))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(tenfold.UnsupportedLayer, match=r"'1' is a Part, not a plain tensor.*Exclude"):
        kind().attach(model, optimizer)
    kind().attach(model, optimizer, goal=tenfold.Goal(exclude_modules=["1"]))


def test_a_strength_that_cannot_show_in_a_run_is_said_with_one_that_can(kind) -> None:
    """By the bound itself: a norm falls by ``lambda lr`` in a step, and momentum adds these up."""
    model = net()
    values = model[0].weight.detach().flatten(1)
    size = float((values.norm(dim=1) if kind is tenfold.GroupLasso else torch.linalg.svdvals(values)).mean())
    goal = tenfold.Goal(steps=100)
    for share, says in ((0.04, True), (0.06, False)):
        method = kind(strength=share * size * (1 - 0.9) / (0.01 * 100))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            method.optimizer(net(), lr=0.01, momentum=0.9, goal=goal)
            method.optimizer(net(), lr=0.01, momentum=0.9)  # nobody knows how long
            method.optimizer(net(), base=torch.optim.AdamW, lr=0.01, goal=goal)  # no such bound
        assert ["takes at most 4.0% off" in str(w.message) for w in caught] == [True] * says


def test_gradients_of_weights_that_another_optimizer_trains_are_left_alone(kind) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)).double()
    optimizer = kind(strength=1.0).attach(model, torch.optim.SGD(model[0].parameters(), lr=0.1))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert model[0].weight.grad.any()
    assert not model[1].weight.grad.any()


def test_a_model_without_layers_to_put_it_on_is_refused(kind) -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    with pytest.raises(tenfold.UnsupportedLayer, match=f"no layer that {kind.name} works on.*linear=True"):
        kind().optimizer(model, lr=0.1)
    kind(linear=True).optimizer(model, lr=0.1)
