"""One trained and one compressed run, made once, and the program as tests call it."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from tenfold.cli.app import app


def call(*words):
    """Run ``tenfold words...``; what it printed and its exit status."""
    return CliRunner().invoke(app, [str(word) for word in words])


def tree(folder):
    """Every file under a folder with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="session")
def _made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    train = call("train", "--epochs", 2, "--batch-size", 64, "--out", folder / "a", "--json")
    assert train.exit_code == 0, train.stderr
    words = ("--budget", "params=0.4", "--finetune", 1, "--out", folder / "b", "--json")
    compress = call("compress", folder / "a", "--method", "svd", *words)
    assert compress.exit_code == 0, compress.stderr
    return folder, json.loads(train.stdout), json.loads(compress.stdout)


@pytest.fixture(scope="session")
def train_json(_made):
    return _made[1]


@pytest.fixture(scope="session")
def compress_json(_made):
    return _made[2]


@pytest.fixture
def runs(_made, tmp_path):
    """A folder of one's own with the runs ``a`` (dense) and ``b`` (compressed)."""
    shutil.copytree(_made[0], tmp_path / "runs")
    return tmp_path / "runs"


@pytest.fixture
def tenfold():
    return call


@pytest.fixture
def files():
    return tree
