"""Steps without labels: what they lower, and all that they must leave alone."""

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import tenfold
from helpers import random_batches, same_state, state
from nets import Residual, norm_dropout
from tenfold.errors import ArgumentError, DataError
from tenfold.layers.calibration_batches import calibration_batches
from tenfold.layers.output_loss import mean_output_loss
from tenfold.optim.label_free import distill


def images(count=3, n=8, seed=0):
    return list(random_batches(n, 3, 10, 10, count=count, seed=seed))


def network(seed=0):
    torch.manual_seed(seed)
    net = Residual()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics as after training
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return net


def pair(seed=0):
    dense = network(seed)
    return tenfold.compress(dense, tenfold.SVD(), tenfold.Budget(params=0.5)).model, dense


def gap(small, dense, data, loss=None):
    return mean_output_loss(small, dense, calibration_batches(small, data), loss)


@pytest.mark.parametrize("kind", ["squared", "logits", "own"])
def test_the_loss_on_the_data_falls(kind):
    loss = {"squared": None, "logits": "logits", "own": lambda a, b: (a - b).abs().mean()}[kind]
    (small, dense), data = pair(), images()
    before = gap(small, dense, data, loss)
    seen = []
    report = distill(small, dense, data, loss=loss, steps=30, lr=3e-3, progress=lambda *at: seen.append(at))
    assert gap(small, dense, data, loss) < 0.5 * before
    assert report.steps == len(report.losses) == 30
    assert report.after < 0.5 * report.before
    assert report.before == report.losses[0]
    assert seen == [(i + 1, 30, value) for i, value in enumerate(report.losses)]


def test_dense_and_batch_norm_stay_as_they_are_bit_for_bit():
    small, dense = pair()
    kept = state(dense)
    norms = {n: state(m) for n, m in small.named_modules() if isinstance(m, nn.BatchNorm2d)}
    rest = [p.detach().clone() for p in small.fc.parameters()]
    distill(small, dense, images(), steps=5)
    assert same_state(dense, kept)
    assert norms
    assert all(same_state(small.get_submodule(n), old) for n, old in norms.items())
    assert not any(torch.equal(a, b) for a, b in zip(small.fc.parameters(), rest, strict=True))


def test_scales_and_shifts_move_where_that_is_asked_for_and_statistics_never_do():
    small, dense = pair()
    old = state(small.bn1)
    distill(small, dense, images(), steps=5, norms="affine")
    moved = {name for name, t in small.bn1.state_dict().items() if not torch.equal(t, old[name])}
    assert moved == {"weight", "bias"}


def test_no_step_changes_nothing():
    small, dense = pair()
    kept = state(small)
    report = distill(small, dense, images(), steps=0)
    assert same_state(small, kept)
    assert report.losses == ()
    assert report.before == report.after


def test_modes_flags_gradients_and_the_generator_are_put_back():
    small, dense = pair()
    small.train()
    dense.eval()
    small.layer1.eval()
    fixed, other = small.fc.decoder.bias, small.conv1.decoder.weight
    fixed.requires_grad_(False)
    other.grad = torch.ones_like(other)
    modes = [m.training for net in (small, dense) for m in net.modules()]
    flags = [p.requires_grad for net in (small, dense) for p in net.parameters()]
    frozen, drawn = fixed.detach().clone(), torch.random.get_rng_state()
    distill(small, dense, images(), steps=3, augment=lambda x: x + torch.randn_like(x))
    assert modes == [m.training for net in (small, dense) for m in net.modules()]
    assert flags == [p.requires_grad for net in (small, dense) for p in net.parameters()]
    assert torch.equal(fixed, frozen)
    assert torch.equal(other.grad, torch.ones_like(other))
    assert all(p.grad is None for p in small.fc.parameters())
    assert torch.equal(torch.random.get_rng_state(), drawn)


