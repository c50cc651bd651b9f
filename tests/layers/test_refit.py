"""Sequential refits of small networks against explicit least squares, and what they must leave alone."""

import copy

import pytest
import torch
from layer_stubs import TUCKER, Entry, entry_for, full_rank, low_rank
from torch import nn
from torch.nn.utils import parameters_to_vector
from torch.testing import assert_close

from helpers import random_batches, relative, same_state, state
from nets import Residual, Tied, TiedLinears
from tenfold.errors import ArgumentError, DataError
from tenfold.layers.refit import RefitReport, refit_
from tenfold.layers.spec import spec_of
from tenfold.layers.swap import apply, structure_of
from tenfold.layers.tucker_model import to_tucker

FORMS = ("channel", "spatial", "spatial-t", "input", "decoupled", TUCKER)


def images(count=4, size=10, n=6, seed=0):
    return [x.double() for x in random_batches(n, 3, size, size, count=count, seed=seed)]


def network(seed=0):
    torch.manual_seed(seed)
    net = Residual().double().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics as after training
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return net


def output_error(small, dense, data):
    """Mean squared error over the variance of the dense outputs."""
    with torch.no_grad():
        y, z = (torch.cat([net(x) for x in data]).flatten(0, -2) for net in (dense, small))
    return float((y - z).square().sum() / (y - y.mean(0)).square().sum())


def each_kind():
    """Layers of every kind with inputs for them."""
    image, signal, volume = (6, 4, 9, 8), (6, 4, 11), (4, 4, 5, 6, 5)
    return {
        "strided": (nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), image),
        "dilated": (nn.Conv2d(4, 6, 3, dilation=2, padding=2, padding_mode="reflect"), image),
        "grouped": (nn.Conv2d(4, 6, 3, groups=2), image),
        "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2), image),
        "one axis": (nn.Conv1d(4, 6, 3), signal),
        "three axes": (nn.Conv3d(4, 6, (3, 2, 2)), volume),
        "linear": (nn.Linear(4, 6), (6, 5, 4)),
    }


@pytest.mark.parametrize("factors", ["last", "both"])
@pytest.mark.parametrize("form", FORMS)
def test_full_rank_changes_nothing(form, factors):
    net, data = network(), images()
    small = apply(net, full_rank(net, fold=form))
    refit_(small, net, data, factors=factors)
    for name, layer in structure_of(small).items():
        assert relative(layer.weight, net.get_submodule(name).weight) < 1e-6
    assert output_error(small, net, data) < 1e-12


@pytest.mark.parametrize("factors", ["last", "both"])
@pytest.mark.parametrize("form", FORMS)
def test_no_layers_error_given_its_actual_inputs_grows_and_the_outputs_come_nearer(form, factors):
    net, data = network(), images()
    small = apply(net, low_rank(net, 2, form))
    before = output_error(small, net, data)
    report = refit_(small, net, data, factors=factors)
    assert list(report.layers) == [n for n, m in net.named_modules() if spec_of(m)]
    for layer in report.layers.values():
        assert layer.after <= layer.before * (1 + 1e-9)
    assert output_error(small, net, data) < 0.5 * before
    # The last layer's error, given its actual inputs, is that of the network.
    assert report.layers["fc"].after == pytest.approx(output_error(small, net, data), rel=1e-9)


@pytest.mark.parametrize("kind", each_kind())
def test_every_kind_of_layer_in_every_form_comes_nearer(kind):
    torch.manual_seed(1)
    layer, shape = each_kind()[kind]
    dense = nn.Sequential(layer).double()
    g = torch.Generator().manual_seed(2)
    data = [torch.randn(shape, generator=g, dtype=torch.float64).cumsum(-1) for _ in range(3)]
    for form in FORMS:
        for slices in (1, 2) if form in ("channel", "input") else (1,):
            small = apply(dense, low_rank_in(dense, form, slices))
            before = small_error(small, dense, data)
            for factors in ("last", "both"):
                again = copy.deepcopy(small)
                report = refit_(again, dense, data, factors=factors).layers["0"]
                assert report.before == pytest.approx(before, rel=1e-9)
                assert report.after == pytest.approx(small_error(again, dense, data), rel=1e-8)
                assert report.after <= before
                if factors == "last":
                    least = report.after
                elif report.factors == "both":
                    assert report.after <= least * (1 + 1e-6)
            assert report.after < before


