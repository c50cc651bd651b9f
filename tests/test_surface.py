"""The public surface: which names there are, what stands behind them, and what is loaded for them."""

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tenfold

SOURCE = Path(inspect.getfile(tenfold))
FOUND = list(pkgutil.walk_packages(tenfold.__path__, "tenfold."))
MODULES, PACKAGES = [info.name for info in FOUND], [info.name for info in FOUND if info.ispkg]
HEAVY = (
    *("tenfold.train", "tenfold.bench", "tenfold.cli"),
    *("scipy.optimize", "scipy.linalg", "scipy.sparse", "scipy.stats"),
    *("transformers", "accelerate", "sklearn", "torch_pruning", "torchvision", "PIL", "pandas"),
    *("typer", "rich", "plotly", "matplotlib", "jinja2", "yaml", "onnx", "onnxruntime"),
)
NEEDED = {"tenfold.plans.hf_quantizer": "transformers"}
"""Modules that are of no use without another library, and are imported with it."""
PUBLIC = {
    "tenfold": "Budget plan begin apply to_dense compress cost Cost save load from_pretrained reestimate_"
    " Calibrated refit_ RefitReport distill DistillReport survey Problem Plan LayerPlan"
    " Report Result build_model list_methods get_method Method Goal sweep RankCut FilterCut SweepRow prune_filters"
    " deploy fold_batchnorm optimize_for_inference runtimes"
    " ALDS SVD SVDEnergy LRank PCA ActivationSVD FisherSVD VBMF Tucker Dense TRP LRPET SFW TDLRT"
    " Factors GroupLasso NuclearNorm LowRankLinear LowRankConv TuckerConv linalg balls layers methods plans train bench"
    " integrations"
    " TenfoldError BudgetError PlanError CheckpointError UnsupportedLayer DataError ArgumentError TenfoldWarning",
    "tenfold.linalg": "truncated_svd singular_values project truncate_core hosvd tucker_truncate tucker_full",
    "tenfold.balls": "L1 L2 LInf Lp KSparse KSupport GroupKSupport Nuclear SpectralKSparse SpectralKSupport",
}


@pytest.mark.parametrize("name", MODULES)
def test_no_module_is_hidden_behind_an_object_of_its_name(name):
    if name in NEEDED:
        pytest.importorskip(NEEDED[name])
    module = importlib.import_module(name)
    package, _, last = name.rpartition(".")
    assert getattr(importlib.import_module(package), last) is module


def bound(statement: ast.stmt) -> dict[str, str]:
    """The names that a statement of a package's own file gives to something, with what it is where it is imported."""
    if isinstance(statement, ast.ImportFrom):
        return {alias.asname or alias.name: f"{statement.module}.{alias.name}" for alias in statement.names}
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return {statement.name: "its own"}
    targets = getattr(statement, "targets", [getattr(statement, "target", None)])
    return {node.id: "its own" for node in targets if isinstance(node, ast.Name)}


@pytest.mark.parametrize("name", ["tenfold", *PACKAGES])
def test_no_package_gives_the_name_of_one_of_its_modules_to_something_else(name):
    """Which of the two one would get hangs on what has been imported so far."""
    source = Path(inspect.getfile(importlib.import_module(name))).read_text()
    given = {key: what for node in ast.parse(source).body for key, what in bound(node).items()}
    assert {key: what for key, what in given.items() if f"{name}.{key}" in MODULES and what != f"{name}.{key}"} == {}


@pytest.mark.parametrize(("home", "names"), PUBLIC.items(), ids=list(PUBLIC))
def test_public_names_are_there_and_listed(home, names):
    place = tenfold
    for part in home.split(".")[1:]:
        place = getattr(place, part)
    assert [name for name in names.split() if getattr(place, name, None) is None] == []
    assert set(names.split()) <= set(dir(place))


def test_trainer_report_and_their_libraries_are_loaded_when_they_are_asked_for_and_not_before():
    code = f"""
import sys, torch
before = set(sys.modules)  # torch may bring some of them itself
import tenfold
print([name for name in {HEAVY!r} if name in set(sys.modules) - before])
print([name for name in tenfold._LATER if name in vars(tenfold)])
print(tenfold.train.Recipe.__name__, tenfold.sweep.__name__, tenfold.build_model.__name__, tenfold.bench.__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["[]", "[]", "Recipe sweep build_model tenfold.bench"], done.stderr


def test_type_checkers_see_what_is_loaded_later():
    """The imports that only they read name the same objects as the table that is used at run time."""
    branch = next(node for node in ast.parse(SOURCE.read_text()).body if isinstance(node, ast.If))
    seen = {
        alias.asname: imported.module
        for imported in branch.body
        if isinstance(imported, ast.ImportFrom)
        for alias in imported.names
    }
    assert seen == tenfold._LATER
    assert len(seen) > 3


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'tenfold' has no attribute 'alds'"):
        _ = tenfold.alds
    with pytest.raises(ImportError, match="'build_method'"):
        exec("from tenfold import build_method")


def test_no_two_classes_share_a_name() -> None:
    """One word, one thing: who reads a name in a message or a trace knows what it is."""
    places: dict[str, set[str]] = {}
    for file in SOURCE.parent.rglob("*.py"):
        for name in re.findall(r"^class (\w+)", file.read_text(encoding="utf-8"), re.MULTILINE):
            places.setdefault(name, set()).add(str(file))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}
