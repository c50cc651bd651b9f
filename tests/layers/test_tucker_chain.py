"""Chains that keep fewer maps: the same numbers and gradients of any order, and nothing kept that is not needed."""

import copy

import pytest
import torch
from torch import Tensor, nn

from helpers import relative
from tenfold.layers import tucker_training
from tenfold.layers.spec import spec_of
from tenfold.layers.tucker_chain import Convolution, chain
from tenfold.layers.tucker_training import TrainedTucker

LAYERS = {
    "1d": (nn.Conv1d(8, 6, 3, padding=1), (2, 8, 70)),
    "2d": (nn.Conv2d(8, 6, 3, padding="valid", bias=False), (2, 8, 9, 10)),
    "strided": (nn.Conv2d(8, 6, 3, stride=(2, 1), padding=(0, 2), dilation=(1, 2)), (2, 8, 11, 12)),
    "small map": (nn.Conv2d(8, 6, 3, padding=1), (2, 8, 4, 5)),
    "3d": (nn.Conv3d(8, 6, (1, 3, 2)), (2, 8, 4, 5, 5)),
    "pointwise": (nn.Conv2d(8, 6, 1, stride=2), (2, 8, 17, 16)),
    "spatial": (nn.Conv2d(8, 6, 5, padding=2), (2, 8, 9, 8)),
    "transposed": (nn.ConvTranspose2d(8, 6, 3, stride=2, output_padding=1), (2, 8, 8, 9)),
    "transposed pointwise": (nn.ConvTranspose2d(8, 6, 1), (2, 8, 8, 9)),
    "channels last": (nn.Conv2d(8, 6, 3).to(memory_format=torch.channels_last), (2, 8, 9, 8)),  # pyright: ignore
}


@pytest.fixture(params=LAYERS)
def case(request: pytest.FixtureRequest) -> tuple[TrainedTucker, Tensor]:
    layer, shape = copy.deepcopy(LAYERS[request.param][0]).double(), LAYERS[request.param][1]
    form = torch.channels_last if request.param == "channels last" else torch.contiguous_format
    return random(layer, (3, 2, 2, 4) if request.param == "spatial" else (2, 3)), (
        torch.randn(shape, dtype=torch.float64).to(memory_format=form).requires_grad_()
    )


def random(layer: nn.Module, ranks: tuple[int, ...]) -> TrainedTucker:
    spec = spec_of(layer)
    assert spec is not None
    new = TrainedTucker.like(layer, spec, ranks)
    with torch.no_grad():
        for p in new.parameters():
            p.normal_()
    return new


