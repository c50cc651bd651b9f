"""The first code that people read runs, and leaves what it says."""

import runpy
from pathlib import Path

import tenfold
from tenfold.bench.compare.results import Results

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"


def test_the_demo_runs(tmp_path, capsys):
    out = tmp_path / "demo"
    runpy.run_path(str(DEMO))["main"](out, epochs=2, recovery=1)
    shown = capsys.readouterr().out
    for word in ("after", "estimated", "params=0.25", "alds", "lrpet", "loaded again", "report.html"):
        assert word in shown
    runs = Results.read(out / "results.json").runs
    assert [run.id for run in runs if run.failure] == []
    assert {path.name for path in (out / "networks").iterdir()} == {run.id for run in runs}
    assert len(runs) == 1 + 3 * 2
    assert (out / "report.html").stat().st_size > 100_000
    small = tenfold.load(out / "networks" / "alds-params0.25-s0", model=tenfold.build_model("cnn", 10, 1, 8))
    assert tenfold.cost(small).params <= 0.25 * 278_890
    assert tenfold.cost(small).params == next(run for run in runs if run.id == "alds-params0.25-s0").price.params
