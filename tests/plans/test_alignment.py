"""Aligned ranks in plans: where inputs are given, where they leave a choice, and where the budget allows them."""

import pytest
import torch
from torch import nn

import tenfold
from nets import small_image, transposed

METHODS = [tenfold.ALDS(), tenfold.SVD(fold="spatial"), tenfold.LRank(), tenfold.Tucker(), tenfold.VBMF()]


def wide():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 256, 3), nn.Conv2d(256, 256, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 250)
    )


def ranks(plan):
    """Every rank of a plan, with whether its layer is linear."""
    found = {}
    for name, layer in plan.layers.items():
        if layer.rank is not None:
            found[name] = layer.rank if isinstance(layer.rank, tuple) else (layer.rank,)
    return found


@pytest.mark.filterwarnings("ignore:.*smallest layers.*")
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
@pytest.mark.parametrize("budget", [tenfold.Budget(macs=0.5), tenfold.Budget(params=0.4)], ids=["macs", "params"])
def test_ranks_are_multiples_where_inputs_are_given(method, budget):
    model, x = wide(), torch.randn(1, 3, 8, 8)
    plan = tenfold.plan(model, method, budget, example_inputs=x)
    found = ranks(plan)
    assert {"1", "4"} & set(found)
    assert all(r % (8 if name == "4" else 16) == 0 for name, each in found.items() for r in each if name != "0"), found
    assert budget.exceeded(tenfold.cost(model, x), tenfold.cost(tenfold.apply(model, plan), x)) is None


def test_any_rank_is_left_on_request_and_without_inputs():
    model, x = wide(), torch.randn(1, 3, 8, 8)
    free = tenfold.plan(model, tenfold.SVD(), tenfold.Budget(params=0.4), example_inputs=x, align=1)
    without = tenfold.plan(model, tenfold.SVD(), tenfold.Budget(params=0.4))
    assert ranks(free) == ranks(without)
    assert any(r % 8 for each in ranks(free).values() for r in each)


def test_a_budget_that_aligned_ranks_cannot_keep_is_kept_by_others():
    model, x = wide(), torch.randn(1, 3, 8, 8)
    free = tenfold.plan(model, tenfold.SVD(negligible=0), tenfold.Budget(params=0.02), example_inputs=x)
    assert free.params <= 0.02 * free.dense_params
    assert min(r for each in ranks(free).values() for r in each) < 8


def test_narrow_layers_keep_their_ranks():
    net, x = transposed().eval(), small_image()
    budget = tenfold.Budget(macs=0.6)
    assert not tenfold.plan(net, tenfold.ALDS(), budget, example_inputs=x).diff(
        tenfold.plan(net, tenfold.ALDS(), budget, example_inputs=x, align=1)
    )


def test_what_was_trained_at_a_rank_is_not_cut_to_a_multiple():
    model, x = wide(), torch.randn(2, 3, 8, 8)
    run = tenfold.begin(model, tenfold.Factors(), tenfold.Budget(macs=0.5), example_inputs=x)
    trained = {n: m.rank for n, m in run.model.named_modules() if isinstance(m, tenfold.LowRankConv)}
    plan = run.finish().plan
    assert {n: plan.layers[n].rank for n in trained} == trained


@pytest.mark.parametrize("align", [0, -1, 1.5, "16"])
def test_an_alignment_is_a_number(align):
    with pytest.raises(tenfold.ArgumentError, match="`align`"):
        tenfold.plan(wide(), tenfold.SVD(), tenfold.Budget(params=0.5), align=align)
