"""Calibrated: never worse than uniform ranks, fitted to the outputs, on any network."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import tenfold
from helpers import random_batches, same_state, state
from nets import Residual, Tied, tokens
from tenfold.errors import ArgumentError, DataError
from tenfold.layers.calibration_batches import calibration_batches
from tenfold.layers.calibration_runs import held_out
from tenfold.layers.output_loss import mean_output_loss
from tenfold.methods import calibrated as subject


def images(count=4, n=16, seed=0):
    return [x.cumsum(-1) for x in random_batches(n, 3, 10, 10, count=count, seed=seed)]


def network(seed=0):
    torch.manual_seed(seed)
    net = Residual().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics as after training
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return net


def given(data):
    return {"example_inputs": data[0][:1], "data": data}


@pytest.mark.parametrize(("seed", "batches"), [(0, 4), (1, 4), (0, 20)])
def test_on_held_out_examples_it_is_never_worse_than_uniform_ranks_refitted(seed, batches):
    """Of many examples, too, where plans far behind are told by a part of them."""
    net, data = network(seed), images(batches, seed=seed)
    result = tenfold.compress(net, tenfold.Calibrated(), tenfold.Budget(macs=0.4), **given(data))
    compared = result.plan.compared
    assert set(compared) == {"measured", "uniform", "min-max"}
    held, _ = held_out(net, data, 2 * batches)
    lost = mean_output_loss(result.model, net, calibration_batches(net, held))
    assert lost == pytest.approx(min(compared.values()), rel=1e-4)
    if batches == 20:  # uniform ranks are far behind, and said to be
        assert compared["uniform"] > 2 * min(compared.values())
    assert "Lost on held-out examples" in str(result.plan)
    assert result.plan.compared == tenfold.Plan.from_json(result.plan.to_json()).compared


def test_it_comes_nearer_to_the_outputs_than_the_methods_that_look_at_weights():
    net, data = network(), images()
    fresh = list(calibration_batches(net, images(seed=5)))
    lost = {}
    for method in (tenfold.Calibrated(), tenfold.ALDS(), tenfold.SVD()):
        small = tenfold.compress(net, method, tenfold.Budget(macs=0.5), norms="keep", **given(data)).model
        lost[method.name] = mean_output_loss(small, net, fresh)
    assert lost["calibrated"] < 0.5 * min(lost["alds"], lost["svd"])


def test_the_smallest_layers_stay_dense_whichever_allocation_wins():
    net, data = network(), images()
    shares = {n: m.weight.numel() for n, m in net.named_modules() if getattr(m, "weight", None) is not None}
    small = min((n for n in shares if net.get_submodule(n).weight.ndim > 1), key=shares.__getitem__)
    for dense in (True, False):
        method = tenfold.Calibrated(negligible=(shares[small] + 1) / sum(shares.values()) if dense else 0.0)
        plan = tenfold.plan(net, method, tenfold.Budget(params=0.6), **given(data))
        assert ("smallest" in (plan.layers[small].reason or "")) == dense


@pytest.mark.filterwarnings("ignore:.*smallest layers too")
def test_a_budget_out_of_reach_is_refused_before_anything_is_looked_at():
    def data():
        raise AssertionError("looked at")
        yield

    class Untouched:
        def __iter__(self):
            return data()

    net, x = network(), images()[0][:1]
    problem = tenfold.survey(net, example_inputs=x, data=Untouched())
    with pytest.raises(tenfold.BudgetError, match="reachable") as caught:
        tenfold.Calibrated().plan(problem, tenfold.Budget(macs=1e-6))
    smallest = tenfold.Budget(macs=caught.value.smallest["macs"])
    made = tenfold.plan(net, tenfold.Calibrated(), smallest, example_inputs=x, data=images())
    assert made.macs <= smallest.limits["macs"] * made.dense_macs


def test_batch_norm_and_the_dense_network_stay_as_they_are():
    net, data = network(), images()
    kept = state(net)
    small = tenfold.compress(net, tenfold.Calibrated(), tenfold.Budget(macs=0.5), **given(data)).model
    assert same_state(net, kept)
    norms = [n for n, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(same_state(small.get_submodule(n), net.get_submodule(n)) for n in norms)
    again = tenfold.compress(net, tenfold.Calibrated(), tenfold.Budget(macs=0.5), norms="reestimate", **given(data))
    assert not same_state(again.model.bn1, net.bn1)


def test_a_second_budget_looks_at_the_layers_no_second_time(monkeypatch):
    net, data = network(), images()
    problem = tenfold.survey(net, **given(data))
    made = [tenfold.Calibrated().plan(problem, tenfold.Budget(macs=0.5))]
    monkeypatch.setattr(tenfold.methods.calibrated, "judged_layers", lambda *_, **__: pytest.fail("judged again"))
    made.append(tenfold.Calibrated().plan(problem, tenfold.Budget(macs=0.3)))
    assert made[1].macs < made[0].macs


@pytest.mark.parametrize(("side", "expected"), [(2, 16), (4, 4), (16, 2)])
def test_layers_are_measured_on_fewer_examples_where_each_has_a_map(side, expected, monkeypatch):
    """On 64 positions, and two examples at least; 16 of 128 examples are held out."""
    torch.manual_seed(0)
    maps = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1)).eval()
    measured = []
    meter = subject.LossMeter

    def counted(problem, batches, loss):
        measured.append(sum(map(len, batches)))
        return meter(problem, batches, loss)

    monkeypatch.setattr(subject, "LossMeter", counted)
    data = [torch.randn(32, 3, side, side) for _ in range(4)]
    tenfold.compress(maps, tenfold.Calibrated(), tenfold.Budget(params=0.8), data=data)
    assert measured == [expected]


def test_labels_make_outputs_logits_and_a_loader_serves_as_a_list_does():
    net, data = network(), images()
    labelled = [(x, torch.arange(len(x)) % 5) for x in data]
    budget = tenfold.Budget(macs=0.5)
    by_labels = tenfold.compress(net, tenfold.Calibrated(), budget, **given(data) | {"data": labelled}).plan
    said = tenfold.compress(net, tenfold.Calibrated(loss="logits"), budget, **given(data)).plan
    bare = tenfold.compress(net, tenfold.Calibrated(), budget, **given(data)).plan
    assert by_labels.compared == said.compared != bare.compared
    loader = DataLoader(torch.cat(data), batch_size=16)
    assert tenfold.plan(net, tenfold.Calibrated(), budget, **given(data) | {"data": loader}) == bare


def test_layers_with_one_weight_share_factors_and_each_bias_is_fitted():
    torch.manual_seed(0)
    net = Tied().eval()
    data = [tokens() for _ in range(12)]
    result = tenfold.compress(net, tenfold.Calibrated(), tenfold.Budget(params=0.8), data=data, target_modules=".*")
    built = tenfold.apply(net, result.plan)
    assert same_state(built, result.model)


class Pairs(nn.Module):
    """Two named inputs, tensors in a dict out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(12, 20), nn.Linear(20, 16)

    def forward(self, x, y=None):
        hidden = torch.tanh(self.a(x)) if y is None else torch.tanh(self.a(x + y))
        return {"hidden": hidden, "out": self.b(hidden)}


