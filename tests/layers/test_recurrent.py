"""Recurrent layers made of linear ones, factorised or not, against torch's own kernels."""

import copy
import io
import itertools
import pickle
import warnings
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils._pytree import tree_leaves

import tenfold
from tenfold.layers import recurrent_matrices, swap
from tenfold.layers.matrix import LowRankLinear
from tenfold.layers.open_recurrent import closed, opened, why_closed
from tenfold.layers.recurrent import Recurrent
from tenfold.layers.recurrent_steps import Sequences
from tenfold.layers.unsliced import without_slices
from tenfold.linalg.fold import Fold

KINDS = {
    "lstm": (nn.LSTM, {}),
    "lstm with projections": (nn.LSTM, {"proj_size": 3}),
    "gru": (nn.GRU, {}),
    "tanh": (nn.RNN, {}),
    "relu": (nn.RNN, {"nonlinearity": "relu"}),
}
FORMS = ("dense", "full rank", "input factorised", "recurrence factorised")
CASES = [(which, "by kernel") for which in FORMS] + [("full rank", "by steps"), ("recurrence factorised", "by steps")]
IN, HIDDEN, STEPS, COUNT = 4, 6, 5, 3


@dataclass(frozen=True)
class Entry:
    rank: int
    slices: int = 1
    fold: str = "channel"
    decomposition: str = "low-rank"
    bias: bool = False


@pytest.fixture(params=["by steps", "by kernel"])
def way(request, monkeypatch):
    """Recurrences through their factors, whatever that saves; or by the kernel."""
    monkeypatch.setattr(recurrent_matrices, "_STEP", 0 if request.param == "by steps" else 10**12)
    return request.param


def layer(kind, *, layers=1, both=False, bias=True, first=False, dtype=torch.float64):
    make, extra = KINDS[kind]
    torch.manual_seed(0)
    return make(IN, HIDDEN, layers, bias=bias, batch_first=first, bidirectional=both, dtype=dtype, **extra)


def matrices(model, part=""):
    return {n: m for n, m in opened(model).named_modules() if type(m) is nn.Linear and part in n}


def factorised(model, rank=None, part="", **options):
    """The matrices at a rank, or at the full one."""
    full = {n: Fold(tuple(m.weight.shape), 1, options.get("slices", 1), "channel").full_rank for n, m in
            matrices(model, part).items()}  # fmt: skip
    return swap.apply(opened(model), {n: Entry(min(rank or f, f), **options) for n, f in full.items()})


def form(net, which):
    if which == "dense":
        return opened(net)
    return factorised(net, part={"input factorised": "weight_ih", "recurrence factorised": "weight_h"}.get(which, ""))


def inputs(layer, kind, packed, states, batch=COUNT):
    torch.manual_seed(1)
    ways = 2 if layer.bidirectional else 1
    hx = None
    if states:
        h = torch.randn(layer.num_layers * ways, batch, layer.proj_size or HIDDEN, dtype=torch.float64)
        c = torch.randn(layer.num_layers * ways, batch, HIDDEN, dtype=torch.float64)
        hx = (h, c) if kind.startswith("lstm") else h
    x = torch.randn(STEPS, batch, IN, dtype=torch.float64)
    x = x.transpose(0, 1) if layer.batch_first else x
    if packed:
        x = pack_padded_sequence(x, torch.tensor([2, 5, 1]), batch_first=layer.batch_first, enforce_sorted=False)
    return x, hx


def assert_same(a, b, **tolerance):
    a, b = ([t for t in tree_leaves(x) if isinstance(t, Tensor)] for x in (a, b))
    assert len(a) == len(b)
    for one, two in zip(a, b, strict=True):
        torch.testing.assert_close(one, two, **tolerance)


SHAPES = [(1, False, True), (1, True, False), (2, False, False), (2, True, True), (2, True, False)]
"""Layers, both directions, bias."""


@pytest.mark.parametrize(("which", "way"), CASES, indirect=["way"])
@pytest.mark.parametrize("kind", KINDS)
def test_at_full_rank_it_is_the_layer_it_replaced(kind, which, way):
    for layers, both, bias in SHAPES:
        dense = layer(kind, layers=layers, both=both, bias=bias)
        small = form(nn.Sequential(dense), which)[0]
        assert type(small) is Recurrent
        for first, packed, states in itertools.product((False, True), repeat=3):
            dense.batch_first = small.batch_first = first
            x, hx = inputs(dense, kind, packed, states)
            assert_same(small(x, hx), dense(x, hx))


