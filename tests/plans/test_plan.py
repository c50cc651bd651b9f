"""Budgets and plans as data: what is refused, what survives JSON and an editor, what the totals mean."""

import contextlib
import dataclasses
import json
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from torch import nn

import tenfold
from helpers import counted
from nets import Tied, chain, image, small_image, tokens, transposed
from tenfold.errors import TenfoldWarning
from tenfold.linalg.fold import NAMES, slice_counts

MODELS = {"chain": (chain, image), "transposed": (transposed, small_image), "tied": (Tied, tokens)}
METHODS = (
    tenfold.ALDS(),
    tenfold.ALDS(measure="spectral", folds=("channel", "spatial")),
    tenfold.SVD(fold="input"),
    tenfold.ALDS(measure="fro", folds=("channel", "decoupled")),
    tenfold.Dense(),
)


def kept(method, **limits) -> tenfold.Budget | None:
    """A budget, but for the one method that takes none."""
    return None if method == tenfold.Dense() else tenfold.Budget(**limits)


def plan_for(model="chain", method=None, with_inputs=True, **budget) -> tenfold.Plan:
    make, inputs = MODELS[model]
    return tenfold.plan(
        make(),
        method or tenfold.ALDS(),
        kept(method, **(budget or {"params": 0.6})),
        example_inputs=inputs() if with_inputs else None,
    )


def edited(plan: tenfold.Plan, path: str, value) -> str:
    """The plan's JSON with one entry changed; ``path`` as in ``"layers.0.rank"``. ``...`` removes it."""
    body = json.loads(plan.to_json())
    *parents, last = path.split(".")
    place = body
    for key in parents:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return json.dumps(body)


# ---- budgets


@pytest.mark.parametrize("name", ["params", "macs"])
@pytest.mark.parametrize("value", [0, 0.0, 1.5, -0.25, -3, True, False, float("nan"), float("inf")])
def test_a_limit_out_of_range_is_refused(name, value):
    with pytest.raises(
        tenfold.ArgumentError, match=f"`{name}` must be a fraction in .0, 1. as a float or a percentage, or a number"
    ):
        tenfold.Budget(**{name: value})


@pytest.mark.parametrize("value", ["0.5", [0.5], {}])
def test_a_limit_of_another_type_is_refused(value):
    with pytest.raises((tenfold.ArgumentError, TypeCheckError)):  # the type checker of the tests may come first
        tenfold.Budget(params=value)


def test_a_budget_needs_a_limit():
    with pytest.raises(tenfold.ArgumentError, match="given at least one limit"):
        tenfold.Budget()


def test_a_float_is_a_fraction_and_an_int_a_number():
    budget = tenfold.Budget(params=1.0, macs=2)
    assert budget.limits == {"params": 1.0, "macs": 2}
    assert (budget.allowed("params", 700), budget.allowed("macs", 700)) == (700, 2)
    assert tenfold.Budget(params=0.5).allowed("params", 7) == 3  # never rounded up
    assert tenfold.Budget(macs=10**15).limits == {"macs": 10**15}


@given(st.floats(0, 1, exclude_min=True), st.integers(1, 10**12))
def test_a_fraction_allows_no_more_than_its_share(share, dense):
    allowed = tenfold.Budget(params=share).allowed("params", dense)
    assert allowed <= share * dense < allowed + 1 + 1e-3


