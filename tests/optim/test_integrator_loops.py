"""Loops as people write them: gradients by hand, copies, averages, states of other times. They work, or are refused."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import tenfold
from optim.networks import around, batch, net
from optim.toys import Kernel, integrator, kernel, normal, run, teacher
from tenfold.errors import ArgumentError
from tenfold.layers.tucker_protocol import factorised
from tenfold.optim.tucker.settings import IntegratorSettings

pytestmark = pytest.mark.filterwarnings("ignore:the ranks of .* cannot grow")
CYCLE = IntegratorSettings(0.2, every=3)
PINNED = IntegratorSettings(0.0, every=3, pinned=True)


def loss(model: nn.Module, step: int) -> torch.Tensor:
    x, y = batch(step)
    return F.cross_entropy(model(x), y)


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [layer.kernel.detach().clone() for layer in factorised(model).values()] + [model.head.bias.detach().clone()]


def toward(target: torch.Tensor):
    return lambda m, step: (m() - target - 0.1 * normal(*target.shape, seed=step)).square().sum() / 2


# ---- gradients


@pytest.mark.parametrize("static", [False, True])
def test_gradients_written_by_hand_train_as_those_of_backward(static) -> None:
    """`torch.autograd.grad` of all parameters, which must find every one in the graph, in each step of a cycle."""
    found = []
    for by_hand in (False, True):
        model = net(static=static).eval()
        optimizer = around(model, CYCLE, lr=0.1, momentum=0.9)
        parameters = list(model.parameters())
        for step in range(8):
            if by_hand:
                for p, g in zip(parameters, torch.autograd.grad(loss(model, step), parameters), strict=True):
                    p.grad = g
            else:
                optimizer.zero_grad()
                loss(model, step).backward()
            optimizer.step()
        found.append((optimizer.ranks, weights(model)))
    (ranks, expected), (same, got) = found
    assert ranks == same
    assert all(map(torch.equal, expected, got))


def test_within_a_cycle_the_gradients_of_bases_are_zero_and_cost_no_product() -> None:
    model = net().eval()
    optimizer = around(model, CYCLE, lr=0.1)
    run(model, optimizer, loss, 1)
    for layer in factorised(model).values():
        assert layer.constant_bases
        whole = layer.kernel
        (whole * whole).sum().backward()
        assert layer.core.grad.any()
        assert all(basis.grad is not None and not basis.grad.any() for basis in layer.bases)


def test_layers_that_share_a_core_compute_the_same_in_every_step_of_a_cycle() -> None:
    """Both of them take the bases for constants, not the first alone."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
            self.b.weight = self.a.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(torch.tanh(self.a(x)))

    model = tenfold.layers.to_tucker(Twice().double(), {"a": 4}).model
    optimizer = around(model, CYCLE, lr=0.1)
    x = normal(20, 8)
    run(model, optimizer, lambda m, _: m(x).square().mean(), 1)
    optimizer.zero_grad()
    model(x).square().mean().backward()
    assert not any(basis.grad.any() for basis in model.a.bases)


# ---- copies and averages


@pytest.mark.parametrize("stop", [3, 4])
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_of_a_model_and_its_optimizer_go_on_to_the_same_bits(how, stop) -> None:
    model, target = kernel((6, 5, 3), (3, 2)), teacher((6, 5, 3), (4, 3))
    optimizer = integrator(model, CYCLE, base=torch.optim.AdamW, lr=0.05)
    run(model, optimizer, toward(target), stop)
    pair = (model, optimizer)
    twin, other = copy.deepcopy(pair) if how == "deepcopy" else pickle.loads(pickle.dumps(pair))
    assert twin.core is not model.core
    assert any(p is twin.core for group in other.inner.param_groups for p in group["params"])
    for each, opt in (pair, (twin, other)):
        run(each, opt, toward(target), 5)
    assert torch.equal(model.full, twin.full)
    assert other.report == optimizer.report


def test_an_average_of_factors_is_refused_and_one_of_dense_equivalents_is_that_of_the_weights() -> None:
    model = net().eval()
    with pytest.raises(ArgumentError, match=r"update_parameters\(tenfold\.to_dense\(model\)\)"):
        AveragedModel(model)
    averaged = AveragedModel(tenfold.to_dense(model), multi_avg_fn=get_ema_multi_avg_fn(0.8))
    optimizer, expected, seen = around(model, CYCLE, lr=0.1), None, set()
    for step in range(7):
        run(model, optimizer, lambda m, _, step=step: loss(m, step), 1)
        averaged.update_parameters(tenfold.to_dense(model))
        now = model.conv.kernel.detach()
        expected = now if expected is None else 0.8 * expected + 0.2 * now
        seen.add(model.conv.ranks)
    assert len(seen) > 1
    torch.testing.assert_close(averaged.module.conv.weight.detach(), expected, rtol=0, atol=1e-12)


# ---- states of other moments


