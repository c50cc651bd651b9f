"""The first code that people read runs, and leaves what it says."""

import runpy
from pathlib import Path

import tenfold

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"


def test_the_demo_runs(tmp_path, capsys):
    runpy.run_path(str(DEMO))["main"](tmp_path / "demo", epochs=1, recovery=1)
    shown = capsys.readouterr().out
    for word in ("accuracy, right after", "accuracy, re-estimated", "accuracy, recovered", "parameters", "MACs", "ms"):
        assert word in shown
    names = {"alds-50", "alds-25", "svd-50", "svd-25", "spectra.png"}
    assert {p.name for p in (tmp_path / "demo").iterdir()} == names
    small = tenfold.load(tmp_path / "demo" / "alds-25", model=tenfold.build_model("cnn", 10, 1, 8))
    assert tenfold.cost(small).params <= 0.25 * 278_890
