"""ALDS on real layers: its level against all combinations, its budgets against the model that is built."""

import math

import numpy as np
import pytest
import scipy
import torch
from torch import nn

import tenfold
from helpers import counted
from nets import chain, conv_chain, image, small_image, transposed
from ranks.tables import brute_force_grid
from tenfold.ranks.measures import MEASURES
from tenfold.ranks.minmax import allocate, curve

FOLDS = ("channel", "spatial", "input")
BUDGETS = (
    tenfold.Budget(params=0.35),
    tenfold.Budget(params=0.7),
    tenfold.Budget(macs=0.5),
    tenfold.Budget(params=0.8, macs=0.6),
    tenfold.Budget(params=0.5, macs=0.9),
)
NETS = {"proportional": (chain, image, ("channel",)), "not proportional": (transposed, small_image, FOLDS)}


def two_layers() -> nn.Module:
    return conv_chain(4, 6, size=3, classes=8, padding=1).double()


def options_by_hand(layer: nn.Module, positions: int, measure: str) -> list[tuple[float, int, int]]:
    """``(error, params, macs)`` of every option of an ungrouped layer, from approximations built slice by slice."""
    w = layer.weight.detach().flatten(1).numpy()
    f, c = w.shape[0], layer.weight.shape[1]
    found = [(0.0, w.size, positions * w.size)]
    for k in (d for d in range(1, c + 1) if c % d == 0):
        factors = [np.linalg.svd(m, full_matrices=False) for m in np.split(w, k, axis=1)]
        for j in range(1, min(f, w.shape[1] // k) + 1):
            params = j * (k * f + w.shape[1])
            if params >= w.size:
                continue
            w_hat = np.concatenate([(u[:, :j] * s[:j]) @ vh[:j] for u, s, vh in factors], axis=1)
            after = [s[j] if j < len(s) else 0.0 for _, s, _ in factors]
            norm = np.linalg.norm(w, 2)
            error = {
                "max": max(after) / norm,
                "spectral": np.linalg.norm(w - w_hat, 2) / norm,
                "rss": math.hypot(*after) / norm,
                "bound": math.sqrt(k) * max(after) / norm,
                "fro": np.linalg.norm(w - w_hat) / np.linalg.norm(w),
            }[measure]
            found.append((float(error), params, positions * params))
    return found


@pytest.mark.parametrize("measure", MEASURES)
def test_the_level_equals_all_combinations_of_options_made_by_hand(measure):
    """Nothing here comes from the library but the answer."""
    model = two_layers()
    x = torch.randn(1, 4, 3, 3, dtype=torch.float64)
    first, second = (options_by_hand(layer, p, measure) for layer, p in ((model[0], 9), (model[2], 1)))
    dense_params, dense_macs = counted(model, x)
    fixed = 6 + 8  # the biases
    for limit in (0.2, 0.4, 0.6, 0.9, 1.0):
        for names in (("params",), ("macs",), ("params", "macs")):
            plan = tenfold.plan(
                model,
                tenfold.ALDS(measure=measure),
                tenfold.Budget(**dict.fromkeys(names, limit)),
                example_inputs=x,
            )
            best = min(
                max(a[0], b[0])
                for a in first
                for b in second
                if ("params" not in names or a[1] + b[1] + fixed <= int(limit * dense_params))
                and ("macs" not in names or a[2] + b[2] <= int(limit * dense_macs))
            )
            assert plan.level == pytest.approx(best, abs=1e-7)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("budget", BUDGETS, ids=str)
def test_the_level_equals_all_combinations_and_the_next_lower_does_not_fit(net, measure, budget):
    make, inputs, folds = NETS[net]
    method = tenfold.ALDS(measure=measure, folds=folds)
    problem = tenfold.survey(make(), example_inputs=inputs())
    tables, limits = method.candidates(problem), problem.limits(budget)
    expected = brute_force_grid(tables, limits)
    if expected is None:
        with pytest.raises(tenfold.BudgetError):
            method.plan(problem, budget)
        return
    plan = method.plan(problem, budget)
    assert plan.level == expected
    assert plan.level == max(layer.error for layer in plan.layers.values())
    found = allocate(tables, limits)
    assert found is not None
    assert found.level == expected
    if found.lower is None:
        assert expected == max(t.error.min() for t in tables)
    else:  # at the next lower level even the cheapest options do not fit, each limit on its own or all together
        assert found.lower < expected
        cut = [t.error <= found.lower for t in tables]
        assert all(c.any() for c in cut)
        cheapest = {n: sum(int(t.costs[n][c].min()) for t, c in zip(tables, cut, strict=True)) for n in limits}
        assert net != "proportional" or any(cheapest[n] > limits[n] for n in limits)


def test_the_integer_programme_decides_where_the_costs_disagree(monkeypatch):
    """Without it the test above would be one of the easy path only."""
    calls = []
    solve = scipy.optimize.milp
    monkeypatch.setattr("scipy.optimize.milp", lambda *a, **kw: calls.append(1) or solve(*a, **kw))
    both = tenfold.Budget(params=0.5, macs=0.6)
    tenfold.plan(chain(), tenfold.ALDS(), both, example_inputs=image())
    assert not calls
    tenfold.plan(transposed(), tenfold.ALDS(folds=FOLDS), both, example_inputs=small_image())
    assert calls


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("budget", [*BUDGETS, tenfold.Budget(params=300), tenfold.Budget(macs=30_000)], ids=str)
def test_the_built_model_costs_what_the_plan_says_and_never_more_than_the_budget(net, budget):
    make, inputs, folds = NETS[net]
    model, x = make(), inputs()
    small, plan, report = tenfold.compress(model, tenfold.ALDS(folds=folds), budget, example_inputs=x)
    params, macs = counted(small, x)
    dense_params, dense_macs = counted(model, x)
    assert (plan.params, plan.macs) == (params, macs)
    assert (plan.dense_params, plan.dense_macs) == (dense_params, dense_macs)
    assert (report.small.params, report.small.macs) == (params, macs)
    for name, used, dense in (("params", params, dense_params), ("macs", macs, dense_macs)):
        limit = budget.limits.get(name, dense)
        assert used <= (limit * dense if isinstance(limit, float) else limit)


def test_the_level_never_rises_with_the_budget():
    problem = tenfold.survey(chain())
    levels = []
    for percent in range(30, 101, 2):
        try:
            levels.append(tenfold.ALDS().plan(problem, tenfold.Budget(params=percent / 100)).level)
        except tenfold.BudgetError:
            assert not levels
    assert levels == sorted(levels, reverse=True)
    assert len(set(levels)) > 10


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("budget", [{"params": 1.0}, {"macs": 1.0}, {"params": 1.0, "macs": 1.0}])
def test_the_whole_budget_gives_level_zero_and_replaces_nothing(measure, budget):
    plan = tenfold.plan(chain(), tenfold.ALDS(measure=measure), tenfold.Budget(**budget), example_inputs=image())
    assert plan.level == 0
    assert {layer.decomposition for layer in plan.layers.values()} == {"dense"}
    assert (plan.params, plan.macs) == (plan.dense_params, plan.dense_macs)


def test_the_curve_from_one_sort_agrees_with_the_plan_at_every_budget():
    problem = tenfold.survey(chain())
    method = tenfold.ALDS()
    levels, costs = curve(method.candidates(problem), "params")
    fixed = problem.dense.params - sum(site.cost.dense().params for site in problem.sites)
    for level, cost in zip(levels, costs, strict=True):
        assert method.plan(problem, tenfold.Budget(params=int(cost) + fixed)).level == level
    with pytest.raises(tenfold.BudgetError):
        method.plan(problem, tenfold.Budget(params=int(costs[-1]) + fixed - 1))


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("kind", [float, int])
@pytest.mark.parametrize("name", ["params", "macs"])
def test_an_impossible_budget_names_the_smallest_which_then_succeeds(net, kind, name):
    make, inputs, folds = NETS[net]
    problem = tenfold.survey(make(), example_inputs=inputs())
    method = tenfold.ALDS(folds=folds, negligible=0.0)
    with pytest.raises(tenfold.BudgetError) as caught:
        method.plan(problem, tenfold.Budget(**{name: kind(2) if kind is int else 1e-6}))
    (smallest,) = caught.value.smallest.values()
    assert type(smallest) is kind
    assert f"{smallest}" in str(caught.value)
    plan = method.plan(problem, tenfold.Budget(**{name: smallest}))
    least = getattr(plan, name)
    dense = getattr(plan, f"dense_{name}")
    assert least <= (smallest if kind is int else smallest * dense)
    with pytest.raises(tenfold.BudgetError):
        method.plan(problem, tenfold.Budget(**{name: least - 1}))
    if kind is float:
        assert smallest - least / dense < 2.1e-5  # rounded up in the fifth digit


def test_two_impossible_limits_are_both_named():
    with pytest.raises(tenfold.BudgetError, match="together they may demand more") as caught:
        tenfold.plan(chain(), tenfold.ALDS(), tenfold.Budget(params=0.01, macs=0.01), example_inputs=image())
    assert set(caught.value.smallest) == {"params", "macs"}


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
def test_plans_are_deterministic(budget):
    model, x = transposed(), small_image()
    a, b = (tenfold.plan(model, tenfold.ALDS(folds=FOLDS), budget, example_inputs=x) for _ in range(2))
    assert a == b


def test_scaling_a_layer_changes_no_rank():
    model = chain()
    before = tenfold.plan(model, tenfold.ALDS(), tenfold.Budget(params=0.5))
    with torch.no_grad():
        model[0].weight *= 1000
        model[6].weight *= 1e-3
    assert not before.diff(tenfold.plan(model, tenfold.ALDS(), tenfold.Budget(params=0.5)))


def test_zero_weights_are_cut_to_rank_one_without_error():
    model = chain()
    nn.init.zeros_(model[0].weight)
    small, plan, _ = tenfold.compress(model, tenfold.ALDS(), tenfold.Budget(params=0.9))
    assert (plan.layers["0"].rank, plan.layers["0"].error) == (1, 0.0)
    assert torch.equal(tenfold.to_dense(small)[0].weight, model[0].weight)


@pytest.mark.parametrize("measure", MEASURES)
def test_the_plans_error_is_the_error_of_the_weights_that_are_built(measure):
    model = two_layers()
    small, plan, _ = tenfold.compress(model, tenfold.ALDS(measure=measure), tenfold.Budget(params=0.5))
    for name in ("0", "2"):
        layer = plan.layers[name]
        w, w_hat = (m.get_submodule(name).weight.detach().flatten(1) for m in (model, small))
        norms = {ord: torch.linalg.matrix_norm(w - w_hat, ord) / torch.linalg.matrix_norm(w, ord) for ord in (2, "fro")}
        if measure in ("spectral", "fro"):
            assert layer.error == pytest.approx(float(norms[2 if measure == "spectral" else "fro"]), abs=1e-7)
        elif measure == "max":
            assert layer.error <= float(norms[2]) + 1e-7
        else:
            assert layer.error >= float(norms[2]) - 1e-7


@pytest.mark.parametrize("k", [1, 4, 16])
@pytest.mark.parametrize("groups", [1, 2])
def test_the_spectral_measure_is_the_true_error_of_the_unfolded_layer_and_max_is_too_small_by_up_to_sqrt_k(k, groups):
    """Planned at many slices, against the weights that are built."""
    model = nn.Sequential(nn.Conv2d(16 * groups, 24 * groups, 3, groups=groups)).double()
    true, planned = {}, {}
    for measure in ("spectral", "max"):
        method = tenfold.ALDS(measure=measure, slices=(k,))
        small, plan, _ = tenfold.compress(model, method, tenfold.Budget(params=0.7))
        assert plan.layers["0"].slices == k
        w, w_hat = (m[0].weight.detach().flatten(1).unflatten(0, (groups, -1)) for m in (model, small))
        norm = torch.linalg.matrix_norm(w, 2).max()
        true[measure] = float(torch.linalg.matrix_norm(w - w_hat, 2).max() / norm)
        planned[measure] = plan.layers["0"].error
    assert planned["spectral"] == pytest.approx(true["spectral"], abs=1e-7)
    assert planned["max"] <= true["max"] + 1e-7 <= math.sqrt(k) * planned["max"] + 2e-7
    assert (true["max"] / planned["max"] > 1.2) is (k > 1)


def test_slices_and_folds_restrict_the_candidates():
    model, budget = chain(), tenfold.Budget(params=0.5)
    plan = tenfold.plan(model, tenfold.ALDS(slices=(1,)), budget)
    assert {layer.slices for layer in plan.layers.values()} == {1}
    assert plan.level >= tenfold.plan(model, tenfold.ALDS(), budget).level
    more = tenfold.plan(transposed(), tenfold.ALDS(folds=("spatial",)), budget)
    assert {layer.fold for layer in more.layers.values()} <= {None, "spatial"}
    none = tenfold.plan(model, tenfold.ALDS(slices=(7,)), tenfold.Budget(params=1.0))  # divides no layer's channels
    assert {layer.decomposition for layer in none.layers.values()} == {"dense"}


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"measure": "frobenius"}, "measure"),
        ({"measure": None}, "measure"),
        ({"measure": ["max"]}, "measure"),
        ({"slices": ()}, "slices"),
        ({"slices": (0,)}, "slices"),
        ({"slices": (2.5,)}, "slices"),
        ({"slices": (True,)}, "slices"),
        ({"slices": 4}, "slices"),
        ({"slices": [1, 2]}, "slices"),
        ({"folds": ()}, "folds"),
        ({"folds": "channel"}, "folds"),
        ({"folds": ("sideways",)}, "folds"),
        ({"folds": ["channel"]}, "folds"),
        ({"folds": (["channel"],)}, "folds"),
    ],
)
def test_fields_out_of_range_are_named(fields, name):
    with pytest.raises(tenfold.ArgumentError, match=f"`{name}` must be") as caught:
        tenfold.ALDS(**fields)
    assert repr(fields[name]) in str(caught.value)
