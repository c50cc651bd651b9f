"""The reference networks: published counts, any input size, names."""

import itertools
import sys
import textwrap
from fractions import Fraction

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tenfold.errors import ArgumentError, TenfoldError
from tenfold.train import build_model, model_names
from tenfold.train.models.densenet import DenseNet
from tenfold.train.models.vit import Attention, VisionTransformer

NAMES = [
    *("alexnet", "cnn", "densenet22", "googlenet", "lenet5", "mobilenet_v2"),
    *("resnet110", "resnet18", "resnet18_imagenet", "resnet20", "resnet32", "resnet34", "resnet44", "resnet50"),
    *("resnet56", "vgg16_bn", "vit_mini", "vit_tiny", "wrn16_8", "wrn28_10"),
]
LEAST = {"lenet5": 16, "resnet18": 8} | dict.fromkeys(
    ("mobilenet_v2", "resnet18_imagenet", "resnet34", "resnet50"), 16
)  # all others: 4


def meta(name, **sizes):
    with torch.device("meta"):
        return build_model(name, **sizes).eval()


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def weights(model):
    """Convolutions and Linears with their biases, norms left out: the papers' count."""
    return sum(parameters(m) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear))


def macs(model, channels=3, size=32):
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, channels, size, size, device="meta"))
    return counter.get_total_flops() // 2


def basic_resnet_by_hand(n, classes=10):
    """(weights, MACs) of He et al.'s CIFAR network with 6n + 2 layers, from the text of section 4.2."""
    count, work = 3 * 16 * 9, 3 * 16 * 9 * 32 * 32
    inputs = 16
    for width, side in ((16, 32), (32, 16), (64, 8)):
        for block in range(n):
            for convolution in range(2):
                c = inputs if block == convolution == 0 else width
                count += c * width * 9
                work += c * width * 9 * side * side
        inputs = width
    return count + 64 * classes + classes, work + 64 * classes


def test_the_registry_lists_the_networks():
    assert model_names() == NAMES


@pytest.mark.parametrize(("depth", "n"), [(20, 3), (32, 5), (44, 7), (56, 9), (110, 18)])
def test_cifar_resnets_count_as_computed_by_hand(depth, n):
    model = meta(f"resnet{depth}")
    assert (weights(model), macs(model)) == basic_resnet_by_hand(n)


@pytest.mark.parametrize(("name", "millions", "mega_macs"), [("resnet56", 0.849, 125.49), ("resnet110", 1.72, 252.89)])
def test_cifar_resnets_count_as_published(name, millions, mega_macs):
    model = meta(name)
    assert weights(model) / 1e6 == pytest.approx(millions, abs=0.005 if millions > 1 else 0.0005)
    assert macs(model) / 1e6 == pytest.approx(mega_macs, abs=0.005)


def test_totals_with_norms():
    assert parameters(meta("resnet20")) == 269_722
    assert parameters(meta("resnet18")) == 11_173_962


def test_vgg_counts_as_published_without_biases_before_norms():
    model = meta("vgg16_bn")
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 13
    assert parameters(model) == 14_728_266 - sum(m.out_channels for m in convolutions) == 14_724_042


def test_lenet5_has_the_weights_of_the_papers():
    model = meta("lenet5", channels=1, size=28)
    assert sum(p.numel() for p in model.parameters() if p.ndim > 1) == 430_500


def test_the_small_cnn_by_hand():
    widths = [1, 32, 64, 64, 128, 128]
    convolutions = sum(9 * a * b + 2 * b for a, b in itertools.pairwise(widths))
    assert parameters(meta("cnn", channels=1, size=8)) == convolutions + 128 * 10 + 10


@pytest.mark.parametrize(
    ("name", "total"),
    [("wrn16_8", 10_961_370), ("wrn28_10", 36_479_194), ("densenet22", 71_686), ("alexnet", 2_472_266)],
)
def test_cifar_networks_have_the_published_parameters(name, total):
    assert parameters(meta(name)) == total


def test_densenet_counts_by_hand_and_its_family_as_published():
    count, width = 3 * 24 * 9, 24
    for block in range(3):
        if block:
            count, width = count + 2 * width + width * (width // 2), width // 2
        for _ in range(3):
            count, width = count + 2 * width + width * 48 + 2 * 48 + 48 * 12 * 9, width + 12
    assert parameters(meta("densenet22")) == count + 2 * width + width * 10 + 10
    with torch.device("meta"):
        assert parameters(DenseNet(100, 12, classes=10, channels=3)) == 769_162  # DenseNet-BC, "0.8M"


def test_googlenet_counts_as_published_without_biases_before_norms():
    model = meta("googlenet")
    biases = sum(m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d))
    assert parameters(model) + biases == 6_166_250
    assert macs(model) / 1e9 == pytest.approx(1.52, abs=0.005)


