"""Filters are removed for good: what is left computes what the whole computed with those channels at zero."""

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tenfold
from ranks.nets import chain, image, small_image, unlike
from tenfold.layers.filters import find_filters

pytest.importorskip("torch_pruning")


class Small(nn.Module):
    """A residual sum, a concatenation, a depthwise convolution, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.n1 = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.inner = nn.Conv2d(6, 8, 3, padding=1)
        self.back = nn.Conv2d(8, 6, 1)
        self.deep = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.side = nn.Conv2d(3, 4, 1)
        self.head = nn.Linear(10, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.n1(self.first(x)))
        y = y + self.back(F.relu(self.inner(y)))
        y = F.relu(self.deep(y))
        return self.head(torch.cat([y, F.relu(self.side(x))], 1).mean((2, 3)))


def x() -> torch.Tensor:
    return torch.randn(2, 3, 8, 8)


def test_what_is_left_computes_what_the_whole_does_with_the_channels_at_zero() -> None:
    """The channels of ``inner`` and ``side`` are alone on their way: silencing them is removing them."""
    model = Small().eval()
    gone = {"inner": [1, 4, 5], "side": [0]}
    small = find_filters(model, x()).without(gone)
    silent = Small().eval()
    silent.load_state_dict(model.state_dict())
    with torch.no_grad():
        for name, channels in gone.items():
            silent.get_submodule(name).weight[channels] = 0
            silent.get_submodule(name).bias[channels] = 0
    inputs = x()
    torch.testing.assert_close(small(inputs), silent(inputs), rtol=1e-4, atol=1e-6)
    assert small.inner.weight.shape == (5, 6, 3, 3)
    assert small.back.weight.shape == (6, 5, 1, 1)
    assert small.head.in_features == 9


@pytest.mark.parametrize("norm", [1, 2])
def test_scores_are_norms_of_filters_and_those_that_are_tied_stand_together(norm) -> None:
    model = Small()
    bundles = {b.root: b for b in find_filters(model, x(), norm=norm).bundles}
    w = model.inner.weight.detach().double().flatten(1)
    torch.testing.assert_close(bundles["inner"].scores, w.norm(p=norm, dim=1))
    (tied,) = (b for b in bundles.values() if len(b.layers) > 1)
    assert set(tied.layers) == {"first", "back", "deep"}
    whole = torch.cat([m.weight.detach().double().flatten(1) for m in (model.first, model.back, model.deep)], 1)
    torch.testing.assert_close(tied.scores, whole.norm(p=norm, dim=1))


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.99])
def test_the_weakest_go_and_one_always_stays(share, together) -> None:
    filters = find_filters(Small(), x())
    gone = filters.weakest(share, together=together)
    total = sum(map(len, filters.bundles))
    if together:
        assert sum(map(len, gone.values())) == min(int(share * total), total - len(filters.bundles))
    for bundle in filters.bundles:
        lost = gone[bundle.root]
        if not together:
            assert len(lost) == min(int(share * len(bundle)), len(bundle) - 1)
        kept = [i for i in range(len(bundle)) if i not in lost]
        assert kept
        assert not lost or bundle.scores[lost].max() <= bundle.scores[kept].min()


def test_parameters_and_macs_really_fall_and_the_model_given_is_untouched() -> None:
    model = Small().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    done = tenfold.prune_filters(model, 0.5, x())
    assert done.small == tenfold.cost(done.model, x())
    assert done.small.params < 0.5 * done.dense.params
    assert done.small.macs < 0.5 * done.dense.macs
    assert done.model.training
    assert model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    done.model(x()).sum().backward()


@pytest.mark.parametrize("budget", [tenfold.Budget(params=0.6), tenfold.Budget(macs=0.4), tenfold.Budget(params=300)])
def test_the_fewest_filters_go_that_a_budget_asks_for(budget) -> None:
    model, inputs = Small(), x()
    done = tenfold.prune_filters(model, budget, inputs, together=True)

    def fits(cost) -> bool:
        return all(
            getattr(cost, n) <= (v * getattr(done.dense, n) if isinstance(v, float) else v)
            for n, v in budget.limits.items()
        )

    assert fits(done.small)
    steps = find_filters(model, inputs).steps(together=True)
    one_less = steps[steps.index(done.share) - 1]
    assert not fits(tenfold.prune_filters(model, one_less, inputs, together=True).small)


def test_a_budget_out_of_reach_names_the_smallest_which_then_succeeds() -> None:
    with pytest.raises(tenfold.BudgetError) as caught:
        tenfold.prune_filters(Small(), tenfold.Budget(params=0.001), x())
    least = caught.value.smallest["params"]
    assert str(least) in str(caught.value)
    done = tenfold.prune_filters(Small(), tenfold.Budget(params=least), x())
    assert done.small.params <= least * done.dense.params


def test_batch_norm_is_estimated_again_from_data() -> None:
    model, batches = Small(), [x(), x()]
    plain = tenfold.prune_filters(model, 0.3, x()).model
    done = tenfold.prune_filters(model, 0.3, x(), data=batches).model
    tenfold.reestimate_(plain, batches)
    torch.testing.assert_close(done.n1.running_var, plain.n1.running_var)


def test_output_channels_and_groups_stay_with_the_reason() -> None:
    done = tenfold.prune_filters(unlike(), 0.5, small_image())
    assert done.left == {"3": "its channels are the model's output"}
    assert done.model(small_image()).shape == unlike()(small_image()).shape
    with pytest.raises(tenfold.UnsupportedLayer, match="'3' has groups of channels"):
        tenfold.prune_filters(chain(), 0.5, image())


def test_selections_and_frozen_weights() -> None:
    model = Small()
    for p in model.parameters():
        p.requires_grad_(False)
    done = tenfold.prune_filters(model, 0.5, x(), target_modules=["inner", "side"], exclude_modules=["side"])
    assert set(done.removed) == {"inner"}
    assert done.left["side"] == "in exclude_modules"
    assert not any(p.requires_grad for p in done.model.parameters())


def test_what_cannot_be_done_is_refused() -> None:
    with pytest.raises(tenfold.ArgumentError, match="`amount`"):
        tenfold.prune_filters(Small(), 1.0, x())
    with pytest.raises(tenfold.ArgumentError, match="`norm`"):
        tenfold.prune_filters(Small(), 0.5, x(), norm=3)
    with pytest.raises(tenfold.ArgumentError, match="`example_inputs`"):
        tenfold.prune_filters(Small(), 0.5, torch.randn(2, 7, 8, 8))
    small = tenfold.compress(Small(), tenfold.SVD(), tenfold.Budget(params=0.8)).model
    with pytest.raises(tenfold.ArgumentError, match="`model` must be dense"):
        tenfold.prune_filters(small, 0.5, x())


def test_a_missing_package_is_named_with_the_command(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(tenfold.TenfoldError, match=r"pip install 'tenfold\[prune\]'"):
        tenfold.prune_filters(Small(), 0.5, x())
