"""The candidates of each layer: what they cost, where they stop, and that dense is always one."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector

import tenfold
from ranks.nets import chain, counted, image, small_image, unlike
from tenfold.linalg.fold import divisors
from tenfold.ranks.measures import MEASURES
from tenfold.ranks.options import options

FOLDS = ("channel", "spatial", "input")


def tables(model, inputs=None, **how):
    problem = tenfold.survey(model, example_inputs=inputs)
    return problem, options(problem, MEASURES["max"], **how)


@pytest.mark.parametrize(("make", "inputs"), [(chain, image), (unlike, small_image)])
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


@pytest.mark.parametrize(("make", "inputs"), [(chain, image), (unlike, small_image)])
def test_every_option_costs_what_the_model_with_it_costs(make, inputs):
    model, x = make(), inputs()
    problem, found = tables(model, x, folds=FOLDS)
    dense = counted(model, x)
    for i, t in enumerate(found):
        for entry in range(1, len(t.rank), 5):
            chosen = [t.layer_plan(entry) if j == i else None for j in range(len(found))]
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
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return self.used(x)

    _, (used, idle) = tables(Idle(), torch.randn(1, 8))
    assert used.rank.tolist() == idle.rank.tolist()
    assert not idle.costs["macs"].any()
    plan = tenfold.plan(Idle(), tenfold.ALDS(), tenfold.Budget(params=0.6, macs=0.9), example_inputs=torch.randn(1, 8))
    assert plan.layers["idle"].rank is not None


def test_a_layer_with_nothing_to_save_is_dense_and_says_so():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 30), nn.Linear(30, 30))
    plan = tenfold.plan(model, tenfold.ALDS(), tenfold.Budget(params=0.5))
    assert plan.layers["0"].reason == "no decomposition of it saves anything"
    assert plan.layers["2"].rank is not None


def test_depthwise_layers_have_no_option():
    model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 20, 1))
    _, (depthwise, _) = tables(model)
    assert depthwise.rank.tolist() == [0]


def test_several_folds_compete_under_their_own_names():
    _, (t,) = tables(nn.Conv2d(6, 8, 3), folds=("channel", "spatial"))
    names = {t.layer_plan(i).fold for i in range(1, len(t.rank))}
    assert names == {"channel", "spatial"}
    assert t.layer_plan(0) is None


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
