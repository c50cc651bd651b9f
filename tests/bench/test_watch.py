"""The ranks of a run, epoch by epoch, are those that its method works at."""

import pytest
import torch
from torch import nn

import tenfold
from nets import conv_chain
from tenfold.bench.compare.rank_history import Watched
from tenfold.layers.tucker_protocol import factorised
from tenfold.methods.contract.method import Goal

EPOCHS, STEPS = 4, 5


def watched(method):
    """A short training on noise: what was seen of it, the model, and the ranks of cut layers, at first and by step."""
    torch.manual_seed(0)
    model = conv_chain(3, 12, 16, size=6, classes=10)
    watch = Watched(method, lambda done: None)
    model = watch.begin(model)
    x, y = torch.randn(16, 3, 6, 6), torch.randint(10, (16,))
    goal = Goal(tenfold.Budget(params=0.6), example_inputs=x[:1], steps=EPOCHS * STEPS, steps_per_epoch=STEPS)
    optimizer = watch.optimizer(model, lr=0.2, goal=goal)

    def cut():
        return {name: list(layer.ranks) for name, layer in factorised(model).items() if not bool(layer.augmented)}

    seen = [cut()]
    for _ in range(EPOCHS * STEPS):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        seen.append(cut())
    return watch.evolution, model, seen


@pytest.mark.parametrize("every", [3, 5, 7])
def test_of_a_cycle_the_last_cut_counts(every):
    """Wherever in a cycle an epoch ends, no rank is told that the training only tries."""
    method = tenfold.TDLRT(every=every, tau=0.01, first=0.2, cap=1.0, floor=1, freeze=0.1)
    evolution, _, seen = watched(method)
    assert evolution.epochs == list(range(1, EPOCHS + 1))
    assert set(evolution.ranks) == set(seen[0])
    for name, told in evolution.ranks.items():
        settled = [seen[0][name]]
        for ranks in seen[1:]:
            settled.append(ranks.get(name, settled[-1]))
        assert told == settled[STEPS::STEPS]
    assert any(told[-1] != seen[0][name] for name, told in evolution.ranks.items())


def test_of_projections_the_ranks_that_they_went_to():
    evolution, model, _ = watched(tenfold.LRPET(every=2))
    for name, told in evolution.ranks.items():
        values = torch.linalg.svdvals(model.get_submodule(name).weight.detach().flatten(1).double())
        assert int((values > 1e-5 * values[0]).sum()) == told[-1]


def test_of_methods_without_ranks_there_is_nothing():
    assert watched(tenfold.SFW())[0] is None
