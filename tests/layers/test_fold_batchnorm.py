"""A folded batch norm computes what it computed before, wherever it may be folded, and says why where it may not."""

import copy
import itertools

import pytest
import torch
from layer_stubs import Entry, low_rank
from torch import nn

from nets import DataDependent, FanOut, Residual, lived
from tenfold.errors import ArgumentError
from tenfold.layers import swap
from tenfold.layers.fold_batchnorm import fold_batchnorm, norm_folds

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
OPTIONS = {
    "plain": {},
    "no-bias": {"bias": False},
    "stride-padding": {"stride": 2, "padding": 1},
    "dilation-groups": {"dilation": 2, "groups": 2, "padding": 2},
    "circular": {"padding": 1, "padding_mode": "circular"},
    "depthwise": {"groups": 4, "bias": False},
}


def pair(layer, norm):
    return nn.Sequential(layer, lived(norm), nn.ReLU()).double()


def exact(model, x, **options):
    model.eval()
    before, state = model(x), copy.deepcopy(model.state_dict())
    folded = fold_batchnorm(model.train(), **options)
    assert not any(isinstance(m, NORMS) for m in folded.modules())
    assert not any(m.training for m in folded.modules())
    assert all(m.training for m in model.modules())
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    torch.testing.assert_close(folded(x), before, rtol=1e-10, atol=1e-10)
    return folded


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_convolutions_over_all_options(axes, options):
    net = pair(CONVS[axes - 1](4, 8, 3, **options), NORMS[axes - 1](8))
    exact(net, torch.randn(2, 4, *[7, 6, 5][:axes], dtype=torch.float64))


@pytest.mark.parametrize(("axes", "groups", "bias"), list(itertools.product((1, 2, 3), (1, 2), (True, False))))
def test_transposed_convolutions(axes, groups, bias):
    layer = TRANSPOSED[axes - 1](4, 6, 3, stride=2, output_padding=1, groups=groups, bias=bias)
    exact(pair(layer, NORMS[axes - 1](6)), torch.randn(2, 4, *[4, 3, 2][:axes], dtype=torch.float64))


@pytest.mark.parametrize(
    ("fold", "slices"), [*itertools.product(["channel", "spatial", "input"], [1, 2]), ("decoupled", 1)]
)
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_factor_pairs_take_it_into_the_decoder(fold, slices, kind):
    net = pair(kind(8, 6, 3, padding=1, bias=False, groups=2), NORMS[1](6))
    small = swap.apply(net, {"0": Entry(2, slices, fold)})
    folded = exact(small, torch.randn(2, 8, 5, 6, dtype=torch.float64))
    assert torch.equal(folded[0].encoder.weight, small[0].encoder.weight)
    x = torch.randn(1, 8, 5, 6, dtype=torch.float64)  # the folded pair is a factorised layer like any other
    torch.testing.assert_close(swap.to_dense(folded)(x), folded(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_linear_layer_needs_inputs_as_proof(compressed):
    net = pair(nn.Linear(5, 4, bias=False), nn.BatchNorm1d(4))
    net = swap.apply(net, {"0": Entry(2)}) if compressed else net
    assert "example_inputs" in norm_folds(net)[0].reason
    x = torch.randn(3, 5, dtype=torch.float64)
    exact(net, x, example_inputs=x)
    sequence = torch.randn(3, 4, 5, dtype=torch.float64)  # here axis 1 is not the layer's
    assert "do not bear out" in norm_folds(net, example_inputs=sequence)[0].reason


@pytest.mark.parametrize("fold", [None, "channel", "decoupled"])
def test_a_whole_network(fold):
    net = Residual().double()
    for norm in net.modules():
        if isinstance(norm, NORMS):
            lived(norm)
    net = swap.apply(net, low_rank(net, 2, fold)) if fold else net
    exact(net, torch.randn(2, 3, 8, 8, dtype=torch.float64))


def test_norms_without_affine_parameters_and_other_dtypes():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)).double()
    net[1].running_mean.normal_()
    exact(net, torch.randn(2, 3, 5, 5, dtype=torch.float64))
    half = pair(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(torch.bfloat16).to(memory_format=torch.channels_last).eval()
    folded, x = fold_batchnorm(half), torch.randn(2, 3, 5, 5, dtype=torch.bfloat16)
    assert folded[0].bias.dtype == folded[0].weight.dtype == torch.bfloat16
    assert folded[0].weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(folded(x), half(x), rtol=0.05, atol=0.05)


def single():
    return nn.Sequential(nn.Conv2d(3, 4, 3), lived(nn.BatchNorm2d(4)))


def shared_layer():
    conv = nn.Conv2d(4, 4, 1)
    return nn.Sequential(conv, lived(nn.BatchNorm2d(4)), conv, lived(nn.BatchNorm2d(4)))


def shared_norm():
    norm = lived(nn.BatchNorm2d(4))
    return nn.Sequential(nn.Conv2d(4, 4, 1), norm, nn.Conv2d(4, 4, 1), norm)


def shared_weight():
    net = nn.Sequential(nn.Conv2d(4, 4, 1), lived(nn.BatchNorm2d(4)), nn.ReLU(), nn.Conv2d(4, 4, 1))
    net[3].weight = net[0].weight
    return net


def hooked():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), lived(nn.BatchNorm2d(4)))
    net[0].register_forward_hook(lambda *_: None)
    return net


def parametrized():
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 1)), lived(nn.BatchNorm2d(4)))


STAY = [
    (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)), "tracks no statistics"),
    (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)), "no layer stands directly"),
    (FanOut, "no layer stands directly"),
    (shared_layer, "no layer stands directly"),
    (shared_norm, "no layer stands directly"),
    (shared_weight, "shares its weight"),
    (hooked, "carries hooks"),
    (parametrized, "more than a plain layer"),
    (lambda: DataDependent(single()), "cannot be traced"),
]


@pytest.mark.parametrize(("make", "reason"), STAY)
def test_what_cannot_be_folded_stays_and_says_why(make, reason):
    net = make()
    found = norm_folds(net)
    assert found
    assert all(reason in f.reason for f in found)
    x = torch.randn(2, next(m for m in net.modules() if isinstance(m, nn.Conv2d)).in_channels, 5, 5)
    net(x)
    folded = fold_batchnorm(net)
    assert torch.equal(folded(x), net.eval()(x))


def test_inputs_or_the_users_word_prove_what_tracing_cannot():
    net, x = DataDependent(single()).double(), torch.randn(2, 3, 5, 5, dtype=torch.float64)
    exact(net, x, example_inputs=x)
    exact(net, x, given={"inner.0": "inner.1"})


def test_a_model_that_uses_the_output_twice_is_refused():
    net, x = DataDependent(FanOut()).double(), torch.randn(2, 4, 5, 5, dtype=torch.float64)
    with pytest.raises(ArgumentError, match="outputs differ by"):
        fold_batchnorm(net, example_inputs=x)
    with pytest.raises(ArgumentError, match="wrapped in DataParallel"):
        fold_batchnorm(nn.DataParallel(net))
