"""Tied weights: decomposed once, counted once, and tied ever after."""

import copy

import pytest
import torch
from layer_stubs import DENSE, Entry, entry_for, full_rank
from torch import nn

import tenfold
from helpers import relative
from nets import ThreeTiedLinears, Tied, TiedStrides, TwoNames
from tenfold.errors import PlanError
from tenfold.layers import swap
from tenfold.layers.cost import count_params
from tenfold.layers.find import find
from tenfold.layers.matrix import LowRank

TOKENS = torch.arange(10).reshape(2, 5)


INPUTS = {TwoNames: (3, 8), ThreeTiedLinears: (3, 8), TiedStrides: (2, 4, 6, 6)}
cases = pytest.mark.parametrize("kind", INPUTS)


def factors(model: nn.Module) -> set[tuple[int, int]]:
    layers = [m for m in model.modules() if isinstance(m, LowRank)]
    return {(id(m.encoder.weight), id(m.decoder.weight)) for m in layers}


@cases
def test_tied_layers_are_one_target_with_aliases(kind: type[nn.Module]) -> None:
    (target,) = find(kind())
    assert target.reason is None
    assert target.name == "a"
    assert target.aliases == (("b", "c") if kind is ThreeTiedLinears else ("b",))


@cases
def test_tied_layers_share_their_factors_and_are_exact(kind: type[nn.Module]) -> None:
    net, x = kind().double(), torch.randn(INPUTS[kind], dtype=torch.float64)
    small = swap.apply(net, full_rank(net))
    assert len(factors(small)) == 1
    assert (small.a is small.b) == (net.a is net.b)
    assert relative(small(x), net(x)) < 1e-10
    biases = sum(p.numel() for n, p in net.named_parameters() if "bias" in n)
    weights = sum(p.numel() for n, p in small.a.named_parameters() if "bias" not in n)
    assert count_params(small) == weights + biases


@cases
def test_biases_are_tied_exactly_where_they_were(kind: type[nn.Module]) -> None:
    net = kind()
    small = swap.apply(net, full_rank(net))
    for made in (small, swap.to_dense(small)):
        assert (_biases(made.a) == _biases(made.b)) == (net.a.bias is net.b.bias)
        assert torch.equal(made.b.bias, net.b.bias)
        assert made.b.bias is not net.b.bias


@cases
def test_back_to_dense_ties_again(kind: type[nn.Module]) -> None:
    net, x = kind().double(), torch.randn(INPUTS[kind], dtype=torch.float64)
    dense = swap.to_dense(swap.apply(net, full_rank(net)))
    assert dense.a.weight is dense.b.weight
    assert (dense.a is dense.b) == (net.a is net.b)
    assert count_params(dense) == count_params(net)
    assert relative(dense(x), net(x)) < 1e-10


@cases
def test_a_step_of_training_keeps_them_tied(kind: type[nn.Module]) -> None:
    small = swap.apply(kind(), full_rank(kind()))
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    small(torch.randn(INPUTS[kind])).square().sum().backward()
    optimizer.step()
    assert torch.equal(small.a.weight, small.b.weight)
    assert len(factors(copy.deepcopy(small))) == 1


@cases
def test_the_whole_path_counts_the_weight_once(kind: type[nn.Module], tmp_path) -> None:
    net, x = kind(), torch.randn(INPUTS[kind])
    small, plan, report = tenfold.compress(net, tenfold.ALDS(), tenfold.Budget(params=0.7), example_inputs=x)
    assert len(factors(small)) == 1
    assert plan.params == count_params(small) == report.small.params <= 0.7 * count_params(net)
    assert plan.macs == report.small.macs == tenfold.cost(small, x).macs
    assert plan.layers["b"].tied_to == "a"
    for given in (plan, None):
        tenfold.save(small, tmp_path / "saved", given)
        loaded = tenfold.load(tmp_path / "saved", kind())
        assert len(factors(loaded)) == 1
        assert torch.equal(loaded(x), small(x))
        assert count_params(loaded) == count_params(small)
    assert tenfold.load(tmp_path / "saved", net).a.encoder.weight is not small.a.encoder.weight


@cases
@pytest.mark.parametrize("other", [Entry(2), DENSE, None])
def test_different_entries_for_one_weight_are_refused(kind: type[nn.Module], other: Entry | None) -> None:
    net = kind()
    todo = dict.fromkeys(full_rank(net), Entry(1)) | {"b": other}
    with pytest.raises(PlanError, match="share one weight, but the plan has different entries"):
        swap.apply(net, {name: entry for name, entry in todo.items() if entry is not None})


def test_a_head_tied_to_an_embedding_stays_dense_with_the_reason_and_the_tie() -> None:
    net = Tied()
    found = {t.name: t for t in find(net)}
    assert found["table"].aliases == ("head",)
    assert "an Embedding" in str(found["table"].reason)
    small, plan, _ = tenfold.compress(net, tenfold.ALDS(), tenfold.Budget(params=0.8))
    assert small.head.weight is small.table.weight
    assert plan.layers["head"].decomposition == "dense"
    assert "Embedding" in str(plan.layers["head"].reason)
    assert plan.params == count_params(small)
    assert small(TOKENS).shape == net(TOKENS).shape


def test_a_head_before_its_embedding_says_what_it_is_tied_to() -> None:
    net = nn.ModuleDict({"head": nn.Linear(4, 9, bias=False), "embed": nn.Embedding(9, 4)})
    net["head"].weight = net["embed"].weight
    (target,) = find(net)
    assert target.reason == "tied to 'embed', an Embedding"


def test_layers_of_different_shape_that_share_numbers_stay_dense() -> None:
    net = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Conv1d(4, 4, 1)})
    net["b"].weight = nn.Parameter(net["a"].weight.data[..., None])
    assert [t.reason for t in find(net)] == [None, None]  # equal numbers, but not one parameter
    net = nn.ModuleDict({"a": nn.Conv2d(4, 4, 3), "b": nn.ConvTranspose2d(4, 4, 3)})
    net["b"].weight = net["a"].weight
    (target,) = find(net)
    assert "not all layers of one kind" in str(target.reason)


def test_the_given_model_stays_tied() -> None:
    net = ThreeTiedLinears()
    swap.apply(net, {n: entry_for(net.a, 2) for n in "abc"})
    assert net.a.weight is net.b.weight is net.c.weight


def _biases(layer: nn.Module) -> list[int]:
    return [id(p) for name, p in layer.named_parameters() if name.endswith("bias")]
