"""Filters are removed for good: what is left computes what the whole computed with those channels at zero."""

import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tenfold
from helpers import same_state, state
from nets import SumConcatDepthwise, chain, image, small_image, transposed
from tenfold.layers.channel_graph import ChannelGraph, fault, generic, silenced
from tenfold.layers.copy_model import duplicate
from tenfold.layers.filters import find_filters

pytest.importorskip("torch_pruning")


def x() -> torch.Tensor:
    return torch.randn(2, 3, 8, 8)


def test_what_is_left_computes_what_the_whole_does_with_the_channels_at_zero() -> None:
    """The channels of ``inner`` and ``side`` are alone on their way: silencing them is removing them."""
    model = SumConcatDepthwise().eval()
    gone = {"inner": [1, 4, 5], "side": [0]}
    small = find_filters(model, x()).without(gone)
    silent = SumConcatDepthwise().eval()
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
    model = SumConcatDepthwise()
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
    filters = find_filters(SumConcatDepthwise(), x())
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
    model = SumConcatDepthwise().train()
    before = state(model)
    done = tenfold.prune_filters(model, remove=0.5, example_inputs=x())
    assert done.small == tenfold.cost(done.model, x())
    assert done.small.params < 0.5 * done.dense.params
    assert done.small.macs < 0.5 * done.dense.macs
    assert done.model.training
    assert model.training
    assert same_state(model, before)
    done.model(x()).sum().backward()


@pytest.mark.parametrize("budget", [tenfold.Budget(params=0.6), tenfold.Budget(macs=0.4), tenfold.Budget(params=300)])
def test_the_fewest_filters_go_that_a_budget_asks_for(budget) -> None:
    model, inputs = SumConcatDepthwise(), x()
    done = tenfold.prune_filters(model, keep=budget, example_inputs=inputs, together=True)

    def fits(cost) -> bool:
        return all(
            getattr(cost, n) <= (v * getattr(done.dense, n) if isinstance(v, float) else v)
            for n, v in budget.limits.items()
        )

    assert fits(done.small)
    filters = find_filters(model, inputs)
    steps = filters.steps(together=True)
    same = [filters.names(filters.weakest(share, together=True)) for share in steps].index(dict(done.removed))
    one_less = steps[same - 1]
    assert not fits(tenfold.prune_filters(model, remove=one_less, example_inputs=inputs, together=True).small)


def test_a_latency_is_no_budget_for_filters() -> None:
    with pytest.raises(tenfold.ArgumentError, match="limited in params or macs"):
        tenfold.prune_filters(SumConcatDepthwise(), keep=tenfold.Budget(latency=0.5), example_inputs=x())


def test_a_budget_out_of_reach_names_the_smallest_which_then_succeeds() -> None:
    with pytest.raises(tenfold.BudgetError) as caught:
        tenfold.prune_filters(SumConcatDepthwise(), keep=tenfold.Budget(params=0.001), example_inputs=x())
    least = caught.value.smallest["params"]
    assert str(least) in str(caught.value)
    done = tenfold.prune_filters(SumConcatDepthwise(), keep=tenfold.Budget(params=least), example_inputs=x())
    assert done.small.params <= least * done.dense.params


def test_batch_norm_is_estimated_again_from_data() -> None:
    model, batches = SumConcatDepthwise(), [x(), x()]
    plain = tenfold.prune_filters(model, remove=0.3, example_inputs=x()).model
    done = tenfold.prune_filters(model, remove=0.3, example_inputs=x(), data=batches).model
    tenfold.reestimate_(plain, batches)
    torch.testing.assert_close(done.n1.running_var, plain.n1.running_var)


def test_output_channels_and_groups_stay_with_the_reason() -> None:
    done = tenfold.prune_filters(transposed(), remove=0.5, example_inputs=small_image())
    assert done.left == {"3": "its channels are the model's output"}
    assert done.model(small_image()).shape == transposed()(small_image()).shape
    with pytest.raises(tenfold.UnsupportedLayer, match="'3' has groups of channels"):
        tenfold.prune_filters(chain(), remove=0.5, example_inputs=image())


def test_selections_and_frozen_weights() -> None:
    model = SumConcatDepthwise()
    for p in model.parameters():
        p.requires_grad_(False)
    done = tenfold.prune_filters(
        model, remove=0.5, example_inputs=x(), target_modules=["inner", "side"], exclude_modules=["side"]
    )
    assert set(done.removed) == {"inner"}
    assert done.left["side"] == "in exclude_modules"
    assert not any(p.requires_grad for p in done.model.parameters())


