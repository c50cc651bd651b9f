"""Laws that hold for every method there is. A new method is tested by existing.

Laws that hold only for some are told apart by what a method declares: `needs_budget`, `needs_closure`, `needs_layers`.
"""

import dataclasses
import inspect
import json
import re
import warnings

import pytest
import torch
from torch import nn

import helpers
import tenfold
from helpers import calibrating, counted, same_state, state
from nets import Tied, chain, image, labelled_images, small_image, tokens, transposed
from tenfold.linalg.fold import NAMES

# A few images are enough for laws that hold of any.
pytestmark = pytest.mark.filterwarnings("ignore:.*tell enough")

METHODS = tenfold.list_methods()
VARIANTS = {
    "alds output": tenfold.ALDS(measure="output"),
    "svd output": tenfold.SVD(measure="output", fold="spatial"),
    "tucker output": tenfold.Tucker(measure="output"),
}
"""Fields that make another method of one: they are tested where plans and built models are."""
MODELS = {"chain": (chain, image), "transposed": (transposed, small_image), "tied": (Tied, tokens)}
EVERY = ".*"
GOAL = tenfold.Goal(steps_per_epoch=2, steps=6)
BUDGETS = (
    tenfold.Budget(params=0.7),
    tenfold.Budget(macs=0.7),
    tenfold.Budget(params=0.9, macs=0.8),
)


@pytest.fixture(params=METHODS.values(), ids=METHODS)
def method(request) -> tenfold.Method:
    return request.param if isinstance(request.param, tenfold.Method) else request.param()


with_variants = pytest.mark.parametrize(
    "method", [*METHODS.values(), *VARIANTS.values()], ids=[*METHODS, *VARIANTS], indirect=True
)


@pytest.fixture(params=MODELS.values(), ids=MODELS)
def case(request):
    make, inputs = request.param
    return make().eval(), inputs()


def takes_budgets(method: tenfold.Method) -> bool:
    """The baseline that compresses nothing is the only method that no budget moves."""
    return method.name != "dense"


def compressed(method, model, budget, x) -> tenfold.Result:
    """All layers are named, so that methods which leave some dense by themselves take them too."""
    kept = budget if takes_budgets(method) else None
    return tenfold.compress(model, method, kept, example_inputs=x, data=calibrating(x), target_modules=EVERY)


# ---- configuration


def test_it_is_a_frozen_final_dataclass_with_a_name_and_a_file_of_its_own(method):
    cls = type(method)
    assert dataclasses.is_dataclass(cls)
    assert cls.__dataclass_params__.frozen
    assert re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", cls.name)
    assert all(inspect.isabstract(base) for base in cls.__mro__[1:] if issubclass(base, tenfold.Method))
    siblings = [c for c in METHODS.values() if c.__module__ == cls.__module__]
    assert siblings == [cls]
    assert inspect.getdoc(inspect.getmodule(cls))


def test_it_is_public_under_its_own_name(method):
    assert getattr(tenfold, type(method).__name__) is type(method)


def test_every_field_has_a_default_and_is_documented(method):
    text = inspect.getdoc(type(method)) or ""
    arguments = text.partition("Args:")[2]
    for field in dataclasses.fields(method):
        assert field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        assert re.search(rf"^\s+{field.name}: \S", arguments, re.MULTILINE), field.name


@with_variants
def test_it_survives_json(method):
    body = json.loads(json.dumps(method.to_dict()))
    assert body.pop("method") == method.name
    assert set(body) == {field.name for field in dataclasses.fields(method)}
    assert tenfold.get_method(method.name, **body) == method


def test_it_is_a_value(method):
    """Frozen, hashable, equal to another with the same fields, and its repr says all of it."""
    other = type(method)()
    assert (method, hash(method), repr(method)) == (other, hash(other), repr(other))
    for field in dataclasses.fields(method):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(method, field.name, None)


@with_variants
def test_nonsense_in_any_field_is_an_argument_error_that_names_it(method):
    for field in dataclasses.fields(method):
        for nonsense in (object(), "nonsense", -7):
            with pytest.raises(tenfold.ArgumentError, match=f"`{field.name}`"):
                type(method)(**{field.name: nonsense})


# ---- after training


