"""A layer in training form: the chain, the merged layer and the dense layer of the reconstruction are one."""

import copy
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from helpers import passes_alone, relative
from tenfold.errors import ArgumentError
from tenfold.layers.spec import spec_of
from tenfold.layers.tucker import TuckerConv
from tenfold.layers.tucker_protocol import Factorised
from tenfold.layers.tucker_training import TrainedTucker, reserve_

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
SIZES = {1: (9,), 2: (7, 6), 3: (5, 4, 5)}
CASES = {
    "linear": (nn.Linear(8, 6), (3, 5, 8), (3, 3)),
    "conv1d": (nn.Conv1d(8, 6, 3, padding="same", padding_mode="circular"), (2, 8, 9), (2, 3)),
    "conv2d": (nn.Conv2d(8, 6, 3, stride=2, padding=1), (2, 8, 6, 5), (2, 3)),
    "pointwise": (nn.Conv2d(8, 6, 1, stride=2), (2, 8, 6, 5), (3, 3)),
    "grouped": (nn.Conv2d(8, 6, 3, groups=2), (2, 8, 6, 5), (2, 3)),
    "spatial": (nn.Conv2d(8, 6, 5, padding=2), (2, 8, 6, 5), (3, 2, 2, 4)),
    "transposed": (nn.ConvTranspose2d(8, 6, 3, stride=2), (2, 8, 4, 5), (2, 3)),
}


def trained(layer: nn.Module, ranks: Any) -> TrainedTucker:
    """``layer`` with random factors: nothing here asks for orthonormal columns."""
    spec = spec_of(layer)
    assert spec is not None
    new = TrainedTucker.like(layer, spec, ranks)
    with torch.no_grad():
        for p in new.factors:
            p.normal_()
    return new


def dense(layer: nn.Module, weight: Tensor, x: Tensor, **call: Any) -> Tensor:
    return torch.func.functional_call(layer, {"weight": weight}, (x,), call)


def reconstruction(new: TrainedTucker) -> Tensor:
    """The kernel by numpy, group by group."""
    letters, whole = "abcde", []
    core = new.core.detach().numpy()
    for g in range(new.groups):
        part = np.split(core, new.groups)[g]
        for i, basis in enumerate(new.bases):
            u = np.split(basis.detach().numpy(), new.groups)[g]
            axes = letters[: part.ndim]
            part = np.einsum(f"{axes},z{axes[i]}->{axes.replace(axes[i], 'z')}", part, u)
        whole.append(part)
    return torch.from_numpy(np.concatenate(whole))


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, TrainedTucker]:
    layer, shape, ranks = CASES[request.param]
    layer = copy.deepcopy(layer).double()
    return layer, torch.randn(shape, dtype=torch.float64), trained(layer, ranks)


def same_three(layer: nn.Module, new: TrainedTucker, x: Tensor, **call: Any) -> float:
    """The largest gap of chain, merged and deployed form from the dense layer of the reconstruction."""
    expected = dense(layer, new.to_layer().weight, x, **call)
    forms = [new._merge(x, **call), new.deployed()(x, **call), new(x, **call)]
    forms += [new._chain(x, **call)] if new.groups == 1 else []
    assert all(y.shape == expected.shape for y in forms)
    return max(relative(y, expected) for y in forms)


def test_the_kernel_is_the_product_of_core_and_bases(case) -> None:
    _, _, new = case
    assert relative(new.kernel, reconstruction(new)) < 1e-13


def test_all_forms_of_one_layer_compute_the_same(case) -> None:
    layer, x, new = case
    assert same_three(layer, new, x) < 1e-12


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("axes", [1, 2, 3])
@torch.no_grad()
def test_chain_merged_and_dense_agree_over_the_options(axes: int) -> None:
    kernel, x = (3, 2, 2)[:axes], torch.randn(2, 4, *SIZES[axes], dtype=torch.float64)
    modes = ("zeros", "reflect", "replicate", "circular")
    for stride, padding, mode, dilation, groups, bias in itertools.product(
        (1, (2, 1, 2)[:axes]), ((0, 2, 1)[:axes], "same", "valid"), modes, (1, (1, 2, 1)[:axes]), (1, 2), (True, False)
    ):
        if padding == "same" and stride != 1:
            continue
        layer = CONVS[axes](
            4, 6, kernel, stride=stride, padding=padding, padding_mode=mode, dilation=dilation, groups=groups, bias=bias
        ).double()
        assert same_three(layer, trained(layer, (3, 2)), x) < 1e-12, layer


