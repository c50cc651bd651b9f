"""Which norm follows which layer, by the graph; and statistics that are those of the data."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from layer_stubs import low_rank
from torch import Tensor, nn

from helpers import random_batches, same_state, state
from nets import FanOut, Idle, PreActivation, Remembers, Residual
from tenfold.errors import ArgumentError, DataError
from tenfold.layers import swap
from tenfold.layers.batchnorm import norm_after, reestimate_

# ---- pairs

RESNET = {
    "conv1": "bn1",
    "layer1.0.conv1": "layer1.0.bn1",
    "layer1.0.conv2": "layer1.0.bn2",
    "layer1.0.down.0": "layer1.0.down.1",
    "layer1.1.conv1": "layer1.1.bn1",
    "layer1.1.conv2": "layer1.1.bn2",
    "layer1.1.down.0": "layer1.1.down.1",
}


def plain(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


def conv(inner: int = 4, outer: int = 4) -> nn.Module:
    return nn.Conv2d(inner, outer, 3, padding=1)


class Shared(nn.Module):
    """One norm behind two convolutions, and one convolution before two norms."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = conv(), conv(), nn.BatchNorm2d(4)
        self.c, self.n1, self.n2 = conv(), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.b(self.norm(self.a(x))))
        return self.n2(self.c(self.n1(self.c(x))))


