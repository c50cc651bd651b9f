"""Uniform ranks, against every fraction there is."""

import math

import pytest
import torch
from torch import nn

import tenfold
from helpers import counted
from nets import chain, image, small_image, transposed

FOLDS = ("channel", "spatial", "spatial-t", "input", "decoupled")


def shapes(model: nn.Module, fold: str) -> dict[str, tuple[int, int]]:
    """Name -> (full rank, weights per rank), the fold written out."""
    found = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            continue
        w = layer.weight
        g = getattr(layer, "groups", 1)
        f, c = (w.shape[1] * g, w.shape[0] // g) if isinstance(layer, nn.ConvTranspose2d) else w.shape[:2]
        h, v = w.shape[2:] if w.ndim == 4 else (1, 1)
        g = f if fold == "decoupled" and w.ndim == 4 else g
        rows, columns = {
            "channel": (f // g, c * h * v),
            "spatial": (f // g * v, c * h),
            "spatial-t": (f // g * h, c * v),
            "input": (f // g * h * v, c),
            "decoupled": (f // g * h * v, c),
        }[fold]
        found[name] = (min(rows, columns), g * (rows + columns))
    return found


def uniform(model: nn.Module, fold: str, a: float) -> tuple[dict[str, int | None], int]:
    """The ranks at fraction ``a`` (None: dense) and what the whole model then has."""
    params, ranks = sum(p.numel() for p in model.parameters()), {}
    for name, (full, per_rank) in shapes(model, fold).items():
        dense = model.get_submodule(name).weight.numel()
        rank = max(1, math.floor(a * full + 0.5))
        ranks[name] = rank if rank * per_rank < dense else None
        params -= dense - rank * per_rank if ranks[name] else 0
    return ranks, params


@pytest.mark.parametrize("fold", FOLDS)
@pytest.mark.parametrize("make", [chain, transposed])
@pytest.mark.parametrize("share", [0.45, 0.6, 0.8, 1.0])
def test_ranks_are_those_of_the_largest_fraction_that_fits(make, fold, share):
    model = make()
    limit = int(share * sum(p.numel() for p in model.parameters()))
    steps = {(j - 0.5) / full for full, _ in shapes(model, fold).values() for j in range(1, full + 1)} | {0.0, 1.0}
    between = [(a + b) / 2 for a, b in zip(sorted(steps), sorted(steps)[1:], strict=False)]  # all that differ
    fitting = [ranks for ranks, params in (uniform(model, fold, a) for a in between) if params <= limit]
    if not fitting:
        with pytest.raises(tenfold.BudgetError):
            tenfold.plan(model, tenfold.SVD(fold=fold), tenfold.Budget(params=share))
        return
    plan = tenfold.plan(model, tenfold.SVD(fold=fold), tenfold.Budget(params=share))
    assert {name: layer.rank for name, layer in plan.layers.items()} == fitting[-1]
    assert {layer.slices for layer in plan.layers.values()} == {1}
    # The level is the fraction: it gives these ranks.
    assert 0 < plan.level <= 1
    assert uniform(model, fold, plan.level + 1e-9)[0] == fitting[-1]


@pytest.mark.parametrize("fold", FOLDS)
@pytest.mark.parametrize("budget", [{"params": 0.6}, {"macs": 0.6}, {"params": 0.8, "macs": 0.7}])
def test_the_budget_is_one_sided_and_the_built_model_costs_what_the_plan_says(fold, budget):
    model, x = transposed(), small_image()
    small, plan, _ = tenfold.compress(model, tenfold.SVD(fold=fold), tenfold.Budget(**budget), example_inputs=x)
    built, dense = counted(small, x), counted(model, x)
    assert (plan.params, plan.macs) == built
    for name, used, whole in zip(("params", "macs"), built, dense, strict=True):
        assert used <= budget.get(name, 1.0) * whole


def test_no_layer_is_kept_at_a_rank_that_saves_nothing():
    model, x = transposed(), small_image()
    for percent in range(50, 101, 5):
        plan = tenfold.plan(model, tenfold.SVD(), tenfold.Budget(params=percent / 100), example_inputs=x)
        for layer in plan.layers.values():
            dense = layer.layer.dense()
            assert layer.decomposition == "dense" or (layer.params < dense.params and layer.macs < dense.macs)
    assert {layer.decomposition for layer in plan.layers.values()} == {"dense"}


def test_a_dense_layer_says_whether_nothing_saves_its_rank_does_not_or_the_budget_allows_it():
    model = nn.Sequential(nn.Linear(1, 10), nn.Linear(10, 10), nn.Linear(10, 200), nn.Linear(200, 200))
    reasons = {
        n: x.reason
        for n, x in tenfold.plan(model, tenfold.SVD(negligible=0.0), tenfold.Budget(params=0.92)).layers.items()
    }
    assert reasons == {
        "0": "no decomposition of it saves anything",
        "1": "at the rank that the method gives it nothing would be saved",  # 5 x 20 of 100
        "2": None,
        "3": None,
    }
    whole = tenfold.plan(model, tenfold.SVD(negligible=0.0), tenfold.Budget(params=1.0)).layers
    assert [x.reason for x in whole.values()] == [reasons["0"], *["the budget allows it"] * 3]
    for method in (tenfold.LRank(), tenfold.ALDS(negligible=0.0), tenfold.SVDEnergy(negligible=0.0)):
        layers = tenfold.plan(model, method, tenfold.Budget(params=0.98)).layers
        assert layers["0"].reason == reasons["0"]
        assert {x.reason for x in layers.values() if x.rank is None} <= {reasons["0"], "the budget allows it"}


@pytest.mark.parametrize("kind", [float, int])
def test_an_impossible_budget_names_the_smallest_which_then_succeeds(kind):
    model, x = chain(), image()
    for name in ("params", "macs"):
        with pytest.raises(tenfold.BudgetError) as caught:
            tenfold.plan(
                model,
                tenfold.SVD(negligible=0.0),
                tenfold.Budget(**{name: kind(2) if kind is int else 1e-6}),
                example_inputs=x,
            )
        smallest = caught.value.smallest[name]
        plan = tenfold.plan(model, tenfold.SVD(negligible=0.0), tenfold.Budget(**{name: smallest}), example_inputs=x)
        assert all(layer.rank in (1, None) for layer in plan.layers.values())


def test_errors_are_those_of_the_built_weights():
    model = chain().double()
    small, plan, _ = tenfold.compress(model, tenfold.SVD(), tenfold.Budget(params=0.5))
    dense = tenfold.to_dense(small)
    for name in ("0", "6"):
        w, w_hat = (m.get_submodule(name).weight.detach().flatten(1) for m in (model, dense))
        true = torch.linalg.matrix_norm(w - w_hat, 2) / torch.linalg.matrix_norm(w, 2)
        assert plan.layers[name].error == pytest.approx(float(true), abs=1e-7)


@pytest.mark.parametrize("fold", ["", "diagonal", None, ["channel"]])
def test_an_unknown_fold_is_named(fold):
    with pytest.raises(tenfold.ArgumentError, match="`fold` must be one of channel"):
        tenfold.SVD(fold=fold)
