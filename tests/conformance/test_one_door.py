"""Laws of the ways in: whoever asks, however it is said, the same is built; nothing is done before it is checked."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tenfold
from helpers import calibrating, same_state, train
from nets import chain, image, labelled_images
from tenfold.layers import copy_model, cost, find
from tenfold.methods.contract.method import Method
from tenfold.plans.apply import build
from tenfold.plans.plan import LayerPlan, Plan
from tenfold.plans.problem import Problem

# A few images are enough for laws that hold of any.
pytestmark = pytest.mark.filterwarnings("ignore:.*tell enough")

METHODS = tenfold.list_methods()
EVERY = ".*"


@pytest.fixture(params=METHODS.values(), ids=METHODS)
def method(request) -> tenfold.Method:
    return request.param()


def trained() -> nn.Module:
    """A network whose batch norm has scales and statistics of its own."""
    model = chain()
    g = torch.Generator().manual_seed(3)
    norm = model[1]
    norm.weight.data = torch.rand(8, generator=g) + 0.2
    norm.running_var = torch.rand(8, generator=g) + 0.1
    norm.running_mean = torch.randn(8, generator=g)
    return model.eval()


def step(method: Method, model: nn.Module, optimizer: torch.optim.Optimizer, i: int) -> None:
    train(model, optimizer, labelled_images, [i], needs_closure=method.needs_closure)


# ---- one builder


def test_apply_of_the_plan_is_what_compress_builds(method):
    x, model = image(), trained()
    given = {"example_inputs": x, "data": calibrating(x), "target_modules": EVERY}
    budget = None if method.name == "dense" else tenfold.Budget(params=0.8)
    result = tenfold.compress(model, method, budget, norms="keep", **given)
    built = tenfold.apply(model, tenfold.plan(model, method, budget, **given))
    assert same_state(built, result.model)
    again = build(tenfold.survey(model, **given), result.plan, budget)
    assert same_state(again.model, result.model)
    assert again.report.small == result.report.small


def test_a_plan_that_travelled_builds_the_same(method):
    x, model = image(), trained()
    budget = None if method.name == "dense" else tenfold.Budget(params=0.8)
    plan = tenfold.plan(model, method, budget, example_inputs=x, data=calibrating(x), target_modules=EVERY)
    if plan.from_data:
        with pytest.raises(tenfold.PlanError, match="holds no factors"):
            tenfold.apply(model, tenfold.Plan.from_json(plan.to_json()))
        return
    assert same_state(tenfold.apply(model, tenfold.Plan.from_json(plan.to_json())), tenfold.apply(model, plan))


def test_lrpets_energy_transfer_reaches_the_model_however_it_is_built():
    model, x = trained(), image()
    method = tenfold.LRPET(prune_ratio=0.5)
    plan = tenfold.plan(model, method, example_inputs=x)
    assert plan.layers["0"].norm == "1"
    assert plan.layers["0"].transfer
    small = tenfold.to_dense(tenfold.apply(model, plan))
    kernel, kept = model[0].weight.flatten(1).double(), small[0].weight.flatten(1).double()
    metric = (model[1].weight / (model[1].running_var + model[1].eps).sqrt()).double()
    energy = (metric[:, None] * kernel).norm()
    torch.testing.assert_close((metric[:, None] * kept).norm(), energy, rtol=1e-5, atol=0)
    assert torch.linalg.matrix_rank(kept, tol=1e-5 * float(kept.detach().norm())) == plan.layers["0"].rank


@pytest.mark.parametrize("norm", ["2", "nowhere", "9"])
def test_a_plan_that_names_no_batch_norm_of_the_layer_is_refused(norm):
    model = nn.Sequential(*trained(), nn.Identity(), nn.Identity(), nn.BatchNorm1d(3))
    plan = tenfold.plan(model, tenfold.LRPET(prune_ratio=0.5), exclude_modules=["6"])
    text = plan.to_json().replace('"norm": "1"', f'"norm": "{norm}"')
    with pytest.raises(tenfold.PlanError, match="must name a batch norm of its 8 channels"):
        tenfold.apply(model, tenfold.Plan.from_json(text))


def test_nothing_is_found_traced_or_copied_twice(monkeypatch):
    counts = {"find": 0, "trace": 0, "copies": 0}

    def counting(name, wrapped):
        def call(*args, **kwargs):
            counts[name] += 1
            return wrapped(*args, **kwargs)

        return call

    monkeypatch.setattr("tenfold.plans.problem.find", counting("find", find.find))
    monkeypatch.setattr("tenfold.layers.swap.find", counting("find", find.find))
    monkeypatch.setattr("tenfold.plans.problem.trace", counting("trace", cost.trace))
    monkeypatch.setattr("tenfold.layers.swap.duplicate", counting("copies", copy_model.duplicate))
    tenfold.compress(chain(), tenfold.SVD(), tenfold.Budget(params=0.8), example_inputs=image())
    assert counts == {"find": 1, "trace": 1, "copies": 1}


# ---- said once


BUDGET = tenfold.Budget(macs=0.95)


def begun(method: Method, **more) -> tenfold.TrainingRun:
    budget = None if method.name == "dense" else BUDGET
    given = {"example_inputs": image(), "steps_per_epoch": 2, "steps": 8} | more
    model = trained()
    model[4] = nn.Sequential(model[4], nn.Dropout(0.3))
    return tenfold.begin(model, method, budget, **given)


def test_a_run_trains_and_finishes_within_what_was_said_once(method):
    run = begun(method, target_modules=EVERY)
    optimizer = run.optimizer(torch.optim.SGD, lr=0.05, momentum=0.9)
    for i in range(5):
        step(method, run.model, optimizer, i)
    result = run.finish(data=calibrating(image()))
    if method.name != "dense":
        assert result.report.small.macs <= 0.95 * result.report.dense.macs


def test_a_selection_survives_finish(method):
    run = begun(method, exclude_modules=["6"])
    optimizer = run.optimizer(torch.optim.SGD, lr=0.05)
    for i in range(3):
        step(method, run.model, optimizer, i)
    result = run.finish(data=calibrating(image()))
    assert result.plan.layers["6"].decomposition == "dense"
    assert type(result.model[6]) is nn.Linear
    assert torch.equal(result.model[6].weight, run.model[6].weight)


def test_finish_in_mid_run_changes_nothing(method):
    """Steps with dropout, and a loader that shuffles: both draw from torch's global random numbers."""

    def go(finishing: bool) -> nn.Module:
        torch.manual_seed(0)
        run = begun(method, target_modules=EVERY)
        optimizer = run.optimizer(torch.optim.SGD, lr=0.05, momentum=0.9)
        run.model.train()
        loader = torch.utils.data.DataLoader(torch.randn(12, 3, 8, 8), batch_size=6, shuffle=True)
        for i in range(7):
            step(method, run.model, optimizer, i)
            if finishing and i in (0, 3, 4):
                run.finish(data=loader)
        return run.model

    assert same_state(go(False), go(True))


