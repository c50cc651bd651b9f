"""Methods x budgets x seeds: an experiment as data, its runs, and the schema of their results."""

from tenfold.bench.compare.experiment import Experiment as Experiment
from tenfold.bench.compare.read_yaml import read_experiment as read_experiment
from tenfold.bench.compare.scheduler import compare as compare