def low_rank_in(net, form, slices=1):
    """Rank 1 everywhere, in so many slices."""
    made = {}
    for name, module in net.named_modules():
        if spec_of(module) is not None:
            rank = (1, 1) if form == TUCKER and not isinstance(module, nn.Linear) else 1
            made[name] = entry_for(module, rank, slices if spec_of(module).shape[1] % slices == 0 else 1, form)
    return made


def small_error(small, dense, data):
    """As `output_error`, for layers with channels first."""
    with torch.no_grad():
        y, z = (torch.cat([net(x) for x in data]) for net in (dense, small))
    axis = -1 if isinstance(dense[0], nn.Linear) else 1
    y, z = (t.movedim(axis, -1).flatten(0, -2) for t in (y, z))
    return float((y - z).square().sum() / (y - y.mean(0)).square().sum())


def regression(x, y):
    """Weight and bias of ordinary least squares with intercept."""
    one = torch.ones(len(x), 1, dtype=x.dtype)
    solution = torch.linalg.lstsq(torch.cat([x, one], 1), y).solution
    return solution[:-1].mT, solution[-1]


def linear_net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 7), nn.Linear(7, 5)).double()


def vectors(n=200, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 8, generator=g, dtype=torch.float64) @ torch.randn(8, 8, generator=g, dtype=torch.float64) + 1


@torch.no_grad()
def test_the_last_factors_of_a_linear_network_reach_the_closed_form_layer_after_layer():
    net, x = linear_net(), vectors()
    small = apply(net, low_rank(net, 2))
    refit_(small, net, [x[:50], x[50:]], ridge=0.0)
    inputs = x
    for name in ("0", "1"):
        layer, wanted = small.get_submodule(name), net[: int(name) + 1](x)
        weight, bias = regression(layer.encoder(inputs), wanted)
        assert_close(layer.decoder.weight, weight, rtol=1e-5, atol=1e-6)
        assert_close(layer.decoder.bias, bias, rtol=1e-5, atol=1e-6)
        inputs = layer(inputs)


@torch.no_grad()
def test_both_factors_of_a_linear_network_reach_reduced_rank_regression():
    net, x = linear_net(), vectors()
    small = apply(net, low_rank(net, 2))
    refit_(small, net, [x], factors="both", ridge=0.0)
    inputs = x
    for name in ("0", "1"):
        layer, wanted = small.get_submodule(name), net[: int(name) + 1](x)
        weight, _ = regression(inputs, wanted)
        fitted = (inputs - inputs.mean(0)) @ weight.mT
        v = torch.linalg.svd(fitted, full_matrices=False).Vh[:2]
        outputs = layer(inputs)
        assert_close(outputs, fitted @ v.mT @ v + wanted.mean(0), rtol=1e-5, atol=1e-5)
        inputs = outputs


@pytest.mark.parametrize("factors", ["last", "both"])
def test_how_the_data_are_split_does_not_matter(factors):
    net, x = network(), torch.cat(images())
    fitted = []
    for split in ([x], x.split([7, 16, 1])):
        small = apply(net, low_rank(net, 2, "spatial"))
        refit_(small, net, list(split), factors=factors)
        fitted.append(parameters_to_vector(small.parameters()))
    for other in fitted[1:]:
        assert_close(other, fitted[0], rtol=1e-9, atol=1e-9)


