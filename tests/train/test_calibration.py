"""Calibration images are those that the training saw: statistics re-estimated from them are the training's."""

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from tenfold.cli.app import app
from tenfold.cli.opening import Opened
from tenfold.layers.batchnorm import reestimate_
from tenfold.train import Recipe, load_data
from tenfold.train.calibration import CalibrationBatches
from tenfold.train.data import batches
from tenfold.train.data.augment import AUGMENTATIONS


@pytest.mark.parametrize("augment", sorted(AUGMENTATIONS))
def test_a_trained_network_keeps_the_statistics_it_was_trained_with(augment):
    data, recipe = load_data("digits"), Recipe(batch_size=64, augment=augment, seed=3)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4, momentum=None))
    other = torch.Generator().manual_seed(99)
    for _ in range(5):  # what a training whose rate is zero leaves: the mean over its batches
        for x, _ in batches(data.train, 64, shuffle=True, generator=other, augment=AUGMENTATIONS[augment]):
            net(x)
    trained, norm = {k: v.clone() for k, v in net[1].named_buffers()}, net[1]

    def off():
        mean = (norm.running_mean - trained["running_mean"]).abs() / trained["running_var"].sqrt()
        return float(torch.maximum(mean, (norm.running_var / trained["running_var"]).log().abs()).max())

    reestimate_(net, CalibrationBatches(data, recipe))
    assert off() < 0.02
    reestimate_(net, [x for x, _ in batches(data.train, 64)])
    assert (off() > 0.05) == (augment != "none")


def test_every_pass_gives_the_same_images_and_the_seed_gives_others():
    data = load_data("digits").part(100)
    made = CalibrationBatches(data, Recipe(batch_size=32, augment="crop"))
    first, again = list(made), list(made)
    assert len(first) == 4
    for (x, y), (same, label) in zip(first, again, strict=True):
        assert torch.equal(x, same)
        assert torch.equal(y, label)
    other = next(iter(CalibrationBatches(data, Recipe(batch_size=32, augment="crop", seed=1))))
    assert not torch.equal(first[0][0], other[0])


def test_runs_are_compressed_by_the_images_that_they_were_trained_on(tmp_path, monkeypatch):
    seen = []
    calibration = Opened.calibration

    def watched(self, recipe):
        seen.append(calibration(self, recipe).recipe.augment)
        return calibration(self, recipe)

    monkeypatch.setattr(Opened, "calibration", watched)
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    for line in (
        ["train", "--data", "digits", "--model", "cnn", "--epochs", "1", "--augment", "crop", "--out", a],
        ["compress", a, "--budget", "params=0.5", "--method", "alds", "--out", b],
    ):
        done = CliRunner().invoke(app, line)
        assert done.exit_code == 0, done.output
    assert seen == ["crop"]
