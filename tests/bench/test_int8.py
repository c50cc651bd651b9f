"""Exported networks in int8: they run for every batch, their error is measured and small, nothing is left behind."""

import tempfile

import pytest
import torch
from torch import nn

import tenfold
from nets import WordAndImage
from tenfold.bench.export import export
from tenfold.bench.int8 import EXAMPLES
from tenfold.errors import ArgumentError, DataError, TenfoldError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
runtime = pytest.importorskip("onnxruntime")

IMAGE, VECTOR, SEQUENCE = (3, 8, 8), (64,), (6, 64)


def conv():
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


def linear():
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))


def attention():
    layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0, batch_first=True)
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(6 * 64, 10))


def small(make, shape):
    """The same with low rank."""
    x = torch.zeros(1, *shape)
    return tenfold.compress(make(), tenfold.SVD(), tenfold.Budget(params=0.6), example_inputs=x).model


NETS = {"conv": (conv, IMAGE), "linear": (linear, VECTOR), "attention": (attention, SEQUENCE)}
CASES = [
    ("conv", "static", "dense"), ("conv", "static", "low"), ("linear", "static", "dense"), ("linear", "static", "low"),
    ("linear", "dynamic", "low"), ("attention", "static", "dense"), ("attention", "dynamic", "low"),
]  # fmt: skip


def made(name, rank):
    torch.manual_seed(0)
    make, shape = NETS[name]
    return (make() if rank == "dense" else small(make, shape)).eval(), shape


def labelled(shape, batches=3, size=32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(size, *shape, generator=generator), torch.randint(10, (size,), generator=generator))
        for _ in range(batches)
    ]


def shares(path, least=64):
    """Of the numbers in large weights, those in int8, and all."""
    counts = [
        (w.data_type == onnx.TensorProto.INT8, torch.Size(w.dims).numel())
        for w in onnx.load(path).graph.initializer
        if len(w.dims) > 1
    ]
    large = [(int8, n) for int8, n in counts if n >= least]
    return sum(n for int8, n in large if int8), sum(n for _, n in large)


@pytest.mark.parametrize(("name", "kind", "rank"), CASES)
def test_weights_are_int8_and_outputs_stay_near_for_any_batch(tmp_path, name, kind, rank):
    model, shape = made(name, rank)
    data = labelled(shape)
    found = export(model, data[0][0][:2], tmp_path / "net.onnx", int8=kind, data=data)
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]
    assert found.bytes == found.path.stat().st_size
    assert max(found.difference.values()) <= 1e-4
    int8 = found.int8
    assert (int8.kind, int8.random) == (kind, False)
    assert (int8.calibrated, int8.measured) == ((72, 24) if kind == "static" else (0, 96))
    assert 0 < int8.error <= 0.05
    assert 0.8 <= int8.same_top <= 1
    assert min(int8.float_ms, int8.int8_ms) > 0
    quantised, every = shares(found.path)
    assert quantised == every > 0
    session = runtime.InferenceSession(found.path, providers=["CPUExecutionProvider"])
    (value,) = session.get_inputs()
    assert value.shape[0] == "batch"
    for n in (1, 7):
        x = torch.randn(n, *shape)
        (y,) = session.run(None, {value.name: x.numpy()})
        expected = model(x).detach()
        assert float((torch.as_tensor(y) - expected).norm() / expected.norm()) <= 0.1


@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_files_of_layers_that_matter_are_less_than_half(tmp_path, kind):
    model, shape = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 64)), VECTOR
    found = export(model, torch.zeros(1, *shape), tmp_path / "net.onnx", int8=kind, data=labelled(shape))
    assert found.bytes < found.int8.float_bytes / 2


def test_without_data_dynamic_is_measured_on_random_inputs(tmp_path):
    model, shape = made("linear", "low")
    found = export(model, torch.zeros(1, *shape), tmp_path / "net.onnx", int8="dynamic")
    assert found.int8.random
    assert found.int8.same_top is None
    assert 0 < found.int8.error <= 0.05