def test_all_but_the_factors_and_their_biases_is_left_as_it_is():
    net, data = network(), images()
    net.layer1[0].train()
    small = apply(net, low_rank(net, 2))
    small.layer1[1].eval()
    dense_before, before = state(net), state(small)
    modes = [[m.training for m in model.modules()] for model in (net, small)]
    refit_(small, net, data)
    assert all(torch.equal(a, b) for a, b in zip(state(net).values(), dense_before.values(), strict=True))
    changed = {n for n, t in state(small).items() if not torch.equal(t, before[n])}
    assert changed == {n for n in before if "decoder" in n}
    assert modes == [[m.training for m in model.modules()] for model in (net, small)]
    assert not any(m._forward_hooks or m._forward_pre_hooks for model in (net, small) for m in model.modules())


def test_a_layer_without_bias_gets_none_and_is_fitted_through_zero():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 6, bias=False)).double()
    x = vectors()
    small = apply(net, low_rank(net, 2))
    refit_(small, net, [x], ridge=0.0)
    assert small[0].bias is None
    with torch.no_grad():
        exact = torch.linalg.lstsq(small[0].encoder(x), net(x)).solution.mT
    assert_close(small[0].decoder.weight, exact, rtol=1e-5, atol=1e-6)


def test_a_bias_that_the_plan_added_is_used():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False)).double()
    data = [x + 2 for x in images()]
    errors = []
    for bias in (False, True):
        small = apply(net, {"0": Entry(1, bias=bias)})
        errors.append(refit_(small, net, data).layers["0"].after)
    assert errors[1] < errors[0]


def test_a_bias_that_another_layer_uses_as_well_stays():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).double()
    net[1].bias = net[0].bias
    small = apply(net, {"0": Entry(2)})
    before = small[0].bias.detach().clone()
    report = refit_(small, net, [vectors()])
    assert torch.equal(small[0].bias, before)
    assert small[1].bias is small[0].held_bias
    assert report.layers["0"].after < report.layers["0"].before


@torch.no_grad()
def test_layers_that_share_a_weight_are_fitted_together_each_with_its_own_bias():
    torch.manual_seed(0)
    net = TiedLinears().double()
    small = apply(net, low_rank(net, 3))
    start, x = copy.deepcopy(small), vectors()
    report = refit_(small, net, [x], ridge=0.0)
    assert list(report.layers) == ["a"]
    assert small.a.decoder.weight is small.b.decoder.weight
    z = [start.a.encoder(x), start.b.encoder(torch.tanh(start.a(x)))]
    y = [net.a(x), net(x)]
    weight, _ = regression(*(torch.cat([t - t.mean(0) for t in pair]) for pair in (z, y)))
    assert_close(small.a.decoder.weight, weight, rtol=1e-5, atol=1e-6)
    for layer, inputs, outputs in zip((small.a, small.b), z, y, strict=True):
        assert_close(layer.bias, outputs.mean(0) - weight @ inputs.mean(0), rtol=1e-5, atol=1e-5)


class Repeated(nn.Module):
    def __init__(self, times=2):
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.times = times

    def forward(self, x):
        for _ in range(self.times):
            x = torch.tanh(self.layer(x))
        return x


@torch.no_grad()
def test_all_calls_of_a_layer_count():
    torch.manual_seed(0)
    net, x = Repeated().double(), vectors()
    small = apply(net, {"layer": Entry(3)})
    start = copy.deepcopy(small)
    refit_(small, net, [x], ridge=0.0)
    between = [torch.tanh(m.layer(x)) for m in (start, net)]
    z = torch.cat([start.layer.encoder(x), start.layer.encoder(between[0])])
    weight, bias = regression(z, torch.cat([net.layer(x), net.layer(between[1])]))
    assert_close(small.layer.decoder.weight, weight, rtol=1e-5, atol=1e-6)
    assert_close(small.layer.bias, bias, rtol=1e-5, atol=1e-6)


def test_embeddings_that_are_tied_to_a_head_do_no_harm():
    torch.manual_seed(0)
    net = Tied()
    small = apply(net, {"first": Entry(3), "second": Entry(3)})
    report = refit_(small, net, [torch.randint(11, (5, 7)) for _ in range(3)])
    assert list(report.layers) == ["first"]
    assert small.first.decoder.weight is small.second.decoder.weight


