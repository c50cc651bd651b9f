"""Rules that treat all layers alike leave the smallest layers dense, and the ends on demand."""

import itertools

import pytest
import torch
from torch import nn

import tenfold
from helpers import counted
from nets import linear_chain
from ranks.tables import brute_force_grid
from tenfold.methods.contract.sparing import Sparing
from tenfold.plans.spared import dense_alone

SPARING = {name: kind for name, kind in tenfold.list_methods().items() if issubclass(kind, Sparing)}
del SPARING["calibrated"]  # has no one level; see test_calibrated.py


@pytest.fixture(params=SPARING.values(), ids=SPARING)
def kind(request) -> type[Sparing]:
    return request.param


def classifier() -> nn.Sequential:
    """The first convolution has the fewest weights, and more of the MACs; the classifier comes next."""
    return nn.Sequential(
        nn.Conv2d(3, 24, 3),
        nn.ReLU(),
        nn.Conv2d(24, 48, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(48, 40),
        nn.ReLU(),
        nn.Linear(40, 70, bias=False),
        nn.ReLU(),
        nn.Linear(70, 12),
    ).eval()


SMALL = "0"
"""The first convolution: 648 of 16,700 parameters, 3.9 %, and 12 % of the MACs."""


def inputs() -> torch.Tensor:
    return torch.randn(2, 3, 8, 8)


def planned(method, model, budget, **options):
    x = inputs()
    data = [torch.randn(64, 3, 8, 8)] if method.needs_data else None
    return tenfold.plan(model, method, budget, example_inputs=x, data=data, **options)


def test_the_methods_with_one_level_for_all_layers_are_these():
    assert set(SPARING) == {"activation-svd", "alds", "svd", "svd-energy", "tucker"}


def test_the_smallest_layers_within_the_share_stay_dense_with_the_reason_and_are_cut_at_zero(kind):
    model, budget = classifier(), tenfold.Budget(params=0.15)
    whole = sum(p.numel() for p in model.parameters())
    share = (3 * 24 * 9 + 1) / whole
    plan = planned(kind(negligible=share), model, budget)
    assert plan.layers[SMALL].decomposition == "dense"
    assert f"the smallest layer, with {100 * 648 / whole:.2g} % of the params" in plan.layers[SMALL].reason
    assert [n for n, x in plan.layers.items() if "smallest" in (x.reason or "")] == [SMALL]
    for less in (kind(negligible=0.0), kind(negligible=647 / whole)):
        assert planned(less, model, budget).layers[SMALL].decomposition != "dense"
    assert plan.params <= 0.15 * whole


def test_by_default_it_is_one_per_cent(kind):
    assert kind().negligible == 0.01
    model = linear_chain(*[16] * 401, 2)  # the last layer is smaller still
    plan = tenfold.plan(model, kind(), tenfold.Budget(params=0.6), data=[torch.randn(64, 16)])
    left = [name for name, layer in plan.layers.items() if "smallest" in (layer.reason or "")]
    kept = sum(plan.layers[name].params for name in left)
    assert 0.009 * plan.dense_params < kept <= 0.01 * plan.dense_params
    assert any(layer.decomposition != "dense" for layer in plan.layers.values())


def test_a_layer_is_small_only_if_it_is_in_every_limited_cost(kind):
    model = classifier()
    whole, macs = counted(model, inputs()[:1])
    assert 36 * 648 / macs > 0.1  # the first convolution, at 6 x 6 places
    share = 649 / whole
    for limits, small in (({"params": 0.6}, True), ({"params": 0.6, "macs": 0.6}, False), ({"macs": 0.6}, False)):
        plan = planned(kind(negligible=share), model, tenfold.Budget(**limits))
        assert ("smallest" in (plan.layers[SMALL].reason or "")) is small, limits


def test_layers_that_the_user_selects_are_cut_however_small(kind):
    names = ["0", "2", "6", "8", "10"]
    budget = tenfold.Budget(params=0.15)
    plan = planned(kind(negligible=0.5, ends=("first", "last")), classifier(), budget, target_modules=names)
    assert plan.layers[SMALL].decomposition != "dense"


def test_a_budget_that_needs_the_smallest_layers_takes_them_back_and_says_so(kind):
    model = classifier()
    with pytest.raises(tenfold.BudgetError) as caught:
        planned(kind(), model, tenfold.Budget(params=2))
    least = caught.value.smallest["params"]
    with pytest.warns(tenfold.TenfoldWarning, match="can be kept only if .* cuts the smallest layers too.*: 0"):
        plan = planned(kind(negligible=0.05), model, tenfold.Budget(params=least))
    torch.manual_seed(0)
    bare = planned(kind(negligible=0.0), model, tenfold.Budget(params=least))
    assert [x.rank for x in plan.layers.values()] == [x.rank for x in bare.layers.values()]
    assert plan.params <= least


@pytest.mark.parametrize("ends", [(), ("first",), ("last",), ("first", "last")], ids=str)
def test_the_ends_that_are_asked_for_stay_dense_and_no_others(kind, ends):
    plan = planned(kind(negligible=0.0, ends=ends), classifier(), tenfold.Budget(params=0.5))
    asked = {name for name, layer in plan.layers.items() if "as `ends` asks" in (layer.reason or "")}
    assert asked == {{"first": "0", "last": "10"}[end] for end in ends}
    assert all(plan.layers[name].decomposition == "dense" for name in asked)


def test_ends_that_a_budget_cannot_afford_are_not_given_up(kind):
    method, model = kind(ends=("first", "last")), classifier()
    with pytest.raises(tenfold.BudgetError) as caught:
        planned(method, model, tenfold.Budget(params=2))
    least = caught.value.smallest["params"]
    plan = planned(kind(negligible=0.0, ends=("first", "last")), model, tenfold.Budget(params=least))
    assert plan.layers["0"].decomposition == plan.layers["10"].decomposition == "dense"
    with pytest.raises(tenfold.BudgetError):
        planned(method, model, tenfold.Budget(params=least - 1))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.05, 0.2])