def test_budgets_and_plans_are_frozen():
    plan = plan_for()
    for thing, name in ((tenfold.Budget(params=0.5), "params"), (plan, "level"), (plan.layers["0"], "rank")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(thing, name, 1)
    assert hash(tenfold.Budget(params=0.5)) == hash(tenfold.Budget(params=0.5))


# ---- totals


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("share", [0.5, 0.75, 1.0])
def test_totals_are_those_of_the_built_model(model, method, share):
    make, inputs = MODELS[model]
    dense, x = make(), inputs()
    plan = tenfold.plan(dense, method, kept(method, params=share), example_inputs=x)
    assert (plan.params, plan.macs) == counted(tenfold.apply(dense, plan), x)
    assert (plan.dense_params, plan.dense_macs) == counted(dense, x)


def test_without_inputs_macs_are_unknown():
    plan = plan_for(with_inputs=False)
    assert plan.macs is None
    assert plan.dense_macs is None
    assert {layer.macs for layer in plan.layers.values()} == {None}


# ---- JSON


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("with_inputs", [True, False])
def test_a_plan_survives_json(model, method, with_inputs):
    plan = plan_for(model, method, with_inputs, params=0.7)
    back = tenfold.Plan.from_json(plan.to_json())
    assert back == plan
    assert back.to_json() == plan.to_json()
    assert (back.params, back.macs, back.level, back.budget) == (plan.params, plan.macs, plan.level, plan.budget)
    assert not plan.diff(back)


@given(st.data())
def test_any_edit_survives_json(data):
    plan = plan_for("transposed")
    for name, layer in plan.layers.items():
        fold = data.draw(st.sampled_from(NAMES))
        slices = data.draw(st.sampled_from(slice_counts(layer.layer.shape, fold)))
        full = tenfold.linalg.Fold(layer.layer.shape, layer.layer.groups, slices, fold).full_rank
        rank = data.draw(st.integers(1, full))
        plan = plan.edit(name, decomposition="low-rank", rank=rank, slices=slices, fold=fold)
    assert tenfold.Plan.from_json(plan.to_json()) == plan


def test_slices_written_as_groups_in_older_plans_are_read_as_slices():
    plan = plan_for("transposed", tenfold.ALDS(slices=(2,)), params=0.5)
    assert any(layer.slices > 1 for layer in plan.layers.values())
    body = json.loads(plan.to_json())
    for layer in body["layers"].values():
        layer["groups"] = layer.pop("slices")
    old = tenfold.Plan.from_json(json.dumps(body))
    assert old == plan
    assert '"groups"' not in json.dumps([{k: v for k, v in x.items() if k != "layer"} for x in layers_of(old)])


def layers_of(plan):
    return json.loads(plan.to_json())["layers"].values()


def test_a_layer_written_with_slices_and_groups_is_refused():
    text = edited(plan_for(), "layers.0.groups", 1)
    with pytest.raises(tenfold.PlanError, match="'0' has unknown fields: groups"):
        tenfold.Plan.from_json(text)


def test_the_plan_read_back_builds_the_same_model():
    model, x = chain(), image()
    plan = tenfold.plan(model, tenfold.ALDS(), tenfold.Budget(params=0.5))
    a, b = tenfold.apply(model, plan).eval(), tenfold.apply(model, tenfold.Plan.from_json(plan.to_json())).eval()
    assert torch.equal(a(x), b(x))


# ---- editing


def decomposed(plan: tenfold.Plan) -> str:
    return next(name for name, layer in plan.layers.items() if layer.rank is not None and layer.rank > 1)


def test_an_edited_rank_has_its_own_cost_and_no_error():
    model, x = chain(), image()
    plan = tenfold.plan(model, tenfold.ALDS(), tenfold.Budget(params=0.6), example_inputs=x)
    name = decomposed(plan)
    by_hand = tenfold.Plan.from_json(edited(plan, f"layers.{name}.rank", 1))
    for new in (plan.edit(name, rank=1), by_hand):
        layer = new.layers[name]
        assert (layer.rank, layer.error, new.level) == (1, None, None)
        assert (new.params, new.macs) == counted(tenfold.apply(model, new), x)
        assert new.params < plan.params
        assert list(new.diff(plan)) == [name]
    assert by_hand == plan.edit(name, rank=1)
    assert plan.layers[name].error is not None  # the old plan is as it was


def test_costs_written_by_hand_are_not_believed():
    plan = plan_for()
    name = decomposed(plan)
    lying = tenfold.Plan.from_json(edited(plan, f"layers.{name}.params", 1))
    assert lying.layers[name].params == plan.layers[name].params
    assert (lying.layers[name].error, lying.level) == (None, None)
    assert tenfold.Plan.from_json(edited(plan, "params", 1)) == plan
    assert tenfold.Plan.from_json(edited(plan, "macs", ...)) == plan


def test_a_layer_made_dense_again_has_error_zero():
    model, x = chain(), image()
    plan = tenfold.plan(model, tenfold.ALDS(), tenfold.Budget(params=0.6), example_inputs=x)
    name = decomposed(plan)
    for new in (
        plan.edit(name, decomposition="dense"),
        tenfold.Plan.from_json(edited(plan, f"layers.{name}.decomposition", "dense")),
    ):
        assert (new.layers[name].rank, new.layers[name].error) == (None, 0.0)
        assert (new.params, new.macs) == counted(tenfold.apply(model, new), x)


def test_an_edit_at_the_same_cost_still_drops_the_error():
    """Square kernels: the two spatial folds cost the same at each rank, and err differently."""
    plan = tenfold.plan(nn.Conv2d(6, 6, 3), tenfold.ALDS(folds=("spatial",)), tenfold.Budget(params=0.7))
    layer = plan.edit("", fold="spatial-t").layers[""]
    assert layer.params == plan.layers[""].params
    assert layer.error is None


@pytest.mark.parametrize("name", ["first", "second"])
def test_layers_that_share_a_weight_are_edited_together(name):
    model, x = Tied(), tokens()
    plan = tenfold.plan(model, tenfold.ALDS(), tenfold.Budget(params=0.9), example_inputs=x)
    new = plan.edit(name, decomposition="low-rank", rank=2, slices=1)
    assert (new.layers["first"].rank, new.layers["second"].rank) == (2, 2)
    assert (new.params, new.macs) == counted(tenfold.apply(model, new), x)
    assert tenfold.Plan.from_json(new.to_json()) == new


def test_diff_names_what_differs_and_what_is_missing():
    a = plan_for()
    name = decomposed(a)
    b = dataclasses.replace(
        a.edit(name, rank=1), layers={n: x for n, x in a.edit(name, rank=1).layers.items() if n != "3"}
    )
    difference = a.diff(b)
    assert set(difference) == {name, "3"}
    assert difference["3"][1] is None
    assert (difference[name][0].rank, difference[name][1].rank) == (a.layers[name].rank, 1)
    assert a.diff(a) == {}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("nowhere", {"rank": 1}, "no layer 'nowhere'. It has: 0, 3, 6"),
        ("0", {"error": 0.0}, "only decomposition, rank, slices, fold can be edited; got error"),
        ("0", {"rank": 9}, "`rank` must be an integer in 1..8"),
        ("0", {"rank": 0}, "`rank` must be an integer in 1..8"),
        ("0", {"rank": None}, "`rank` must be an integer in 1..8"),
        ("0", {"rank": True}, "'0': `rank` must be of type int | tuple[int, ...] | None; got True"),
        ("0", {"rank": 2.0}, "'0': `rank` must be of type int | tuple[int, ...] | None; got 2.0"),
        ("0", {"rank": 2, "slices": 2}, "`slices` must be a divisor of 3 input channels; got 2"),
        ("0", {"rank": 2, "slices": 0}, "`slices` must be a divisor"),
        ("0", {"rank": 2, "slices": 3, "fold": "decoupled"}, "`slices` must be 1 in the decoupled fold; got 3"),
        ("0", {"rank": 4, "fold": "decoupled"}, "`rank` must be an integer in 1..3"),
        ("0", {"rank": 2, "slices": "1"}, "'0': `slices` must be of type int; got '1'"),
        ("0", {"rank": 2, "fold": "sideways"}, "`fold` must be one of channel"),
        ("0", {"decomposition": "cp"}, "`decomposition` must be 'dense', 'low-rank' or 'tucker'; got 'cp'"),
        ("0", {"rank": (2, 2)}, "`rank` must be an integer in 1..8"),
        ("0", {"decomposition": "tucker"}, "'0': `rank` must be a pair (r_out, r_in) for Tucker; got 1"),
        ("0", {"decomposition": "tucker", "rank": (2, 2, 2)}, "'0': `rank` must be a pair (r_out, r_in)"),
        ("0", {"decomposition": "tucker", "rank": (9, 2)}, "1 <= r_out <= min(8, 9 r_in)"),
        ("0", {"decomposition": "tucker", "rank": (8, 4)}, "1 <= r_in <= min(3, 9 r_out), for kernel (8, 3, 3, 3)"),
        ("0", {"decomposition": "tucker", "rank": (0, 2)}, "got (0, 2)"),
        ("0", {"decomposition": "tucker", "rank": (2, True)}, "'0': `rank` must be of type"),
        ("0", {"decomposition": "tucker", "rank": (2, 2), "slices": 3}, "`slices` must be 1 for Tucker"),
        ("6", {"decomposition": "tucker", "rank": (2, 2)}, "'6' is linear: its weight is a matrix"),
    ],
)
def test_impossible_edits_name_the_rule(name, changes, message):
    plan = plan_for().edit("0", decomposition="low-rank", rank=1, slices=1)
    with pytest.raises(tenfold.PlanError) as caught:
        plan.edit(name, **changes)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_layer_of_an_unknown_kind_cannot_be_decomposed():
    with pytest.raises(tenfold.PlanError, match="'table': only a layer with a `layer` entry can be decomposed"):
        plan_for("tied").edit("table", decomposition="low-rank", rank=2)