@pytest.mark.parametrize("axes", [1, 2, 3])
@torch.no_grad()
def test_chain_merged_and_dense_agree_for_transposed_ones(axes: int) -> None:
    x = torch.randn(2, 4, *SIZES[axes], dtype=torch.float64)
    for stride, padding, groups, extra in itertools.product((1, (3, 2, 2)[:axes]), (0, 1), (1, 2), (0, 1)):
        if extra and stride == 1:
            continue
        layer = TRANSPOSED[axes](
            4, 6, (3, 2, 2)[:axes], stride=stride, padding=padding, groups=groups, output_padding=extra
        ).double()
        new = trained(layer, (3, 2))
        assert same_three(layer, new, x) < 1e-12, layer
        size = [n + (stride != 1) for n in layer(x).shape[2:]] if not extra else list(layer(x).shape[2:])
        assert same_three(layer, new, x, output_size=size) < 1e-12, layer


def test_gradients_are_the_chain_rule_through_the_kernel(case) -> None:
    layer, x, new = case
    grads = []
    for run in (new, new._merge, lambda x: dense(layer, new.weight, x)):
        y = run(x)
        grads.append(torch.autograd.grad(y.square().sum() + y.sum(), new.factors))
    for a, b, c in zip(*grads, strict=True):
        assert c.norm() > 0
        assert max(relative(a, c), relative(b, c)) < 1e-11


def test_it_is_what_an_integrator_asks_for(case) -> None:
    _, _, new = case
    assert isinstance(new, Factorised)
    assert not isinstance(new.deployed(), Factorised)
    assert not bool(new.augmented)
    assert new.ranks == tuple(b.shape[1] for b in new.bases)
    assert {"core", "augmented", *(f"basis_{i}" for i in range(new.modes))} < set(new.state_dict())


def test_a_state_of_other_ranks_is_taken_with_its_ranks(case) -> None:
    layer, x, new = case
    other = trained(layer, [1] * new.modes)
    kept = [id(p) for p in other.parameters()]
    other(x).sum().backward()
    new.augmented.fill_(True)
    other.load_state_dict(new.state_dict())
    assert [id(p) for p in other.parameters()] == kept
    assert all(p.grad is None for p in other.factors)
    assert torch.equal(other(x), new(x))
    assert bool(other.augmented)
    other(x).sum().backward()  # autograd knows the new shapes


# ---- with room for larger ranks


def room(layer: TrainedTucker) -> tuple[int, ...]:
    return tuple(min(r + 2, n) for r, n in zip(layer.ranks, layer.sizes, strict=False))


def test_with_room_for_larger_ranks_it_computes_the_same_and_padding_has_no_gradient(case) -> None:
    _, x, new = case
    wide, ranks = copy.deepcopy(new), new.ranks
    wide.reserve_(room(new))
    assert wide.static
    assert (wide.ranks, wide.stored) == (ranks, room(new))
    assert f"ranks={ranks} of {room(new)}" in repr(wide)
    assert max(relative(wide(x), new(x)), relative(wide._merge(x), new(x)), relative(wide.kernel, new.kernel)) < 1e-12
    for a, b in zip(wide.deployed().parameters(), new.deployed().parameters(), strict=True):
        assert torch.equal(a, b)
    narrow = torch.autograd.grad(new(x).square().sum(), new.factors)
    for run in (wide, wide._merge):
        grads = torch.autograd.grad(run(x).square().sum(), wide.factors)
        for i, (g, expected) in enumerate(zip(grads, narrow, strict=True)):
            if i:  # a basis
                kept, outside = g[:, : ranks[i - 1]], g[:, ranks[i - 1] :]
            else:
                parts = g.unflatten(0, (new.groups, -1)).clone()
                block = (slice(None), *(slice(r) for r in ranks))
                kept = parts[block].flatten(0, 1).clone()
                parts[block] = 0
                outside = parts
            assert relative(kept, expected) < 1e-11
            assert not outside.any()


