"""Measurements on the machine at hand, and pictures of them."""

from tenfold.bench.compare.read_yaml import read_experiment as read_experiment