def test_a_plan_that_saves_nothing_is_built_with_a_warning():
    model = chain()
    plan = tenfold.plan(model, tenfold.ALDS(), tenfold.Budget(params=0.6))
    full = plan.edit("0", decomposition="low-rank", rank=8, slices=1)
    with pytest.warns(TenfoldWarning, match="'0' at rank 8 .* no smaller"):
        small = tenfold.apply(model, full)
    torch.testing.assert_close(tenfold.to_dense(small)[0].weight, model[0].weight)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tenfold.apply(model, plan)


def test_a_plan_for_another_model_is_refused():
    plan = plan_for()
    name = decomposed(plan)
    other = chain()
    other[int(name)] = nn.Linear(4, 4)
    with pytest.raises(tenfold.PlanError, match=f"the plan is for another model: it expects '{name}'"):
        tenfold.apply(other, plan)
    with pytest.raises(tenfold.PlanError, match="has no such layer"):
        tenfold.apply(nn.Sequential(), plan)


# ---- damage


@pytest.mark.parametrize("text", ["", "{", "no plan", '{"format": "tenfold-plan/1", "layers": ', "\x00"])
def test_text_that_is_no_json_is_refused(text):
    with pytest.raises(tenfold.PlanError, match="the plan is no JSON"):
        tenfold.Plan.from_json(text)