def test_ranks_change_within_the_room_and_the_parameters_stay(case) -> None:
    layer, x, new = case
    other = trained(layer, [1] * new.modes)
    other.reserve_(room(new))
    kept = [(id(p), p.shape, p.data_ptr()) for p in other.parameters()]
    other.set_factors(*(p.detach() for p in new.factors))
    assert other.ranks == new.ranks
    assert relative(other(x), new(x)) < 1e-12
    if other.stored != new.sizes[: new.modes]:
        with pytest.raises(ArgumentError, match="`bases` must be of ranks up to"):
            other.set_factors(*trained(layer, new.sizes[: new.modes]).factors)
    one = trained(layer, [1] * new.modes)
    other.set_factors(*(p.detach() for p in one.factors))
    assert relative(other(x), one(x)) < 1e-12
    assert [(id(p), p.shape, p.data_ptr()) for p in other.parameters()] == kept
    for wrong in ([0] * new.modes, [n + 1 for n in new.sizes[: new.modes]], (2,)):
        with pytest.raises(ArgumentError, match="`capacity` must be"):
            new.reserve_(wrong)


def test_states_carry_the_ranks_between_layers_with_the_same_room_and_no_others(case) -> None:
    layer, x, new = case
    wide = copy.deepcopy(new)
    wide.reserve_(room(new))
    other = trained(layer, [1] * new.modes)
    other.reserve_(room(new))
    other.load_state_dict(wide.state_dict())
    assert other.ranks == new.ranks
    assert torch.equal(other(x), wide(x))
    with pytest.raises(RuntimeError, match="present"):
        other.load_state_dict(new.state_dict())
    with pytest.raises(RuntimeError, match="present"):
        new.load_state_dict(wide.state_dict())
    assert new.stored == new.ranks == wide.ranks


def test_tied_layers_share_their_room() -> None:
    a = trained(nn.Linear(8, 6), (2, 3))
    b = trained(nn.Linear(8, 6), (2, 3))
    b.share_(a)
    model = copy.deepcopy(nn.ModuleList([a, b, trained(nn.Linear(8, 6), (2, 2))]))
    reserve_(model, room)
    assert model[0].core is model[1].core
    model[0].set_factors(*(p.detach() for p in trained(nn.Linear(8, 6), (1, 4)).factors))
    assert model[1].ranks == (1, 4)
    assert model[2].ranks == (2, 2)
    x = torch.randn(4, 8)
    torch.testing.assert_close(model[0](x) - model[0].bias, model[1](x) - model[1].bias)


def test_a_state_of_another_layer_is_refused_and_changes_no_rank() -> None:
    new = trained(nn.Conv2d(8, 6, 3), (2, 3))
    for layer in (nn.Conv2d(7, 6, 3), nn.Conv2d(8, 6, 5)):
        with pytest.raises(RuntimeError, match="size mismatch"):
            new.load_state_dict(trained(layer, (3, 4)).state_dict())
    damaged = trained(nn.Conv2d(8, 6, 3), (3, 4)).state_dict()
    damaged["core"] = damaged["core"][1:]
    with pytest.raises(RuntimeError, match="size mismatch"):
        new.load_state_dict(damaged)
    assert new.ranks == (2, 3)


def test_copies_compute_bitwise_the_same_and_are_their_own(case) -> None:
    _, x, new = case
    other = copy.deepcopy(new)
    assert torch.equal(other(x), new(x))
    assert {id(p) for p in other.parameters()}.isdisjoint({id(p) for p in new.parameters()})


def test_options_bias_mode_and_what_is_trained_are_those_of_the_layer(case) -> None:
    layer, _, _ = case
    layer.eval().weight.requires_grad_(False)
    new = trained(layer, [1, 1])
    names = ["in_features", "out_features"] if isinstance(layer, nn.Linear) else [
        "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode",
    ]  # fmt: skip
    assert [getattr(new, n) for n in names] == [getattr(layer, n) for n in names]
    assert torch.equal(new.bias, layer.bias)
    assert new.bias is not layer.bias
    assert {p.requires_grad for p in new.factors} == {False}
    assert new.bias.requires_grad
    assert not new.training
    assert new.weight.shape == layer.weight.shape


@pytest.mark.parametrize(
    ("layer", "shape", "ranks"),
    [
        (nn.Conv2d(16, 12, 3, padding=1), (2, 16, 8, 8), (3, 4)),
        (nn.Conv2d(16, 12, 3, stride=2, padding=1), (2, 16, 8, 8), (3, 4)),
        (nn.Conv2d(16, 12, 1, stride=2), (2, 16, 8, 8), (4, 4)),
        (nn.Conv1d(16, 12, 3, padding="same"), (2, 16, 8), (5, 2)),
        (nn.ConvTranspose2d(16, 12, 2, stride=2), (2, 16, 4, 4), (3, 4)),
        (nn.Linear(16, 12), (5, 16), (4, 4)),
    ],
)
def test_the_share_that_decides_between_chain_and_merged_is_that_of_the_macs(layer, shape, ranks) -> None:
    new, x = trained(layer, ranks), torch.randn(shape)
    counts = []
    for run in (new._chain, layer):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            run(x)
        counts.append(counter.get_total_flops())
    assert new.chain_share == pytest.approx(counts[0] / counts[1])
    assert not new.merged
    wide = trained(layer, [min(layer.weight.shape[:2])] * 2)
    assert wide.chain_share >= 0.8
    assert wide.merged