def test_activations_that_work_in_place_do_not_touch_what_is_aimed_at():
    torch.manual_seed(0)
    data = images()
    fitted = []
    for inplace in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(inplace), nn.Conv2d(6, 5, 3), nn.ReLU(inplace)).double()
        small = apply(net, low_rank(net, 2))
        refit_(small, net, data)
        fitted.append(parameters_to_vector(small.parameters()))
    assert_close(*fitted, rtol=0, atol=0)


class Upsampling(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 6, 3, stride=2, padding=1)

    def forward(self, x):
        return self.up(x, output_size=[20, 20])


@pytest.mark.parametrize("form", ["channel", "spatial", TUCKER])
@pytest.mark.parametrize("factors", ["last", "both"])
def test_output_sizes_of_transposed_convolutions(form, factors):
    torch.manual_seed(0)
    net = Upsampling().double()
    small = apply(net, {"up": entry_for(net.up, (2, 2) if form == TUCKER else 2, 1, form)})
    report = refit_(small, net, images(), factors=factors)
    assert report.layers["up"].after < report.layers["up"].before


def counted(net):
    calls = []
    net.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_layers_share_passes_where_fewer_are_asked_for():
    net, data = network(), images()
    for passes, expected in ((100, 8), (3, 3), (1, 1)):
        small = apply(net, low_rank(net, 2))
        dense = copy.deepcopy(net)
        calls = counted(dense)
        report = refit_(small, dense, data, passes=passes)
        assert report.passes == expected
        assert len(calls) == 1 + len(data)  # the first batch once more, to know how large its outputs are
        assert len(report.layers) == 8
        assert output_error(small, net, data) < output_error(apply(net, low_rank(net, 2)), net, data)


class Anew:
    """Batches that are made anew at each pass, as a loader's are."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter([x.clone() for x in self.batches])


def test_the_dense_network_runs_once_for_each_pass_where_its_outputs_are_not_kept():
    """The data are no list, or memory is short; what comes out is the same to the bit."""
    net, data = network(), images()
    made = []
    for given, how, runs in ((Anew(data), {}, 8 * 4), (data, {"memory": 1}, 1 + 8 * 4), (data, {}, 1 + 4)):
        small, dense = apply(net, low_rank(net, 2)), copy.deepcopy(net)
        calls = counted(dense)
        refit_(small, dense, given, **how)
        assert len(calls) == runs
        made.append(small)
    assert same_state(made[0], state(made[1]))
    assert same_state(made[0], state(made[2]))


def test_of_large_maps_a_part_of_the_positions_does_as_well():
    """Neighbours are much alike: what is lost on all positions is within a hundredth of what the fit to all loses."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)).double()
    data = [torch.randn(24, 3, 20, 20, dtype=torch.float64).cumsum(-1).cumsum(-2) for _ in range(3)]
    lost = []
    for given in (Anew(data), data):  # of a list the number of examples is known
        small = apply(net, low_rank(net, 2))
        refit_(small, net, given, factors="both")
        with torch.no_grad():
            lost.append(sum(float((small(x) - net(x)).square().sum()) for x in data))
    assert lost[0] != lost[1]
    split = apply(net, low_rank(net, 2))
    refit_(split, net, [x for batch in data for x in batch.split(7)], factors="both")
    assert relative(parameters_to_vector(split.parameters()), parameters_to_vector(small.parameters())) < 1e-9
    assert lost[1] == pytest.approx(lost[0], rel=1e-2)


def test_memory_bounds_what_is_held_at_once():
    net, data = network(), images()
    small = apply(net, low_rank(net, 2))
    little = refit_(small, net, data, passes=1, memory=1)
    assert little.passes == 8
    mixed = refit_(apply(net, low_rank(net, 2)), net, data, factors="both", memory=40_000)
    assert {layer.factors for layer in mixed.layers.values()} == {"last", "both"}