def test_the_level_is_the_least_of_all_choices_that_leave_these_layers(share):
    model = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 4))
    problem = tenfold.survey(model)
    method, budget = tenfold.ALDS(negligible=share), tenfold.Budget(params=0.6)
    tables = method.candidates(problem)
    left = method.spared(problem, budget, tables).small
    tables = [dense_alone(t) if t.name in left else t for t in tables]
    assert method.plan(problem, budget).level == brute_force_grid(tables, problem.limits(budget))
    assert (len(left) > 0) is (share == 0.2)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"negligible": -0.1}, "negligible"),
        ({"negligible": 1.0}, "negligible"),
        ({"negligible": "1%"}, "negligible"),
        ({"ends": "last"}, "ends"),
        ({"ends": ["last"]}, "ends"),
        ({"ends": ("middle",)}, "ends"),
    ],
)
def test_fields_out_of_range_are_named(kind, fields, name):
    with pytest.raises(tenfold.ArgumentError, match=f"`{name}` must be"):
        kind(**fields)


def test_one_problem_serves_many_budgets_whatever_is_left(kind):
    """What is left differs with the limits; nothing is computed for one budget that another one misses."""
    model, x = classifier(), inputs()
    batches = [torch.randn(64, 3, 8, 8)]
    problem = tenfold.survey(model, example_inputs=x, data=iter(batches))
    alone = tenfold.survey(model, example_inputs=x, data=batches)
    for share, limit in itertools.product((0.0, 0.01, 0.1), ({"macs": 0.5}, {"params": 0.5})):
        budget = tenfold.Budget(**limit)
        plan = kind(negligible=share).plan(problem, budget)
        assert plan == kind(negligible=share).plan(alone.renewed(), budget)