@pytest.mark.parametrize(
    ("name", "total", "giga_macs"),
    [
        ("resnet18_imagenet", 11_689_512, 1.814),
        ("resnet34", 21_797_672, 3.664),
        ("resnet50", 25_557_032, 4.089),
        ("mobilenet_v2", 3_504_872, 0.301),
    ],
)
def test_imagenet_networks_count_as_published(name, total, giga_macs):
    model = meta(name, classes=1000, size=224)
    assert parameters(model) == total
    assert macs(model, size=224) / 1e9 == pytest.approx(giga_macs, abs=0.0005)


@pytest.mark.parametrize(
    ("name", "removed", "giga_macs", "millions"),
    [
        ("googlenet", "0.60", 0.74, 3.03),
        ("resnet18_imagenet", "0.58", 0.861, 5.81),
        ("resnet34", "0.58", 1.715, 10.51),
        ("resnet50", "0.62", 1.903, 12.89),
    ],
)
def test_factorised_they_cost_what_a_paper_says(name, removed, giga_macs, millions):
    """The layers one by one: each convolution at rank floor(n (1 - p)), as in the table of LRPET (Guo et al., 2024)."""
    imagenet = name.startswith("resnet")
    model = meta(name, classes=1000 if imagenet else 10, size=224 if imagenet else 32)
    cost = {"macs": 0, "weights": 0}

    def count(layer, _, output):
        if isinstance(layer, nn.Linear):
            cost["macs"] += layer.weight.numel()
            cost["weights"] += parameters(layer)
            return
        rows, columns = layer.weight.flatten(1).shape
        factors = int(min(rows, columns) * (1 - Fraction(removed))) * (rows + columns)
        cost["weights"] += factors
        cost["macs"] += factors * output[0, 0].numel()

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    macs(model, size=224 if imagenet else 32)
    assert cost["macs"] / 1e9 == pytest.approx(giga_macs, abs=0.0006 if imagenet else 0.005)
    assert cost["weights"] / 1e6 == pytest.approx(millions, abs=0.0051 if imagenet else 0.011)


@pytest.mark.parametrize(("name", "dim", "depth"), [("vit_tiny", 192, 12), ("vit_mini", 128, 6)])
def test_transformers_count_as_computed_by_hand(name, dim, depth):
    block = 4 * (dim * dim + dim) + 8 * dim * dim + 5 * dim + 4 * dim
    model = meta(name)
    assert parameters(model) == 48 * dim + dim + 64 * dim + depth * block + 2 * dim + 10 * dim + 10
    work = 64 * 12 * dim * dim + 2 * 64 * 64 * dim
    assert macs(model) == 64 * 48 * dim + depth * work + 10 * dim


def test_the_transformer_of_deit_size_counts_as_published_but_for_the_class_token():
    shape = {"dim": 192, "depth": 12, "heads": 3, "patch": 16, "size": 224, "classes": 1000, "channels": 3}
    with torch.device("meta"):
        assert parameters(VisionTransformer(**shape)) == 5_717_416 - 2 * 192


def test_attention_is_that_of_torch():
    ours = Attention(24, 3).double()
    theirs = nn.MultiheadAttention(24, 3, batch_first=True).double()
    parts = (ours.query, ours.key, ours.value)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([p.weight for p in parts]))
        theirs.in_proj_bias.copy_(torch.cat([p.bias for p in parts]))
        theirs.out_proj.load_state_dict(ours.proj.state_dict())
    x = torch.randn(2, 7, 24, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x, x, x, need_weights=False)[0])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("channels", "size", "classes"), [(1, 8, 10), (1, 28, 7), (4, 65, 2)])
def test_any_size_and_channel_count(name, channels, size, classes):
    if size < LEAST.get(name, 4):
        with pytest.raises(ArgumentError, match=rf"`size` must be >= 16 for {name}; got 8"):
            build_model(name, classes, channels, size)
        return
    model = meta(name, classes=classes, channels=channels, size=size)
    assert model(torch.empty(2, channels, size, size, device="meta")).shape == (2, classes)


@pytest.mark.parametrize("name", NAMES)
def test_the_minimum_is_enough_to_train_at_and_less_is_refused(name):
    least = LEAST.get(name, 4)
    build_model(name, size=least)(torch.zeros(2, 3, least, least)).sum().backward()
    with pytest.raises(ArgumentError, match=f"`size` must be >= {least}"):
        build_model(name, size=least - 1)


def test_names_of_the_layers_are_those_of_the_papers_code():
    names = dict(build_model("resnet20").named_modules())
    assert {"conv1", "bn1", "layer1.0.conv1", "layer3.2.bn2", "linear"} <= names.keys()
    assert "layer2.0.shortcut.0" in dict(meta("resnet18").named_modules())


def test_option_a_pads_half_of_the_new_channels_on_each_side():
    x = torch.randn(2, 16, 5, 5)
    y = build_model("resnet20").get_submodule("layer2.0.shortcut")(x)
    expected = torch.zeros(2, 32, 3, 3)
    for i in range(3):
        for j in range(3):
            expected[:, 8:24, i, j] = x[:, :, 2 * i, 2 * j]
    torch.testing.assert_close(y, expected, rtol=0, atol=0)


