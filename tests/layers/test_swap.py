"""Finding and replacing layers: selection by name, what stays dense and why, and nothing but the copy changes."""

import copy
import functools
from typing import Any

import pytest
import torch
from layer_stubs import DENSE, Entry, entry_for, full_rank, low_rank
from torch import Tensor, nn

from helpers import relative, same_state, state
from nets import Remembers, Residual
from tenfold.errors import ArgumentError, PlanError, TenfoldError, UnsupportedLayer
from tenfold.layers import swap
from tenfold.layers.find import find
from tenfold.layers.matrix import LowRank, LowRankLinear


def chosen(model: nn.Module, *args: Any, **kwargs: Any) -> list[str]:
    return [t.name for t in find(model, *args, **kwargs) if t.reason is None]


def reasons(model: nn.Module) -> dict[str, str | None]:
    return {name: t.reason for t in find(model) for name in (t.name, *t.aliases)}


NAMES = [
    "conv1", "layer1.0.conv1", "layer1.0.conv2", "layer1.0.down.0", "layer1.1.conv1", "layer1.1.conv2",
    "layer1.1.down.0", "fc",
]  # fmt: skip


# ---- selection


def test_every_plain_layer_is_found_in_module_order() -> None:
    assert chosen(Residual()) == NAMES


@pytest.mark.parametrize(
    ("target", "exclude", "expected"),
    [
        (r"layer1\.0\..*", None, NAMES[1:4]),
        (".*conv1", None, ["conv1", "layer1.0.conv1", "layer1.1.conv1"]),
        ("conv1", None, ["conv1"]),  # a string must match the whole name
        (["conv1"], None, ["conv1", "layer1.0.conv1", "layer1.1.conv1"]),  # a list holds endings
        (["0.conv1"], None, ["layer1.0.conv1"]),
        (("fc", "layer1.1.conv2"), None, ["layer1.1.conv2", "fc"]),
        (None, ["fc", "conv1"], [n for n in NAMES if n.rpartition(".")[2] not in ("fc", "conv1")]),
        (None, "fc", NAMES[:-1]),
        (["conv1"], r"layer1\..*", ["conv1"]),
        ([], None, []),
        (None, [], NAMES),
    ],
)
def test_selection_follows_peft(target: Any, exclude: Any, expected: list[str]) -> None:
    assert chosen(Residual(), target, exclude) == expected


def test_the_reason_says_that_it_was_the_users_choice() -> None:
    found = {t.name: t.reason for t in find(Residual(), ["conv1", "fc"], ["fc"])}
    assert found["conv1"] is None
    assert found["fc"] == "in exclude_modules"
    assert found["layer1.0.conv2"] == "not in target_modules"


@pytest.mark.parametrize("argument", ["target_modules", "exclude_modules"])
@pytest.mark.parametrize(
    ("selection", "words"),
    [
        (["convv1"], ["no module of the model", "Nearest: ", "conv1"]),
        (["fc", "layer1.0.con2"], ["'layer1.0.con2'", "layer1.0.conv2"]),
        (["layer1"], ["no layer with a weight matrix", r"'(.*\.)?layer1\..*'"]),  # a container
        (["bn1"], ["no layer with a weight matrix"]),
        ("layer1", ["the whole name", "matches none"]),
        ("(", ["no regular expression"]),
    ],
)
def test_a_wrong_name_is_one_clear_error(argument: str, selection: Any, words: list[str]) -> None:
    with pytest.raises(ArgumentError) as error:
        find(Residual(), **{argument: selection})
    for word in [f"`{argument}`", *words]:
        assert word in str(error.value)


def test_the_suggested_expression_for_a_container_selects_its_layers() -> None:
    assert chosen(Residual(), r"(.*\.)?layer1\..*") == NAMES[1:-1]


