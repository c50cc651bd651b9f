"""Parameters and MACs against numbers worked out by hand, and against torch's counter on real runs."""

import itertools
import warnings
from typing import Any

import pytest
import torch
from layer_stubs import TUCKER, Entry, factorised, low_rank, sliced
from torch import Tensor, nn
from torch.nn import functional as F

import tenfold
from helpers import counted_macs, same_state, state
from nets import DataDependent, Idle, Pyramid, Remembers, Residual, Tied
from tenfold.errors import ArgumentError
from tenfold.layers import swap
from tenfold.layers.cost import Cost, cost, count_params, layer_cost, trace
from tenfold.layers.spec import spec_of
from tenfold.linalg.fold import NAMES

# ---- whole models, by hand


def test_a_residual_network_by_hand() -> None:
    def conv(inner: int, outer: int, kernel: int, size: int) -> int:
        return inner * outer * kernel**2 * size**2

    first = conv(8, 8, 3, 10) * 2 + conv(8, 8, 1, 10)
    second = conv(8, 16, 3, 5) + conv(16, 16, 3, 5) + conv(8, 16, 1, 5)
    macs = conv(3, 8, 3, 10) + first + second + 16 * 5
    assert cost(Residual(), torch.zeros(1, 3, 10, 10)).macs == macs
    assert cost(Residual(), torch.zeros(7, 3, 10, 10)).macs == 7 * macs


@pytest.mark.parametrize("bias", [True, False])
def test_convolutions_by_hand(bias: bool) -> None:
    x = torch.zeros(2, 4, 9, 8)
    depthwise = nn.Conv2d(4, 12, 3, groups=4, bias=bias)
    assert cost(depthwise, x) == Cost(12 * 9 + 12 * bias, 2 * 12 * 9 * 7 * 6)
    grouped = nn.Conv2d(4, 6, (3, 2), stride=(2, 1), groups=2, bias=bias)
    assert cost(grouped, x) == Cost(6 * 2 * 6 + 6 * bias, 2 * 6 * 2 * 6 * 4 * 7)
    transposed = nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, bias=bias)  # every weight once per *input* position
    assert cost(transposed, x) == Cost(4 * 3 * 9 + 6 * bias, 2 * 4 * 3 * 9 * 9 * 8)
    assert cost(nn.Conv1d(4, 6, 3, dilation=2, bias=bias), torch.zeros(2, 4, 9)).macs == 2 * 4 * 6 * 3 * 5
    assert cost(nn.Conv3d(4, 6, 2, bias=bias), torch.zeros(1, 4, 3, 3, 3)).macs == 4 * 6 * 8 * 8
    assert cost(nn.Conv2d(4, 6, 3, bias=bias), x[0]).macs == 4 * 6 * 9 * 7 * 6  # unbatched


def recurrent(kind: type[nn.RNNBase], gates: int, inner: int, hidden: int, layers: int, both: bool) -> int:
    """MACs of one step of one sequence."""
    ways = 2 if both else 1
    sizes = [inner] + [hidden * ways] * (layers - 1)
    return sum(ways * gates * hidden * (size + hidden) for size in sizes)


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
@pytest.mark.parametrize(("layers", "both"), [(1, False), (2, True)])
def test_recurrent_layers_by_hand(kind: Any, gates: int, layers: int, both: bool) -> None:
    net = kind(8, 16, layers, bidirectional=both)
    macs = 5 * 3 * recurrent(kind, gates, 8, 16, layers, both)
    assert cost(net, torch.zeros(5, 3, 8)).macs == macs
    assert cost(DataDependent(net), torch.zeros(5, 3, 8)).macs == macs


def test_lstm_projection_by_hand() -> None:
    assert cost(nn.LSTM(8, 16, proj_size=4), torch.zeros(5, 3, 8)).macs == 5 * 3 * (4 * 16 * (8 + 4) + 16 * 4)


@pytest.mark.parametrize("weights", [True, False])
def test_attention_by_hand(weights: bool) -> None:
    net = nn.MultiheadAttention(8, 2, batch_first=True)
    q, k = torch.zeros(2, 5, 8), torch.zeros(2, 7, 8)
    projections = 2 * (5 + 7 + 7 + 5) * 8 * 8
    products = 2 * 2 * 5 * 7 * 8
    inputs = {"query": q, "key": k, "value": k, "need_weights": weights}
    assert cost(net, inputs).macs == projections + products


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_transformer_encoders_by_hand(norm_first: bool, training: bool) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 32, batch_first=True, norm_first=norm_first)
    net = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).train(training)
    each = 2 * 5 * (4 * 8 * 8 + 2 * 8 * 32) + 2 * 2 * 5 * 5 * 8
    assert cost(net, torch.zeros(2, 5, 8)).macs == 3 * each
    assert cost(DataDependent(net), torch.zeros(2, 5, 8)).macs == 3 * each


