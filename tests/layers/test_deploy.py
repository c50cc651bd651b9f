"""What comes out is deployable: compile, export, ONNX; quantities agree with eager mode."""

import shutil

import pytest
import torch
from layer_stubs import TUCKER, Entry, factorised, low_rank
from torch import Tensor, nn

from helpers import passes_alone, relative
from nets import Residual
from tenfold.layers import swap

LAYERS = {
    "linear": (lambda: nn.Linear(8, 6), (3, 8)),
    "linear-3d": (lambda: nn.Linear(8, 6), (3, 5, 8)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, padding="same", groups=2), (3, 4, 6, 5)),
    "conv1d-circular": (lambda: nn.Conv1d(4, 6, 3, padding=1, padding_mode="circular"), (3, 4, 9)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2), (3, 4, 4, 5)),
}
cases = pytest.mark.parametrize(
    ("layer", "slices", "fold"),
    [
        *((name, s, "channel") for name in LAYERS for s in (1, 2)),
        ("conv2d", 1, "decoupled"),
        ("transposed", 1, "decoupled"),
        ("conv2d", 1, TUCKER),
        ("conv1d-circular", 1, TUCKER),
        ("transposed", 1, TUCKER),
    ],
)


@pytest.fixture(params=["channel", "decoupled", TUCKER])
def small_net(request: pytest.FixtureRequest) -> nn.Module:
    net = Residual().eval()
    return swap.apply(net, low_rank(net, 2, request.param))


@cases
def test_export_with_a_dynamic_batch_agrees(layer: str, slices: int, fold: str) -> None:
    make, shape = LAYERS[layer]
    small = factorised(make(), 1, slices, fold)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(small, (torch.randn(shape),), dynamic_shapes=({0: batch},)).module()
    for n in (2, 7):
        x = torch.randn(n, *shape[1:])
        assert relative(program(x), small(x)) < 1e-6


@cases
def test_compile_without_a_graph_break_agrees_with_gradients(layer: str, slices: int, fold: str) -> None:
    make, shape = LAYERS[layer]
    small, x = factorised(make(), 1, slices, fold), torch.randn(shape)
    torch._dynamo.reset()
    compiled = torch.compile(small, fullgraph=True, backend="aot_eager")
    small(x).square().sum().backward()
    eager = [p.grad.clone() for p in small.parameters()]
    small.zero_grad()
    y = compiled(x)
    y.square().sum().backward()
    assert relative(y, small(x)) < 1e-6
    for p, g in zip(small.parameters(), eager, strict=True):
        assert relative(p.grad, g) < 1e-5


def test_a_whole_network_exports_and_compiles(small_net: nn.Module) -> None:
    x = torch.randn(2, 3, 8, 8)
    expected = small_net(x)
    torch._dynamo.reset()
    assert relative(torch.compile(small_net, fullgraph=True, backend="aot_eager")(x), expected) < 1e-5
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(small_net, (x,), dynamic_shapes=({0: batch},)).module()
    x = torch.randn(5, 3, 8, 8)
    assert relative(program(x), small_net(x)) < 1e-5


class Reads(nn.Module):
    """Reads its layer's weight, as transformers' models do."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.to(self.layer.weight.dtype)) + self.layer.weight.sum()


HOSTS = (
    ("linear", 1, "channel"),
    ("conv2d", 2, "spatial"),
    ("conv2d", 1, "decoupled"),
    ("conv2d", 1, TUCKER),
    ("transposed", 2, "spatial-t"),
)


def check_hosts() -> None:
    for name, slices, fold in HOSTS:
        make, shape = LAYERS[name]
        small, x = Reads(factorised(make(), 1, slices, fold)), torch.randn(shape, dtype=torch.float64)
        expected = small(x)
        torch._dynamo.reset()
        assert relative(torch.compile(small, fullgraph=True, backend="aot_eager")(x), expected) < 1e-5
        assert relative(torch.export.export(small, (x,)).module()(x), expected) < 1e-5


def test_hosts_that_read_the_weight_compile_and_export() -> None:
    passes_alone(check_hosts)


def test_transformer_encoders_compile_in_eval_mode() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    net = nn.TransformerEncoder(layer, 2).eval()
    names = [f"layers.{i}.linear{j}" for i in (0, 1) for j in (1, 2)]
    small, x = swap.apply(net, dict.fromkeys(names, Entry(2))), torch.randn(2, 5, 8)
    torch._dynamo.reset()
    with torch.no_grad():
        assert relative(torch.compile(small, fullgraph=True, backend="aot_eager")(x), small(x)) < 1e-5


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="inductor needs a C++ compiler")
def test_inductor_agrees(small_net: nn.Module) -> None:
    x = torch.randn(2, 3, 8, 8)
    torch._dynamo.reset()
    with torch.no_grad():
        assert relative(torch.compile(small_net, fullgraph=True)(x), small_net(x)) < 1e-5


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_onnx_runtime_agrees(small_net: nn.Module, tmp_path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    x, file = torch.randn(2, 3, 8, 8), tmp_path / "small.onnx"
    torch.onnx.export(small_net, (x,), str(file), dynamo=True, verbose=False)
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert relative(torch.from_numpy(found), small_net(x)) < 1e-4
    weights = sum(p.numel() for p in small_net.parameters())
    assert file.stat().st_size + sum(f.stat().st_size for f in tmp_path.glob("*.data")) < 8 * weights + 60_000


def test_symbolic_tracing_keeps_the_factors(small_net: nn.Module) -> None:
    traced = torch.fx.symbolic_trace(small_net)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(traced(x), small_net(x))
    assert sum(p.numel() for p in traced.parameters()) == sum(p.numel() for p in small_net.parameters())


def test_meta_device_and_dtype_moves_work(small_net: nn.Module) -> None:
    x = torch.randn(2, 3, 8, 8)
    double = swap.apply(Residual().eval(), low_rank(Residual(), 2)).double()
    assert double(x.double()).dtype == torch.float64
    assert small_net.to("meta")(x.to("meta")).shape == (2, 5)