def test_any_inputs_and_outputs_will_do():
    torch.manual_seed(0)
    net = Pairs()
    data = [{"x": torch.randn(40, 12), "y": torch.randn(40, 12)} for _ in range(3)]
    result = tenfold.compress(net, tenfold.Calibrated(), tenfold.Budget(params=0.7), data=data)
    assert result.report.kept["params"] <= 0.7
    own = tenfold.Calibrated(loss=lambda a, b: (a["out"] - b["out"]).square().mean())
    assert tenfold.compress(net, own, tenfold.Budget(params=0.7), data=data).plan.compared != result.plan.compared
    with pytest.raises(ArgumentError, match="function at the top of a module"):
        own.to_dict()


def test_examples_are_parted_to_the_last_one():
    net, data = network(), images(count=3, n=5)
    whole = torch.cat(data)
    for many in (1, 5, 7, 14, 15, 40):
        held, rest = held_out(net, data, many)
        assert torch.equal(torch.cat([args[0] for args, _ in held]), whole[:many])
        left = torch.cat([args[0] for args, _ in rest])
        assert torch.equal(left, whole[many:] if many < 15 else whole)


def test_what_cannot_be_is_refused():
    net, data = network(), images()
    for wrong in ({"samples": 0}, {"forms": ()}, {"forms": ("decoupled",)}, {"refit": None}, {"memory": 0.5}):
        with pytest.raises(ArgumentError, match=f"`{next(iter(wrong))}` must be"):
            tenfold.Calibrated(**wrong)
    with pytest.raises(DataError, match="at least one batch"):
        tenfold.plan(net, tenfold.Calibrated(), tenfold.Budget(macs=0.5), **given(data) | {"data": []})
    with pytest.raises(tenfold.BudgetError, match="reachable"):
        tenfold.plan(net, tenfold.Calibrated(), tenfold.Budget(macs=0.001), **given(data))