@with_variants
@pytest.mark.parametrize("budget", BUDGETS, ids=str)
def test_the_built_model_keeps_the_budget_and_costs_what_the_plan_says(method, case, budget):
    model, x = case
    before = state(model)
    small, plan, report = compressed(method, model, budget, x)
    used, dense = counted(small, x), counted(model, x)
    assert (plan.params, plan.macs) == used == (report.small.params, report.small.macs)
    assert (plan.dense_params, plan.dense_macs) == dense == (report.dense.params, report.dense.macs)
    if takes_budgets(method):
        for name, value in budget.limits.items():
            i = ("params", "macs").index(name)
            assert used[i] <= (value * dense[i] if isinstance(value, float) else value)
    assert small(x).shape == model(x).shape
    assert torch.isfinite(small(x)).all()
    assert same_state(model, before)  # the given model is untouched


@pytest.mark.parametrize("fold", NAMES)
@pytest.mark.parametrize("case", [MODELS["chain"], MODELS["transposed"]], indirect=True, ids=["chain", "transposed"])
def test_a_method_that_takes_a_fold_takes_every_one(method, case, fold):
    fields = {field.name for field in dataclasses.fields(method)} & {"fold", "folds"}
    if not fields:
        return
    model, x = case
    method = dataclasses.replace(method, **{name: fold if name == "fold" else (fold,) for name in fields})
    small, plan, _ = compressed(method, model, tenfold.Budget(params=0.8, macs=0.9), x)
    assert {layer.fold for layer in plan.layers.values() if layer.rank is not None} == {fold}
    assert (plan.params, plan.macs) == counted(small, x)
    torch.testing.assert_close(tenfold.to_dense(small)(x), small(x), rtol=1e-4, atol=1e-5)


@with_variants
def test_the_plan_names_its_method_and_every_layer_with_a_reason_for_each_dense_one(method, case):
    model, x = case
    plan = compressed(method, model, tenfold.Budget(params=0.8), x).plan
    assert plan.method == method.name
    assert list(plan.layers) == [name for name, m in model.named_modules() if getattr(m, "weight", None) is not None
                                 and m.weight.ndim > 1]  # fmt: skip
    assert all(layer.reason for layer in plan.layers.values() if layer.decomposition == "dense")
    for layer in plan.layers.values():
        assert layer.error is None or layer.error >= 0


@with_variants
def test_plans_are_deterministic_and_survive_json(method, case):
    model, x = case
    a, b = (compressed(method, model, tenfold.Budget(params=0.8), x).plan for _ in range(2))
    assert a == b == tenfold.Plan.from_json(a.to_json())


@with_variants
def test_a_larger_budget_never_costs_error(method):
    """The level is an error, or a fraction: either way it is monotone in the budget."""
    model, x = chain().eval(), image()
    levels = []
    for share in (0.6, 0.8, 1.0):
        try:
            level = compressed(method, model, tenfold.Budget(params=share), x).plan.level
        except tenfold.BudgetError:
            assert not levels
            continue
        levels += [level] if level is not None else []
    assert levels in (sorted(levels), sorted(levels, reverse=True))


@with_variants
def test_an_absolute_budget_is_kept_to_the_unit(method, case):
    model, x = case
    if takes_budgets(method):
        limit = int(0.77 * sum(p.numel() for p in model.parameters()))
        assert counted(compressed(method, model, tenfold.Budget(params=limit), x).model, x)[0] <= limit


@with_variants
def test_the_whole_budget_changes_no_weight_that_matters(method, case):
    model, x = case
    if method.needs_budget:
        same = tenfold.to_dense(compressed(method, model, tenfold.Budget(params=1.0), x).model)
        for (name, a), b in zip(model.named_parameters(), same.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-4, msg=name)


@with_variants
@pytest.mark.parametrize("name", ["params", "macs"])
def test_an_impossible_budget_names_the_smallest_which_then_succeeds(method, case, name):
    if not takes_budgets(method):
        pytest.skip("ignores budgets")
    model, x = case
    with pytest.raises(tenfold.BudgetError) as caught:
        compressed(method, model, tenfold.Budget(**{name: 1e-6}), x)
    smallest = caught.value.smallest[name]
    assert str(smallest) in str(caught.value)
    result = compressed(method, model, tenfold.Budget(**{name: smallest}), x)
    assert getattr(result.report.small, name) <= smallest * getattr(result.report.dense, name)


def test_without_a_budget_it_chooses_itself_or_asks_for_one(method, case):
    model, x = case
    if method.needs_budget:
        with pytest.raises(tenfold.ArgumentError, match=rf"`budget` must be given for {method.name}"):
            compressed(method, model, None, x)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", tenfold.TenfoldWarning)  # that nothing was compressed
            compressed(method, model, None, x)


def test_a_budget_on_macs_without_inputs_is_refused(method, case):
    if not takes_budgets(method):
        pytest.skip("ignores budgets")
    model, x = case
    with pytest.raises(tenfold.ArgumentError, match="`example_inputs` must be given"):
        tenfold.compress(model, method, tenfold.Budget(macs=0.5), data=calibrating(x), target_modules=EVERY)