def test_a_run_has_one_optimizer(method):
    run = begun(method)
    optimizer = run.optimizer(torch.optim.SGD, lr=0.1)
    for again in (lambda: run.optimizer(torch.optim.SGD, lr=0.1), lambda: run.attach(optimizer)):
        with pytest.raises(tenfold.ArgumentError, match="this run has its optimizer"):
            again()


def test_a_run_takes_a_class_of_optimizers_or_attaches_one():
    run = begun(tenfold.TRP())
    mine = torch.optim.SGD(run.model.parameters(), lr=0.1)
    with pytest.raises(tenfold.ArgumentError, match="call attach"):
        run.optimizer(mine)
    with pytest.raises(tenfold.ArgumentError, match="`optimizer` must be a torch optimizer"):
        run.attach(torch.optim.SGD)
    assert run.attach(mine) is mine


# ---- one door

WRONG = {
    "name as model": ("resnet20", tenfold.SVD(), None, "`model` must be a torch.nn.Module; got 'resnet20'"),
    "class as model": (nn.Linear, tenfold.SVD(), None, "`model` must be a module; got the class Linear"),
    "swapped": (tenfold.SVD(), nn.Linear(2, 2), None, "The model comes first"),
    "name as method": (nn.Linear(2, 2), "alds", None, r"tenfold.get_method\('alds'\)"),
    "class as method": (nn.Linear(2, 2), tenfold.ALDS, None, r"ALDS\(\)"),
    "number as budget": (nn.Linear(2, 2), tenfold.ALDS(), 0.25, r"tenfold.Budget\(params=0.25\)"),
    "text as budget": (nn.Linear(2, 2), tenfold.ALDS(), "25%", r"tenfold.Budget\(params='25%'\)"),
    "dict as budget": (nn.Linear(2, 2), tenfold.ALDS(), {"params": 0.5}, "`budget` must be a tenfold.Budget"),
    "wrapped": (nn.DataParallel(nn.Linear(2, 2)), tenfold.ALDS(), None, "must not be wrapped in DataParallel"),
    "scripted": (torch.jit.script(nn.Linear(2, 2)), tenfold.ALDS(), None, "got a scripted one"),
    "compiled": (torch.compile(nn.Linear(2, 2)), tenfold.ALDS(), None, "must not be wrapped in OptimizedModule"),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("way", [tenfold.plan, tenfold.compress, tenfold.begin], ids=lambda f: f.__name__)
def test_what_is_no_model_method_or_budget_is_one_sentence(way, wrong):
    model, method, budget, says = wrong
    with pytest.raises(tenfold.ArgumentError, match=says) as caught:
        way(model, method, budget)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("way", [tenfold.plan, tenfold.compress, tenfold.begin], ids=lambda f: f.__name__)
def test_a_model_without_numbers_is_refused(way):
    with pytest.raises(tenfold.ArgumentError, match="'weight' is on the meta device"):
        way(nn.Linear(4, 4, device="meta"), tenfold.SVD(), tenfold.Budget(params=0.5))


def test_a_goal_takes_a_budget_only():
    with pytest.raises(tenfold.ArgumentError, match=r"tenfold.Budget\(params=0.5\)"):
        tenfold.Goal(0.5)


class Halve(Method):
    """Half of the full rank everywhere, whatever the budget: what CONTRIBUTING shows."""

    name = "halve"
    needs_budget = False

    def choose(self, problem: Problem, budget: tenfold.Budget | None) -> Plan:
        half = [LayerPlan("low-rank", max(1, min(s.cost.shape[:2]) // 2), error=None) for s in problem.sites]
        return problem.plan(self.name, half)


def test_a_method_that_ignores_its_budget_is_refused_with_both_numbers():
    with pytest.raises(tenfold.BudgetError, match=r"halve does not keep to `budget`: its plan has [\d,]+ params where"):
        tenfold.plan(chain(), Halve(), tenfold.Budget(params=0.3))
    assert tenfold.compress(chain(), Halve()).plan.method == "halve"


def test_a_model_that_costs_more_than_its_plan_says_is_refused_with_both_numbers():
    """The forward pass multiplies by the weight of a layer: no plan knows that, the count of the built model does."""

    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.Linear(16, 16, bias=False)

        def forward(self, x):
            return F.linear(torch.relu(self.up(x)), self.up.weight.t())

    problem = tenfold.survey(Reads(), example_inputs=torch.randn(1, 16), target_modules=["up"])
    plan = tenfold.SVD().plan(problem, tenfold.Budget(params=0.9))
    budget = tenfold.Budget(macs=plan.macs)
    with pytest.raises(tenfold.BudgetError, match=r"exceeds `budget`: it has [\d,]+ macs where [\d,]+ of"):
        build(problem, plan, budget)


def test_an_unreachable_budget_names_the_largest_layers_that_stay_dense():
    model = nn.Sequential(nn.Embedding(500, 16), nn.Linear(16, 16), nn.Linear(16, 64))
    with pytest.raises(tenfold.BudgetError, match=r"'0' \(8\d.\d% of the parameters: an Embedding") as caught:
        tenfold.plan(model, tenfold.SVD(), tenfold.Budget(params=0.2), exclude_modules=["2"])
    assert "'2' (" in str(caught.value)
    assert "in exclude_modules" in str(caught.value)


@pytest.mark.parametrize("value", [1, "1", "0%", "150%", 0, 1.5, -3, float("nan"), True, "a quarter"])
def test_a_limit_that_is_no_limit_is_refused_with_the_readings(value):
    with pytest.raises(tenfold.ArgumentError, match="`params` must be"):
        tenfold.Budget(params=value)


def test_a_percentage_is_the_fraction():
    assert tenfold.Budget(params="25%", macs="12.5 %") == tenfold.Budget(params=0.25, macs=0.125)
    assert copy.deepcopy(tenfold.Budget(params="100%")).params == 1.0


def test_training_a_model_without_numbers_is_refused_by_methods_that_need_them():
    with pytest.raises(tenfold.ArgumentError, match="is on the meta device"):
        tenfold.TDLRT().begin(nn.Linear(8, 8, device="meta"))
    with pytest.raises(tenfold.ArgumentError, match="is on the meta device"):
        tenfold.SFW().optimizer(nn.Linear(8, 8, device="meta"), lr=0.1)