class Attention(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, k, **self.options)


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"scale": 2.0}])
@pytest.mark.parametrize("wrap", [nn.Sequential, DataDependent])
def test_fused_attention_is_counted_on_meta_and_on_a_real_run(options: dict[str, Any], wrap: Any) -> None:
    """As two full products, causal or not: what the kernel skips is its own business."""
    q, k = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 7, 4)
    net = DataDependent(Attention(**options)) if wrap is DataDependent else Attention(**options)
    assert cost(net, (q, k)).macs == 2 * 3 * 5 * 7 * 4 * 2


# ---- parameters


def test_buffers_are_no_parameters_and_tied_ones_count_once() -> None:
    assert count_params(nn.BatchNorm2d(5)) == 10
    net = Tied()
    assert count_params(net) == 20 * 16 + 16 * 16 + 16 + (16 * 8 * 3 + 16) + (16 * 24 + 24) + (24 * 16 + 16)
    shared = nn.Linear(4, 4)
    assert cost(nn.Sequential(shared, shared)) == Cost(20, None)


def test_lazy_models_are_asked_to_run_first() -> None:
    with pytest.raises(ArgumentError, match=r"'0\.weight' is lazy. Run the model once first"):
        cost(nn.Sequential(nn.LazyLinear(4)))


# ---- inputs


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 4, 3)

    def forward(self, x: Tensor, *, scale: Tensor | None = None) -> Tensor:
        y = self.conv(input=x)
        return y if scale is None else y * scale


def test_inputs_are_a_tensor_a_tuple_or_a_dict() -> None:
    x = torch.zeros(2, 4, 6)
    found = {cost(Keywords(), inputs).macs for inputs in (x, (x,), [x], {"x": x}, {"x": x, "scale": torch.ones(1)})}
    assert found == {2 * 4 * 4 * 3 * 4}


def test_a_layer_called_by_keyword_is_recorded() -> None:
    assert trace(Keywords(), torch.zeros(2, 4, 6), ["conv"]).calls == {"conv": ((2, (6,), (4,)),)}


@pytest.mark.parametrize("inputs", [torch.zeros(2, 5), (), {"y": torch.zeros(2, 4)}, "text", (torch.zeros(2, 4),) * 2])
def test_inputs_that_do_not_fit_are_one_clear_error(inputs: Any) -> None:
    with pytest.raises(ArgumentError, match="`example_inputs` must be inputs that the model accepts") as error:
        cost(nn.Sequential(nn.Linear(4, 4)), inputs)
    assert "Pass a tensor, a tuple" in str(error.value)


def test_a_wrapped_model_is_refused() -> None:
    with pytest.raises(ArgumentError, match="must not be wrapped in DataParallel"):
        cost(nn.DataParallel(nn.Linear(4, 4)), torch.zeros(2, 4))


# ---- it is a query


