"""What the integrator keeps: the inner optimizer's state from basis to basis, checkpoints, networks with buffers."""

import io
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from optim.networks import around, batch, net
from optim.toys import integrator, kernel, normal, orthonormality, run, teacher
from tenfold.errors import TenfoldWarning
from tenfold.layers.tucker_model import to_tucker
from tenfold.layers.tucker_protocol import factorised
from tenfold.optim.tucker.integrator import Integrator
from tenfold.optim.tucker.settings import IntegratorSettings

pytestmark = pytest.mark.filterwarnings("ignore:the ranks of .* cannot grow")  # not what is looked at here
SHAPE, RANKS = (6, 5, 3), (3, 2)
OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"lr": 0.01, "momentum": 0.9, "nesterov": True}),
    "adam": (torch.optim.Adam, {"lr": 0.01, "amsgrad": True}),
    "adamw": (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
    "nadam": (torch.optim.NAdam, {"lr": 0.01}),
    "radam": (torch.optim.RAdam, {"lr": 0.05}),
    "adamax": (torch.optim.Adamax, {"lr": 0.01}),
    "adagrad": (torch.optim.Adagrad, {"lr": 0.01}),
    "adadelta": (torch.optim.Adadelta, {"lr": 2.0}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 0.01, "centered": True, "momentum": 0.9}),
    "asgd": (torch.optim.ASGD, {"lr": 0.01}),
    "rprop": (torch.optim.Rprop, {"lr": 0.01}),
}


def noisy(target):
    """The same noise whoever asks, by the number of the step."""
    return lambda m, step: (m() - target - 0.1 * normal(*target.shape, seed=step)).square().sum() / 2


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_works_underneath_and_its_state_follows_the_shapes(name) -> None:
    base, hyper = OPTIMIZERS[name]
    model, target = kernel(SHAPE, RANKS), teacher(SHAPE, (4, 3))
    optimizer = integrator(model, IntegratorSettings(0.2, every=3), base=base, **hyper)
    losses = run(model, optimizer, noisy(target), 40)
    assert all(math.isfinite(x) for x in losses)
    assert losses[-1] < losses[0]
    assert orthonormality(model) <= 1e-12
    for value in optimizer.state[model.core].values():
        if isinstance(value, torch.Tensor) and value.ndim:
            assert value.shape == model.core.shape
    run(model, optimizer, noisy(target), 2)
    assert optimizer.state is optimizer.inner.state


def test_state_that_cannot_be_brought_along_is_dropped_with_a_warning() -> None:
    model = kernel(SHAPE, RANKS)
    optimizer = integrator(model, IntegratorSettings(0.2, every=3), base=torch.optim.Adafactor, lr=0.01)
    with pytest.warns(TenfoldWarning, match="Adafactor keeps"):
        run(model, optimizer, noisy(teacher(SHAPE, (4, 3))), 8)
    assert bool(torch.isfinite(model.core.detach()).all())


@pytest.mark.parametrize("base", [torch.optim.Adam, torch.optim.AdamW])
def test_adams_first_step_in_a_fresh_direction_is_no_longer_than_its_others(base) -> None:
    """With second moments of zero there it would be 3.2 times the learning rate."""
    model, target = kernel((12, 10, 3), (4, 4)), teacher((12, 10, 3), (12, 10), seed=5)
    lr = 1e-3
    hyper = {} if base is torch.optim.Adam else {"weight_decay": 0.0}
    optimizer = integrator(model, IntegratorSettings(1e-6, every=4, pinned=True), base=base, lr=lr, **hyper)
    run(model, optimizer, noisy(target), 20)
    state = optimizer.state[model.core]  # as if it had run for long: no bias is left to correct
    state["exp_avg_sq"] /= 1 - 0.999 ** float(state["step"])
    state["exp_avg"] /= 1 - 0.9 ** float(state["step"])
    state["step"].fill_(1e6)
    assert model.ranks == (4, 4)
    run(model, optimizer, noisy(target), 1)
    fresh = model.core.detach().clone()
    fresh[:4, :4] = 0
    assert fresh.shape == (8, 8, 3)
    assert 0 < float(fresh.abs().max()) <= 1.5 * lr


def test_schedules_and_groups_work_as_on_any_optimizer() -> None:
    model = nn.ModuleList([kernel(SHAPE, RANKS), kernel(SHAPE, RANKS, 9)])
    bases = {id(b) for m in model for b in m.bases}
    parameters = [p for p in model.parameters() if id(p) not in bases]
    inner = torch.optim.SGD([{"params": parameters[:1]}, {"params": parameters[1:], "lr": 0.5}], lr=0.1)
    optimizer = Integrator(inner, model, IntegratorSettings(0.1, every=3))
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    extra = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer.add_param_group({"params": [extra], "lr": 0.25})
    assert len(inner.param_groups) == len(optimizer.param_groups) == 3
    for _ in range(2):
        optimizer.zero_grad()
        (sum(m().square().sum() for m in model) + extra.sum()).backward()
        optimizer.step()
        schedule.step()
    assert [g["lr"] for g in inner.param_groups] == [0.025, 0.125, 0.0625]
    torch.testing.assert_close(extra.detach(), torch.full((3,), 1 - 0.25 - 0.125, dtype=torch.float64))


def test_a_loss_that_is_still_alive_does_not_tie_autograd_to_old_shapes() -> None:
    model, target = kernel(SHAPE, RANKS), teacher(SHAPE, (4, 3))
    optimizer = integrator(model, IntegratorSettings(0.2, every=2), lr=0.05)
    losses, ranks = [], set()
    for _ in range(6):
        optimizer.zero_grad()
        losses.append((model() - target).square().sum())  # the graphs of all steps stay
        losses[-1].backward()
        optimizer.step()
        ranks.add(model.ranks)
    assert len(ranks) > 1