def test_the_compressed_network_runs_no_further_than_needed():
    net, data = network(), images()
    small = apply(net, low_rank(net, 2))
    calls = []
    handle = small.fc.register_forward_hook(lambda *_: calls.append(1))
    refit_(small, net, data)
    handle.remove()
    assert len(calls) == 1 + len(data)  # once to find the order, and for the last layer itself


def test_samples_and_progress():
    net, data = network(), images()
    one, other = (apply(net, low_rank(net, 2)) for _ in range(2))
    seen = []
    report = refit_(one, net, data, samples=9, progress=lambda *about: seen.append(about))
    assert report.examples == 9
    assert seen == [(name, i, 8) for i, name in enumerate(report.layers, start=1)]
    refit_(other, net, [data[0], data[1][:3]])
    assert_close(parameters_to_vector(one.parameters()), parameters_to_vector(other.parameters()))


def test_half_precision_is_fitted_in_float64_and_rounded_once():
    net, data = network(), images()
    wide = apply(net, low_rank(net, 2))
    narrow = copy.deepcopy(wide).bfloat16()
    half, halves = copy.deepcopy(net).bfloat16(), [x.bfloat16() for x in data]
    before = output_error(copy.deepcopy(narrow).double(), net, data)
    refit_(narrow, half, halves)
    assert narrow.fc.decoder.weight.dtype == torch.bfloat16
    assert output_error(narrow.double(), net, data) < before


class Optional(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.used(x)


def test_layers_that_are_never_reached_are_left_and_named():
    net = Optional().double()
    small = apply(net, {"used": Entry(2), "unused": Entry(2)})
    before = small.unused.decoder.weight.detach().clone()
    report = refit_(small, net, [vectors()])
    assert report.skipped == ("unused",)
    assert list(report.layers) == ["used"]
    assert torch.equal(small.unused.decoder.weight, before)


def test_a_network_without_factors_is_no_work():
    net = linear_net()
    assert refit_(copy.deepcopy(net), net, [vectors()]) == RefitReport()


def test_what_cannot_be_fitted_is_refused_and_nothing_is_left_behind():
    net, data = network(), images()
    small = apply(net, low_rank(net, 2))
    before = state(small)

    def refuse(kind, message, *, model=small, dense=net, batches=data, **options):
        with pytest.raises(kind, match=message):
            refit_(model, dense, batches, **options)

    refuse(ArgumentError, "`factors` must be 'last' or 'both'; got 'first'", factors="first")
    refuse(ArgumentError, "`samples` must be an integer >= 1, or None; got 0", samples=0)
    refuse(ArgumentError, "`passes` must be an integer >= 1; got 0", passes=0)
    refuse(ArgumentError, "`memory` must be a number of bytes >= 1; got 0", memory=0)
    refuse(ArgumentError, "`ridge` must be >= 0; got -1", ridge=-1)
    refuse(ArgumentError, "`rounds` must be >= 0; got -1", rounds=-1)
    refuse(DataError, "a generator is used up by one", batches=iter(data))
    refuse(DataError, "it is empty", batches=[])
    refuse(ArgumentError, "`dense` must be the network .* no such layer", dense=linear_net())
    refuse(ArgumentError, "a Conv2d there that computes something else", dense=Residual(width=4).double())
    refuse(ArgumentError, "must not be wrapped in DataParallel", dense=nn.DataParallel(net))
    refuse(DataError, "NaN or infinite", batches=[data[0] * torch.nan])
    for times, which in ((1, "the dense network use '0.layer' more"), (3, "the compressed network use '0.layer' more")):
        fewer, other = (nn.Sequential(Repeated(n), nn.Linear(8, 8)).double() for n in (2, times))
        refuse(DataError, which, model=apply(other, low_rank(other, 2)), dense=fewer, batches=[vectors()], passes=1)
    assert same_state(small, before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for model in (net, small) for m in model.modules())


def test_the_form_in_which_tucker_layers_are_trained_is_refused():
    net = network()
    with pytest.raises(ArgumentError, match=r"in the form in which it is trained. Pass tenfold.deploy"):
        refit_(to_tucker(net).model, net, images())
