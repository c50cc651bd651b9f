"""What every test shares: shape checking, one thread, fixed seeds, and derandomised property tests."""

import gc
import random
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

# Checks the shapes in signatures on every call, in the modules that say any. An int may stand where a float is asked
# for, as everywhere in Python.
_SOURCE = Path(__file__).parents[1] / "src"
install_import_hook(
    [
        ".".join(file.relative_to(_SOURCE).with_suffix("").parts)
        for file in sorted(_SOURCE.rglob("*.py"))
        if "from jaxtyping import" in file.read_text(encoding="utf-8")
    ],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)

_REPEATING = {
    "bench",
    "cli",
    "conformance",
    "examples",
    "plans",
    "tools",
    "train",
    "test_balls.py",
    "test_exactness.py",
}

torch.set_num_threads(1)

settings.register_profile(
    "tenfold",
    deadline=None,
    derandomize=True,
    max_examples=25,
    # The seed fixture runs once per test, not once per example: tests that draw shapes draw the seed as well.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("tenfold")


def pytest_configure(config: pytest.Config) -> None:
    """Warnings of ours are raised on purpose: a test that causes one says so. Not in pyproject.toml, where resolving
    the class would import the package before the hook above."""
    config.addinivalue_line("filterwarnings", "error::tenfold.errors.TenfoldWarning")


def pytest_collection_finish() -> None:
    """What is there by now stays to the end: the collector of garbage need not look at it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _shapes(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every shape is checked in the tests of the parts, but not where the same calls are made again by hundreds."""
    jaxtyping.config.update("jaxtyping_disable", bool(_REPEATING & set(request.path.parts)))
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def _seed() -> None:
    """The global generators start every test in the same state."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - other libraries draw from it
    torch.manual_seed(0)


@pytest.fixture
def generator() -> torch.Generator:
    """A generator of its own, with a fixed seed."""
    return torch.Generator().manual_seed(0)