def test_grouped_layers_are_merged() -> None:
    assert trained(nn.Conv2d(32, 32, 3, groups=2), (1, 1)).merged


@torch.no_grad()
def test_channels_last_stays_and_agrees() -> None:
    layer = nn.Conv2d(16, 12, 3, padding=1).double().to(memory_format=torch.channels_last)
    new = trained(layer, (3, 4))
    assert new.core.is_contiguous(memory_format=torch.channels_last)
    x = torch.randn(2, 16, 6, 5, dtype=torch.float64).to(memory_format=torch.channels_last)
    y = new(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert relative(y, dense(layer, new.weight, x)) < 1e-12
    assert new.to_layer().weight.stride() == layer.weight.stride()


@torch.no_grad()
def test_bfloat16_and_autocast_agree_to_their_rounding(case) -> None:
    _, x, new = case
    expected = new(x)
    low = copy.deepcopy(new).to(torch.bfloat16)
    assert low(x.to(torch.bfloat16)).dtype == torch.bfloat16
    assert relative(low(x.to(torch.bfloat16)), expected) < 3e-2
    new.float()
    with torch.autocast("cpu", torch.bfloat16):
        y = new(x.float())
    assert y.dtype == torch.bfloat16
    assert relative(y, expected) < 3e-2


def check_compilers() -> None:
    for name in ("linear", "conv1d", "grouped", "spatial", "transposed"):
        layer, shape, ranks = CASES[name]
        new, x = trained(copy.deepcopy(layer).double(), ranks), torch.randn(shape, dtype=torch.float64)
        torch._dynamo.reset()
        compiled = torch.compile(new, fullgraph=True, backend="aot_eager")
        assert relative(compiled(x), new(x)) < 1e-12, name
        grads = [torch.autograd.grad(run(x).square().sum(), new.factors) for run in (compiled, new)]
        assert all(relative(a, b) < 1e-11 for a, b in zip(*grads, strict=True)), name
        assert relative(torch.export.export(new, (x,)).module()(x), new(x)) < 1e-12, name


def test_it_compiles_and_exports() -> None:
    passes_alone(check_compilers)


@pytest.mark.parametrize("groups", [1, 2])
def test_more_rank_than_a_kernel_can_use_is_deployed_without_loss(groups: int) -> None:
    """In the middle of a cycle the bases have grown, and nothing has been cut yet."""
    layer, x = nn.Conv1d(8, 24, 2, groups=groups).double(), torch.randn(2, 8, 9, dtype=torch.float64)
    new = trained(layer, (9, 2))
    small = new.deployed()
    assert isinstance(small, TuckerConv)
    assert small.rank == (4, 2)
    assert relative(small(x), new(x)) < 1e-10
    layer, x = nn.Conv1d(8, 6, 1, groups=groups).double(), torch.randn(2, 8, 9, dtype=torch.float64)
    for ranks in ((1, 3), (3, 1)):
        new = trained(layer, ranks)
        assert new.deployed().rank == 1
        assert relative(new.deployed()(x), new(x)) < 1e-12


@pytest.mark.parametrize("ranks", [(0, 1), (7, 1), (1, 9), (1,), (1, 1, 4), (1, 1, 3, 3, 1)])
def test_impossible_ranks_are_refused(ranks: tuple[int, ...]) -> None:
    layer = nn.Conv2d(8, 6, 3)
    with pytest.raises(ArgumentError, match=r"`ranks(\[\d\])?` must be"):
        TrainedTucker.like(layer, spec_of(layer), ranks)


def test_print_tells_ranks_and_execution() -> None:
    assert "ranks=(2, 3), chain" in repr(trained(nn.Conv2d(16, 12, 3), (2, 3)))
    assert math.prod(trained(nn.Conv2d(16, 12, 3), (2, 3)).core.shape) == 2 * 3 * 9