@pytest.fixture(params=[True, False], ids=["again", "kept"])
def again(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(TrainedTucker, "recomputes", property(lambda _: request.param))
    return request.param


def plain(new: TrainedTucker, x: Tensor) -> Tensor:
    """Three convolutions of torch's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tucker_training, "_keeps_maps", lambda *_: False)
        return new._chain(x)


def inputs(new: TrainedTucker, x: Tensor) -> list[Tensor]:
    return [x, *new.parameters()]


@pytest.mark.parametrize("constant", [True, False])
def test_outputs_and_gradients_are_those_of_three_convolutions(case, again, constant) -> None:
    new, x = case
    new.constant_bases = constant
    found, g = [], None
    for run in (new._chain, lambda x: plain(new, x)):
        y = run(x)
        g = torch.randn_like(y) if g is None else g
        y.backward(g, retain_graph=True)
        y.backward(g)  # twice
        found.append([y.detach(), *(t.grad for t in inputs(new, x))])
        for t in inputs(new, x):
            t.grad = None
    assert type(new._chain(x).grad_fn) is not type(plain(new, x).grad_fn)
    assert found[0][0].stride() == found[1][0].stride()
    for mine, theirs in zip(*found, strict=True):
        assert (mine is None) == (theirs is None)
        assert theirs is None or relative(mine, theirs) < 1e-12 or not (mine.any() or theirs.any())


def test_so_are_gradients_of_gradients_forward_mode_and_batches(case, again) -> None:
    new, x = case
    seconds = []
    for run in (new._chain, lambda x: plain(new, x)):
        first = torch.autograd.grad(run(x).pow(3).sum(), inputs(new, x), create_graph=True)
        seconds.append(torch.autograd.grad(sum(t.square().sum() for t in first), inputs(new, x)))
    assert all(relative(mine, theirs) < 1e-11 for mine, theirs in zip(*seconds, strict=True))
    tangent = torch.randn_like(x)
    ways = []
    for run in (new._chain, lambda x: plain(new, x)):
        forward = torch.func.jvp(run, (x,), (tangent,))[1]
        single = torch.func.grad(lambda x, run=run: run(x[None]).square().sum())
        ways.append((forward, torch.func.vmap(single)(x.detach())))
    assert all(relative(mine, theirs) < 1e-11 for mine, theirs in zip(*ways, strict=True))


def test_forward_mode_sees_the_factors_too() -> None:
    sizes = [(2, 5, 9, 8), (3, 5, 1, 1), (2, 3, 3, 3), (4, 2), (4,)]
    given = [torch.randn(size, dtype=torch.float64) for size in sizes]
    tangents = [torch.randn_like(t) for t in given]
    core, first = Convolution((2, 1), (1, 0), (1, 1), False, (0, 0)), Convolution.pointwise(2)

    def mine(x: Tensor, a: Tensor, k: Tensor, b: Tensor, bias: Tensor) -> Tensor:
        return chain(x, (a, k, b), bias, first, core, again=True)

    def theirs(x: Tensor, a: Tensor, k: Tensor, b: Tensor, bias: Tensor) -> Tensor:
        middle = nn.functional.conv2d(nn.functional.conv2d(x, a), k, stride=(2, 1), padding=(1, 0))
        return nn.functional.conv2d(middle, b[:, :, None, None], bias)

    found = [torch.func.jvp(f, tuple(given), tuple(tangents)) for f in (mine, theirs)]
    assert all(relative(a, b) < 1e-12 for a, b in zip(*found, strict=True))


def kept(run, x: Tensor) -> set[tuple[int, ...]]:
    """The shapes of the maps that autograd keeps."""
    found: set[tuple[int, ...]] = set()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: found.add(tuple(t.shape)) or t, lambda t: t):
        run(x)
    return {shape for shape in found if len(shape) == x.ndim and shape[0] == len(x)}


@pytest.mark.parametrize("constant", [True, False])
def test_of_the_maps_the_input_is_kept_and_others_only_where_they_are_needed(constant) -> None:
    new, x = random(nn.Conv2d(16, 12, 3, padding=1), (4, 5)), torch.randn(7, 16, 40, 40, requires_grad=True)
    z, w = (7, 5, 40, 40), (7, 4, 40, 40)
    new.constant_bases = constant
    assert kept(lambda x: plain(new, x), x) == {tuple(x.shape), z, w}
    assert kept(new, x) == {tuple(x.shape)} | (set() if constant else {w})
    new, x = random(nn.Conv2d(16, 4, 3, padding=1), (1, 1)), x.detach().requires_grad_()
    new.constant_bases = constant
    assert kept(new, x) == {tuple(x.shape), (7, 1, 40, 40)}  # to compute it again would cost too much


def test_a_map_is_computed_again_only_where_that_is_cheap_beside_the_layers_step() -> None:
    assert random(nn.Conv2d(64, 64, 3, padding=1), (16, 16)).recomputes
    assert not random(nn.Conv2d(64, 64, 3, padding=1), (1, 1)).recomputes
    assert not random(nn.Conv2d(64, 64, 1), (16, 16)).recomputes


def test_autocast_multiplies_in_the_low_type_and_gradients_have_the_type_of_the_parameters() -> None:
    new, x = random(nn.Conv2d(16, 12, 3, padding=1), (4, 5)), torch.randn(4, 16, 20, 20, requires_grad=True)
    grads = []
    for run in (new, lambda x: plain(new, x)):
        with torch.autocast("cpu", torch.bfloat16):
            y = run(x)
            assert y.dtype == torch.bfloat16
            grads.append(torch.autograd.grad(y.float().square().mean(), inputs(new, x)))  # inside of autocast, too
    for mine, theirs in zip(*grads, strict=True):
        assert mine.dtype == torch.float32
        assert relative(mine, theirs) < 3e-2