def test_a_layer_named_in_full_is_never_left_dense_silently() -> None:
    net = nn.ModuleDict({"embed": nn.Embedding(4, 4), "fc": nn.Linear(4, 4)})
    with pytest.raises(UnsupportedLayer, match="'embed', which stays dense: an Embedding"):
        find(net, ["embed"])
    assert chosen(net, ".*") == ["fc"]  # an expression names nothing in full


# ---- what stays dense, and why


class Scaled(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Padded(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight + 1, bias)


class Adapter(nn.Linear):
    """Computes like its base class, but its parent may read what it holds besides."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.extra = nn.Parameter(torch.zeros(4, 4))


class Renamed(nn.Linear):
    """Nothing but a name: replaced."""


def hooked() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.register_forward_hook(lambda module, args, output: output + 1)
    return layer


def patched() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.forward = functools.partial(torch.nn.functional.linear, weight=torch.eye(4))
    return layer


def weight_norm() -> nn.Module:
    return nn.utils.weight_norm(nn.Linear(4, 4))


def integer() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    return layer


LEFT = {
    "own forward": (lambda: Scaled(2, 2, 3), "a Scaled with more than a plain layer has"),
    "own _conv_forward": (lambda: Padded(2, 2, 3), "a Padded with more"),
    "own parameters": (Adapter, "an Adapter with more"),
    "patched": (patched, "a Linear with more"),
    "hooks": (hooked, "carries hooks"),
    "weight norm": (weight_norm, "carries hooks (weight norm"),
    "bilinear": (lambda: nn.Bilinear(3, 3, 2), "a Bilinear, which"),
    "embedding": (lambda: nn.Embedding(3, 3), "an Embedding, which"),
    "lstm": (lambda: nn.LSTM(3, 3), "an LSTM, whose matrices"),
    "lazy": (lambda: nn.LazyLinear(3), "run the model once first"),
    "int8": (integer, "its weight is torch.int8"),
    "complex": (lambda: nn.Linear(3, 3, dtype=torch.complex64), "its weight is torch.complex64"),
    "float8": (lambda: nn.Linear(3, 3).to(torch.float8_e4m3fn), "its weight is torch.float8_e4m3fn"),
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:Lazy modules")
@pytest.mark.parametrize("kind", LEFT)
def test_what_cannot_be_replaced_exactly_is_left_with_a_reason(kind: str) -> None:
    make, words = LEFT[kind]
    net = nn.Sequential(nn.Linear(4, 4), make())
    found = reasons(net)
    assert found["0"] is None
    assert words in str(found["1"])
    with pytest.raises(PlanError, match="'1', which has to stay dense"):
        swap.apply(net, {"1": Entry(1)})


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", ["own forward", "hooks", "weight norm", "lstm", "int8"])
def test_the_rest_of_a_model_with_such_a_layer_is_replaced(kind: str) -> None:
    net = nn.ModuleDict({"a": nn.Linear(4, 4), "b": LEFT[kind][0]()})
    small = swap.apply(net, {"a": entry_for(net["a"])})
    assert isinstance(small["a"], LowRank)
    assert same_state(small["b"], net["b"])


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm", "orthogonal"])
def test_parametrized_layers_are_left_and_still_compute(kind: str) -> None:
    net = nn.Sequential(nn.Linear(4, 4), getattr(nn.utils.parametrizations, kind)(nn.Linear(4, 4))).eval()
    assert "parametrized" in str(reasons(net)["1.parametrizations.weight"])
    with pytest.raises(PlanError, match="'1'"):
        swap.apply(net, {"1": Entry(1)})
    small = swap.apply(net, {"0": entry_for(net[0])})
    x = torch.randn(2, 4)
    assert relative(small(x), net(x)) < 1e-5


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_old_weight_norm_in_a_model_still_computes_and_trains_after() -> None:
    net = nn.Sequential(nn.Linear(4, 4), weight_norm())
    small = swap.apply(net, {"0": entry_for(net[0])})
    x = torch.randn(2, 4)
    small(x).sum().backward()
    assert relative(small(x), net(x)) < 1e-5
    assert small[1].weight_g.grad is not None
    assert small[1].weight_g is not net[1].weight_g


def test_a_subclass_that_adds_nothing_is_replaced() -> None:
    assert chosen(nn.Sequential(Renamed(4, 4))) == ["0"]


def test_depthwise_convolutions_are_found_and_exact() -> None:
    net = nn.Sequential(nn.Conv2d(6, 12, 3, groups=6, padding=1))
    x = torch.randn(2, 6, 5, 5)
    for fold in ("channel", "spatial"):
        small = swap.apply(net, {"0": entry_for(net[0], fold=fold)})
        assert relative(small(x), net(x)) < 1e-5


# ---- replacing


@pytest.mark.parametrize("slices", [1, 2])
def test_a_network_at_full_rank_equals_the_dense_one(slices: int) -> None:
    net, x = Residual().double().eval(), torch.randn(2, 3, 9, 9, dtype=torch.float64)
    todo = full_rank(net)
    if slices == 2:
        todo = {name: entry_for(net.get_submodule(name), slices=2) for name in todo if name != "conv1"}
    small = swap.apply(net, todo)
    assert set(swap.structure_of(small)) == set(todo)
    assert relative(small(x), net(x)) < 1e-10
    assert relative(swap.to_dense(small)(x), net(x)) < 1e-10


def test_back_to_dense_restores_every_weight_and_the_structure() -> None:
    net = Residual().double()
    dense = swap.to_dense(swap.apply(net, full_rank(net)))
    assert repr(dense) == repr(net)
    assert list(dense.state_dict()) == list(net.state_dict())
    for name, tensor in dense.state_dict().items():
        assert relative(tensor, net.state_dict()[name]) < 1e-10 or torch.equal(tensor, net.state_dict()[name])


def test_back_to_dense_computes_what_the_factors_compute_at_any_rank() -> None:
    net, x = Residual().eval(), torch.randn(2, 3, 9, 9)
    small = swap.apply(net, low_rank(net, 2))
    assert relative(swap.to_dense(small)(x), small(x)) < 1e-5


@pytest.mark.parametrize("training", [True, False])
def test_the_given_model_is_bitwise_untouched(training: bool) -> None:
    net = Residual().train(training)
    net.layer1[0].eval()
    before, modes, random = state(net), [m.training for m in net.modules()], torch.get_rng_state()
    small = swap.apply(net, low_rank(net, 2))
    dense = swap.to_dense(small)
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in net.modules()] == modes
    for made in (small, dense):
        with torch.no_grad():
            for tensor in (*made.parameters(), *made.buffers()):
                tensor.zero_()
    assert same_state(net, before)


def test_to_dense_leaves_the_factorised_model_untouched() -> None:
    small = swap.apply(Residual(), low_rank(Residual(), 2))
    before = state(small)
    dense = swap.to_dense(small)
    with torch.no_grad():
        for p in dense.parameters():
            p.zero_()
    assert same_state(small, before)


def test_modes_and_frozen_weights_are_kept_layer_by_layer() -> None:
    net = Residual()
    net.layer1[1].eval()
    net.layer1[0].requires_grad_(False)
    small = swap.apply(net, low_rank(net, 2))
    for made in (small, swap.to_dense(small), swap.skeleton(net, low_rank(net, 2))):
        assert {p.requires_grad for p in made.layer1[0].parameters()} == {False}
        assert {p.requires_grad for p in made.layer1[1].parameters()} == {True}
        assert {m.training for m in made.layer1[1].modules()} == {False}
        assert {m.training for m in made.layer1[0].modules()} == {True}


def test_a_root_that_is_itself_a_layer_is_replaced() -> None:
    layer, x = nn.Linear(6, 4).double(), torch.randn(3, 6, dtype=torch.float64)
    small = swap.apply(layer, {"": entry_for(layer)})
    assert isinstance(small, LowRankLinear)
    assert relative(small(x), layer(x)) < 1e-12
    dense = swap.to_dense(small)
    assert type(dense) is nn.Linear
    assert relative(dense(x), layer(x)) < 1e-12


def test_lists_dicts_and_references_outside_the_tree_all_see_the_new_layer() -> None:
    class Host(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.list = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
            self.dict = nn.ModuleDict({"a": nn.Linear(4, 4)})
            self.plain = [self.list[0], self.dict["a"]]  # torch does not see these

        def forward(self, x: Tensor) -> Tensor:
            return self.plain[1](self.plain[0](self.list[1](x)))

    host, x = Host().double(), torch.randn(2, 4, dtype=torch.float64)
    small = swap.apply(host, full_rank(host))
    assert small.plain[0] is small.list[0]
    assert isinstance(small.plain[1], LowRank)
    assert relative(small(x), host(x)) < 1e-12
    dense = swap.to_dense(small)
    assert dense.plain[0] is dense.list[0]
    assert type(dense.plain[0]) is nn.Linear


def test_dense_entries_and_an_empty_plan_give_a_plain_copy() -> None:
    net = Residual()
    for todo in ({}, {"conv1": DENSE}):
        copied = swap.apply(net, todo)
        assert repr(copied) == repr(net)
        assert not {id(p) for p in copied.parameters()} & {id(p) for p in net.parameters()}


def test_stored_activations_do_not_stop_the_copy() -> None:
    net = Remembers()
    net(torch.randn(2, 4))
    with pytest.raises(RuntimeError, match="graph leaves"):
        copy.deepcopy(net)
    assert torch.equal(swap.apply(net, {}).last, net.last)


@pytest.mark.parametrize(
    ("todo", "words"),
    [
        ({"conv2": Entry(1)}, "'conv2', which the model lacks. Nearest: "),
        ({"bn1": Entry(1)}, "'bn1', a BatchNorm2d, which has no weight matrix"),
        ({"conv1": Entry(9)}, "'conv1' with kernel (8, 3, 3, 3) cannot be built as planned: `rank` must be in 1..8"),
        ({"conv1": Entry(1, slices=2)}, "`slices` must be a divisor of 3"),
        ({"conv1": Entry(1, fold="diagonal")}, "`fold` must be one of"),
        ({"conv1": Entry(1, decomposition="tucker")}, "`decomposition` must be 'dense', 'low-rank'"),
        ({"conv1": Entry(None)}, "one integer `rank`"),
    ],
)
def test_an_impossible_structure_is_one_clear_error(todo: Any, words: str) -> None:
    net = Residual()
    for build in (swap.apply, swap.skeleton):
        with pytest.raises(PlanError) as error:
            build(net, todo)
        assert words in str(error.value)


def test_weights_that_are_not_finite_are_named() -> None:
    net = Residual()
    net.layer1[0].conv2.weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(TenfoldError, match=r"'layer1\.0\.conv2' has NaN"):
        swap.apply(net, low_rank(net, 2))


@pytest.mark.parametrize("inside", [False, True])
def test_wrapped_models_are_refused_with_what_to_do(inside: bool) -> None:
    layer = nn.Linear(4, 4)
    torch._dynamo.reset()
    for wrapped, name in ((nn.DataParallel(layer), "DataParallel"), (torch.compile(layer), "OptimizedModule")):
        model = nn.Sequential(wrapped) if inside else wrapped
        for call in (swap.find, swap.to_dense, lambda m: swap.apply(m, {})):
            with pytest.raises(ArgumentError, match=rf"`model` must not be wrapped in {name}. Pass the module inside"):
                call(model)


def test_distributed_data_parallel_is_refused(tmp_path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        with pytest.raises(ArgumentError, match="wrapped in DistributedDataParallel"):
            find(nn.parallel.DistributedDataParallel(nn.Linear(4, 4)))
    finally:
        torch.distributed.destroy_process_group()


def test_a_model_compiled_in_place_gives_an_uncompiled_small_one() -> None:
    net, x = nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 4)
    torch._dynamo.reset()
    net.compile(backend="aot_eager")
    small = swap.apply(net, {"0": entry_for(net[0])})
    assert small._compiled_call_impl is None
    assert relative(small(x), net(x)) < 1e-5


# ---- hosts that read a layer's weight


def test_attention_output_projections_stay_dense_with_a_reason() -> None:
    net = nn.MultiheadAttention(8, 2)
    assert "read directly by nn.MultiheadAttention" in str(reasons(net)["out_proj"])
    with pytest.raises(PlanError, match="has to stay dense"):
        swap.apply(net, {"out_proj": Entry(1)})


@pytest.mark.parametrize("kind", [nn.TransformerEncoderLayer, nn.TransformerDecoderLayer])
@pytest.mark.parametrize("training", [True, False])
def test_transformer_layers_are_exact_in_training_and_on_the_inference_path(kind: Any, training: bool) -> None:
    layer = kind(8, 2, 16, batch_first=True, dropout=0.0, dtype=torch.float64).train(training)
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    args = (x, x) if kind is nn.TransformerDecoderLayer else (x,)
    assert {n for n, r in reasons(layer).items() if r is None} == {"linear1", "linear2"}
    small = swap.apply(layer, {n: entry_for(layer.get_submodule(n)) for n in ("linear1", "linear2")})
    with torch.no_grad():
        expected = layer(*args)
        assert relative(small(*args), expected) < 1e-10
        assert relative(swap.to_dense(small)(*args), expected) < 1e-10


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_the_inference_path_runs_the_factors_and_not_their_product(activation: str) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation=activation)
    net = nn.TransformerEncoder(layer, 2).eval()
    todo = {f"layers.0.{n}": Entry(2) for n in ("linear1", "linear2")}
    small = swap.apply(net, todo)
    used = []
    for name in todo:
        small.get_submodule(name).encoder.register_forward_hook(lambda *_: used.append(1))
    x = torch.randn(2, 5, 8)
    padded = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    dense = swap.to_dense(small)
    with torch.no_grad():
        a, b = small(x, src_key_padding_mask=padded), dense(x, src_key_padding_mask=padded)
        assert relative(a[~padded], b[~padded]) < 1e-5  # padded positions are nobody's business
        assert len(used) == 2
        assert relative(small(x), dense(x)) < 1e-5
    for one in (dense, net):  # the dense model keeps, and gets back, its fast path
        assert one.use_nested_tensor is True
        assert [m.activation_relu_or_gelu for m in one.layers] == [1 if activation == "relu" else 2] * 2
    assert not small.use_nested_tensor
    assert small.layers[1].activation_relu_or_gelu


@pytest.mark.parametrize("shape", [(8, 0), (0, 8)])
def test_a_layer_of_width_zero_stays_dense_with_a_reason(shape: tuple[int, int]) -> None:
    found = find(nn.Sequential(nn.Linear(*shape), nn.Linear(8, 8)))
    assert [layer.reason for layer in found] == ["it has no weights: one of its sizes is 0", None]


def test_layers_are_replaced_in_place_and_shared_biases_stay_shared() -> None:
    """As a host needs it that has built a model of shapes without numbers, and loads the numbers afterwards."""
    with torch.device("meta"):
        net: Any = nn.Sequential(nn.Linear(12, 16), nn.Linear(16, 16), nn.Linear(16, 16, bias=False))
    net[2].register_parameter("bias", net[0].bias)
    whole = list(net)
    structures = {"0": entry_for(net[0], rank=3)}
    wanted = swap.skeleton(net, structures)
    swap.replace_(net, structures)
    assert repr(net) == repr(wanted)
    assert [name for name, _ in net.named_parameters(remove_duplicate=False)] == [
        name for name, _ in wanted.named_parameters(remove_duplicate=False)
    ]
    assert list(net)[1:] == whole[1:]
    assert net[0].held_bias is whole[0].bias is net[2].bias
    assert all(p.is_meta for p in net.parameters())
