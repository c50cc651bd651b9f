"""L-Rank: the C step is a minimiser, the L step a quadratic pull, and both survive a checkpoint."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import tenfold
from nets import conv_chain


def net() -> nn.Module:
    return conv_chain(4, 12, 10, size=8, classes=6).double()


@pytest.mark.parametrize("share", [0.4, 0.6, 0.8])
def test_the_c_step_minimises_price_times_cost_plus_lost_energy_in_every_layer(share: float) -> None:
    model = net()
    problem = tenfold.survey(model)
    plan = tenfold.LRank(spend=False).plan(problem, tenfold.Budget(params=share))
    sites = {site.name: site for site in problem.sites}
    whole = sum(site.cost.dense().params for site in problem.sites)
    assert plan.level is not None
    for name, layer in plan.layers.items():
        w = sites[name].matrices()[0, 0].numpy()
        s = np.linalg.svd(w, compute_uv=False)
        rows, columns = w.shape
        objective = {None: plan.level * w.size / whole}
        for r in range(1, len(s) + 1):
            if r * (rows + columns) < w.size:
                objective[r] = plan.level * r * (rows + columns) / whole + (s[r:] ** 2).sum()
        # the layer whose edge has exactly this price may stand at either end: both are minimisers
        assert objective[layer.rank] <= min(objective.values()) * (1 + 1e-9)


@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.AdamW])
def test_every_step_adds_the_pull_to_the_gradient(base: type[torch.optim.Optimizer]) -> None:
    model, method = net(), tenfold.LRank(keep=0.5, mu=0.3, growth=2.0, every=2)
    pulled, seen = copy.deepcopy(model), []
    optimizer = method.optimizer(pulled, base=base, lr=0.01)
    optimizer.register_step_pre_hook(lambda *_: seen.append([p.grad.clone() for p in pulled.parameters()]))
    targets: dict[str, torch.Tensor] = {}
    for step in range(5):
        before = [p.detach().clone() for p in pulled.parameters()]
        for p in pulled.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        now = optimizer.param_groups[0]["l_rank"]["targets"]
        targets = targets or now  # the first step makes its own, the others find those of the last C step
        mu = 0.3 * 2.0 ** (step // 2)
        for (name, _), w, g in zip(pulled.named_parameters(), before, seen[-1], strict=True):
            layer = name.removesuffix(".weight")
            pull = mu * (w - targets[layer]) if layer in targets else torch.zeros_like(w)
            torch.testing.assert_close(g, 1 + pull, rtol=1e-12, atol=1e-12)
        targets = now


def test_a_strong_pull_makes_the_weights_low_rank_so_that_the_cut_costs_nothing() -> None:
    model, method = net(), tenfold.LRank(keep=0.5, mu=1.0, growth=1.0, every=10)
    optimizer = method.optimizer(model, lr=0.2)
    for _ in range(200):
        optimizer.zero_grad()
        sum((0 * p).sum() for p in model.parameters()).backward()
        optimizer.step()
    x = torch.randn(3, 4, 8, 8, dtype=torch.float64)
    small = method.finish(model, tenfold.Budget(params=0.5)).model
    torch.testing.assert_close(small(x), model(x), rtol=1e-8, atol=1e-8)


def test_a_run_that_is_resumed_goes_on_to_the_same_weights() -> None:
    method = tenfold.LRank(keep=0.5, mu=0.1, every=3)

    def steps(model: nn.Module, optimizer: torch.optim.Optimizer, n: int) -> None:
        for _ in range(n):
            optimizer.zero_grad()
            sum(p.square().sum() for p in model.parameters()).backward()
            optimizer.step()

    start = net()
    straight = copy.deepcopy(start)
    steps(straight, method.optimizer(straight, lr=0.01, momentum=0.9), 8)
    first = copy.deepcopy(start)
    optimizer = method.optimizer(first, lr=0.01, momentum=0.9)
    steps(first, optimizer, 4)
    second = copy.deepcopy(first)
    resumed = method.optimizer(second, lr=0.01, momentum=0.9)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(second, resumed, 4)
    for a, b in zip(straight.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_run_with_a_single_c_step_is_told_so_and_so_is_one_whose_epochs_nobody_knows() -> None:
    with pytest.warns(tenfold.TenfoldWarning, match="`every` is as long as the run .50 of 20 steps."):
        tenfold.LRank(every=50).optimizer(net(), lr=0.1, goal=tenfold.Goal(steps=20))
    with pytest.warns(tenfold.TenfoldWarning, match="how many steps an epoch has.*every 250 steps"):
        tenfold.LRank().optimizer(net(), lr=0.1)
    optimizer = tenfold.LRank().optimizer(model := net(), lr=0.1, goal=tenfold.Goal(steps=20, steps_per_epoch=2))
    seen = []
    for _ in range(4):
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
        targets = optimizer.param_groups[0]["l_rank"]["targets"]
        seen.append(targets[next(iter(targets))].clone())
    assert not torch.equal(seen[0], seen[1])  # made anew after the second step
    assert torch.equal(seen[1], seen[2])


def test_weights_that_another_optimizer_trains_are_not_pulled() -> None:
    model = net()
    optimizer = tenfold.LRank(every=5, mu=1.0).attach(model, torch.optim.SGD(model[2].parameters(), lr=0.1))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert {"2", "4"} <= set(optimizer.param_groups[0]["l_rank"]["targets"])
    assert model[2].weight.grad.any()
    assert not model[4].weight.grad.any()


def test_a_factorised_model_is_refused() -> None:
    small = tenfold.compress(net(), tenfold.SVD(), tenfold.Budget(params=0.5)).model
    with pytest.raises(tenfold.ArgumentError, match="`model` must be dense"):
        tenfold.LRank(every=5).optimizer(small, lr=0.1)