@pytest.mark.parametrize("text", ["[]", "3", "null", '"plan"', "{}", '{"format": "tenfold-plan/9"}', '{"format": 1}'])
def test_json_that_is_no_plan_is_refused(text):
    with pytest.raises(tenfold.PlanError, match=r"`format` must be 'tenfold-plan/1'; got"):
        tenfold.Plan.from_json(text)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("method", ..., "the plan lacks fields: method"),
        ("method", 3, "the plan: `method` must be of type str; got 3"),
        ("layers", ..., "`layers` must be an object"),
        ("layers", [], "`layers` must be an object"),
        ("layers.0", 3, "'0': a layer plan must be an object; got 3"),
        ("dense_params", ..., "the plan lacks fields: dense_params"),
        ("dense_params", "many", "the plan: `dense_params` must be of type int; got 'many'"),
        ("dense_params", 10.5, "the plan: `dense_params` must be of type int"),
        ("dense_macs", "many", "the plan: `dense_macs` must be of type"),
        ("level", "low", "the plan: `level` must be of type"),
        ("level", float("nan"), "the plan is no JSON: NaN is not a finite number"),
        ("budget", 0.5, "the plan: `budget` must be of type"),
        ("budget", {"params": "half"}, "the plan: `budget` must be of type"),
        ("colour", "red", "the plan has unknown fields: colour. Known: method, layers"),
        ("layers.0.colour", "red", "'0' has unknown fields: colour"),
        ("layers.0.decomposition", ..., "'0' lacks fields: decomposition"),
        ("layers.0.decomposition", None, "'0': `decomposition` must be of type str; got None"),
        (
            "layers.0.decomposition",
            "pruned",
            "'0': `decomposition` must be 'dense', 'low-rank' or 'tucker'; got 'pruned'",
        ),
        ("layers.0.rank", 9, "'0': `rank` must be an integer in 1..8 for kernel (8, 3, 3, 3), 1 slices"),
        ("layers.0.rank", -1, "'0': `rank` must be an integer in 1..8"),
        ("layers.0.rank", None, "'0': `rank` must be an integer in 1..8"),
        ("layers.0.rank", 1.5, "'0': `rank` must be of type"),
        ("layers.0.rank", "2", "'0': `rank` must be of type"),
        ("layers.0.rank", [2, 2], "'0': `rank` must be an integer in 1..8"),
        ("layers.0.rank", [2, "2"], "'0': `rank` must be of type"),
        ("layers.0.rank", [], "'0': `rank` must be an integer in 1..8"),
        ("layers.0.rank", True, "'0': `rank` must be of type"),
        ("layers.0.slices", 2, "'0' with kernel (8, 3, 3, 3): `slices` must be a divisor of 3"),
        ("layers.0.slices", 0, "'0' with kernel (8, 3, 3, 3): `slices` must be a divisor of 3"),
        ("layers.0.slices", None, "'0': `slices` must be of type int; got None"),
        ("layers.0.fold", "sideways", "`fold` must be one of channel"),
        ("layers.0.fold", 1, "'0': `fold` must be of type"),
        ("layers.0.error", "small", "'0': `error` must be of type"),
        ("layers.0.params", "few", "'0': `params` must be of type int"),
        ("layers.0.tied_to", "nowhere", "'0': it shares the weight of 'nowhere' (`tied_to`), which must be a layer"),
        ("layers.0.tied_to", "3", "'0': it shares the weight of '3' (`tied_to`), which must be a layer"),
        ("layers.0.tied_to", "0", "'0': it shares the weight of '0' (`tied_to`), which must be a layer"),
        ("layers.0.tied_to", 3, "'0': `tied_to` must be of type"),
        ("layers.0.layer", None, "'0': only a layer with a `layer` entry can be decomposed"),
        ("layers.0.layer", "conv", "'0': `layer` must be of type"),
        ("layers.0.layer", {}, "'0': `layer` lacks fields: shape"),
        ("layers.0.layer.shape", [8], "'0': `layer` describes no layer"),
        ("layers.0.layer.shape", 8, "'0': `layer`: `shape` must be of type"),
        ("layers.0.layer.shape", [8, "3"], "'0': `layer`: `shape` must be of type"),
        ("layers.0.layer.shape", [0, 3, 3, 3], "'0': `layer` describes no layer"),
        ("layers.0.layer.groups", 3, "'0' with kernel (8, 3, 3, 3): `groups` must be a divisor of 8"),
        ("layers.0.layer.groups", 0, "'0': `layer` describes no layer"),
        ("layers.0.layer.calls", [[1, [8], [8]]], "'0': `layer` describes no layer"),
        ("layers.0.layer.calls", [[1, [8, 8]]], "'0': `layer`: `calls` must be of type"),
        ("layers.0.layer.calls", 7, "'0': `layer`: `calls` must be of type"),
        ("layers.0.layer.colour", "red", "'0': `layer` has unknown fields: colour"),
    ],
)
def test_damage_is_refused_with_one_sentence(path, value, message):
    plan = plan_for().edit("0", decomposition="low-rank", rank=2, slices=1)
    with pytest.raises(tenfold.PlanError) as caught:
        tenfold.Plan.from_json(edited(plan, path, value))
    assert str(caught.value).startswith(message) or message in str(caught.value)
    assert caught.value.__cause__ is None or isinstance(caught.value.__cause__, ValueError)


def test_tied_layers_that_differ_are_refused():
    plan = plan_for("tied").edit("first", decomposition="low-rank", rank=2, slices=1)
    with pytest.raises(tenfold.PlanError, match="'second': it shares the weight of 'first'"):
        tenfold.Plan.from_json(edited(plan, "layers.first.rank", 3))


@given(st.data())
def test_no_damage_raises_anything_but_a_plan_error(data):
    """Whatever stands at any place of a plan: it is read, or refused in a sentence."""
    plan = plan_for("tied").edit("first", decomposition="low-rank", rank=2, slices=1)
    body = json.loads(plan.to_json())
    place, path = body, []
    while isinstance(place, dict) and place and (not path or data.draw(st.booleans())):
        path.append(data.draw(st.sampled_from(sorted(place))))
        place = place[path[-1]]
    value = data.draw(st.sampled_from([..., None, True, 0, -1, 3, 10**30, 0.5, "", "x", [], [1], [[1]], {}, {"a": 1}]))
    with contextlib.suppress(tenfold.PlanError):
        tenfold.Plan.from_json(edited(plan, ".".join(path), value))
