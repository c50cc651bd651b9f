"""Tucker after training: the best common error that a budget allows, with ranks for both channel modes."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import tenfold
from helpers import counted
from nets import chain, conv_chain, decaying_, image, small_image, transposed
from ranks.tables import brute_force_grid
from tenfold.layers.spec import spec_of, to_kernel
from tenfold.linalg.multilinear import feasible
from tenfold.linalg.tucker import hosvd, tucker_full
from tenfold.plans.tucker_candidates import tucker_candidates


def error(small: nn.Module, model: nn.Module, name: str) -> float:
    before, after = (m.get_submodule(name).weight.detach().double() for m in (model, small))
    return float((before - after).norm() / before.norm())


@pytest.mark.parametrize(("make", "inputs"), [(chain, image), (transposed, small_image)])
def test_options_are_every_possible_pair_that_saves_with_its_cost_and_error(make, inputs):
    model, x = make().eval(), inputs()
    problem = tenfold.survey(model, example_inputs=x)
    for site, table in zip(problem.sites, tucker_candidates(problem), strict=True):
        spec = spec_of(model.get_submodule(site.name))
        if spec.linear:
            assert table.rank.ndim == 1
            continue
        kernel = to_kernel(spec, model.get_submodule(site.name).weight.detach()).double()
        parts, sizes, rest = (
            kernel.chunk(spec.groups),
            (len(kernel) // spec.groups, kernel.shape[1]),
            kernel[0, 0].numel(),
        )
        dense, expected = site.cost.dense(), {}
        for pair in itertools.product(range(1, sizes[0] + 1), range(1, sizes[1] + 1)):
            cost = site.cost.tucker(pair)
            if feasible(pair, sizes, rest) == pair and cost.params < dense.params and cost.macs < dense.macs:
                lost = sum(float((w - tucker_full(*hosvd(w, pair, sequential=False))).square().sum()) for w in parts)
                expected[pair] = (cost.params, cost.macs, (lost / float(kernel.square().sum())) ** 0.5)
        found = {
            tuple(r): (int(p), int(m), float(e))
            for r, p, m, e in zip(table.rank, table.costs["params"], table.costs["macs"], table.error, strict=True)
        }
        assert found.pop((0, 0)) == (dense.params, dense.macs, 0.0)
        assert found.keys() == expected.keys()
        for pair, (params, macs, lost) in expected.items():
            assert found[pair][:2] == (params, macs)
            assert found[pair][2] == pytest.approx(lost, abs=1e-6)


@pytest.mark.parametrize("budget", [tenfold.Budget(params=0.5), tenfold.Budget(macs=0.5)])
def test_the_level_is_the_smallest_that_any_choice_of_pairs_attains(budget):
    model, x = chain().eval(), image()
    problem = tenfold.survey(model, example_inputs=x)
    plan = tenfold.Tucker().plan(problem, budget)
    assert plan.level == pytest.approx(brute_force_grid(tucker_candidates(problem), problem.limits(budget)))


def test_errors_in_the_plan_bound_those_of_the_built_layers():
    model = conv_chain(12, 16, 12, size=6, classes=24, groups=2)
    decaying_(model, 0.8, torch.Generator().manual_seed(2)).eval()
    for share in (0.3, 0.5):
        small, plan, _ = tenfold.compress(model, tenfold.Tucker(), tenfold.Budget(params=share))
        assert {layer.decomposition for layer in plan.layers.values()} == {"tucker", "low-rank"}
        for name, layer in plan.layers.items():
            assert 0.8 * layer.error <= error(small, model, name) <= layer.error * (1 + 1e-5)
            assert layer.error <= plan.level


def test_both_ranks_follow_the_weight():
    """A kernel of ranks (5, 2) is found out, and kept without loss by a budget that it fits."""
    g = torch.Generator().manual_seed(0)
    core, u, v = (torch.randn(s, generator=g) for s in ((5, 2, 3, 3), (24, 5), (16, 2)))
    model = nn.Sequential(nn.Conv2d(16, 24, 3, bias=False))
    model[0].weight.data.copy_(torch.einsum("abij,xa,yb->xyij", core, u, v))
    small, plan, _ = tenfold.compress(model, tenfold.Tucker(), tenfold.Budget(params=5 * 2 * 9 + 24 * 5 + 16 * 2))
    assert plan.layers["0"].rank == (5, 2)
    assert error(small, model, "0") < 1e-5


def test_an_edited_pair_is_built_as_written(recwarn):
    model, x = chain().eval(), image()
    plan = tenfold.plan(model, tenfold.Tucker(), tenfold.Budget(params=0.6), example_inputs=x)
    edited = tenfold.Plan.from_json(plan.edit("0", decomposition="tucker", rank=(3, 2), slices=1).to_json())
    small = tenfold.apply(model, edited)
    assert small[0].rank == edited.layers["0"].rank == (3, 2)
    assert (edited.params, edited.macs) == counted(small, x)
    assert edited.layers["0"].error is None
    assert edited.diff(plan).keys() == {"0"}
    assert not recwarn.list
    back = edited.edit("0", decomposition="low-rank", rank=2)
    assert (back.layers["0"].fold, tenfold.apply(model, back)[0].fold) == ("channel", "channel")
    with pytest.warns(tenfold.TenfoldWarning, match=r"'0' at rank \(8, 3\)"):
        tenfold.apply(model, plan.edit("0", decomposition="tucker", rank=(8, 3), slices=1))


def test_large_modes_compete_on_a_grid_that_has_both_ends():
    site = tenfold.survey(nn.Sequential(nn.Conv2d(4, 300, 3)))
    (table,) = tucker_candidates(site)
    outer = np.unique(table.rank[1:, 0])
    assert outer[0] == 1
    assert len(outer) <= 64
    assert np.diff(outer).max() <= 6
    assert set(np.unique(table.rank[1:, 1])) <= {1, 2, 3, 4}


def test_a_zero_kernel_has_no_error():
    model = nn.Sequential(nn.Conv2d(8, 8, 3))
    model[0].weight.data.zero_()
    small, plan, _ = tenfold.compress(model, tenfold.Tucker(), tenfold.Budget(params=0.2))
    assert plan.level == 0
    assert torch.equal(small[0].weight.detach(), model[0].weight.detach())
