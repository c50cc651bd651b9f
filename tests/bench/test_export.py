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
