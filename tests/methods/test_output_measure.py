"""ALDS, SVD and Tucker by the outputs of layers: the same rules over other errors, and factors that need no refit."""

import dataclasses
import re

import pytest
import torch
from torch import nn

import tenfold
from helpers import same_state
from methods.test_svd import shapes
from nets import chain, image
from ranks.tables import brute_force_grid

METHODS = {
    "alds": tenfold.ALDS(measure="output"),
    "svd": tenfold.SVD(measure="output"),
    "tucker": tenfold.Tucker(measure="output"),
}
FEW = pytest.mark.filterwarnings("ignore:.*tell enough")


@pytest.fixture(params=METHODS.values(), ids=METHODS)
def method(request):
    return request.param


def data(count=4):
    g = torch.Generator().manual_seed(1)
    return [torch.randn(24, 3, 8, 8, generator=g).cumsum(-1) for _ in range(count)]


def losses(small, net, batches):
    with torch.no_grad():
        return sum(float((small(x) - net(x)).square().sum()) for x in batches)


def test_by_default_no_data_are_needed_and_without_them_the_remedy_is_named(method):
    other = type(method)()
    assert method.needs_data
    assert not other.needs_data
    tenfold.plan(chain(), other, tenfold.Budget(params=0.7))
    says = (
        f"`data` must be given for {method.name}: batches of inputs.*Pass data=.*or leave `measure` as it is by default"
    )
    for way in (tenfold.plan, tenfold.compress):
        with pytest.raises(tenfold.ArgumentError, match=says):
            way(chain(), method, tenfold.Budget(params=0.7))
    assert tenfold.get_method(name=method.name, measure="output") == method


def test_the_decoupled_fold_is_refused_by_the_name_of_its_field():
    for make, name in ((tenfold.ALDS, "folds"), (tenfold.SVD, "fold")):
        fold = ("channel", "decoupled") if name == "folds" else "decoupled"
        with pytest.raises(
            tenfold.ArgumentError, match=f'`{name}` must be any but the decoupled one with measure="output"'
        ):
            make(measure="output", **{name: fold})
        make(**{name: fold})


@FEW
@pytest.mark.parametrize("budget", [tenfold.Budget(params=0.6), tenfold.Budget(macs=0.5)], ids=str)
def test_the_level_of_alds_is_the_least_of_all_choices(budget):
    method = tenfold.ALDS(measure="output", negligible=0.0, slices=(1, 2))
    problem = tenfold.survey(chain().eval(), example_inputs=image(), data=data())
    plan = method.plan(problem, budget)
    assert plan.measure == "output"
    assert plan.level == brute_force_grid(method.candidates(problem), problem.limits(budget))
    assert plan.level == max(layer.error for layer in plan.layers.values())


@FEW
@pytest.mark.parametrize("fold", ["channel", "spatial", "spatial-t", "input"])
def test_the_ranks_of_svd_are_one_share_of_the_full_ones_and_those_without_data_where_no_bias_is_added(fold):
    net, budget = chain().eval(), tenfold.Budget(params=0.6)
    plan = tenfold.plan(net, tenfold.SVD(measure="output", fold=fold), budget, data=data())
    plain = tenfold.plan(net, tenfold.SVD(fold=fold), budget)
    assert {n: x.rank for n, x in plan.layers.items()} == {n: x.rank for n, x in plain.layers.items()}
    assert plan.level == plain.level
    full = shapes(net, fold)
    for name, layer in plan.layers.items():
        assert layer.rank in (None, max(1, int(plan.level * full[name][0] + 0.5 + 1e-9)))
    assert (plan.measure, plain.measure) == ("output", "max")
    assert plan.from_data
    assert not plain.from_data


@FEW
def test_what_is_compressed_has_its_factors_without_a_refit_and_errs_less_than_without_data(method):
    """At the same ranks, on the examples that were seen: a plan without data, edited to be the same."""
    net, batches, budget = chain().double().eval(), [x.double() for x in data()], tenfold.Budget(params=0.6)
    small, plan, _ = tenfold.compress(net, method, budget, data=batches, norms="keep")
    assert same_state(small, tenfold.apply(net, plan))
    layers = {n: dataclasses.replace(x, bias=False) for n, x in plan.layers.items()}
    plain = tenfold.apply(net, dataclasses.replace(plan, layers=layers, from_data=False, factors={}))
    assert losses(small, net, batches) < losses(plain, net, batches)


@FEW
@pytest.mark.parametrize("measure", ["output", None], ids=["output", "default"])
def test_only_outputs_add_a_bias_and_it_is_counted(method, measure):
    method = method if measure else type(method)()
    net = nn.Sequential(nn.Conv2d(3, 12, 3, bias=False), nn.ReLU(), nn.Conv2d(12, 12, 3)).eval()
    small, plan, report = tenfold.compress(net, method, tenfold.Budget(params=0.7), data=data(), target_modules=".*")
    assert {n for n, x in plan.layers.items() if x.bias} <= {"0"}
    assert plan.params == report.small.params == sum(p.numel() for p in small.parameters())
    cut = tenfold.compress(net, method, tenfold.Budget(params=0.9), data=data(), target_modules=["0"])
    assert cut.plan.layers["0"].rank is not None
    assert (cut.model[0].bias is not None) == cut.plan.layers["0"].bias == bool(measure)


@FEW
def test_a_bias_that_another_layer_has_as_well_is_not_changed_behind_its_back(method):
    net = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16))
    net[2].bias = net[0].bias
    with pytest.raises(tenfold.PlanError, match=r"share a bias.*exclude_modules"):
        tenfold.compress(net, method, tenfold.Budget(params=0.8), data=[torch.randn(80, 16)])


@FEW
def test_a_plan_states_the_memory_that_calibration_took(method):
    net, batches = chain().eval(), data()
    plan = tenfold.plan(net, method, tenfold.Budget(params=0.6), data=batches)
    moments = [8 * 27**2, 8 * 2 * 36**2, 8 * 6**2]  # of the two convolutions' inputs, the second's in two groups
    examples = sum(x.numel() * x.element_size() for x in batches)
    assert examples + sum(moments) / 3 < plan.calibration_bytes < examples + 30e6
    assert tenfold.Plan.from_json(plan.to_json()).calibration_bytes == plan.calibration_bytes


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"samples": 0}, "samples"),
        ({"samples": 1.5}, "samples"),
        ({"memory": 0}, "memory"),
        ({"measure": "outputs"}, "measure"),
    ],
)
def test_fields_out_of_range_are_named(method, fields, name):
    with pytest.raises(tenfold.ArgumentError, match=re.escape(f"`{name}` must be")):
        type(method)(**fields)