@with_variants
def test_excluded_layers_stay_as_they_are(method, case):
    model, x = case
    first = next(name for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
    result = tenfold.compress(
        model,
        method,
        tenfold.Budget(params=0.95) if takes_budgets(method) else None,
        data=calibrating(x),
        example_inputs=x,
        target_modules=EVERY,
        exclude_modules=[first],
    )
    assert type(result.model.get_submodule(first)) is type(model.get_submodule(first))
    assert result.plan.layers[first].reason == "in exclude_modules"


@with_variants
def test_a_compressed_model_can_be_compressed_again_and_saved(method, case, tmp_path):
    model, x = case
    once = compressed(method, model, tenfold.Budget(params=0.9), x)
    twice = compressed(method, once.model, tenfold.Budget(params=0.8), x)
    if takes_budgets(method):
        assert twice.report.small.params <= 0.8 * twice.report.dense.params
    assert twice.report.dense.params == once.report.dense.params
    tenfold.save(twice.model, tmp_path / "saved", twice.plan)
    assert torch.equal(tenfold.load(tmp_path / "saved", model).eval()(x), twice.model(x))


def test_weights_that_are_not_finite_are_refused(method):
    model = chain()
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(tenfold.TenfoldError, match="weight of '0' has NaN"):
        compressed(method, model, tenfold.Budget(params=0.8), image())


def test_a_model_without_layers_to_decompose_is_refused_where_they_are_needed(method):
    if not method.needs_layers:
        tenfold.compress(nn.ReLU(), method, data=calibrating(image()))
        return
    with pytest.raises(tenfold.UnsupportedLayer, match="no layer that can be decomposed"):
        tenfold.compress(nn.ReLU(), method, tenfold.Budget(params=0.8), data=calibrating(image()))


# ---- during training


def train(method, model, optimizer, steps=6) -> list[float]:
    return helpers.train(model, optimizer, labelled_images, range(steps), needs_closure=method.needs_closure)


def test_begin_gives_a_copy(method):
    model = chain()
    before = state(model)
    begun = method.begin(model)
    assert {id(p) for p in begun.parameters()}.isdisjoint({id(p) for p in model.parameters()})
    optimizer = method.optimizer(begun, lr=0.05, goal=GOAL)
    assert isinstance(optimizer, torch.optim.Optimizer)
    train(method, begun, optimizer)
    assert same_state(model, before)
    assert any(p.grad is not None for p in begun.parameters())


def test_what_it_trains_it_can_finish(method):
    model = method.begin(chain())
    optimizer = method.optimizer(model, lr=0.05, goal=GOAL)
    train(method, model, optimizer)
    before = state(model)
    x = image()
    budget = tenfold.Budget(params=0.8) if takes_budgets(method) else None
    result = method.finish(model, budget, data=calibrating(x), example_inputs=x, target_modules=EVERY)
    assert isinstance(result, tenfold.Result)
    assert (result.report.small.params, result.report.small.macs) == counted(result.model, x)
    assert set(result.report.seconds) >= {"plan", "apply"}
    assert all(seconds >= 0 for seconds in result.report.seconds.values())
    assert same_state(model, before)


def test_attach_serves_any_optimizer_or_says_what_to_do_instead(method):
    model = method.begin(chain())
    mine = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    try:
        attached = method.attach(model, mine, goal=GOAL)
    except tenfold.ArgumentError as error:
        assert "method.optimizer(" in str(error)  # noqa: PT017 - refusing is one of two right answers
        return
    assert attached is mine
    train(method, model, mine, steps=2)


def test_frozen_parameters_stay_frozen(method):
    model = chain()
    model[6].weight.requires_grad_(False)
    begun = method.begin(model)
    assert not begun.get_submodule("6").weight.requires_grad
    train(method, begun, method.optimizer(begun, lr=0.05, goal=GOAL))
    assert torch.equal(begun.get_submodule("6").weight, model[6].weight)


def test_a_run_stopped_in_the_middle_resumes_to_the_same_bits(method):
    start = chain()

    def fresh():
        model = method.begin(start)
        return model, method.optimizer(model, lr=0.05, goal=GOAL)

    model, optimizer = fresh()
    train(method, model, optimizer, 3)
    weights = state(model)
    other, resumed = fresh()
    other.load_state_dict(weights)
    resumed.load_state_dict(optimizer.state_dict())
    for a, b in ((model, optimizer), (other, resumed)):
        train(method, a, b, 3)
    assert same_state(model, other)