@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_without_a_batch_is_as_torch_takes_it(kind, way):
    for both, first, states in itertools.product((False, True), repeat=3):
        dense = layer(kind, both=both, first=first)
        x, hx = inputs(dense, kind, False, states, batch=1)
        x = x.squeeze(0 if first else 1)
        hx = None if hx is None else tuple(s.squeeze(1) for s in hx) if isinstance(hx, tuple) else hx.squeeze(1)
        for which in FORMS:
            assert_same(form(nn.Sequential(dense), which)[0](x, hx), dense(x, hx))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("slices", [1, 2])
def test_at_any_rank_it_is_the_layer_of_the_products(kind, slices, way):
    for both, bias, packed in ((False, True, True), (True, False, False), (True, True, True)):
        net = nn.Sequential(layer(kind, layers=2, both=both, bias=bias))
        small = factorised(net, 1, part="weight_ih_l0" if slices > 1 else "", slices=slices)
        dense = tenfold.to_dense(small)
        assert type(dense[0]) is KINDS[kind][0]
        assert dense.state_dict().keys() == net.state_dict().keys()
        x, hx = inputs(net[0], kind, packed, True)
        assert_same(small[0](x, hx), dense[0](x, hx))
        assert not torch.allclose(dense[0].weight_ih_l0, net[0].weight_ih_l0, atol=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_product(kind, way):
    net = nn.Sequential(layer(kind, layers=2, both=True))
    small = factorised(net, 2)
    x, hx = inputs(net[0], kind, False, True)
    dense = opened(tenfold.to_dense(small))
    for model in (small, dense):
        y, _ = model[0](x, hx)
        (y.sin().sum()).backward()
    for name, plain in matrices(dense).items():
        pair = small.get_submodule(name)
        assert isinstance(pair, LowRankLinear)
        first, last = pair.encoder.weight, pair.decoder.weight
        torch.testing.assert_close(last.grad, plain.weight.grad @ first.T)
        torch.testing.assert_close(first.grad, last.T @ plain.weight.grad)
        if plain.bias is not None:
            torch.testing.assert_close(pair.held_bias.grad, plain.bias.grad)


def test_what_torch_has_no_place_for_is_computed_all_the_same(way):
    """A bias on a projection and on some matrices alone; a matrix that is another module, or that someone hears."""
    net = nn.Sequential(layer("lstm with projections", layers=2, both=True, bias=False))
    x, hx = inputs(net[0], "lstm", True, True)
    biased = opened(net)[0]
    for name in ("weight_hr_l0", "weight_hr_l1_reverse", "weight_ih_l1"):
        own = biased.get_submodule(name)
        own.bias = nn.Parameter(torch.randn(own.out_features, dtype=torch.float64))
    assert closed(nn.Sequential(biased))[0] is biased
    quiet = biased(x, hx)
    heard = []
    for matrix in biased.children():
        matrix.register_forward_hook(lambda *_: heard.append(1))
    assert_same(biased(x, hx), quiet)
    assert len(heard) == 4 + 8 * STEPS
    wrapped = opened(net)[0]
    for name, matrix in list(wrapped.named_children()):
        wrapped.add_module(name, nn.Sequential(nn.Identity(), matrix))
    assert_same(wrapped(x, hx), net[0](x, hx))
    sliced = factorised(net, 1, part="weight_ih", slices=2)[0]
    plain = copy.deepcopy(sliced)
    for name in ("weight_ih_l0", "weight_ih_l0_reverse"):
        plain.add_module(name, without_slices(plain.get_submodule(name)))
    assert_same(plain(x, hx), sliced(x, hx))


def test_sequences_of_any_lengths_are_reversed_one_by_one():
    lengths = torch.tensor([4, 1, 3, 3])
    padded = torch.randn(4, 4, 2)
    packed = pack_padded_sequence(padded, lengths, enforce_sorted=False)
    found = Sequences(packed.data, packed.batch_sizes).reversed()
    back, _ = nn.utils.rnn.pad_packed_sequence(
        PackedSequence(found.data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
    )
    for i, n in enumerate(lengths):
        torch.testing.assert_close(back[:n, i], padded[:n, i].flip(0))
    torch.testing.assert_close(found.reversed().data, packed.data)


@pytest.mark.parametrize("kind", KINDS)
def test_opening_and_closing_keep_every_parameter_and_option(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make, extra = KINDS[kind]
        dense = make(IN, HIDDEN, 2, dropout=0.5, bidirectional=True, batch_first=True, **extra)
        dense.weight_ih_l1.requires_grad_(False)
        net = nn.ModuleDict({"rnn": dense, "again": dense})
        back = closed(opened(net))
    assert back["rnn"] is back["again"]
    assert repr(back) == repr(net)
    assert {n: id(p) for n, p in back.named_parameters()} == {n: id(p) for n, p in net.named_parameters()}
    assert [id(p) for p in back["rnn"]._flat_weights] == [id(p) for p in dense._flat_weights]
    x = torch.randn(2, 3, IN)
    for model in (dense, opened(net)["rnn"], back["rnn"]):
        torch.manual_seed(3)
        y = model(x)
        torch.manual_seed(3)
        assert_same(y, dense(x))


class Own(nn.LSTM):
    pass


def hooked():
    made = nn.LSTM(3, 3)
    made.register_forward_hook(lambda *_: None)
    return made


def flagged():
    made = nn.GRU(3, 3)
    made.reads = "a flag of the host's"
    return made


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "make", [lambda: Own(3, 3), hooked, flagged, lambda: nn.utils.weight_norm(nn.LSTM(3, 3), "weight_hh_l0")]
)
def test_a_layer_that_would_lose_something_stays_whole(make):
    net = nn.Sequential(make())
    assert why_closed(net[0]) is not None
    assert opened(net) is net
    assert tenfold.survey(net).sites == ()


def test_copies_and_files_of_it_compute_the_same(tmp_path, way):
    net = nn.Sequential(layer("lstm", layers=2, both=True))
    small = factorised(net, 2, part="_l1")
    x, _ = inputs(net[0], "lstm", False, False)
    for twin in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert_same(twin(x), small(x), rtol=0, atol=0)
    file = io.BytesIO()
    torch.save(small.state_dict(), file)
    file.seek(0)
    other = factorised(nn.Sequential(layer("lstm", layers=2, both=True)), 2, part="_l1")
    other.load_state_dict(torch.load(file, weights_only=True))
    assert_same(other(x), small(x), rtol=0, atol=0)
    tenfold.save(small, tmp_path / "small")
    fresh = nn.Sequential(nn.LSTM(IN, HIDDEN, 2, bidirectional=True, dtype=torch.float64))
    assert_same(tenfold.load(tmp_path / "small", fresh)(x), small(x), rtol=0, atol=0)


def test_a_trace_holds_the_kernel_and_takes_other_lengths():
    """And so do `torch.export` and ONNX, which see the same branch."""
    small = factorised(nn.Sequential(layer("gru", layers=2, both=True)), 2)[0].eval()
    traced = torch.jit.trace(small, torch.randn(STEPS, COUNT, IN, dtype=torch.float64))
    assert "gru" in str(traced.graph)
    x = torch.randn(2 * STEPS, COUNT + 1, IN, dtype=torch.float64)
    assert_same(traced(x), small(x))


def test_hosts_read_and_call_what_torch_has():
    small = factorised(nn.Sequential(layer("lstm", layers=2)), 2)[0].float()
    small.flatten_parameters()
    assert (small.hidden_size, small.num_layers, small.mode) == (HIDDEN, 2, "LSTM")
    assert small.weight_hh_l0.weight.shape == (4 * HIDDEN, HIDDEN)
    for bad, word in (((torch.randn(2, 3, 4, 5),), "axes"), ((torch.randn(2, 3, IN + 1),), "features")):
        with pytest.raises(tenfold.ArgumentError, match=word):
            small(*bad)
    with pytest.raises(tenfold.ArgumentError, match="hx"):
        small(torch.randn(STEPS, 2, IN), (torch.zeros(2, 1, HIDDEN), torch.zeros(2, 1, HIDDEN)))


def test_half_precision_is_as_near_as_it_is_to_torch(way):
    """A GRU: under autocast oneDNN runs no LSTM on processors without the type."""
    small = factorised(nn.Sequential(layer("gru", layers=2, both=True, dtype=torch.float32)), 2)
    x = torch.randn(STEPS, 2, IN)
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = small(x)
    assert_same(y.float(), small(x)[0], rtol=0, atol=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_macs_are_what_each_matrix_multiplies(kind, way):
    """Every matrix, at rank r, meets each step of each sequence once: ``r (rows + columns)`` multiply-adds."""
    for both, sizes in ((False, [(0, 0)]), (True, [(2, 1), (1, 2)])):
        net = nn.Sequential(layer(kind, layers=2, both=both, dtype=torch.float32))
        for ih, hh in sizes:
            ranks = {n: ih if "_ih_" in n else hh for n in matrices(net)}
            small = swap.apply(opened(net), {n: Entry(r) for n, r in ranks.items() if r})
            each = {n: m.weight.shape for n, m in matrices(net).items()}
            told = sum(ranks[n] * sum(s) if ranks[n] else s.numel() for n, s in each.items())
            x = torch.randn(STEPS, COUNT, IN)
            assert tenfold.cost(small, x).macs == STEPS * COUNT * told
            assert tenfold.cost(nn.Sequential(Hasty(), small), x).macs == STEPS * COUNT * told


class Hasty(nn.Module):
    """Looks at a value, and so does not run without numbers."""

    def forward(self, x):
        return x + float(x.sum() > 0)
