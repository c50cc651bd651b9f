"""The stopwatch measures each thing once, keeps it, and believes nothing of a machine of another speed."""

import pytest
import torch
from torch import nn

from tenfold.runtimes.stopwatch import Stopwatch


class Ticking:
    """A clock by which every call takes as long."""

    def __init__(self, seconds):
        self.now, self.seconds = 0.0, seconds

    def __call__(self):
        self.now += self.seconds
        return self.now


class Made:
    """Makes a layer, and counts how often it was asked to."""

    def __init__(self, layer):
        self.layer, self.times = layer, 0

    def __call__(self):
        self.times += 1
        return self.layer


def watch(folder, seconds=1e-3):
    made = Stopwatch("eager", folder=folder)
    made.clock = Ticking(seconds)
    return made


def test_options_are_measured_once_for_each_input_and_found_again_by_the_next_process(tmp_path):
    options = {"dense": Made(nn.Linear(6, 6)), "low": Made(nn.Linear(6, 6))}
    first = watch(tmp_path)
    assert first.layer("a", options, (2, 6), torch.float32) == pytest.approx({"dense": 1e6, "low": 1e6})
    first.layer("a", options, (2, 6), torch.float32)
    watch(tmp_path).layer("a", options, (2, 6), torch.float32)
    assert [made.times for made in options.values()] == [1, 1]
    first.layer("a", options, (3, 6), torch.float32)
    assert [made.times for made in options.values()] == [2, 2]


def test_an_option_that_is_new_has_all_of_them_measured_together(tmp_path):
    old, new = Made(nn.Linear(6, 6)), Made(nn.Linear(6, 6))
    one = watch(tmp_path)
    one.layer("a", {"dense": old}, (2, 6), torch.float32)
    one.layer("a", {"dense": old, "low": new}, (2, 6), torch.float32)
    assert (old.times, new.times) == (2, 1)


def test_a_machine_of_another_speed_measures_anew(tmp_path):
    options = {"dense": Made(nn.Linear(6, 6))}
    watch(tmp_path).layer("a", options, (2, 6), torch.float32)
    slower = watch(tmp_path, seconds=2e-3)
    assert slower.layer("a", options, (2, 6), torch.float32) == pytest.approx({"dense": 2e6})
    assert options["dense"].times == 2


def test_a_network_is_measured_beside_another_which_is_not_measured_twice(tmp_path):
    x, dense, small = torch.randn(2, 6), Made(nn.Linear(6, 6)), Made(nn.Linear(6, 3))
    one = watch(tmp_path)
    assert one.network("dense", dense, x) == pytest.approx(1e6)
    assert one.network("small", small, x, ("dense", dense)) == pytest.approx(1e6)
    assert (dense.times, small.times) == (2, 1)  # once for each memory format
    later, other = watch(tmp_path), Made(nn.Linear(6, 2))
    later.network("other", other, x, ("dense", dense))  # it is made again as the yardstick, its time is known
    assert (dense.times, other.times) == (4, 1)
    later.network("small", small, x, ("dense", dense))
    assert small.times == 1


def test_conditions_say_what_was_measured(tmp_path):
    about = Stopwatch("eager", threads=2, memory_format="channels_last", folder=tmp_path).about
    assert about == {
        "runtime": "eager",
        "version": about["version"],
        "threads": 2,
        "memory_format": "channels_last",
        "device": "cpu",
    }
