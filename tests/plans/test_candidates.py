"""The candidates of each layer: what they cost, where they stop, and that dense is always one."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector

import tenfold
from helpers import counted
from nets import Idle, chain, image, small_image, transposed
from tenfold.linalg.fold import NAMES, divisors
from tenfold.plans.candidates import as_plan, candidates, layer_plan
from tenfold.ranks.measures import MEASURES

FOLDS = ("channel", "spatial", "input", "decoupled")


def tables(model, inputs=None, **how):
    problem = tenfold.survey(model, example_inputs=inputs)
    return problem, candidates(problem, MEASURES["max"], **how)


@pytest.mark.parametrize(("make", "inputs"), [(chain, image), (transposed, small_image)])
def test_dense_comes_first_with_error_zero_and_its_own_cost(make, inputs):
    model = make()
    problem, found = tables(model, inputs(), folds=FOLDS)
    for site, t in zip(problem.sites, found, strict=True):
        assert (t.rank[0], t.error[0]) == (0, 0)
        assert t.costs["params"][0] == model.get_submodule(site.name).weight.numel()
        assert (t.rank[1:] >= 1).all()
        assert {len(t.error), len(t.slices), len(t.fold), *map(len, t.costs.values())} == {len(t.rank)}


def test_channel_options_are_all_that_save_and_cost_j_times_kf_plus_n():
    model = nn.Conv2d(12, 10, 3)
    f, n, dense = 10, 108, 1080
    _, (t,) = tables(model)
    expected = [
        (k, j, j * (k * f + n))
        for k in divisors(12)
        for j in range(1, min(f, n // k) + 1)
        if j * (k * f + n) < dense  # one less than dense is an option, as much as dense is not
    ]
    assert (
        list(zip(t.slices[1:].tolist(), t.rank[1:].tolist(), t.costs["params"][1:].tolist(), strict=True)) == expected
    )
    assert "macs" not in t.costs


def test_a_decomposition_must_save_one_weight_at_least():
    _, (t,) = tables(nn.Linear(6, 3), slices=(1,))  # rank 2: 2 (6 + 3) = 18 = 6 x 3
    assert t.rank.tolist() == [0, 1]
    _, (t,) = tables(nn.Linear(3, 2), slices=(1,))  # rank 1: 3 + 2 = 5 < 6 = 3 x 2
    assert t.rank.tolist() == [0, 1]


@pytest.mark.parametrize(("make", "inputs"), [(chain, image), (transposed, small_image)])
def test_every_option_costs_what_the_model_with_it_costs(make, inputs):
    model, x = make(), inputs()
    problem, found = tables(model, x, folds=FOLDS)
    dense = counted(model, x)
    for i, t in enumerate(found):
        for entry in range(1, len(t.rank), 5):
            chosen = [layer_plan(t, entry) if j == i else None for j in range(len(found))]
            plan = problem.plan("test", chosen)
            built = counted(tenfold.apply(model, plan), x)
            change = [int(t.costs[n][entry] - t.costs[n][0]) for n in ("params", "macs")]
            assert [b - d for b, d in zip(built, dense, strict=True)] == change
            assert all(c < 0 for c in change)


def test_with_inputs_no_option_costs_more_macs_than_dense():
    """A transposed convolution grows its map: the pointwise decoder then works on the larger one."""
    model, x = nn.ConvTranspose2d(4, 40, 2, stride=2), torch.randn(1, 4, 8, 8)
    _, (without,) = tables(model)
    _, (with_inputs,) = tables(model, x)
    assert 1 < len(with_inputs.rank) < len(without.rank)
    assert (with_inputs.costs["macs"][1:] < with_inputs.costs["macs"][0]).all()
    k = with_inputs.slices[1:]
    per_rank = 64 * (4 * 2 * 2) + 256 * 40 * k  # the encoder's weights at 64 places, the decoder's at 256
    assert (with_inputs.costs["macs"][1:] == with_inputs.rank[1:] * per_rank).all()


def test_a_layer_that_is_never_used_still_saves_parameters():
    model = Idle(lambda: nn.Linear(8, 8))
    _, (used, idle) = tables(model, torch.randn(1, 8))
    assert used.rank.tolist() == idle.rank.tolist()
    assert not idle.costs["macs"].any()
    plan = tenfold.plan(
        model,
        tenfold.ALDS(),
        tenfold.Budget(params=0.6, macs=0.9),
        example_inputs=torch.randn(1, 8),
    )
    assert plan.layers["idle"].rank is not None


def test_a_layer_with_nothing_to_save_is_dense_and_says_so():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 30), nn.Linear(30, 30))
    plan = tenfold.plan(model, tenfold.ALDS(), tenfold.Budget(params=0.5))
    assert plan.layers["0"].reason == "no decomposition of it saves anything"
    assert plan.layers["2"].rank is not None


@pytest.mark.parametrize("fold", ["channel", "input", "decoupled"])
def test_depthwise_layers_have_no_option(fold):
    """But in the spatial folds, which split the kernel itself."""
    model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 16, 1, groups=8))
    _, found = tables(model, folds=(fold,))
    assert [t.rank.tolist() for t in found] == [[0], [0]]


def test_decoupled_options_are_all_that_save_and_cost_r_times_f_times_c_plus_k():
    model = nn.Sequential(nn.Conv2d(12, 10, 3), nn.Conv2d(10, 6, 5, groups=2), nn.Conv2d(6, 9, 1))
    _, (conv, grouped, pointwise) = tables(model, folds=("decoupled",))
    for t, f, c, k in ((conv, 10, 12, 9), (grouped, 6, 5, 25)):
        expected = [r * f * (c + k) for r in range(1, min(c, k) + 1) if r * (c + k) < c * k]
        assert t.costs["params"][1:].tolist() == expected
        assert t.rank[1:].tolist() == [*range(1, len(expected) + 1)]
        assert set(t.slices.tolist()) == {1}
    assert pointwise.rank.tolist() == [0]
    _, (sliced, _, _) = tables(model, folds=("decoupled",), slices=(2, 3))
    assert sliced.rank.tolist() == [0]


def test_the_decoupled_encoder_pays_for_the_inputs_resolution():
    """With stride 2 the encoder sees four times as many places as the decoder."""
    model, x = nn.Conv2d(16, 16, 3, stride=2, padding=1), torch.randn(1, 16, 8, 8)
    _, (without,) = tables(model, folds=("decoupled",))
    _, (with_inputs,) = tables(model, x, folds=("decoupled",))
    assert len(without.rank) == 1 + 5  # r (16 + 9) < 144
    assert with_inputs.costs["macs"].tolist() == [16 * 144 * 16, 16 * (16 * 64 + 9 * 16)]


def test_a_linear_layer_has_the_options_of_the_channel_fold_in_every_fold():
    model = nn.Linear(12, 9)
    _, (expected,) = tables(model)
    for fold in NAMES:
        _, (t,) = tables(model, folds=(fold,))
        for a, b in ((t.rank, expected.rank), (t.slices, expected.slices), (t.error, expected.error)):
            np.testing.assert_array_equal(a, b)


def test_where_every_layer_is_dense_the_budget_allows_it_but_no_budget_is_no_reason():
    problem, found = tables(nn.Sequential(nn.Linear(12, 10), nn.Linear(1, 10)))
    for budget, reason in ((tenfold.Budget(params=1.0), "the budget allows it"), (None, "its rank saves nothing")):
        plan = as_plan(problem, "made up", found, [0, 0], budget, why="its rank saves nothing")
        assert [x.reason for x in plan.layers.values()] == [reason, "no decomposition of it saves anything"]
    plan = as_plan(problem, "made up", found, [1, 0], None, why="its rank saves nothing")
    assert plan.layers["0"].reason is None


def test_several_folds_compete_under_their_own_names():
    _, (t,) = tables(nn.Conv2d(6, 8, 3), folds=("channel", "spatial"))
    names = {layer_plan(t, i).fold for i in range(1, len(t.rank))}
    assert names == {"channel", "spatial"}
    assert layer_plan(t, 0).decomposition == "dense"


def test_options_read_the_weights_and_touch_nothing():
    model = chain()
    before = parameters_to_vector(model.parameters()).clone()
    grads = [p.grad for p in model.parameters()]
    tables(model, image(), folds=FOLDS)
    assert torch.equal(parameters_to_vector(model.parameters()), before)
    assert [p.grad for p in model.parameters()] == grads
    assert model.training


def test_error_without_the_unsliced_spectrum_is_relative_to_the_same_norm():
    model = nn.Conv2d(12, 10, 3)
    _, (every,) = tables(model)
    _, (some,) = tables(model, slices=(3,))
    mask = every.slices == 3
    np.testing.assert_allclose(some.error[1:], every.error[mask], atol=1e-7)