def test_a_block_is_the_published_formula():
    block = build_model("resnet18").get_submodule("layer2.0").double().eval()
    x = torch.randn(2, 64, 8, 8, dtype=torch.float64)
    inner = torch.relu(block.bn1(block.conv1(x)))
    torch.testing.assert_close(block(x), torch.relu(block.bn2(block.conv2(inner)) + block.shortcut(x)))


def test_a_wide_block_is_the_published_formula():
    model = build_model("wrn16_8")
    x = torch.randn(2, 16, 4, 4, dtype=torch.float64)
    block = model.get_submodule("block1.0").double().eval()
    before = torch.relu(block.bn1(x))
    inner = block.conv2(torch.relu(block.bn2(block.conv1(before))))
    torch.testing.assert_close(block(x), inner + block.shortcut(before))
    same = model.get_submodule("block1.1").double().eval()
    x = torch.randn(2, 128, 4, 4, dtype=torch.float64)
    inner = same.conv2(torch.relu(same.bn2(same.conv1(torch.relu(same.bn1(x))))))
    torch.testing.assert_close(same(x), inner + x)


def test_a_dense_layer_keeps_its_input_in_front():
    layer = build_model("densenet22").get_submodule("dense2.1").eval()
    x = torch.randn(2, 42, 4, 4)
    y = layer(x)
    assert y.shape == (2, 54, 4, 4)
    assert torch.equal(y[:, :42], x)


def test_names_and_shapes_are_those_of_torchvision_so_that_its_weights_load():
    state = meta("resnet50", classes=1000).state_dict()
    assert {"bn1.running_var", "layer1.0.conv3.weight", "layer4.0.downsample.1.bias", "fc.bias"} <= state.keys()
    assert len(state) == 320
    state = meta("mobilenet_v2", classes=1000).state_dict()
    assert state["features.0.0.weight"].shape == (32, 3, 3, 3)
    assert state["features.1.conv.1.weight"].shape == (16, 32, 1, 1)
    assert state["features.17.conv.1.0.weight"].shape == (960, 1, 3, 3)
    assert state["features.18.1.bias"].shape == (1280,)
    assert state["classifier.1.weight"].shape == (1000, 1280)
    assert len(state) == 314


def test_bottlenecks_have_their_stride_in_the_3x3():
    model = meta("resnet50")
    assert model.get_submodule("layer2.0.conv1").stride == (1, 1)
    assert model.get_submodule("layer2.0.conv2").stride == (2, 2)


def test_a_transformer_sees_every_pixel_of_any_size():
    for size in (5, 8, 13):
        model = build_model("vit_mini", channels=1, size=size).eval()
        x = torch.zeros(1, 1, size, size, requires_grad=True)
        model(x).pow(2).sum().backward()
        assert (x.grad != 0).all()


def test_the_seed_fixes_the_weights_and_he_variance_holds():
    torch.manual_seed(3)
    one = build_model("resnet18")
    torch.manual_seed(3)
    two = build_model("resnet18")
    weight = one.get_submodule("layer4.0.conv1").weight  # 256 -> 512
    assert torch.equal(weight, two.get_submodule("layer4.0.conv1").weight)
    assert float(weight.detach().var()) == pytest.approx(2 / (512 * 9), rel=0.01)


@pytest.mark.parametrize("name", ["resnet20", "densenet22", "vit_mini"])
def test_models_export(name):
    model = build_model(name, size=16).eval()
    x = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), model(x))


def test_an_unknown_name_lists_the_nearest():
    with pytest.raises(TenfoldError, match=r"'resnet21'.*Nearest: .*resnet20"):
        build_model("resnet21")


@pytest.mark.parametrize("argument", ["classes", "channels"])
def test_sizes_below_one_are_refused(argument):
    with pytest.raises(ArgumentError, match=f"`{argument}` must be >= 1; got 0"):
        build_model("cnn", **{argument: 0})


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_net.py").write_text(
        textwrap.dedent("""
        from torch import nn
        def sized(classes, channels, size): return nn.Linear(channels * size * size, classes)
        def some(*, classes, width=5): return nn.Linear(width, classes)
        def bare(): return nn.Linear(2, 3)
        def anything(**sizes): return nn.Linear(sizes["size"], sizes["classes"])
        def needy(depth): return nn.Linear(1, 1)
        def wrong(): return 3
        """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_net"
    sys.modules.pop("own_net", None)


@pytest.mark.parametrize(
    ("factory", "shape"), [("sized", (4, 50)), ("some", (4, 5)), ("bare", (3, 2)), ("anything", (4, 5))]
)
def test_a_users_own_network(own, factory, shape):
    assert build_model(f"{own}:{factory}", classes=4, channels=2, size=5).weight.shape == shape


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("own_net:missing", "missing"),
        ("no_such_module:f", "no_such_module"),
        (":f", "module.path:NAME"),
        ("own_net:needy", "depth"),
        ("own_net:wrong", "returned int"),
    ],
)
def test_a_users_network_that_cannot_be_built_says_why(own, name, says):
    with pytest.raises(TenfoldError, match=says):
        build_model(name)
