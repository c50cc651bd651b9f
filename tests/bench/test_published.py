"""What is published of a comparison: all of it made from the result file, and found out of step when it is."""

import importlib
import re
from dataclasses import replace

import pytest
from result_stubs import cut, synthetic

from tenfold.bench.compare.results import Results

comparison = importlib.import_module("tools.pages.comparison")
tables = importlib.import_module("tools.pages.__main__")
LINK = "experiments/made/results"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder in the place of the repository, and the one with the results in it."""
    for module in (comparison, tables):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(tables, "PAGES", ["README.md"])
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "/* plotly.js */")
    (tmp_path / "README.md").write_text(f"# A\n\n<!-- table: comparison {LINK} -->\n<!-- end -->\nrest\n")
    folder = tmp_path / LINK
    folder.mkdir(parents=True)
    return tmp_path, folder


def make(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["tables", *words])
    return tables.main()


def cells(page):
    lines = [line.strip("|\n ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    return {line[0].strip(): [cell.strip() for cell in line[1:]] for line in lines}


def test_one_command_brings_page_and_pictures_into_step(place, monkeypatch, capsys):
    root, folder = place
    assert make(monkeypatch) == 0
    assert "Not measured yet." in (root / "README.md").read_text()
    results = synthetic(budgets=(0.5,))
    results.write(folder / "results.json")
    assert make(monkeypatch, "--check") == 1
    assert make(monkeypatch) == 0
    assert make(monkeypatch, "--check") == 0
    page = (root / "README.md").read_text()
    assert page.startswith("# A\n")
    assert page.endswith("<!-- end -->\nrest\n")
    found = [run.test.accuracy for run in results.runs if run.label == "lrpet"]
    assert f"{100 * sum(found) / 3:.2f} ±" in cells(page)["lrpet"][0]
    linked = re.findall(r'(?:src|srcset)="([^"]+)"|\]\(([^)]+)\)', page)
    assert len(linked) == 5
    for link in linked:
        assert (root / (link[0] or link[1])).is_file()
    capsys.readouterr()
    changed = [replace(run, test=replace(run.test, accuracy=0.5)) if run.test else run for run in results.runs]
    replace(results, runs=changed).write(folder / "results.json")
    assert make(monkeypatch, "--check") == 1
    said = capsys.readouterr().out
    for stale in ("README.md", "params.png", "params-dark.png", "latency.png", "latency-dark.png"):
        assert f"{stale}: out of step" in said
    assert (root / "README.md").read_text() == page
    assert make(monkeypatch) == 0
    assert make(monkeypatch, "--check") == 0


def test_a_comparison_that_is_not_finished_is_published_as_such(place, monkeypatch):
    root, folder = place
    results = synthetic(budgets=(0.5, 0.25))
    part = [run for run in results.runs if run.seed == 0 or run.label == "dense"]
    replace(results, runs=[run for run in part if run.label != "lrpet"]).write(folder / "results.json")
    assert make(monkeypatch) == 0
    page = (root / "README.md").read_text()
    assert f"- Not finished: 7 of {results.expected} runs are there so far." in page
    assert "- 1 run failed, and counts nowhere." in page
    rows = page.split("**25 % of the parameters**")[1]
    assert cells(rows)["alds"][-1] == "1 of 3 (2 not run)"
    assert cells(rows)["svd"][0] == "failed"
    assert cells(rows)["svd"][-1] == "0 of 3 (1 failed, 2 not run)"
    assert cells(rows)["lrpet"] == ["not run", *"––––", "0 of 3 (3 not run)"]
    assert "lrpet" not in comparison.stages(f"../{LINK}")


def test_where_every_run_failed_there_is_a_table_without_pictures(place, monkeypatch):
    root, folder = place
    results = synthetic()
    failed = [run for run in results.runs if run.failure]
    Results("made", {}, failed, len(failed)).write(folder / "results.json")
    assert make(monkeypatch) == 0
    page = (root / "README.md").read_text()
    assert "<picture>" not in page
    assert cells(page)["svd"][0] == "failed"
    assert comparison.stages(f"../{LINK}") == "Not measured yet.\n"
    assert make(monkeypatch, "--check") == 0


def test_cuts_are_published_as_a_table_and_a_picture(place, monkeypatch):
    root, folder = place
    (root / "README.md").write_text(f"<!-- table: cuts {LINK} -->\n<!-- end -->\n")
    assert make(monkeypatch) == 0
    assert "Not measured yet." in (root / "README.md").read_text()
    cut(synthetic(budgets=(0.5,))).write(folder / "results.json")
    assert make(monkeypatch) == 0
    page = (root / "README.md").read_text()
    assert cells(page)["dense"][0].split(" / ")[1] == "90.0"
    for link in re.findall(r'(?:src|srcset)="([^"]+)"', page):
        assert (root / link).is_file()
        assert "cuts" in link
    assert make(monkeypatch, "--check") == 0