def test_the_same_seed_gives_the_same_network_and_another_seed_another():
    small, dense = pair()
    made = []
    for seed in (0, 0, 1):
        again = copy.deepcopy(small)
        torch.manual_seed(len(made))  # what has been drawn before is no matter
        loader = torch.utils.data.DataLoader(torch.cat(images()), batch_size=8, shuffle=True)
        distill(again, dense, loader, steps=6, augment=lambda x: x + 0.1 * torch.randn_like(x), seed=seed)
        made.append(state(again))
    assert same_state(made[0], made[1])
    assert not same_state(made[0], made[2])


def test_dense_outputs_that_are_kept_and_computed_anew_teach_the_same():
    small, dense = pair()
    data, made = images(), []
    for batches in (data, torch.utils.data.DataLoader(data, batch_size=None)):
        again = copy.deepcopy(small)
        distill(again, dense, batches, steps=7)
        made.append(state(again))
    assert same_state(*made)


def test_dropout_takes_no_part():
    dense = norm_dropout(3, 4, dropout=0.9)
    dense.train()
    small = copy.deepcopy(dense)
    report = distill(small, dense, images(), steps=1)
    assert report.before == 0


@dataclass
class Two:
    logits: Tensor
    boxes: Tensor


class TwoInputs(nn.Module):
    """Two named inputs, a dataclass for outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, a: Tensor, b: Tensor) -> Two:
        x = torch.tanh(self.body(torch.cat([a, b], 1)))
        return Two(self.head(x), x)


@pytest.mark.parametrize("form", ["dict", "tuple"])
def test_any_inputs_and_outputs_will_do_and_are_augmented_in_the_form_they_have(form):
    torch.manual_seed(0)
    dense = TwoInputs()
    small = tenfold.compress(dense, tenfold.SVD(), tenfold.Budget(params=0.8)).model
    parts = [(torch.randn(8, 4), torch.randn(8, 2)) for _ in range(2)]
    data = [dict(zip("ab", p, strict=True)) for p in parts] if form == "dict" else parts
    seen = []

    def augment(inputs):
        seen.append(type(inputs))
        return {k: -v for k, v in inputs.items()} if form == "dict" else tuple(-v for v in inputs)

    report = distill(small, dense, data, steps=40, lr=1e-2, augment=augment)
    assert report.after < report.before
    assert set(seen) == {dict if form == "dict" else tuple}
    with pytest.raises(DataError, match="`augment` must give inputs of the form"):
        distill(small, dense, data, steps=1, augment=lambda inputs: None)


def test_a_loss_that_is_not_finite_is_refused_and_leaves_the_network_as_it_was():
    small, dense = pair()
    kept = state(small)
    with pytest.raises(DataError, match=r"nan before the first step.*Look at the outputs"):
        distill(small, dense, images(), loss=lambda a, b: a.sum() * torch.nan)
    calls = []

    def fails_later(a, b):
        calls.append(1)
        return a.square().mean() * (torch.inf if len(calls) > 3 else 1)

    with pytest.raises(DataError, match=r"inf after 2 steps.*Lower `lr`"):
        distill(small, dense, images(), loss=fails_later)
    assert same_state(small, kept)
    with pytest.raises(DataError, match="no gradient there"):
        distill(small, dense, images(), loss=lambda a, b: b.sum())


def test_bad_arguments_are_refused_before_any_work():
    small, dense = pair()
    for wrong in ({"steps": -1}, {"steps": 2.0}, {"lr": 0}, {"lr": float("nan")}, {"norms": "train"}, {"seed": -1},
                  {"augment": 3}, {"loss": "kl"}):  # fmt: skip
        with pytest.raises(ArgumentError, match=f"`{next(iter(wrong))}` must be"):
            distill(small, dense, images(), **wrong)
    with pytest.raises(ArgumentError, match="share parameters"):
        distill(dense, dense, images())
    with pytest.raises(DataError, match="a generator is used up"):
        distill(small, dense, iter(images()))
    with pytest.raises(DataError, match="at least one batch"):
        distill(small, dense, [])
    with pytest.raises(ArgumentError, match="ask for gradients"):
        distill(small.requires_grad_(False), dense, images())