def test_the_error_is_that_of_the_held_out_examples(tmp_path):
    """Its last quarter lies far outside of what was calibrated on: that is seen."""
    model, shape = made("linear", "dense")
    near, far = labelled(shape, batches=3), labelled(shape, batches=1, seed=2)
    beyond = [(20 * x, y) for x, y in far]
    good, bad = (
        export(model, near[0][0], tmp_path / "net.onnx", int8="static", data=near + last).int8.error
        for last in (far, beyond)
    )
    assert bad > 5 * good


def test_keywords_go_in_by_name_and_more_than_is_needed_is_not_read(tmp_path):
    model = WordAndImage().eval()
    read = []

    def batches():
        for i in range(1000):
            read.append(i)
            yield {"word": torch.arange(64) % 7, "image": torch.randn(64, 3, 6, 6)}

    example = {"image": torch.randn(1, 3, 6, 6), "word": torch.tensor([4])}
    found = export(model, example, tmp_path / "net.onnx", int8="static", data=batches())
    assert found.int8.calibrated + found.int8.measured == EXAMPLES
    assert len(read) <= EXAMPLES // 64 + 1
    assert found.int8.error <= 0.1


def test_axes_stay_free(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 4, 1)).eval()
    x = torch.randn(1, *IMAGE)
    found = export(model, x, tmp_path / "net.onnx", int8="static", data=[x, x], dynamic=["height", "width"])
    session = runtime.InferenceSession(found.path, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: torch.randn(2, 3, 24, 11).numpy()})
    assert y.shape == (2, 4, 24, 11)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"int8": "static"}, ArgumentError, "`data` must be given for static int8.*dynamic"),
        ({"int8": "int4"}, ArgumentError, "`int8` must be one of static, dynamic; got 'int4'"),
        ({"int8": "dynamic", "format": "torch-export"}, ArgumentError, "`int8` must be left out for torch-export"),
        ({"data": labelled(VECTOR)}, ArgumentError, "`data` must be left out without `int8`"),
    ],
)
def test_what_cannot_be_is_refused_before_the_work(tmp_path, monkeypatch, options, error, says):
    monkeypatch.setattr("tenfold.bench.export.call_arguments", None)
    with pytest.raises(error, match=says):
        export(linear(), torch.zeros(1, 64), tmp_path / "net.onnx", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("data", "says"),
    [([], "at least one batch"), ([torch.zeros(1, 64)], "two examples or more"),
     ([{"input": torch.zeros(4, 64)}], "the inputs that `example_inputs` are"),
     ([torch.full((4, 64), torch.nan)], "NaN")],
)  # fmt: skip
def test_data_that_do_not_fit_are_one_sentence(tmp_path, data, says):
    with pytest.raises(DataError, match=says):
        export(linear(), torch.zeros(1, 64), tmp_path / "net.onnx", int8="static", data=data)
    assert list(tmp_path.iterdir()) == []


def test_a_network_without_linear_layers_has_nothing_dynamic(tmp_path):
    with pytest.raises(TenfoldError, match=r"nothing in the model to quantise.*try static"):
        export(nn.Conv2d(3, 8, 3), torch.zeros(1, *IMAGE), tmp_path / "net.onnx", int8="dynamic")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", ["quant_pre_process", "quantize_static"])
def test_a_failure_of_the_quantiser_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch, step):
    def fails(*_, **__):
        raise RuntimeError("no such operator\nand a page of details")

    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(f"onnxruntime.quantization.{step}", fails)
    (tmp_path / "net.onnx").write_text("before")
    with pytest.raises(TenfoldError, match=r"cannot be quantised: ONNX Runtime failed with RuntimeError: no such"):
        export(linear(), torch.zeros(1, 64), tmp_path / "net.onnx", int8="static", data=labelled(VECTOR))
    assert (tmp_path / "net.onnx").read_text() == "before"
    assert list(folder.iterdir()) == []
