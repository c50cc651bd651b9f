"""A factorised layer is a plain module: it computes what its dense equivalent computes, and can do what modules can."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from layer_stubs import TUCKER, factorised, sliced
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from helpers import relative, same_state
from tenfold.errors import ArgumentError, TenfoldError
from tenfold.layers.matrix import LowRank, LowRankConv, LowRankLinear
from tenfold.layers.spec import spec_of
from tenfold.linalg.fold import NAMES

CASES = {
    "linear": (nn.Linear(8, 6), (3, 8), "channel"),
    "conv1d": (nn.Conv1d(4, 6, 3, stride=2), (2, 4, 9), "input"),
    "conv2d": (nn.Conv2d(4, 6, (3, 2), padding=1, groups=2), (2, 4, 6, 5), "channel"),
    "conv2d-spatial": (nn.Conv2d(4, 6, 3, padding=(1, 2), dilation=2), (2, 4, 8, 7), "spatial"),
    "conv2d-reflect": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (2, 4, 6, 5), "spatial-t"),
    "conv2d-decoupled": (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 6, 5), "decoupled"),
    "conv3d": (nn.Conv3d(4, 6, 3), (1, 4, 5, 4, 4), "spatial"),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (2, 4, 4, 5), "channel"),
    "transposed-spatial": (nn.ConvTranspose2d(4, 6, 3, stride=2), (2, 4, 4, 5), "spatial"),
    "conv1d-tucker": (nn.Conv1d(4, 6, 3, padding="same", padding_mode="circular"), (2, 4, 9), TUCKER),
    "conv2d-tucker": (nn.Conv2d(4, 6, (3, 2), stride=2, padding=1, groups=2), (2, 4, 6, 5), TUCKER),
    "transposed-tucker": (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (2, 4, 4, 5), TUCKER),
    "transposed-decoupled": (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (2, 4, 4, 5), "decoupled"),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, str]:
    layer, shape, fold = CASES[request.param]
    return copy.deepcopy(layer).double(), torch.randn(shape, dtype=torch.float64), fold


def cut(layer: nn.Module, fold: str, slices: int = 2) -> LowRank:
    """``layer`` at rank 1 in so many slices, or in one where the fold takes no more."""
    return factorised(layer, 1, max(sliced(layer, fold, 1, slices)), fold)


def with_weight(layer: nn.Module, weight: Tensor, x: Tensor) -> Tensor:
    """What the dense ``layer`` would put out with another weight."""
    return torch.func.functional_call(layer, {"weight": weight}, (x,))


@pytest.mark.parametrize("slices", [1, 2])
def test_output_is_that_of_the_dense_layer_with_the_equivalent_weight(case, slices: int) -> None:
    layer, x, fold = case
    small = cut(layer, fold, slices)
    assert small.weight.shape == layer.weight.shape
    assert relative(small(x), with_weight(layer, small.weight, x)) < 1e-12


def test_asking_for_the_form_of_the_equivalent_weight_multiplies_nothing(case) -> None:
    layer, _, fold = case
    small = cut(layer, fold)
    with FlopCounterMode(display=False) as counter:
        weight = small.weight
        assert isinstance(weight, Tensor)
        assert (weight.dtype, weight.device) == (layer.weight.dtype, layer.weight.device)
        assert weight.shape == weight.size() == layer.weight.shape
        assert weight.size(0) == layer.weight.size(0)
        assert (weight.ndim, weight.dim(), weight.numel()) == (
            layer.weight.ndim,
            layer.weight.dim(),
            layer.weight.numel(),
        )
        assert weight.is_floating_point()
    assert counter.get_total_flops() == 0


def test_the_equivalent_weight_is_a_tensor_like_any_other(case) -> None:
    layer, _, fold = case
    small = cut(layer, fold)
    plain = small.to_layer().weight.detach()
    weight = small.weight
    assert weight.requires_grad
    assert torch.equal(weight, plain)
    assert type(weight + 0) is type(weight.detach().clone()) is Tensor
    assert np.array_equal(weight.detach().numpy(), plain.numpy())
    assert torch.equal(weight[0], plain[0])
    assert torch.equal(weight.mT, plain.mT)
    assert torch.equal(copy.deepcopy(weight.detach()), plain)
    assert torch.equal(torch.stack([weight, weight])[1], plain)
    assert weight.to(torch.float32).dtype == torch.float32
    assert weight.flatten()[0].item() == plain.flatten()[0].item()
    assert repr(weight.detach()) == repr(plain)
    with torch.no_grad():
        assert not small.weight.requires_grad
    (grad,) = torch.autograd.grad(weight.square().sum(), [small.decoder.weight])
    assert grad.norm() > 0


@pytest.mark.parametrize("layer", [nn.Linear(8, 6), nn.Conv1d(4, 6, 3), nn.Conv2d(4, 6, 3, padding=1)])
def test_the_equivalent_weight_is_the_best_of_its_rank(layer: nn.Module) -> None:
    layer = copy.deepcopy(layer).double()
    w = layer.weight.detach().flatten(1).numpy()
    u, s, vh = np.linalg.svd(w, full_matrices=False)
    best = torch.from_numpy((u[:, :2] * s[:2]) @ vh[:2]).reshape(layer.weight.shape)
    assert relative(factorised(layer, 2).weight, best) < 1e-10


@pytest.mark.parametrize("slices", [1, 2])
def test_factor_gradients_are_the_chain_rule_through_the_equivalent_weight(case, slices: int) -> None:
    layer, x, fold = case
    small = cut(layer, fold, slices)
    target = torch.randn_like(small(x))
    ((small(x) * target).sum() + small(x).square().sum()).backward()
    factors = list(small.factors)
    direct = [p.grad.clone() for p in factors]
    through = with_weight(layer, small.weight, x)
    chained = torch.autograd.grad((through * target).sum() + through.square().sum(), factors)
    for a, b in zip(direct, chained, strict=True):
        assert b.norm() > 0
        assert relative(a, b) < 1e-10


def test_the_options_that_host_code_reads_are_those_of_the_dense_layer(case) -> None:
    layer, _, fold = case
    small = factorised(layer, 1, 1, fold)
    names = ["in_features", "out_features"] if isinstance(layer, nn.Linear) else [
        "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode",
        "transposed", "output_padding",
    ]  # fmt: skip
    for name in names:
        expected = getattr(layer, name)
        if name == "output_padding" and not layer.transposed:
            expected = ()
        assert getattr(small, name) == expected, name
    assert torch.equal(small.bias, layer.bias)
    assert small.bias is not layer.bias


def test_only_plain_torch_layers_are_inside(case) -> None:
    layer, _, fold = case
    small = cut(layer, fold)
    kinds = {type(m) for m in small.modules()} - {type(small)}
    assert kinds <= {nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d}
    assert small.encoder.bias is None
    names = {"encoder.weight", "decoder.weight", "decoder.bias"} | ({"core.weight"} if fold == TUCKER else set())
    assert set(small.state_dict()) == names


def test_back_to_dense_is_the_product_of_the_factors(case) -> None:
    layer, x, fold = case
    small = cut(layer, fold)
    dense = small.to_layer()
    assert type(dense) is type(layer)
    assert spec_of(dense) == spec_of(layer)
    assert torch.equal(dense.weight, small.weight)
    assert relative(dense(x), small(x)) < 1e-12


def test_copies_and_saved_states_compute_bitwise_the_same(case) -> None:
    layer, x, fold = case
    small = cut(layer, fold)
    expected = small(x)
    assert torch.equal(copy.deepcopy(small)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(small))(x), expected)
    buffer = io.BytesIO()
    torch.save(small.state_dict(), buffer)
    buffer.seek(0)
    other = cut(layer, fold)
    for p in other.parameters():
        nn.init.normal_(p)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(other(x), expected)


def test_mode_dtype_and_what_is_trained_are_kept(case) -> None:
    layer, _, fold = case
    layer.eval()
    layer.weight.requires_grad_(False)
    small = factorised(layer, 1, 1, fold)
    assert not any(m.training for m in small.modules())
    assert {p.requires_grad for p in small.factors} == {False}
    assert small.bias.requires_grad
    back = small.to_layer()
    assert (back.weight.requires_grad, back.bias.requires_grad, back.training) == (False, True, False)
    assert {p.dtype for p in small.parameters()} == {torch.float64}


def test_factorising_leaves_the_layer_and_the_random_state_alone(case) -> None:
    layer, _, fold = case
    before, random = copy.deepcopy(layer.state_dict()), torch.get_rng_state()
    small = factorised(layer, 1, 1, fold)
    small.to_layer()
    assert torch.equal(torch.get_rng_state(), random)
    with torch.no_grad():
        for p in small.parameters():
            p.zero_()
    assert same_state(layer, before)


@pytest.mark.parametrize(
    ("rank", "slices", "fold"),
    [(0, 1, "channel"), (9, 1, "channel"), (1, 3, "channel"), (1, 1, "x"), (5, 1, "decoupled"), (1, 2, "decoupled")],
)
def test_a_structure_that_does_not_fit_is_refused(rank: int, slices: int, fold: str) -> None:
    layer = nn.Conv2d(4, 6, 3)
    with pytest.raises(ArgumentError, match="must be"):
        factorised(layer, rank, slices, fold)
    with pytest.raises(ArgumentError, match="must be"):
        LowRankConv(spec_of(layer), rank, slices, fold)


def test_weights_that_are_not_finite_are_refused() -> None:
    layer = nn.Linear(4, 4)
    layer.weight.data[1, 1] = float("inf")
    with pytest.raises(TenfoldError, match="NaN or infinite"):
        factorised(layer, 2)


def test_zero_weights_factorise_to_zero() -> None:
    layer = nn.Conv2d(4, 4, 3)
    nn.init.zeros_(layer.weight)
    for fold in NAMES:
        small = factorised(layer, 2, sliced(layer, fold, 1, 2)[-1], fold)
        assert torch.equal(small.weight, torch.zeros_like(layer.weight))


def test_a_layer_built_without_weights_is_initialised_as_torch_initialises() -> None:
    spec = spec_of(nn.Linear(64, 64))
    a, b = LowRankLinear(spec, 8), nn.Linear(64, 8, bias=False)
    bound = 1 / 64**0.5
    for weight in (a.encoder.weight, b.weight):
        assert 0.9 * bound < weight.abs().max() <= bound


def test_autocast_applies_to_the_factors_as_to_any_layer() -> None:
    layer = nn.Linear(16, 16)
    x = torch.randn(4, 16)
    with torch.autocast("cpu", torch.bfloat16):
        y = factorised(layer, slices=2)(x)
    assert y.dtype == torch.bfloat16
    assert relative(y, F.linear(x, layer.weight, layer.bias)) < 3e-2


def test_vmap_and_per_sample_gradients_work() -> None:
    small = factorised(nn.Linear(6, 4).double(), 2)
    params = {n: p.detach() for n, p in small.named_parameters()}
    x = torch.randn(5, 6, dtype=torch.float64)

    def loss(p: dict[str, Tensor], one: Tensor) -> Tensor:
        return torch.func.functional_call(small, p, (one,)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(params, x)
    whole = torch.func.grad(lambda p: torch.func.functional_call(small, p, (x,)).square().sum())(params)
    for name, g in whole.items():
        assert relative(each[name].sum(0), g) < 1e-12


def test_print_tells_rank_slices_and_fold() -> None:
    text = repr(factorised(nn.Linear(8, 8), 2, 4))
    assert "rank=2, slices=4, fold=channel" in text
