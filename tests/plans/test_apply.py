"""Applying a plan: built as written, refused where it cannot be, and nothing half done."""

import copy
import json

import pytest
import torch
from torch import nn

import tenfold
from helpers import relative, same_state, state
from nets import Residual
from tenfold.errors import ArgumentError, PlanError, TenfoldError, TenfoldWarning
from tenfold.layers import swap
from tenfold.layers.cost import count_params
from tenfold.plans.apply import matches, plan_of


@pytest.fixture
def net() -> nn.Module:
    return Residual().eval()


@pytest.fixture
def plan(net: nn.Module) -> tenfold.Plan:
    return tenfold.plan(net, tenfold.ALDS(), tenfold.Budget(params=0.5))


def test_a_plan_is_built_as_it_is_written(net: nn.Module, plan: tenfold.Plan) -> None:
    small = tenfold.apply(net, plan)
    built = swap.structure_of(small)
    for name, layer in plan.layers.items():
        if layer.decomposition == "dense":
            assert name not in built
        else:
            there = built[name]
            assert (there.rank, there.slices, there.fold) == (layer.rank, layer.slices, layer.fold)
    assert count_params(small) == plan.params
    assert matches(small, plan)
    assert not matches(net, plan)


def test_the_given_model_is_bitwise_untouched(net: nn.Module, plan: tenfold.Plan) -> None:
    net.layer1[0].train()
    before, modes, random = state(net), [m.training for m in net.modules()], torch.get_rng_state()
    small = tenfold.apply(net, plan)
    with torch.no_grad():
        for p in small.parameters():
            p.zero_()
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in net.modules()] == modes
    assert same_state(net, before)


def test_the_same_plan_gives_the_same_weights_twice(net: nn.Module, plan: tenfold.Plan) -> None:
    a, b = tenfold.apply(net, plan), tenfold.apply(net, plan)
    for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True):
        assert torch.equal(x, y)


def test_a_plan_read_back_from_a_model_builds_that_model(net: nn.Module, plan: tenfold.Plan) -> None:
    small = tenfold.apply(net, plan)
    read = plan_of(small)
    assert read.params == count_params(small)
    assert read.dense_params == count_params(net)
    assert tenfold.Plan.from_json(read.to_json()) == read
    again = tenfold.apply(net, read)
    for x, y in zip(again.state_dict().values(), small.state_dict().values(), strict=True):
        assert torch.equal(x, y)


def test_a_factorised_model_is_multiplied_out_first(net: nn.Module, plan: tenfold.Plan) -> None:
    small = tenfold.apply(net, plan)
    again = tenfold.apply(small, plan)
    x = torch.randn(2, 3, 8, 8)
    assert relative(again(x), small(x)) < 1e-4  # a matrix of that rank is its own best approximation


def test_a_plan_by_one_model_fits_another_of_its_class(plan: tenfold.Plan) -> None:
    other = Residual()
    assert count_params(tenfold.apply(other, plan)) == plan.params


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            Residual(width=16),
            "expects 'conv1' with kernel (8, 3, 3, 3) in 1 groups, the model has kernel (16, 3, 3, 3)",
        ),
        (nn.Sequential(nn.Linear(3, 3)), "the model has no such layer"),
        (nn.ModuleDict({"conv1": nn.ReLU()}), "has another kind of module there"),
    ],
)
def test_a_plan_for_another_model_is_refused(model: nn.Module, words: str) -> None:
    net = Residual()
    plan = tenfold.plan(net, tenfold.SVD(), tenfold.Budget(params=0.4))
    before = state(model)
    with pytest.raises(PlanError, match="the plan is for another model") as error:
        tenfold.apply(model, plan)
    assert words in str(error.value)
    assert same_state(model, before)


def test_a_rank_that_saves_nothing_is_built_with_a_warning(net: nn.Module, plan: tenfold.Plan) -> None:
    edited = plan.edit("fc", decomposition="low-rank", rank=5, slices=1, fold="channel")
    with pytest.warns(TenfoldWarning, match=r"'fc' at rank 5 has 105 weights, its dense kernel 80"):
        small = tenfold.apply(net, edited)
    assert small.fc.rank == 5
    assert relative(small.fc.weight, net.fc.weight) < 1e-5


@pytest.mark.parametrize("rank", [0, 6, -1, 2.0, "2", None, True])
def test_an_impossible_rank_is_refused_on_reading_the_plan(plan: tenfold.Plan, rank: object) -> None:
    body = json.loads(plan.to_json())
    body["layers"]["fc"] |= {"decomposition": "low-rank", "rank": rank, "slices": 1, "fold": "channel"}
    with pytest.raises(PlanError, match="'fc'"):
        tenfold.Plan.from_json(json.dumps(body))


def test_a_layer_that_became_special_since_the_plan_was_made_is_not_replaced(
    net: nn.Module, plan: tenfold.Plan
) -> None:
    name = next(n for n, layer in plan.layers.items() if layer.decomposition != "dense")
    net.get_submodule(name).register_forward_hook(lambda module, args, output: output)
    with pytest.raises(PlanError, match=f"'{name}', which has to stay dense: carries hooks"):
        tenfold.apply(net, plan)
    other = Residual()
    nn.utils.parametrizations.weight_norm(other.get_submodule(name))
    with pytest.raises(PlanError, match=f"'{name}'"):
        tenfold.apply(other, plan)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named_and_nothing_is_built(value: float, plan: tenfold.Plan) -> None:
    net = Residual()
    name = [n for n, layer in plan.layers.items() if layer.decomposition != "dense"][-1]
    net.get_submodule(name).weight.data.view(-1)[0] = value
    before = copy.deepcopy(net)
    with pytest.raises(TenfoldError, match=f"the weight of '{name}' has NaN or infinite entries"):
        tenfold.apply(net, plan)
    with pytest.raises(TenfoldError, match=f"'{name}' has NaN"):
        tenfold.compress(net, tenfold.ALDS(), tenfold.Budget(params=0.5))
    assert repr(net) == repr(before)
    assert not swap.structure_of(net)


def test_a_wrapped_model_is_refused_factorised_or_not(net: nn.Module, plan: tenfold.Plan) -> None:
    for model in (net, tenfold.apply(net, plan)):
        with pytest.raises(ArgumentError, match="must not be wrapped in DataParallel"):
            tenfold.apply(nn.DataParallel(model), plan)


def test_the_report_is_measured_on_the_built_model(net: nn.Module) -> None:
    x = torch.zeros(1, 3, 8, 8)
    small, plan, report = tenfold.compress(net, tenfold.ALDS(), tenfold.Budget(params=0.5), example_inputs=x)
    assert report.small == tenfold.cost(small, x)
    assert report.dense == tenfold.cost(net, x)
    assert report.kept["params"] == count_params(small) / count_params(net) <= 0.5
    assert set(report.left) == {n for n, layer in plan.layers.items() if layer.decomposition == "dense"}
    assert all(report.left.values())
    assert set(report.seconds) == {"plan", "apply", "reestimate"}