class Misordered(nn.Module):
    """Registered in an order that says nothing about who follows whom."""

    def __init__(self) -> None:
        super().__init__()
        self.bn_b, self.a, self.bn_a, self.b = nn.BatchNorm2d(4), conv(), nn.BatchNorm2d(4), conv()

    def forward(self, x: Tensor) -> Tensor:
        return self.bn_b(self.b(self.bn_a(self.a(x))))


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn_a = conv(), nn.BatchNorm2d(4)
        self.b, self.wide = conv(), nn.BatchNorm2d(8)
        self.c, self.relu, self.bn_c = conv(), nn.ReLU(), nn.BatchNorm2d(4)
        self.inner = nn.Sequential(conv(), nn.BatchNorm2d(4))
        self.last = conv()
        self.other = nn.Sequential(nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


PAIRS = {
    "plain": (lambda: plain(conv(), nn.BatchNorm2d(4), nn.ReLU(), conv()), {"0": "1"}),
    "linear and 1d": (
        lambda: plain(nn.Conv1d(4, 4, 3), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(8, 5), nn.BatchNorm1d(5)),
        {"0": "1", "3": "4"},
    ),
    "transposed": (lambda: plain(nn.ConvTranspose2d(4, 4, 3), nn.BatchNorm2d(4)), {"0": "1"}),
    "activation between": (lambda: plain(conv(), nn.ReLU(), nn.BatchNorm2d(4)), {}),
    "no norm": (lambda: plain(conv(), nn.ReLU(), conv()), {}),
    "resnet": (Residual, RESNET),
    "pre-activation": (PreActivation, {"conv1": "bn2"}),
    "shared": (Shared, {}),
    "fan-out": (FanOut, {}),
    "misordered": (Misordered, {"a": "bn_a", "b": "bn_b"}),
    "untraceable": (Untraceable, {"a": "bn_a", "inner.0": "inner.1"}),
}


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("training", [True, False])
def test_a_norm_belongs_to_the_layer_that_it_alone_follows(kind: str, training: bool) -> None:
    make, expected = PAIRS[kind]
    assert norm_after(make().train(training)) == expected


@pytest.mark.parametrize("kind", ["plain", "linear and 1d", "resnet", "misordered", "untraceable"])
def test_pairs_are_the_same_after_compression(kind: str) -> None:
    make, expected = PAIRS[kind]
    assert norm_after(swap.apply(make(), low_rank(make(), 2))) == expected


def test_the_users_pairs_win() -> None:
    net = Untraceable()
    found = norm_after(net, {"c": "bn_c", "a": "other.0"})
    assert found == {"a": "other.0", "inner.0": "inner.1", "c": "bn_c"}


@pytest.mark.parametrize("pair", [("nowhere", "bn_a"), ("a", "nowhere"), ("a", "relu")])
def test_the_users_pairs_must_name_layers_and_norms(pair: tuple[str, str]) -> None:
    with pytest.raises(ArgumentError, match="`given` must map layers to batch norms"):
        norm_after(Untraceable(), dict([pair]))


def test_looking_for_pairs_changes_nothing() -> None:
    net = Remembers()
    before = state(net)
    assert norm_after(net) == {"fc": "norm"}
    assert (net.calls, hasattr(net, "last")) == (0, False)
    copy.deepcopy(net)
    assert same_state(net, before)


# ---- statistics


def numpy_statistics(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per channel, over everything else."""
    flat = np.moveaxis(x, 1, 0).reshape(x.shape[1], -1)
    return flat.mean(1), flat.var(1, ddof=1)


def assert_statistics(norm: Any, x: np.ndarray) -> None:
    mean, var = numpy_statistics(x.astype(np.float64))
    torch.testing.assert_close(norm.running_mean.double(), torch.from_numpy(mean), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.running_var.double(), torch.from_numpy(var), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sizes", [(8,), (8, 8, 8), (8, 5, 1), (1, 8)])
@pytest.mark.parametrize("form", ["x", "(x, y)", "[x, y]"])
def test_statistics_are_those_of_all_the_data_whatever_the_batches(sizes: tuple[int, ...], form: str) -> None:
    net = nn.Sequential(nn.BatchNorm2d(3))
    g = torch.Generator().manual_seed(1)
    data = [torch.randn(n, 3, 4, 5, generator=g) * (i + 1) + 3 * i for i, n in enumerate(sizes)]
    wrap = {"x": lambda x: x, "(x, y)": lambda x: (x, None), "[x, y]": lambda x: [x, x]}[form]
    reestimate_(net, (wrap(x) for x in data))
    assert_statistics(net[0], torch.cat(data).numpy())


def test_a_large_offset_costs_no_digits() -> None:
    net = nn.Sequential(nn.BatchNorm1d(2)).double()
    data = [x.double() + 1e8 for x in random_batches(16, 2, count=4)]
    reestimate_(net, data)
    torch.testing.assert_close(net[0].running_var, torch.cat(data).var(0), rtol=1e-6, atol=0)


def test_deeper_norms_see_what_training_would_show_them() -> None:
    """One batch: the whole network in training mode, dropout aside, is the reference."""
    net = nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), conv(4, 5), nn.BatchNorm2d(5))
    (x,) = random_batches(6, 3, 5, 5, count=1)
    reestimate_(net, [x])
    with torch.no_grad():
        first = net[0](x)
        mean, var = first.mean((0, 2, 3), keepdim=True), first.var((0, 2, 3), correction=0, keepdim=True)
        second = net[4](torch.relu((first - mean) / (var + net[1].eps).sqrt()))
    assert_statistics(net[1], first.numpy())
    assert_statistics(net[5], second.numpy())


def test_a_norm_used_twice_gets_the_statistics_of_both_uses() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3, affine=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(3 * self.norm(x) + 1)

    net = Twice()
    (x,) = random_batches(50, 3, count=1)
    reestimate_(net, [x])
    again = 3 * (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt() + 1
    assert_statistics(net.norm, torch.cat([x, again]).numpy())


def test_only_the_statistics_change() -> None:
    net = Residual()
    net.layer1[0].eval()
    net.layer1[1].bn1.momentum = None
    before, modes, random = state(net), [m.training for m in net.modules()], torch.get_rng_state()
    reestimate_(net, list(random_batches(4, 3, 8, 8, count=2)))
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in net.modules()] == modes
    assert net.layer1[1].bn1.momentum is None
    assert not net.bn1._forward_pre_hooks
    changed = {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {n for n in before if n.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    assert not any(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_no_data_is_an_error_and_leaves_the_statistics(training: bool) -> None:
    net = Residual().train(training)
    before = state(net)
    for nothing in ([], iter(())):
        with pytest.raises(DataError, match="`data` must hold at least one batch"):
            reestimate_(net, nothing)
    assert same_state(net, before)
    assert all(m.training == training for m in net.modules())


def test_data_that_fails_half_way_leaves_the_statistics() -> None:
    net = Residual().eval()
    before = state(net)
    with pytest.raises(DataError, match="on batch 1 its forward pass failed with RuntimeError"):
        reestimate_(net, [*random_batches(4, 3, 8, 8, count=1), torch.zeros(4, 2, 8, 8)])
    one_value = nn.Sequential(nn.BatchNorm1d(3)).eval()
    kept = state(one_value)
    with pytest.raises(DataError, match="more than 1 value per channel"):
        reestimate_(one_value, [torch.randn(4, 3), torch.randn(1, 3)])
    assert same_state(net, before)
    assert same_state(one_value, kept)
    assert not any(m.training for m in net.modules())
    assert not net.bn1._forward_pre_hooks


def test_a_model_without_statistics_is_left_alone_and_the_data_unread() -> None:
    def never() -> Any:
        raise AssertionError("read")
        yield

    for net in (nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False)):
        before = state(net)
        reestimate_(net, never())
        assert same_state(net, before)


def test_a_norm_that_the_data_never_reaches_keeps_its_statistics() -> None:
    net = Idle(lambda: nn.BatchNorm1d(3))
    net.idle.running_mean += 5
    reestimate_(net, random_batches(4, 3, count=2))
    assert torch.equal(net.idle.running_mean, torch.full((3,), 5.0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_statistics_keep_their_type(dtype: torch.dtype) -> None:
    net = nn.Sequential(nn.BatchNorm1d(3)).to(dtype)
    reestimate_(net, [x.to(dtype) for x in random_batches(32, 3, count=2)])
    assert net[0].running_var.dtype == dtype


def test_compressed_networks_are_re_estimated_too() -> None:
    small = swap.apply(Residual(), low_rank(Residual(), 2))
    (x,) = random_batches(6, 3, 8, 8, count=1)
    reestimate_(small, [x])
    with torch.no_grad():
        assert_statistics(small.bn1, small.conv1(x).numpy())