def test_what_cannot_be_done_is_refused() -> None:
    for wrong in ({"remove": 1.0}, {"remove": -0.1}, {"remove": True}, {"remove": tenfold.Budget(params=0.5)},
                  {"keep": 0.0}, {"keep": 1.1}, {"keep": 1}):  # fmt: skip
        [name] = wrong
        with pytest.raises(tenfold.ArgumentError, match=f"`{name}` must be"):
            tenfold.prune_filters(SumConcatDepthwise(), **wrong, example_inputs=x())
    for both in ({}, {"keep": 0.5, "remove": 0.5}):
        with pytest.raises(tenfold.ArgumentError, match="`keep` or `remove` must be given, one of"):
            tenfold.prune_filters(SumConcatDepthwise(), **both, example_inputs=x())
    for unnamed in ((0.5,), (0.5, x()), (tenfold.Budget(params=0.5), x())):
        with pytest.raises(tenfold.ArgumentError, match=r"by position. Pass keep=0.7 .*remove=0.3"):
            tenfold.prune_filters(SumConcatDepthwise(), *unnamed)
    with pytest.raises(tenfold.ArgumentError, match="`example_inputs` must be given"):
        tenfold.prune_filters(SumConcatDepthwise(), remove=0.5)
    with pytest.raises(tenfold.ArgumentError, match="`norm`"):
        tenfold.prune_filters(SumConcatDepthwise(), remove=0.5, example_inputs=x(), norm=3)
    with pytest.raises(tenfold.ArgumentError, match="`example_inputs`"):
        tenfold.prune_filters(SumConcatDepthwise(), remove=0.5, example_inputs=torch.randn(2, 7, 8, 8))
    small = tenfold.compress(SumConcatDepthwise(), tenfold.SVD(), tenfold.Budget(params=0.8)).model
    with pytest.raises(tenfold.ArgumentError, match="`model` must be dense"):
        tenfold.prune_filters(small, remove=0.5, example_inputs=x())


