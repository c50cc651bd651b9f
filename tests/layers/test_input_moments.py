"""Moments of unfolded inputs against numpy's of torch's own unfold."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from helpers import random_batches, state
from nets import Residual
from tenfold.errors import ArgumentError, DataError, TenfoldWarning
from tenfold.layers.input_moments import InputSide, input_moments
from tenfold.layers.spec import spec_of, to_kernel
from tenfold.linalg.fold import Fold
from tenfold.linalg.output_decoders import lost
from tenfold.linalg.output_forms import OutputForm, encoder_start

SAMPLES = 12


def images(size=10, count=3):
    return [x.double() for x in random_batches(4, 3, size, size, count=count)]


def network():
    torch.manual_seed(0)
    return Residual().double()


def sides(net):
    return {n: InputSide((n,)) for n, m in net.named_modules() if spec_of(m) is not None}


def collect(net, wanted, data, **options):
    return dict(input_moments(net, wanted, data, samples=SAMPLES, **options))


@pytest.mark.filterwarnings("ignore::tenfold.errors.TenfoldWarning")
def test_they_are_those_of_torchs_own_unfolded_inputs():
    net, data = network(), images()
    found = collect(net, sides(net), data)
    x = torch.cat(data)
    unfolded = F.unfold(x, 3, padding=1).movedim(1, 2).flatten(0, 1)
    assert list(found) == list(sides(net))
    assert found["conv1"].count == len(unfolded)
    assert_close(found["conv1"].mean_x[0], unfolded.mean(0))
    assert_close(found["conv1"].xx[0] / len(unfolded), torch.from_numpy(np.cov(unfolded.numpy().T, bias=True)))
    with torch.no_grad():
        features = net.eval().layer1(torch.relu(net.bn1(net.conv1(x)))).mean((-2, -1))
    assert_close(found["fc"].mean_x[0], features.mean(0))


@pytest.mark.filterwarnings("ignore::tenfold.errors.TenfoldWarning")
@pytest.mark.parametrize("size", [10, 20])
def test_neither_batches_nor_blocks_matter(size):
    net, data = network(), images(size)
    one = collect(net, sides(net), data)
    split = collect(net, sides(net), [torch.cat(data)[:5], torch.cat(data)[5:]])
    blocks = collect(net, sides(net), data, memory=1)
    for name, moments in one.items():
        for other in (split[name], blocks[name]):
            assert other.count == moments.count
            assert_close(other.xx, moments.xx, rtol=1e-9, atol=1e-9)


def test_blocks_bound_what_is_held_and_cost_a_pass_each():
    net, data = network(), images()
    wanted = {n: s for n, s in sides(net).items() if n != "fc"}
    largest = 8 * (16 * 9) ** 2
    passes = []
    for memory in (1, largest, 1 << 30):
        calls = []
        handle = net.register_forward_hook(lambda *_, seen=calls: seen.append(1))
        with pytest.warns(TenfoldWarning, match="Give more examples"):
            collect(net, wanted, data, memory=memory)
        handle.remove()
        passes.append(len(calls) // len(data))
    assert passes[0] == len(wanted)
    assert passes[0] > passes[1] > passes[2] == 1


@pytest.mark.parametrize("slices", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
def test_what_slices_put_out_gives_the_same_errors(slices, groups):
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 3, groups=groups)
    net = nn.Sequential(layer).double()
    data = [torch.cat([x, x[:, :1] - 0.5 * x.roll(1, 2)[:, :1]], 1) for x in images()]
    kernel = to_kernel(spec_of(layer), layer.weight.detach())
    fold = Fold(tuple(kernel.shape), groups, slices, "channel")
    whole = collect(net, {"0": InputSide(("0",))}, data)["0"]
    small = collect(net, {"0": InputSide(("0",), slices)}, data)["0"]
    assert small.xx.shape == (groups, slices * 6 // groups, slices * 6 // groups)
    forms = (
        OutputForm.of_inputs(fold, kernel, whole.xx / whole.count),
        OutputForm.of_outputs(fold, kernel, small.xx / small.count),
    )
    assert_close(*(lost(form, encoder_start(form)) for form in forms), rtol=1e-7, atol=1e-9)


def test_large_maps_are_subsampled_and_the_covariance_stays_close():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)).double()
    data = [x.cumsum(2).cumsum(3) / 20 for x in images(32)]
    every, half = (collect(net, {"0": InputSide(("0",))}, data, subsample=s)["0"] for s in (False, True))
    assert every.count == SAMPLES * 32 * 32
    assert half.count == SAMPLES * 16 * 16
    a, b = (m.xx[0] / m.count for m in (every, half))
    assert 0 < float((a - b).norm() / a.norm()) < 0.05


def test_subsampling_takes_every_position_of_some_examples_alike():
    """Maps whose value is their position's parity: all four offsets occur."""
    net = nn.Sequential(nn.Conv2d(1, 2, 1)).double()
    parity = torch.arange(16)[:, None] % 2 * 2 + torch.arange(16) % 2
    data = [parity.double().expand(100, 1, 16, 16)]
    found = dict(input_moments(net, {"0": InputSide(("0",))}, data, samples=100))["0"]
    assert found.count == 100 * 64
    assert float(found.mean_x) == pytest.approx(1.5, abs=0.15)
    assert float(found.xx) > 0


def test_too_few_vectors_are_not_halved_and_warn():
    net = nn.Sequential(nn.Conv2d(64, 2, 3)).double()
    data = [torch.randn(2, 64, 20, 20, dtype=torch.float64)]
    with pytest.warns(TenfoldWarning, match=r"'0' saw 648 vectors of 576 numbers on `data`; 2,304 tell enough"):
        found = dict(input_moments(net, {"0": InputSide(("0",))}, data, samples=2))
    assert found["0"].count == 2 * 18 * 18


def test_of_several_layers_the_worst_is_named_once():
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 1), nn.Flatten(), nn.Linear(2, 64), nn.Linear(64, 3)
    ).double()
    names = {name: InputSide((name,)) for name in ("0", "1", "3", "4")}
    with pytest.warns(TenfoldWarning) as caught:
        dict(input_moments(net, names, [torch.randn(10, 1, 3, 3, dtype=torch.float64)], samples=10))
    (one,) = caught
    assert str(one.message).startswith(
        "'4' saw 10 vectors of 64 numbers on `data`, and 1 more layers as little; 256 tell"
    )


@pytest.mark.filterwarnings("ignore::tenfold.errors.TenfoldWarning")
def test_the_model_is_left_as_it_is():
    net, data = network().train(), images()
    before = state(net)
    collect(net, sides(net), data)
    assert all(torch.equal(t, before[n]) for n, t in state(net).items())
    assert all(m.training and not m._forward_hooks for m in net.modules())


def test_what_cannot_be_collected_is_refused():
    net, data = network(), images()
    for options, kind, message in (
        ({"samples": 0}, ArgumentError, "`samples` must be an integer >= 1; got 0"),
        ({"memory": 0}, ArgumentError, "`memory` must be a number of bytes >= 1; got 0"),
        ({"data": iter(data)}, DataError, "a generator is used up by one"),
        ({"data": []}, DataError, "it is empty"),
    ):
        arguments = {"data": data, "samples": SAMPLES, **options}
        with pytest.raises(kind, match=message):
            list(input_moments(net, sides(net), arguments.pop("data"), **arguments))
    net.unused = nn.Linear(3, 3).double()
    with pytest.raises(DataError, match="never reaches the layer 'unused'"):
        list(input_moments(net, {"unused": InputSide(("unused",))}, data, samples=SAMPLES))
