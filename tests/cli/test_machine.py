"""Export and doctor: what leaves the library, and what this machine makes of it."""

import json
import sys

import pytest
import torch

import tenfold as library


def refused(result, *words):
    assert result.exit_code == 1, result.output
    assert (result.stdout, result.stderr.count("\n")) == ("", 1)
    for word in words:
        assert word in result.stderr


def load(folder):
    return library.load(folder / "model", model=library.build_model("cnn", 10, 1, 8)).eval()


@pytest.mark.parametrize("option", ["--fold-batchnorm", "--optimize"])
def test_onnx_with_folded_norms_is_the_run(tenfold, runs, tmp_path, option):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    file = tmp_path / "deep" / "small.onnx"
    made = json.loads(tenfold("export", runs / "b", "--out", file, option, "--json").stdout)
    assert len(made["folded"]) == 5
    assert made["not_folded"] == {}
    assert made["memory_format"] == ("contiguous" if option == "--optimize" else None)
    assert made["bytes"] == file.stat().st_size
    assert made["opset"] >= 18
    assert max(made["check"]["difference"].values()) <= 1e-4
    session, x = runtime.InferenceSession(file, providers=["CPUExecutionProvider"]), torch.randn(7, 1, 8, 8)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.as_tensor(found), load(runs / "b")(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_int8_says_what_it_costs_and_gains(tenfold, runs, tmp_path, kind):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    file = tmp_path / "small.onnx"
    words = ("export", runs / "b", "--out", file, "--int8", kind)
    found = json.loads(tenfold(*words, "--json").stdout)
    int8 = found["int8"]
    assert (int8["kind"], found["bytes"]) == (kind, file.stat().st_size)
    assert (int8["calibrated"] > 0, int8["random"]) == (kind == "static", False)
    assert 0 < int8["error"] < 0.3
    assert 0.5 < int8["same_top"] <= 1
    shown = tenfold(*words, "--force")
    assert shown.stderr == ""
    for word in ("float", "int8", "Same top class", f"int8 ({kind})"):
        assert word in shown.stdout
    refused(tenfold(*words, "--force", "--format", "torch-export"), "`--int8`", "torch-export")
    refused(tenfold(*words[:-1], "int4", "--force"), "`--int8`", "static, dynamic", "int4")


def test_torch_export_is_the_run(tenfold, runs, tmp_path, files):
    file, before = tmp_path / "small.pt2", files(runs)
    words = ("export", runs / "b", "--format", "torch-export", "--out", file)
    shown = tenfold(*words)
    assert shown.exit_code == 0
    assert shown.stderr == ""
    assert "Largest difference" in shown.stdout
    x = torch.randn(7, 1, 8, 8)
    torch.testing.assert_close(torch.export.load(file).module()(x), load(runs / "b")(x))
    refused(tenfold(*words), "`--out`", "--force")
    refused(tenfold("export", runs / "b", "--out", tmp_path), "`--out`", "must be a file")
    refused(tenfold(*words, "--force", "--opset", 18), "`--opset`", "torch-export")
    refused(tenfold("export", runs / "b", "--out", tmp_path / "x", "--format", "tflite"), "`--format`", "onnx")
    assert files(runs) == before


def test_a_missing_package_is_one_sentence(tenfold, runs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    refused(tenfold("export", runs / "b", "--out", tmp_path / "x.onnx"), "pip install 'tenfold[export]'", "onnxscript")
    assert list(tmp_path.glob("*.onnx")) == []


def test_the_doctor_examines_every_layer(tenfold, runs, files):
    before = files(runs)
    words = ("doctor", runs / "b", "--rungs", 2, "--rounds", 3, "--exclude", "conv1")
    result = tenfold(*words, "--json")
    found = json.loads(result.stdout)
    assert result.stderr == ""
    layers = {layer["name"]: layer for layer in found["layers"]}
    assert list(layers) == ["conv1", "conv2", "conv3", "conv4", "conv5", "linear"]
    assert layers["conv1"]["reason"] == "in exclude_modules"
    assert layers["conv5"]["even_params"] == 115
    assert all(t["ms"] > 0 for layer in layers.values() for t in layer["timings"])
    assert 0 <= found["reachable"] <= 1
    table = tenfold(*words).stdout
    for word in ("Layer", "Share", "MACs promise", "115 of 128", "in exclude_modules: conv1"):
        assert word in table
    assert files(runs) == before


def test_the_doctor_refuses_what_is_not_there(tenfold, runs):
    refused(tenfold("doctor", runs / "a", "--fold", "chanel"), "`--fold`", "channel")
    refused(tenfold("doctor", runs / "a", "--target", "conv9"), "`--target`", "conv9")
    refused(tenfold("doctor", runs / "a", "--device", "toaster"), "`--device`", "toaster")
    refused(tenfold("doctor", runs / "c"), "no run at")
