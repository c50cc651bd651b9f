"""Files that are written compute what the model computes, for every batch size; others are not written."""

import sys

import pytest
import torch
from torch import nn

import tenfold
from nets import DataDependent, WordAndImage
from tenfold.bench.export import export
from tenfold.errors import ArgumentError, TenfoldError
from tenfold.layers.fold_batchnorm import fold_batchnorm

INPUTS = {"image": torch.randn(1, 3, 6, 6), "word": torch.tensor([4])}


def small():
    return tenfold.apply(WordAndImage(), tenfold.plan(WordAndImage(), tenfold.SVD(), tenfold.Budget(params=0.6)))


def test_torch_export_runs_for_every_batch(tmp_path):
    model = small()
    found = export(model, INPUTS, tmp_path / "deep" / "net.pt2", format="torch-export")
    assert found.path.stat().st_size == found.bytes
    assert set(found.difference) == {1, 5}
    assert max(found.difference.values()) <= 1e-5
    assert model.training
    program = torch.export.load(found.path).module()
    inputs = {"image": torch.randn(9, 3, 6, 6), "word": torch.arange(9) % 7}
    expected = model.eval()(**inputs)
    torch.testing.assert_close(program(**inputs), expected)
    assert [p.name for p in found.path.parent.iterdir()] == ["net.pt2"]


def test_onnx_runs_for_every_batch_in_onnx_runtime(tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model = small().eval()
    folded = fold_batchnorm(model)
    found = export(folded, INPUTS, tmp_path / "net.onnx", reference=model)
    assert found.opset is not None
    session = runtime.InferenceSession(found.path, providers=["CPUExecutionProvider"])
    assert [i.shape[0] for i in session.get_inputs()] == ["batch", "batch"]
    inputs = {"image": torch.randn(4, 3, 6, 6), "word": torch.arange(4)}
    logits = session.run(None, {k: v.numpy() for k, v in inputs.items()})[0]
    torch.testing.assert_close(torch.as_tensor(logits), model(**inputs)["logits"], rtol=1e-4, atol=1e-5)
    with pytest.raises(ArgumentError, match=r"`opset` must be one that torch can write.*got 99"):
        export(nn.Linear(2, 2), torch.zeros(1, 2), tmp_path / "other.onnx", opset=99)
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.mix = nn.Embedding(20, 8), nn.Linear(8, 8)

    def forward(self, ids, mask):
        return self.mix(self.table(ids)) * mask[..., None]


IMAGES = (
    nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1)),
    torch.randn(1, 3, 8, 6),
)
SEQUENCE = (nn.Conv1d(3, 4, 3), torch.randn(1, 3, 9))
IDS = (Tokens(), {"ids": torch.arange(10).reshape(2, 5), "mask": torch.ones(2, 5)})
FREE = [(*IMAGES, ["height", "width"]), (*IMAGES, ["width"]), (*SEQUENCE, ["length"]), (*IDS, ["length"]),
        (*IDS, ["length=1"]), (*SEQUENCE, ["time=2"])]  # fmt: skip


@pytest.mark.parametrize("format", ["torch-export", "onnx"])
@pytest.mark.parametrize(("model", "inputs", "dynamic"), FREE)
def test_further_axes_may_have_any_length(tmp_path, model, inputs, dynamic, format):
    if format == "onnx":
        runtime = pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    found = export(model, inputs, tmp_path / "net", format=format, dynamic=dynamic)
    assert set(found.difference) == {1, 5}
    named = isinstance(inputs, dict)
    longer = {k: torch.cat([v] * 3, -1) for k, v in inputs.items()} if named else torch.cat([inputs] * 3, -1)
    args, kwargs = ((), longer) if named else ((longer,), {})
    expected = model(*args, **kwargs)
    if format == "onnx":
        session = runtime.InferenceSession(found.path, providers=["CPUExecutionProvider"])
        values = longer.values() if named else [longer]
        names = [value.name for value in session.get_inputs()]
        got = torch.as_tensor(session.run(None, dict(zip(names, (v.numpy() for v in values), strict=True)))[0])
    else:
        got = torch.export.load(found.path).module()(*args, **kwargs)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("dynamic", "says"),
    [(["depth"], "height, width, length, or NAME=AXIS"), (["length"], "axes that the inputs have; got 'length'"),
     (["a=9"], "axes that the inputs have"), (["a=0"], "NAME=AXIS"), (["height", "height"], "each once"),
     (["batch=1"], "NAME=AXIS")],
)  # fmt: skip
def test_axes_that_there_are_not_are_refused(tmp_path, dynamic, says):
    with pytest.raises(ArgumentError, match=rf"`dynamic`.*{says}"):
        export(*IMAGES, tmp_path / "x", format="torch-export", dynamic=dynamic)


def test_axes_that_the_model_cannot_take_longer_are_refused(tmp_path):
    fixed = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 6, 4))
    with pytest.raises(ArgumentError, match="`dynamic` must be of axes that the model takes at other lengths"):
        export(fixed, IMAGES[1], tmp_path / "x", format="torch-export", dynamic=["height"])
    assert list(tmp_path.iterdir()) == []


def off():
    net = nn.Linear(2, 2)
    with torch.no_grad():
        net.bias.add_(1)
    return net


@pytest.mark.parametrize(
    ("model", "inputs", "options", "says"),
    [
        (DataDependent(nn.Identity()), torch.ones(2, 2), {}, "cannot be exported: torch.export failed with"),
        (nn.Linear(2, 2), torch.zeros(1, 2), {"reference": off()}, "off by"),
        (nn.Linear(2, 2), torch.zeros(()), {}, "first axis is the batch"),
        (nn.Linear(2, 2), torch.zeros(1, 2), {"format": "tflite"}, "onnx, torch-export"),
        (nn.Linear(2, 2), torch.zeros(1, 2), {"opset": 18}, "left out for torch-export"),
        (nn.Linear(2, 2), torch.zeros(1, 2), {"tolerance": 0}, "> 0"),
        (nn.DataParallel(nn.Linear(2, 2)), torch.zeros(1, 2), {}, "wrapped"),
    ],
)
def test_what_cannot_be_exported_leaves_nothing(tmp_path, model, inputs, options, says):
    with pytest.raises(TenfoldError, match=says):
        export(model, inputs, tmp_path / "x", **{"format": "torch-export"} | options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_names_the_extra(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(TenfoldError, match=rf"needs {name}, which is missing: pip install 'tenfold\[export\]'"):
        export(nn.Linear(2, 2), torch.zeros(1, 2), tmp_path / "x.onnx")