def test_a_missing_package_is_named_with_the_command(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(tenfold.TenfoldError, match=r"pip install 'tenfold\[prune\]'"):
        tenfold.prune_filters(SumConcatDepthwise(), remove=0.5, example_inputs=x())


# ---- what is kept and what is removed


def test_keeping_a_share_is_removing_the_rest() -> None:
    model, inputs = SumConcatDepthwise(), x()
    for keep in (0.5, 0.7, 1.0):
        kept = tenfold.prune_filters(model, keep=keep, example_inputs=inputs)
        gone = tenfold.prune_filters(model, remove=1 - keep, example_inputs=inputs)
        assert kept.removed == gone.removed
        assert (kept.share_removed == 0) == (keep == 1)


# ---- the graph is not believed: what it gets wrong stays, by name


class Block(nn.Module):
    """A YOLO block: one half of the channels goes on, and everything is concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 1)
        self.inner, self.last, self.head = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(48, 16, 1), nn.Conv2d(16, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = list(self.first(F.relu(self.stem(x))).chunk(2, 1))
        parts.append(self.inner(parts[-1]))
        return self.head(F.relu(self.last(torch.cat(parts, 1))))


class Between(nn.Module):
    """Three convolutions with something between the first two that takes 16 channels and gives ``width``."""

    def __init__(self, act: Callable[[torch.Tensor], torch.Tensor], width: int = 16, norm: nn.Module | None = None):
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 16, 3, padding=1), norm or nn.Identity()
        self.b, self.c = nn.Conv2d(width, 12, 3, padding=1), nn.Conv2d(12, 4, 1)
        self.act = act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(F.relu(self.b(self.act(self.norm(self.a(x))))))


def chunked(y: torch.Tensor) -> torch.Tensor:
    a, b = y.chunk(2, 1)
    return a * b


def split(y: torch.Tensor) -> torch.Tensor:
    a, b = torch.tensor_split(y, 2, 1)
    return a * torch.sigmoid(b)


def maxout(y: torch.Tensor) -> torch.Tensor:
    n, c, h, w = y.shape
    return y.view(n, c // 2, 2, h, w).amax(2)


GATES = {"chunk": chunked, "tensor_split": split, "maxout": maxout, "glu": lambda y: F.glu(y, 1)}
ODD = {
    "rolled": (lambda y: y.roll(3, 1), 16, "something else"),
    "flipped": (lambda y: y.flip(1), 16, "something else"),
    "permuted": (lambda y: y[:, torch.arange(15, -1, -1)], 16, "does not run"),
    "sliced": (lambda y: y[:, 2:6], 4, "does not run"),
    "padded, as shortcuts are": (lambda y: F.pad(y, (0, 0, 0, 0, 2, 2)), 20, "something else"),
    "shuffled into space": (lambda y: F.pixel_shuffle(y, 2), 4, "torch-pruning cannot follow"),
    "weighed by their mean": (lambda y: y * y.mean(1, keepdim=True), 16, "something else"),
}


def right(done: tenfold.Pruned, model: nn.Module, inputs: torch.Tensor) -> bool:
    """The model without the channels computes what it did with the weights of their consumers at zero."""
    roots = {name: channels for name, channels in done.removed.items() if name in ("a", "b", "stem", "last")}
    expected = silenced(model, ChannelGraph(duplicate(model), inputs), roots)(inputs)
    return torch.allclose(done.model(inputs), expected, atol=1e-5)


@pytest.mark.parametrize("gate", GATES.values(), ids=GATES)
def test_channels_that_a_gate_ties_go_together_and_no_more_than_were_asked(gate) -> None:
    model, inputs = Between(gate, 8).eval(), x()
    done = tenfold.prune_filters(model, remove=0.25, example_inputs=inputs)
    gone = 16 - done.model.a.out_channels
    assert len(done.removed.get("a", ())) == gone <= 4
    assert gone == (0 if "a" in done.left else 4)
    assert done.share_removed == sum(map(len, done.removed.values())) / (12 + (16 if gone else 0))
    assert done.model(inputs).shape == model(inputs).shape
    assert right(done, model, inputs)


@pytest.mark.parametrize(("act", "width", "reason"), ODD.values(), ids=ODD)
def test_channels_that_the_graph_loses_stay_with_the_reason(act, width, reason) -> None:
    model, inputs = Between(act, width).eval(), x()
    done = tenfold.prune_filters(model, remove=0.25, example_inputs=inputs)
    assert set(done.removed) == {"b"}
    assert reason in done.left["a"]
    assert done.left["c"] == "its channels are the model's output"
    assert right(done, model, inputs)


@pytest.mark.parametrize("norm", [nn.GroupNorm(4, 16), nn.GroupNorm(1, 16), nn.LayerNorm([16, 8, 8])])
def test_what_normalises_channels_together_is_named(norm) -> None:
    model = Between(F.relu, norm=norm).eval()
    done = tenfold.prune_filters(model, remove=0.5, example_inputs=x())
    assert done.left["a"].startswith(f"'norm' is a {type(norm).__name__}: it normalises several channels as one")
    assert set(done.removed) == {"b"}


def test_activations_that_are_not_zero_at_zero_are_pruned_as_well() -> None:
    """What is silenced is what the next layer takes in, after the norm and the activation."""
    model, inputs = Between(torch.sigmoid, norm=nn.BatchNorm2d(16)).eval(), x()
    done = tenfold.prune_filters(model, remove=0.5, example_inputs=inputs)
    assert set(done.removed) == {"a", "b"}
    assert right(done, model, inputs)


def test_blocks_that_take_channels_apart_are_pruned_elsewhere() -> None:
    model, inputs = Block().eval(), x()
    for amount in ({"remove": 0.3}, {"keep": tenfold.Budget(params=0.9)}):
        done = tenfold.prune_filters(model, **amount, example_inputs=inputs)
        assert set(done.removed) == {"stem", "last"}
        assert set(done.left) == {"first", "inner", "head"}
        assert right(done, model, inputs)


def test_models_that_torch_pruning_fails_on_are_refused_with_its_reason() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.r, self.o = nn.Conv2d(3, 16, 3), nn.GRU(16, 12, batch_first=True), nn.Linear(12, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.o(self.r(F.relu(self.a(x)).flatten(2).transpose(1, 2))[0][:, -1])

    with pytest.raises(tenfold.UnsupportedLayer, match=r"'a': torch-pruning cannot follow its channels.*IndexError"):
        tenfold.prune_filters(Recurrent(), remove=0.3, example_inputs=x())


def test_outputs_in_dicts_and_dataclasses_are_compared_too() -> None:
    class Named(Between):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
            return {"out": super().forward(x)}

    done = tenfold.prune_filters(Named(lambda y: y.roll(3, 1)).eval(), remove=0.25, example_inputs=x())
    assert set(done.removed) == {"b"}


def test_a_wrong_removal_is_seen_though_all_norms_are_fresh_and_a_zero_hides_the_branch() -> None:
    """On the weights as they are nothing would show: the branch ends in a zero."""
    model, inputs = Between(lambda y: y.roll(3, 1)).eval(), x()
    with torch.no_grad():
        model.b.weight.zero_()
    graph = ChannelGraph(duplicate(model), inputs)
    assert fault(model, graph, inputs, {"a": [5]}) is None
    probe, wide = generic(model, inputs)
    assert wide.dtype == torch.float64
    assert "something else" in (fault(probe, graph, wide, {"a": [5]}) or "")
    assert set(find_filters(model, inputs).left) == {"a", "c"}
