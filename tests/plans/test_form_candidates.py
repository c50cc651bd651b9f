"""Options judged by layers' outputs, and what single layers' errors cost: against the layers themselves."""

import copy
import itertools

import pytest
import torch
from torch import nn

import tenfold
from helpers import random_batches, same_state, state
from nets import Residual
from tenfold.layers.calibration_batches import calibration_batches
from tenfold.layers.spec import to_weight
from tenfold.linalg.fold import Fold
from tenfold.plans.apply import build
from tenfold.plans.candidates import layer_plan
from tenfold.plans.form_candidates import judged_layers, uniform_choice
from tenfold.plans.measured_loss import LossMeter, layer_loss

FORMS = ("channel", "spatial", "spatial-t", "input")


class Mixed(nn.Module):
    """A convolution of each kind, biases on some, a linear layer whose outputs are fewer than its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.grouped = nn.Conv2d(8, 6, 3, groups=2)
        self.up = nn.ConvTranspose2d(6, 6, 3, stride=2, bias=False)
        self.point = nn.Conv2d(6, 12, 1)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = self.up(torch.relu(self.grouped(torch.relu(self.first(x)))))
        return self.head(torch.relu(self.point(x)).mean((2, 3)))


def images(count=4, n=8, size=9, seed=0):
    # Neighbours are alike, as in images.
    return [x.cumsum(-1).double() for x in random_batches(n, 3, size, size, count=count, seed=seed)]


def judged(net, data, forms=FORMS, errors=(0.02, 0.3)):
    problem = tenfold.survey(net, example_inputs=data[0][:1])
    found = judged_layers(problem, data, forms=forms, errors=errors, samples=1000, memory=1 << 30)
    return problem, list(found)


def outputs(net, name, data):
    """All that one layer puts out, channels last."""
    kept = []
    layer = net.get_submodule(name)
    handle = layer.register_forward_hook(lambda _, __, y: kept.append(y.movedim(1, -1).flatten(0, -2)))
    with torch.no_grad():
        for x in data:
            net(x)
    handle.remove()
    return torch.cat(kept)


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(0)
    net = Mixed().double().eval()
    data = images()
    return net, data, *judged(net, data)


def test_a_trials_error_is_that_of_the_layers_outputs_and_its_shift_keeps_their_mean(case):
    net, data, _, layers = case
    assert [layer.site.name for layer in layers] == ["first", "grouped", "up", "point", "head"]
    for layer in layers:
        name = layer.site.name
        y = outputs(net, name, data)
        for trial in layer.trials:
            other = copy.deepcopy(net)
            module = other.get_submodule(name)
            module.weight.data = to_weight(layer.site.options, trial.kernel)
            z = outputs(other, name, data) + trial.shift
            torch.testing.assert_close(z.mean(0), y.mean(0), rtol=0, atol=1e-5)
            error = ((y - z).square().sum() / (y - y.mean(0)).square().sum()).sqrt()
            assert trial.error == pytest.approx(error.item(), rel=1e-2, abs=1e-3)  # damped; every second position


def test_errors_fall_with_rank_to_nothing_and_alternation_is_no_worse_than_the_table_says(case):
    net, _, _, layers = case
    for layer in layers:
        table = layer.table
        assert table.error[0] == 0
        folds = {"head": ("channel",), "point": ("channel",)}.get(layer.site.name, FORMS)
        assert table.folds == folds
        for i in range(len(folds)):
            errors = table.error[1:][table.fold[1:] == i]
            assert all(a >= b for a, b in itertools.pairwise(errors))
        cheaper = [e**2 for e in table.error[1:]]
        for trial, wanted in zip(layer.trials, (0.02, 0.3), strict=False):
            assert trial.error**2 <= max(wanted, min(cheaper)) * (1 + 1e-6)
        lacking = net.get_submodule(layer.site.name).bias is None
        assert table.bias == lacking


def test_what_an_option_costs_is_what_is_built_for_it(case):
    _, _, problem, layers = case
    for layer in layers:
        table = layer.table
        for i in {1, len(table.rank) // 2, len(table.rank) - 1} - {0}:
            chosen = [layer_plan(table, int(i)) if site is layer.site else None for site in problem.sites]
            small = build(problem, problem.plan("test", chosen)).report.small
            for name in ("params", "macs"):
                saved = getattr(problem.dense, name) - getattr(small, name)
                assert saved == table.costs[name][0] - table.costs[name][i]


def test_a_uniform_choice_has_the_same_share_of_the_full_rank_in_one_form(case):
    _, _, problem, layers = case
    tables = [layer.table for layer in layers]
    limits = problem.limits(tenfold.Budget(macs=0.6))
    choice, share = uniform_choice(problem, tables, "spatial-t", limits)
    assert sum(int(t.costs["macs"][i]) for t, i in zip(tables, choice, strict=True)) <= limits["macs"]
    for site, table, i in zip(problem.sites, tables, choice, strict=True):
        fold = table.folds[table.fold[i]]
        full = Fold(site.cost.shape, site.cost.groups, 1, fold).full_rank
        if i:
            assert fold == ("spatial-t" if len(table.folds) > 1 else "channel")
            assert table.rank[i] == max(1, int(share * full + 0.5 + 1e-12))
    assert uniform_choice(problem, tables, "spatial", {"macs": 1}) is None


def test_the_scale_of_a_layer_is_what_the_networks_outputs_lose_and_the_network_stays_as_it_is(case):
    net, data, problem, layers = case
    kept = state(net)
    meter = LossMeter(problem, list(calibration_batches(net, data)), None)
    for layer in layers:
        measured, told = 0.0, 0.0
        for trial in layer.trials:
            other = copy.deepcopy(net)
            module = other.get_submodule(layer.site.name)
            module.weight.data = to_weight(layer.site.options, trial.kernel)
            if module.bias is None:
                module.bias = nn.Parameter(torch.zeros_like(trial.shift))
            module.bias.data += trial.shift
            with torch.no_grad():
                pairs = [(net(x), other(x)) for x in data]
            measured += sum(float((z - y).square().sum() / y.square().sum()) for y, z in pairs) / len(data)
            told -= torch.log(1 - torch.tensor(trial.error, dtype=torch.float64) ** 2).item()
        assert meter.scale(layer) == pytest.approx(measured / told, rel=1e-9)
    assert same_state(net, kept)


def test_the_loss_of_a_layer_grows_with_its_error_and_stays_finite():
    losses = layer_loss(torch.linspace(0, 1, 50, dtype=torch.float64))
    assert losses[0] == 0
    assert bool((losses.diff() > 0).all())
    assert bool(torch.isfinite(losses).all())


def test_a_layer_that_does_not_matter_has_no_scale_to_speak_of():
    torch.manual_seed(0)
    net = Residual().double().eval()
    net.layer1[0].bn2.weight.data.zero_()  # what the branch puts out is taken away
    data = [x.double() for x in random_batches(8, 3, 10, 10, count=4)]
    problem, layers = judged(net, data, ("spatial",))
    meter = LossMeter(problem, list(calibration_batches(net, data)), None)
    scales = {layer.site.name: meter.scale(layer) for layer in layers}
    assert scales["layer1.0.conv2"] < 1e-12 * scales["layer1.1.conv2"]