@pytest.mark.parametrize("real", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_counting_changes_nothing(real: bool, training: bool) -> None:
    net = Remembers().train(training)
    net.fc.eval()
    model = DataDependent(net).train(training) if real else net
    before, modes, random = state(model), [m.training for m in model.modules()], torch.get_rng_state()
    fast = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cost(model, torch.randn(3, 4)).macs == 3 * 16
    random_after = torch.get_rng_state()
    torch.set_rng_state(random)
    torch.randn(3, 4)  # the inputs above
    assert torch.equal(torch.get_rng_state(), random_after)
    assert [m.training for m in model.modules()] == modes
    assert (net.calls, hasattr(net, "last")) == (0, False)
    assert not net._forward_hooks
    assert not net.fc._forward_hooks
    assert (torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled) == fast
    assert same_state(model, before)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_old_weight_norm_does_not_stop_the_count() -> None:
    assert cost(nn.utils.weight_norm(nn.Linear(4, 6)), torch.zeros(2, 4)).macs == 2 * 24


# ---- options of a layer: the formula, the built layer, torch's counter


LAYERS = {
    "linear": (nn.Linear(8, 6), (3, 5, 8)),
    "conv1d": (nn.Conv1d(4, 6, 3, stride=2), (2, 4, 9)),
    "conv2d": (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=1, dilation=(1, 2), groups=2), (2, 4, 8, 9)),
    "same": (nn.Conv2d(4, 6, 3, padding="same", padding_mode="circular"), (2, 4, 6, 5)),
    "conv3d": (nn.Conv3d(4, 6, (3, 2, 1), stride=(1, 2, 1)), (1, 4, 5, 4, 3)),
    "transposed": (nn.ConvTranspose2d(4, 6, (3, 2), stride=(2, 3), groups=2), (2, 4, 4, 5)),
    "transposed3d": (nn.ConvTranspose3d(4, 6, 2, stride=2), (1, 4, 2, 3, 2)),
    "unbatched": (nn.Conv2d(4, 6, 3), (4, 6, 5)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_the_cost_of_an_option_is_that_of_the_built_layer(kind: str) -> None:
    layer, shape = LAYERS[kind]
    x = torch.zeros(shape)
    priced = layer_cost(spec_of(layer), trace(layer, x, [""]).calls[""])
    assert priced.dense() == Cost(layer.weight.numel(), counted_macs(layer, x))
    structures = [(fold, slices) for fold in NAMES for slices in sliced(layer, fold, 1, 2)]
    full = {(fold, slices): factorised(layer, None, slices, fold).rank for fold, slices in structures}
    for (fold, slices), rank in [(key, rank) for key, top in full.items() for rank in range(1, top + 1)]:
        small = factorised(layer, rank, slices, fold)
        weights = count_params(small) - layer.bias.numel()
        assert priced.low_rank(rank, slices, fold) == Cost(weights, counted_macs(small, x)), (fold, slices, rank)
    if kind != "linear":
        for pair in itertools.product(range(1, 4), repeat=2):
            small = factorised(layer, tuple(map(min, pair, factorised(layer, None, 1, TUCKER).rank)), 1, TUCKER)
            weights = count_params(small) - layer.bias.numel()
            assert priced.tucker(small.rank) == Cost(weights, counted_macs(small, x)), small.rank


@pytest.mark.parametrize("groups", [1, 2])
def test_the_decoupled_fold_by_hand(groups: int) -> None:
    """The pointwise encoder works where the input is, the depthwise decoder where the output is."""
    layer, x = nn.Conv2d(8, 6, (3, 2), stride=2, padding=1, groups=groups), torch.zeros(2, 8, 9, 7)
    priced = layer_cost(spec_of(layer), trace(layer, x, [""]).calls[""])
    for r in range(1, 8 // groups if groups == 2 else 7):
        encoder, decoder = r * 6 * (8 // groups), r * 6 * (3 * 2)
        expected = Cost(encoder + decoder, 2 * (encoder * 9 * 7 + decoder * 5 * 4))
        assert priced.low_rank(r, 1, "decoupled") == expected
        assert cost(factorised(layer, r, 1, "decoupled"), x) == Cost(expected.params + 6, expected.macs)
    transposed, x = nn.ConvTranspose2d(8, 6, (3, 2), stride=2, groups=groups), torch.zeros(2, 8, 4, 5)
    priced = layer_cost(spec_of(transposed), trace(transposed, x, [""]).calls[""])
    params = 6 * (8 // groups) + 6 * (3 * 2)
    assert priced.low_rank(1, 1, "decoupled") == Cost(params, 2 * params * 4 * 5)


def test_a_layer_used_at_several_sizes_is_charged_for_each() -> None:
    net, x = Pyramid(), torch.zeros(1, 4, 8, 8)
    assert sorted(trace(net, x, ["conv"]).calls["conv"]) == [
        (2, (2, 2), (2, 2)),
        (2, (4, 4), (4, 4)),
        (2, (8, 8), (8, 8)),
    ]
    small, plan, _ = tenfold.compress(net, tenfold.ALDS(), tenfold.Budget(macs=0.6), example_inputs=x)
    assert plan.macs == counted_macs(small, x) <= 0.6 * counted_macs(net, x)


@pytest.mark.parametrize("budget", [tenfold.Budget(params=0.5), tenfold.Budget(macs=0.5)])
def test_the_plan_the_report_and_the_built_network_agree(budget: tenfold.Budget) -> None:
    net, x = Residual().eval(), torch.zeros(2, 3, 10, 10)
    small, plan, report = tenfold.compress(net, tenfold.ALDS(), budget, example_inputs=x)
    assert plan.params == report.small.params == count_params(small)
    assert plan.macs == report.small.macs == counted_macs(small, x)
    assert report.dense == Cost(count_params(net), counted_macs(net, x))


def test_a_layer_that_the_inputs_do_not_reach_costs_no_macs() -> None:
    found = trace(Idle(), torch.zeros(2, 4), ["used", "idle"])
    assert found.calls == {"used": ((2, (), ()),), "idle": ()}
    assert found.macs == 32
    assert layer_cost(spec_of(nn.Linear(4, 4)), ()).dense() == Cost(16, 0)


def test_costs_of_a_factorised_network_need_no_weights() -> None:
    """A network too large to hold is counted on the meta device."""
    with torch.device("meta"):
        net = Residual(width=4096)
    found = cost(net, torch.zeros(1, 3, 8, 8))
    assert found.params == count_params(net) > 10**9
    assert found.macs is not None
    assert found.macs > 64 * 9 * 4096**2 * 2


def test_low_rank_layers_inside_a_network_are_counted_as_their_factors() -> None:
    net, x = Residual(), torch.zeros(1, 3, 8, 8)
    todo = low_rank(net, 2)
    small = swap.apply(net, todo)
    total = 0
    for name in todo:
        layer = net.get_submodule(name)
        total += layer_cost(spec_of(layer), trace(net, x, [name]).calls[name]).low_rank(2).macs or 0
    assert cost(small, x).macs == total == counted_macs(small, x)
    assert swap.apply(net, {"fc": Entry(1)}).fc.rank == 1
