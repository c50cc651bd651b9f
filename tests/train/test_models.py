"""The reference networks: published counts, any input size, names."""

import itertools
import sys
import textwrap

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tenfold.errors import ArgumentError, TenfoldError
from tenfold.train import build_model, model_names

NAMES = ["cnn", "lenet5", "resnet110", "resnet18", "resnet20", "resnet32", "resnet44", "resnet56", "vgg16_bn"]


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


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("channels", "size", "classes"), [(1, 8, 10), (1, 28, 7), (3, 33, 10), (4, 64, 2)])
def test_any_size_and_channel_count(name, channels, size, classes):
    if name == "lenet5" and size < 16:
        with pytest.raises(ArgumentError, match=r"`size` must be >= 16 for lenet5; got 8"):
            build_model(name, classes, channels, size)
        return
    model = meta(name, classes=classes, channels=channels, size=size)
    assert model(torch.empty(2, channels, size, size, device="meta")).shape == (2, classes)


@pytest.mark.parametrize("name", NAMES)
def test_the_minimum_is_enough_to_train_at_and_less_is_refused(name):
    least = {"lenet5": 16, "resnet18": 8}.get(name, 4)
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


def test_the_seed_fixes_the_weights_and_he_variance_holds():
    torch.manual_seed(3)
    one = build_model("resnet18")
    torch.manual_seed(3)
    two = build_model("resnet18")
    weight = one.get_submodule("layer4.0.conv1").weight  # 256 -> 512
    assert torch.equal(weight, two.get_submodule("layer4.0.conv1").weight)
    assert float(weight.detach().var()) == pytest.approx(2 / (512 * 9), rel=0.01)


def test_models_export():
    model = build_model("resnet20").eval()
    x = torch.randn(1, 3, 32, 32)
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
        (":f", "Empty module name"),
        ("own_net:needy", "depth"),
        ("own_net:wrong", "returned int"),
    ],
)
def test_a_users_network_that_cannot_be_built_says_why(own, name, says):
    with pytest.raises(TenfoldError, match=says):
        build_model(name)