def saved(settings: IntegratorSettings, stop: int):
    """A model and its optimizer after some steps, and the states of both at another moment."""
    model, target = kernel((6, 5, 3), (3, 2)), teacher((6, 5, 3), (4, 3))
    optimizer = integrator(model, settings, lr=0.05, momentum=0.9)
    run(model, optimizer, toward(target), 1)
    file = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    run(model, optimizer, toward(target), stop - 1)
    return model, optimizer, torch.load(file, weights_only=True), toward(target)


@pytest.mark.parametrize("part", [0, 1])
def test_a_state_of_other_ranks_for_one_of_both_alone_is_one_sentence(part) -> None:
    model, optimizer, states, loss = saved(CYCLE, 3)
    (model, optimizer)[part].load_state_dict(states[part])
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ArgumentError, match=r"`model` has ranks .* of ranks .* from one checkpoint"):
        run(model, optimizer, loss, 1)
    assert all(map(torch.equal, before, model.parameters()))
    (model, optimizer)[1 - part].load_state_dict(states[1 - part])  # and with the other it goes on
    run(model, optimizer, loss, 3)


def test_a_static_model_of_other_ranks_than_its_optimizer_is_one_sentence() -> None:
    model = net(static=True).eval()
    optimizer = around(model, CYCLE, lr=0.1, momentum=0.9)
    state = copy.deepcopy(model.state_dict())
    run(model, optimizer, loss, 1)
    model.load_state_dict(state)
    with pytest.raises(ArgumentError, match="from one checkpoint"):
        run(model, optimizer, loss, 1)


def test_without_a_memory_of_the_core_any_ranks_may_be_loaded() -> None:
    model, target = kernel((6, 5, 3), (3, 2)), teacher((6, 5, 3), (4, 3))
    optimizer = integrator(model, CYCLE, lr=0.05)
    state = copy.deepcopy(model.state_dict())
    run(model, optimizer, toward(target), 1)
    model.load_state_dict(state)
    losses = run(model, optimizer, toward(target), 9)
    assert losses[-1] < losses[0]


def test_a_second_optimizer_in_mid_cycle_ends_it_and_pinned_ranks_ask_for_the_first() -> None:
    model, target = kernel((6, 5, 3), (3, 2)), teacher((6, 5, 3), (4, 3))
    run(model, integrator(model, CYCLE, lr=0.05), toward(target), 1)
    assert bool(model.augmented)
    run(model, integrator(model, CYCLE, lr=0.05), toward(target), 3)
    assert not bool(model.augmented)
    first = integrator(model, PINNED, lr=0.05)
    ranks = model.ranks
    run(model, first, toward(target), 1)
    second = integrator(model, PINNED, lr=0.05)
    with pytest.raises(ArgumentError, match="in the middle of a cycle of another optimizer"):
        run(model, second, toward(target), 1)
    first.end_cycle_()
    run(model, second, toward(target), 3)
    assert model.ranks == ranks


def test_bases_of_another_model_are_refused_wherever_they_are_given() -> None:
    model, other = net(), net()
    copied = copy.deepcopy(other)
    optimizer = around(model, CYCLE, lr=0.1)
    groups = len(optimizer.param_groups)
    for given in (other.parameters(), other.conv.bases[0], copied.parameters()):
        with pytest.raises(ArgumentError, match=r"`params` must not hold bases .* nn\.ModuleList"):
            optimizer.add_param_group({"params": given})
    assert len(optimizer.param_groups) == groups
    extra = [*model.parameters(), *other.parameters()]
    own = {id(b) for layer in factorised(model).values() for b in layer.bases}
    with pytest.raises(ArgumentError, match="`params` must not hold bases"):
        type(optimizer)(torch.optim.SGD([p for p in extra if id(p) not in own], lr=0.1), model, CYCLE)
    both = nn.ModuleList([net().eval(), net().eval()])
    run(both, around(both, CYCLE, lr=0.1), lambda m, step: loss(m[0], step) + loss(m[1], step), 4)


def test_a_core_that_was_replaced_after_the_optimizer_was_made_is_one_sentence() -> None:
    model = kernel((6, 5), (2, 2))
    optimizer = integrator(model, CYCLE, lr=0.1)
    model.core = nn.Parameter(model.core.detach().clone())
    with pytest.raises(ArgumentError, match=r"has another core .* than its optimizer holds"):
        run(model, optimizer, lambda m, _: m().square().sum(), 1)
    assert isinstance(model, Kernel)


@pytest.mark.parametrize("static", [False, True])
def test_the_optimizer_underneath_never_steps_a_basis(static) -> None:
    """Neither by a gradient, nor by weight decay, which needs none but a zero."""
    model = net(static=static).eval()
    optimizer = around(model, CYCLE, base=torch.optim.AdamW, lr=0.05, weight_decay=0.5)
    for step in range(8):
        run(model, optimizer, lambda m, _, step=step: loss(m, step), 1)
        for layer in factorised(model).values():
            assert not any(basis in optimizer.inner.state for basis in layer.bases)
            for u, rank in zip(layer.bases, layer.ranks, strict=True):
                each = u.detach()[:, :rank].unflatten(0, (layer.groups, -1))
                eye = torch.eye(rank, dtype=u.dtype).expand(layer.groups, -1, -1)
                torch.testing.assert_close(each.mT @ each, eye, rtol=0, atol=1e-12)