def test_a_second_optimizer_of_a_model_takes_over_its_gradients() -> None:
    model, target = kernel(SHAPE, RANKS), teacher(SHAPE, (4, 3))
    first = integrator(model, IntegratorSettings(0.2, every=2), lr=0.05)
    second = integrator(model, IntegratorSettings(0.2, every=2), lr=0.05)
    run(model, second, noisy(target), 1)
    assert bool(model.augmented)
    assert first.report["steps"] == 0


# ---- checkpoints


@pytest.mark.parametrize("stop", [6, 7, 9])
@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.AdamW])
def test_a_run_that_is_saved_in_the_middle_of_a_cycle_goes_on_to_the_same_bits(base, stop) -> None:
    target = teacher(SHAPE, (4, 3))
    hyper = {"lr": 0.02} if base is torch.optim.AdamW else {"lr": 0.02, "momentum": 0.9}

    def start():
        model = kernel(SHAPE, RANKS)
        return model, integrator(model, IntegratorSettings(0.2, every=4, freeze=14, steps=18), base=base, **hyper)

    whole, optimizer = start()
    run(whole, optimizer, noisy(target), stop)
    file = io.BytesIO()
    torch.save({"model": whole.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    assert bool(saved["model"]["augmented"]) == (stop % 4 != 0)
    resumed, again = start()
    again.load_state_dict(saved["optimizer"])
    resumed.load_state_dict(saved["model"])
    assert again.report == optimizer.report
    for model, opt in ((whole, optimizer), (resumed, again)):
        run(model, opt, lambda m, step: noisy(target)(m, step + 100), 18 - stop)
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert again.report == optimizer.report
    assert not bool(whole.augmented)


# ---- networks


def test_two_passes_see_one_dropout_mask_and_change_running_statistics_once() -> None:
    model = net()
    optimizer = around(model, IntegratorSettings(0.0, twice=True), lr=0.0)
    x, y = batch()
    losses = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        losses.append(float(loss.detach()))
        return loss

    torch.manual_seed(3)
    optimizer.step(closure)
    after = torch.rand(1)
    assert len(losses) == 2
    assert math.isclose(*losses, rel_tol=1e-12)  # growing changes no weight; another mask would
    assert int(model.norm.num_batches_tracked) == 1
    reference = net()
    torch.manual_seed(3)
    reference(x)
    assert torch.equal(after, torch.rand(1))  # the generator stands where one pass leaves it
    torch.testing.assert_close(model.norm.running_mean, reference.norm.running_mean)


@pytest.mark.parametrize(
    "settings", [IntegratorSettings(0.0, every=1), IntegratorSettings(0.0, twice=True)], ids=["one-pass", "two-pass"]
)
def test_a_network_loses_what_its_projected_gradient_promises(settings) -> None:
    """``L(W) - L(W+) = lr |step / lr|^2 (1 + O(lr))``, over the dense weights and all else that is trained."""
    model = net().eval()  # no dropout: the same loss twice
    x, y = batch()

    def dense() -> list[torch.Tensor]:
        layers = factorised(model)
        inside = {id(p) for m in layers.values() for p in m.parameters(recurse=False) if p is not m.bias}
        others = [p.detach().clone() for p in model.parameters() if id(p) not in inside]
        return [m.kernel.detach().clone() for m in layers.values()] + others

    def loss(m, _) -> torch.Tensor:
        return F.cross_entropy(m(x), y)

    lr, before = 1e-4, dense()
    first = float(loss(model, 0).detach())
    run(model, around(model, settings, lr=lr), loss, 1)
    moved = sum(float(((a - b) / lr).square().sum()) for a, b in zip(dense(), before, strict=True))
    fallen = first - float(loss(model, 0).detach())
    assert moved > 0
    assert math.isclose(fallen, lr * moved, rel_tol=0.02)


@pytest.mark.parametrize(
    "settings", [IntegratorSettings(0.1, every=4), IntegratorSettings(0.1, twice=True)], ids=["cycle", "two-pass"]
)
def test_autocast_to_bfloat16_stays_finite(settings) -> None:
    model = net(torch.float32)
    optimizer = around(model, settings, base=torch.optim.AdamW, lr=0.01, weight_decay=0.1)

    def loss(m, step) -> torch.Tensor:
        x, y = batch(step % 3, torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            return F.cross_entropy(m(x), y)

    losses = run(model, optimizer, loss, 40)
    assert all(math.isfinite(x) for x in losses)
    assert optimizer.report["nonfinite"] == 0
    for layer in factorised(model).values():
        for u in (b.detach().double().unflatten(0, (layer.groups, -1)) for b in layer.bases):
            eye = torch.eye(u.shape[-1], dtype=u.dtype).expand(layer.groups, -1, -1)
            torch.testing.assert_close(u.mT @ u, eye, rtol=0, atol=1e-5)


def test_layers_that_share_a_core_are_one() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
            self.b.weight = self.a.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(torch.tanh(self.a(x)))

    torch.manual_seed(0)
    model = to_tucker(Twice().double(), {"a": 4}).model
    optimizer = around(model, IntegratorSettings(0.05, every=3), lr=0.1)
    x, y = normal(20, 8), normal(20, 8, seed=1)
    losses = run(model, optimizer, lambda m, _: (m(x) - y).square().mean(), 10)
    assert losses[-1] < losses[0]
    assert model.a.core is model.b.core
    assert model.a.ranks == model.b.ranks
    assert list(optimizer.ranks) == ["a"]
