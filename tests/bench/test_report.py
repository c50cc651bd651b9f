"""The report says what the results say, in a page that needs nothing else; broken and empty results too."""

import html
import itertools
import json
import random
import re
import shutil
import statistics
import subprocess
from dataclasses import replace

import matplotlib.figure
import numpy as np
import plotly.graph_objects
import plotly.offline
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import image
from pages import panels, parse, rows
from result_stubs import METHODS, cut, synthetic
from scipy import stats

from tenfold.bench.compare.findings import Int8
from tenfold.bench.compare.results import Failure, Results
from tenfold.bench.report import stale_pictures, write_pictures, write_report
from tenfold.bench.report.figure import THEMES, accuracy_range, method_styles, round_ticks, si
from tenfold.bench.report.summary import Mean, ReportEntry, best, budget_words, by_budget, entries, front, mean
from tenfold.bench.report.tables import seconds, size
from tenfold.bench.report.words import verdicts

BUDGETS = (0.5, 0.25, 0.1)
LIMITS = {f"{100 * budget:g} % of the parameters": budget for budget in BUDGETS}


@pytest.fixture(scope="module")
def results():
    return synthetic(budgets=BUDGETS)


@pytest.fixture(scope="module")
def path(results, tmp_path_factory):
    file = tmp_path_factory.mktemp("report") / "report.html"
    write_report(results, file)
    return file


@pytest.fixture(scope="module")
def page(path):
    return parse(path)


def written(results, folder):
    """The page without the five megabytes that draw it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plotly.offline, "get_plotlyjs", lambda: "/* plotly.js */")
        write_report(results, folder / "report.html")
    return parse(folder / "report.html")


def runs_of(results, label, budget):
    wanted = {} if budget is None else {"params": budget}
    return [run for run in results.runs if run.label == label and run.budget == wanted and run.failure is None]


# ---- cuts


def test_cuts_have_a_table_and_a_plot_with_the_means_over_the_seeds(results, tmp_path):
    made = cut(replace(results, runs=[run for run in results.runs if run.budget.get("params") in (None, 0.5)]))
    page = written(made, tmp_path)
    table = rows(page.one("section", id="cuts").one("table"))
    labels = ("dense", "lrpet")
    assert [(g, c[0]) for g, c in table] == [(f"{g} removed", n) for g in ("Ranks", "Filters") for n in labels]
    panel = panels(page)["cuts"]
    assert [choice["options"] for choice in panel["choices"]] == [
        ["ranks", "filters"],
        ["right after", "norms re-estimated"],
    ]
    for i, kind in enumerate(("rank", "filter")):
        for label, cells in zip(labels, (c for g, c in table if g.startswith(kind.capitalize())), strict=True):
            runs = [run for run in made.runs if run.label == label]
            found = [row for run in runs for c in run.cuts if c.kind == kind for row in c.rows]
            for j, name in enumerate(("right_after", "reestimated")):
                (trace,) = [t for t in panel["figures"][f"{i},{j}"]["data"] if t["name"] == label]
                assert trace["x"] == [0.0, 0.5, 0.8]
                for share, y, cell in zip(trace["x"], trace["y"], cells[1:4], strict=True):
                    known = [getattr(r, name) for r in found if r.removed == share and r.failure is None]
                    assert len(known) == (2 if (label, share) == ("lrpet", 0.8) else 3)
                    assert y == pytest.approx(statistics.mean(known), rel=1e-5)
                    assert cell.split(" / ")[j] == f"{100 * statistics.mean(known):.1f}"
    assert "cuts" not in panels(written(results, tmp_path))


def test_cuts_at_several_budgets_are_told_apart(results, tmp_path):
    page = written(cut(results), tmp_path)
    names = [trace["name"] for trace in panels(page)["cuts"]["figures"]["0,0"]["data"]]
    assert names[0] == "dense"
    assert len(set(names)) == len(names) == 1 + len(BUDGETS)


# ---- int8


def test_dense_int8_low_rank_and_both_stand_side_by_side(results, tmp_path):
    def with_int8(run):
        draw = random.Random(run.id)
        sizes = draw.randint(100_000, 200_000), draw.randint(20_000, 90_000)
        speeds = draw.uniform(1, 2), draw.uniform(2, 3)
        found = Int8("static", *sizes, draw.uniform(0.8, 0.9), 1.0, 0.7, 0.4, *speeds, batch=8, threads=1)
        return run if run.failure else replace(run, int8=found)

    made = replace(results, runs=[with_int8(run) for run in results.runs])
    section = written(made, tmp_path).one("section", id="int8")
    assert "static" in section.text
    assert "a batch of 8, 1 thread" in section.text
    table = {(group, cells[0]): cells[1:] for group, cells in rows(section.one("table"))}
    through = [(g, n) for g, budget in LIMITS.items() for n in METHODS if (budget, n) != (min(BUDGETS), "svd")]
    assert list(table) == [("", "dense"), *through]
    for (group, label), cells in table.items():
        runs = runs_of(made, label, LIMITS[group] if group else None)

        def average(figure, runs=runs):
            return statistics.mean(figure(run) for run in runs)

        assert cells[:4] == [
            f"{average(lambda run: run.int8.float_bytes) / 1000:,.0f} kB",
            f"{average(lambda run: run.int8.bytes) / 1000:,.0f} kB",
            f"{average(lambda run: run.int8.float_speedup):.2f}×",
            f"{average(lambda run: run.int8.speedup):.2f}×",
        ]
        assert cells[4].startswith(f"{100 * average(lambda run: run.test.accuracy):.2f}")
        assert cells[5].startswith(f"{100 * average(lambda run: run.int8.accuracy):.2f}")
    assert not written(results, tmp_path).all("section", id="int8")


# ---- the numbers


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_the_interval_is_that_of_the_t_test(values):
    made = mean(values)
    assert made.value == pytest.approx(np.mean(values), abs=1e-12)
    if np.ptp(values) > 1e-6:
        low, high = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
        assert (made.low, made.high) == pytest.approx((low, high), abs=1e-9)


def test_a_single_value_has_no_interval_and_none_has_no_mean():
    assert mean([0.5, None]).half is None
    assert mean([None]) is None


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), min_size=1, max_size=12))
def test_the_front_is_what_nothing_beats(points):
    def beaten(point):
        return any(o != point and o[0] <= point[0] and o[1] >= point[1] for o in points)

    assert front(points) == sorted({point for point in points if not beaten(point)})


def test_the_table_has_the_means_the_intervals_and_the_seeds(page, results):
    found = rows(page.one("section", id="results").one("table"))
    assert [(group, cells[0]) for group, cells in found] == [
        ("", "dense"),
        *((group, label) for group in LIMITS for label in ("alds", "svd", "lrpet")),
    ]
    for group, (label, accuracy, params, macs, latency, cost, seeds) in found:
        runs = runs_of(results, label, LIMITS.get(group))
        if not runs:
            assert (label, accuracy, cost, seeds) == ("svd", "failed", "–", "0 of 3 3 failed")
            continue
        values = [run.test.accuracy for run in runs]
        half = 4.302652729911275 * statistics.stdev(values) / 3**0.5  # t with 2 degrees of freedom, 97.5 %
        assert accuracy.removeprefix("★ ") == f"{100 * statistics.mean(values):.2f} ± {100 * half:.2f} %"
        assert params.split()[0] == f"{runs[0].price.params / 1000:.4g}k"
        assert macs.removeprefix("★ ").split()[0] == f"{statistics.mean(r.price.macs for r in runs) / 1e6:.4g}M"
        told = f"{runs[0].latency.speedup:.2f}× as fast {runs[0].latency.small_ms:.3g} ms"  # the same for all seeds
        assert latency == (told if group else "4 ms")
        assert cost.removeprefix("★ ") == f"{sum(runs[0].seconds.values()):.1f} s"
        assert seeds == "3"
        if group:
            assert params.endswith(f"{100 * LIMITS[group]:.1f} %")


def test_stars_mark_the_best_of_a_column_at_a_budget_and_nothing_else(page, results):
    found = rows(page.one("section", id="results").one("table"))
    for group, budget in LIMITS.items():
        scores = {label: runs_of(results, label, budget) for label in ("alds", "svd", "lrpet")}
        scores = {label: statistics.mean(r.test.accuracy for r in runs) for label, runs in scores.items() if runs}
        winner = max(scores, key=scores.get)
        marked = {cells[0] for title, cells in found if title == group and cells[1].startswith("★")}
        assert marked == {winner}
        assert not any(cells[2].startswith("★") for title, cells in found if title == group)  # all are of one size
    assert not any("★" in cell for cell in found[0][1])


def test_no_star_for_being_below_the_budget(results, tmp_path):
    runs = [replace(run, price=replace(run.price, params=1000 + i)) for i, run in enumerate(results.runs) if run.price]
    found = rows(written(replace(results, runs=runs), tmp_path).one("section", id="results").one("table"))
    assert not any(cells[2].startswith("★") for _, cells in found)
    assert sum(cells[3].startswith("★") for _, cells in found) == len(BUDGETS)
    macs = [replace(run, budget={"macs": 0.5}) if run.budget else run for run in runs]
    found = rows(
        written(replace(results, runs=macs, experiment={}), tmp_path).one("section", id="results").one("table")
    )
    assert sum(cells[2].startswith("★") for _, cells in found) == 1
    assert not any(cells[3].startswith("★") for _, cells in found)


def test_the_best_is_the_smallest_cost_and_ties_share_it():
    (one, two, three) = (ReportEntry(name, "training", {"params": 0.5}, ()) for name in "abc")
    values = {"a": mean([1.0]), "b": mean([2.0]), "c": mean([1.0])}
    assert best([one, two, three], lambda e: values[e.label], largest=False) == [one, three]
    assert best([one, two, three], lambda e: values[e.label], largest=True) == [two]
    assert best([one, three], lambda e: values[e.label], largest=True) == []


def test_the_sentences_name_who_is_ahead_and_whether_seeds_tell(results):
    runs = {label: runs_of(results, label, 0.5) for label in ("alds", "lrpet")}

    def told(first, second):
        made = [
            replace(run, test=replace(run.test, accuracy=value))
            for label, values in (("alds", first), ("lrpet", second))
            for run, value in zip(runs[label], values, strict=False)
        ]
        return verdicts(entries(replace(results, runs=made)))

    (apart,) = told((0.9, 0.901, 0.902), (0.8, 0.801, 0.802))
    assert apart.startswith("At 50 % of the parameters: alds is ahead with 90.10")
    assert apart.endswith("their intervals are apart.")
    (overlap,) = told((0.8, 0.9, 0.85), (0.81, 0.9, 0.87))
    assert "lrpet is ahead" in overlap
    assert "these seeds do not separate them" in overlap
    assert "one seed" in told((0.9,), (0.8,))[0]
    assert "are level at 90.00" in told((0.9,), (0.9,))[0]
    assert told((0.9,), ()) == []


def test_methods_that_choose_their_own_size_are_not_ranked(results):
    free = [replace(run, budget={}) for run in results.runs if run.kind != "dense"]
    found = entries(replace(results, runs=free, experiment={}))
    assert list(by_budget(found)) == ["own choice"]
    assert verdicts(found) == []


# ---- the plots


@pytest.mark.parametrize("id", ["params", "macs", "latency"])
def test_accuracy_is_plotted_against_cost_as_it_was_measured(page, results, id):
    (figure,) = panels(page)[id]["figures"].values()
    traces = {trace["name"]: trace for trace in figure["data"]}
    assert set(traces) == {"Pareto front", "dense", "alds", "svd", "lrpet"}
    points = []
    for label in ("dense", "alds", "svd", "lrpet"):
        expected = []
        for budget in (None,) if label == "dense" else BUDGETS:
            runs = runs_of(results, label, budget)
            if runs:
                time = [1.0 if label == "dense" else 1 / run.latency.speedup for run in runs]
                costs = {
                    "params": [r.price.params for r in runs], "macs": [r.price.macs for r in runs], "latency": time
                }[id]  # fmt: skip
                expected.append((costs, [run.test.accuracy for run in runs]))
        expected.sort(key=lambda pair: statistics.mean(pair[0]))
        trace = traces[label]
        assert trace["x"] == pytest.approx([statistics.mean(c) for c, _ in expected], rel=1e-5)
        assert trace["y"] == pytest.approx([statistics.mean(a) for _, a in expected], rel=1e-5)
        halves = [4.302652729911275 * statistics.stdev(a) / 3**0.5 for _, a in expected]
        assert trace["error_y"]["array"] == pytest.approx(halves, rel=1e-5)
        points += zip(trace["x"], trace["y"], strict=True)
    assert list(zip(traces["Pareto front"]["x"], traces["Pareto front"]["y"], strict=True)) == front(points)


def test_the_map_holds_every_rank_and_share(page, results):
    panel = panels(page)["ranks"]
    assert panel["choices"][0]["options"] == list(LIMITS)
    for position, budget in enumerate(BUDGETS):
        (trace,) = panel["figures"][str(position)]["data"]
        assert trace["x"] == [label for label in ("alds", "svd", "lrpet") if runs_of(results, label, budget)]
        for column, label in enumerate(trace["x"]):
            layers = runs_of(results, label, budget)[0].layers  # the same for all seeds
            assert trace["y"] == [layer.name for layer in layers]
            assert [row[column] for row in trace["text"]] == [str(layer.rank or "dense") for layer in layers]
            shares = [layer.params / layer.dense_params for layer in layers]
            assert [row[column] for row in trace["z"]] == pytest.approx(shares, rel=1e-5)


def test_the_map_shows_where_seeds_differ_and_other_kinds_of_rank(results, tmp_path):
    ranks = iter([4, 9, 7, [3, 2], [5, 2], [4, 2], 5, 5, None])

    def changed(run, index):
        layer = replace(run.layers[index], rank=next(ranks), slices=2 if index == 3 else 1)
        return replace(run, layers=[*run.layers[:index], layer, *run.layers[index + 1 :]])

    runs = runs_of(results, "alds", 0.5)
    for index in (1, 2, 3):
        runs = [changed(run, index) for run in runs]
    page = written(replace(results, runs=runs), tmp_path)
    (trace,) = panels(page)["ranks"]["figures"]["0"]["data"]
    assert [row[0] for row in trace["text"]] == ["dense", "4–9", "3–5 · 2", "dense or 5 × 2"]


def test_spectra_are_those_of_the_first_seed_relative_to_the_largest(page, results):
    panel = panels(page)["spectra"]
    layers, budgets = (choice["options"] for choice in panel["choices"])
    assert budgets == list(LIMITS)
    assert set(panel["figures"]) == {f"{i},{j}" for i in range(len(layers)) for j in range(3)}
    for (i, layer), (j, budget) in itertools.product(enumerate(layers), enumerate(BUDGETS)):
        traces = {trace["name"]: trace for trace in panel["figures"][f"{i},{j}"]["data"]}
        runs = {label: runs_of(results, label, budget) for label in ("alds", "svd", "lrpet")}
        pairs = {label: next(s for s in found[0].spectra if s.layer == layer) for label, found in runs.items() if found}
        top = max(pair.before.value[0] for pair in pairs.values())
        expected = {label: pair.after for label, pair in pairs.items()}
        expected |= {"lrpet, before": pairs["lrpet"].before, "dense network": pairs["alds"].before}
        assert set(traces) == set(expected)
        for name, spectrum in expected.items():
            kept = [(n, v / top) for n, v in zip(spectrum.index, spectrum.value, strict=True) if v >= 1e-4 * top]
            assert traces[name]["x"] == [n for n, _ in kept]
            assert traces[name]["y"] == pytest.approx([v for _, v in kept], rel=1e-5)


def test_the_evolution_holds_every_rank_of_every_epoch(page, results):
    panel = panels(page)["evolution"]
    assert panel["choices"][0]["options"] == [f"lrpet, {limit}" for limit in LIMITS]
    for position, budget in enumerate(BUDGETS):
        told = runs_of(results, "lrpet", budget)[0].evolution
        (trace,) = panel["figures"][str(position)]["data"]
        assert trace["x"] == told.epochs
        assert trace["y"] == list(told.ranks)
        for texts, shares, ranks in zip(trace["text"], trace["z"], told.ranks.values(), strict=True):
            assert texts == ["" if rank is None else str(rank) for rank in ranks]
            top = max(rank for rank in ranks if rank)
            assert [share or 0.0 for share in shares] == pytest.approx([(rank or 0) / top for rank in ranks], rel=1e-5)
            assert [share is None for share in shares] == [rank is None for rank in ranks]


@pytest.mark.parametrize("measure", ["validation_accuracy", "validation_loss", "accuracy", "loss", "lr"])
def test_curves_are_means_over_seeds_with_their_range(page, results, measure):
    names = {"accuracy": "training accuracy", "loss": "training loss", "lr": "learning rate"}
    panel = panels(page)["training"]
    measures, budgets = (choice["options"] for choice in panel["choices"])
    assert budgets == list(LIMITS)
    i = measures.index(names.get(measure, measure.replace("_", " ")))
    for j, budget in enumerate(BUDGETS):
        data = panel["figures"][f"{i},{j}"]["data"]
        for label, phase in (("dense", "training"), ("lrpet", "training"), ("alds", "recovery")):
            runs = runs_of(results, label, None if label == "dense" else budget)
            curves = [next(c.epochs for c in run.curves if c.phase == phase) for run in runs]
            values = np.array([[getattr(epoch, measure) for epoch in epochs] for epochs in curves])
            at = next(n for n, trace in enumerate(data) if trace.get("name") == label)
            assert data[at]["x"] == [epoch.epoch for epoch in curves[0]]
            assert data[at]["y"] == pytest.approx(values.mean(0), rel=1e-5)
            band = [*values.max(0), *values.min(0)[::-1]]
            assert data[at - 1]["y"] == pytest.approx(band, rel=1e-5)


def test_training_that_methods_share_is_drawn_once(results, tmp_path):
    shared = {run.seed: run.curves[0] for run in runs_of(results, "alds", 0.5)}
    runs = [
        replace(run, curves=[shared[run.seed], *run.curves[1:]]) if run.kind == "post-training" else run
        for run in results.runs
    ]
    page = written(replace(results, runs=runs), tmp_path)
    names = [trace.get("name") for trace in panels(page)["training"]["figures"]["0,0"]["data"]]
    assert names.count("before compression") == 1


def test_plotly_knows_every_property(page):
    def coloured(value):
        return json.loads(re.sub(r'"\$(\d|ink|paper|quiet|grid)"', '"#123456"', json.dumps(value)))

    for panel in panels(page).values():
        for figure in list(panel["figures"].values())[:2]:
            plotly.graph_objects.Figure(**coloured(figure))


@given(st.floats(1e-3, 1e9), st.floats(1.0, 1e6))
def test_ticks_are_round_and_there_are_some(low, factor):
    ticks = round_ticks(low, low * factor)
    assert 1 <= len(ticks) <= 30
    assert ticks == sorted(set(ticks))
    assert all(float(f"{tick:.1e}") == tick for tick in ticks)
    assert all(low / 2 <= tick <= 2 * low * factor for tick in ticks)


def test_colours_stand_out_and_methods_differ(results):
    def light(colour):
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    for theme in THEMES.values():
        for role, colour in theme.items():
            low, high = sorted([light(colour), light(theme["$paper"])])
            least = {"$paper": 1.0, "$grid": 1.0, "$ink": 7.0, "$quiet": 4.5}.get(role, 3.0)
            assert (high + 0.05) / (low + 0.05) >= least, (role, colour)
    found = [ReportEntry(f"method {n}", "training", {}, ()) for n in range(40)]
    looks = {tuple(sorted(style.items())) for style in method_styles(found).values()}
    assert len(looks) == 40
    first = list(method_styles(found).values())[:8]
    assert len({style["color"] for style in first}) == len({style["symbol"] for style in first}) == 8


# ---- the page


def test_the_page_stands_alone(path, page):
    for node in page.all("*"):
        assert node.tag not in {"link", "img", "iframe", "object", "embed"}
        assert "src" not in node.attributes
        assert node.attributes.get("href", "#").startswith("#")
        assert not any(name.startswith("on") for name in node.attributes)
    style = page.one("style").text
    assert "url(" not in style
    assert "@import" not in style
    policy = page.one("meta", **{"http-equiv": "Content-Security-Policy"}).attributes["content"]
    assert policy.startswith("default-src 'none'")
    assert path.stat().st_size < 8e6
    assert len(re.findall(r"plotly\.js v\d", path.read_text())) == 1


def test_the_page_can_be_read_by_all(page):
    assert page.one("html").attributes["lang"] == "en"
    levels = [int(node.tag[1]) for node in page.all("*") if re.fullmatch(r"h\d", node.tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    ids = [node.attributes["id"] for node in page.all("*") if "id" in node.attributes]
    assert len(ids) == len(set(ids))
    for node in page.all("*"):
        for name in ("href", "aria-labelledby"):
            assert node.attributes.get(name, ids[0]).removeprefix("#") in ids
    for table in page.all("table"):
        assert all(cell.attributes["scope"] == "col" for cell in table.one("thead").all("th"))
        widths = {len(cells) for _, cells in rows(table)}
        assert widths == {len(table.one("thead").all("th"))}
    for figure in page.all("figure"):
        assert figure.one("figcaption").text
        assert len(figure.one("div", role="img").attributes["aria-label"]) > 30


def test_style_follows_the_reader(page):
    style = page.one("style").text
    for wanted in ("prefers-color-scheme: dark", "@media print", "max-width: 40rem", "prefers-reduced-motion"):
        assert wanted in style


def test_every_figure_that_can_be_picked_is_there(page):
    for panel in panels(page).values():
        positions = itertools.product(*(range(len(choice["options"])) for choice in panel["choices"]))
        assert set(panel["figures"]) == {",".join(map(str, position)) for position in positions}
        selects = page.one("figure", id=f"figure-{panel['id']}").all("select")
        picked = [choice for choice in panel["choices"] if len(choice["options"]) > 1]
        assert [[option.text for option in select.all("option")] for select in selects] == [
            choice["options"] for choice in picked
        ]
        starts = [[o.attributes["value"] for o in s.all("option") if "selected" in o.attributes] for s in selects]
        assert starts == [[str(choice["start"])] for choice in picked]


def test_costs_stages_reasons_failures_and_the_way_there(page, results):
    costs = rows(page.one("section", id="cost").one("table"))
    assert costs[1] == (next(iter(LIMITS)), ["alds", "40.0 s", "400 ms", "100 ms", "9.0 s", "49.5 s", "477 MiB"])
    stages = rows(page.one("section", id="stages").one("table"))
    before = 100 * statistics.mean(run.accuracy.before for run in runs_of(results, "alds", 0.5))
    assert stages[1][1][1].startswith(f"{before:.2f} ±")
    assert stages[3][1][4] == "–"  # lrpet does not recover
    dense = rows(page.one("section", id="dense").one("table"))
    assert dense == [("", ["layer0.conv", "dense costs no more than what keeps the level", "all"])]
    failures = rows(page.one("section", id="failures").one("table"))
    assert failures == [("", [run.id, run.failure.type, run.failure.message]) for run in results.runs if run.failure]
    manifest = page.one("section", id="manifest")
    assert json.loads(manifest.all("code")[1].text) == results.experiment
    assert manifest.all("code")[0].text == "tenfold compare --experiment experiment.json"
    for fact in ("torch 2.13.0", "0" * 40, "0" * 64, "A CPU", "30 of 30 runs"):
        assert fact in manifest.text


def test_a_reason_says_where_it_holds(results, tmp_path):
    def spared(run):
        layer = replace(run.layers[1], decomposition="dense", rank=None, reason="too dear")
        return replace(run, layers=[run.layers[0], layer, *run.layers[2:]])

    runs = [spared(run) if run.label == "alds" and run.seed == 1 else run for run in results.runs]
    table = written(replace(results, runs=runs), tmp_path).one("section", id="dense").one("table")
    assert ["layer1.conv", "too dear", "; ".join(f"alds, {limit}" for limit in LIMITS)] in [c for _, c in rows(table)]


def test_runs_from_several_places_are_told_apart(results, tmp_path):
    elsewhere = replace(results.runs[0].place, gpu="A GPU", device="cuda", dirty=True)
    runs = [replace(results.runs[0], place=elsewhere), *results.runs[1:]]
    tables = (
        written(replace(results, runs=runs), tmp_path).one("section", id="manifest").all("div", **{"class": "table"})
    )
    assert [table.one("p").text for table in tables] == ["Of 1 run.", "Of 29 runs."]
    assert "A GPU" in tables[0].text
    assert "not committed" in tables[0].text
    assert "A GPU" not in tables[1].text


@pytest.mark.parametrize(
    "text",
    [
        "</script><script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "<!--<script>",
        '" onmouseover="alert(1)',
        "{{ 7 * 7 }}",
        "<b>bold</b> & <a href='javascript:alert(1)'>link</a>",
        "$ink",
    ],
)
def test_hostile_text_stays_text(results, tmp_path, text):
    def spoilt(run):
        layers = [replace(layer, name=f"{layer.name}{text}", reason=text) for layer in run.layers]
        spectra = [replace(s, layer=f"{s.layer}{text}") for s in run.spectra]
        failure = run.failure and Failure(text, text)
        place = replace(run.place, cpu=text, commit=text, versions={text: text})
        label = run.label + text
        return replace(
            run, label=label, layers=layers, spectra=spectra, failure=failure, place=place, model=text, id=run.id + text
        )

    spoilt_results = Results(text, {text: text}, [spoilt(run) for run in results.runs], results.expected)
    page = written(spoilt_results, tmp_path)
    assert len(page.all("script")) == 3
    assert "<" not in "".join(
        page.one("script", id="panels").children
    )  # browsers take less than a whole tag for an end
    assert not page.all("img")
    assert not page.all("b")
    assert all(not name.startswith("on") for node in page.all("*") for name in node.attributes)
    assert page.one("h1").text == " ".join(text.split())
    (trace,) = panels(page)["ranks"]["figures"]["0"]["data"]
    assert all("<" not in name.replace("<br>", "") for name in trace["x"] + trace["y"])
    for panel in panels(page).values():
        for trace in (trace for figure in panel["figures"].values() for trace in figure["data"]):
            shown = json.dumps([trace.get(key) for key in ("name", "text", "hovertemplate")])
            assert not re.search(r"<(?!/?extra>|/?b>\w|br>|/b>)", shown.replace("<b>bold", "!"))


def test_parts_without_content_vanish(results, tmp_path):
    everything = {"results", "accuracy", "layers", "spectra", "training", "stages", "cost", "dense", "failures"}

    def parts(runs, expected=30):
        page = written(replace(results, runs=runs, expected=expected), tmp_path)
        found = {section.attributes["id"] for section in page.all("section")}
        links = {link.attributes["href"] for link in page.one("nav").all("a")}
        assert links == {f"#{id}" for id in found}
        assert "manifest" in found
        return found - {"manifest"}, page

    whole = [run for run in results.runs if run.failure is None]
    assert parts(results.runs)[0] == everything
    assert parts(whole)[0] == everything - {"failures"}
    assert parts([replace(run, layers=[], evolution=None, spectra=[]) for run in whole])[0] == everything - {
        "layers", "spectra", "dense", "failures",
    }  # fmt: skip
    assert parts([replace(run, curves=[]) for run in whole])[0] == everything - {"training", "failures"}
    assert "evolution" not in panels(parts(runs_of(results, "alds", 0.5))[1])
    unmeasured = [replace(run, latency=None) for run in whole if run.kind != "dense"]
    assert "latency" not in panels(parts(unmeasured)[1])
    dense_alone, page = parts(runs_of(results, "dense", None))
    assert dense_alone == {"results", "accuracy", "training", "stages", "cost"}
    failed, page = parts([run for run in results.runs if run.failure])
    assert failed == {"results", "failures"}
    assert "Not finished: 3 of 30 runs" in page.one("header").text
    assert not page.all("script")


def test_a_comparison_without_runs_is_a_page_too(tmp_path):
    page = written(Results("empty", {}, [], 12), tmp_path)
    assert "Not finished: 0 of 12 runs" in page.one("header").text
    assert [section.attributes["id"] for section in page.all("section")] == ["manifest"]


def test_what_has_not_been_run_is_said_and_not_left_out(results, tmp_path):
    small = f"{100 * min(BUDGETS):g} % of the parameters"
    kept = [r for r in results.runs if r.label == "dense" or (r.label, r.seed) in (("alds", 0), ("svd", 1), ("svd", 2))]
    page = written(
        replace(results, runs=[run for run in kept if run.label != "alds" or run.budget["params"] < 0.5]), tmp_path
    )
    found = {(group, cells[0]): cells for group, cells in rows(page.one("section", id="results").one("table"))}
    assert list(found) == [("", "dense"), *((group, label) for group in LIMITS for label in ("alds", "svd", "lrpet"))]
    assert found["", "dense"][-1] == "3"
    assert found[small, "alds"][-1] == "1 of 3 2 not run"
    assert re.fullmatch(r"(★ )?\d\d\.\d\d %", found[small, "alds"][1])  # of one seed: no interval
    assert found[small, "svd"][1:] == ["failed", "–", "–", "–", "–", "0 of 3 2 failed, 1 not run"]
    assert found[small, "lrpet"][1:] == ["not run", "–", "–", "–", "–", "0 of 3 3 not run"]
    assert found["50 % of the parameters", "alds"][1] == "not run"
    assert "Not finished: 11 of 30 runs" in page.one("header").text
    assert "2 runs failed" in page.one("header").text


@pytest.mark.parametrize("change", [{"methods": [{"method": "alds", "measure": "fro"}]}, {"speed": 3}])
def test_no_run_is_missed_that_the_results_would_name_otherwise(results, change):
    """An experiment that this version cannot read, or reads otherwise, does not say what is missing."""
    told = replace(results, experiment=results.experiment | change, runs=results.runs[:5])
    assert [(entry.label, entry.seeds) for entry in entries(told)] == [("dense", "3"), ("alds", "2")]


def test_one_seed_and_one_budget_leave_no_trace_of_more(tmp_path):
    page = written(synthetic(seeds=(0,), budgets=(0.5,), methods=("alds", "lrpet")), tmp_path)
    assert "±" not in page.one("section", id="results").one("table").text
    assert "no telling chance from merit" in page.one("header").text
    for id in ("params", "macs", "latency"):
        for trace in panels(page)[id]["figures"][""]["data"]:
            assert not {"error_x", "error_y"} & set(trace)
    assert not page.one("figure", id="figure-ranks").all("select")
    assert not any(trace.get("fill") for trace in panels(page)["training"]["figures"]["0,0"]["data"])


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (budget_words({"params": 0.25}), "25 % of the parameters"),
        (budget_words({"params": 12_000, "macs": 0.5}), "12,000 parameters and 50 % of the MACs"),
        (budget_words({"params": None}), "own choice"),
        (seconds(0.0123), "12.3 ms"),
        (seconds(0.0004), "< 1 ms"),
        (seconds(59.96), "60.0 s"),
        (seconds(75), "1 min 15 s"),
        (seconds(3661), "1 h 01 min"),
        (size(3 * 2**30), "3.00 GiB"),
        (si(67_500), "67.5k"),
        (si(2.283e6), "2.283M"),
        (si(0.5), "0.5"),
    ],
)
def test_figures_in_words(made, words):
    assert made == words


# ---- the pictures


PICTURES = ("params", "macs", "latency", "ranks", "evolution", "spectra", "training")


def test_pictures_are_drawn_for_light_and_dark_pages(results, tmp_path):
    made = write_pictures(results, tmp_path / "pictures")
    names = {f"{name}{theme}.png" for name in PICTURES for theme in ("", "-dark")}
    assert {path.name for path in made} == names == {path.name for path in (tmp_path / "pictures").iterdir()}
    for path in made:
        pixels = image.imread(path)
        assert min(pixels.shape[:2]) > 400
        paper = THEMES["dark" if "dark" in path.name else "light"]["$paper"]
        assert pixels[0, 0, :3] == pytest.approx([int(paper[i : i + 2], 16) / 255 for i in (1, 3, 5)], abs=0.01)
        assert len(np.unique(pixels[::3, ::3, :3].sum(-1))) > 20


def test_pictures_show_what_the_page_shows(page, results, tmp_path, monkeypatch):
    seen = []
    init = matplotlib.figure.Figure.__init__

    def recording(self, *args, **kwargs):
        seen.append(self)
        init(self, *args, **kwargs)

    monkeypatch.setattr(matplotlib.figure.Figure, "__init__", recording)
    write_pictures(results, tmp_path)
    drawn = dict(zip(PICTURES, seen[::2], strict=True))  # each twice: light, dark
    for id in ("params", "macs", "latency"):
        (panel,), figure = drawn[id].axes, panels(page)[id]["figures"][""]
        for line, trace in zip((c.lines[0] for c in panel.containers), figure["data"], strict=True):
            assert list(line.get_xdata()) == trace["x"]
            assert list(line.get_ydata()) == trace["y"]
        assert panel.get_xscale() == "log"
        assert list(panel.get_ylim()) == figure["layout"]["yaxis"]["range"]
    (trace,) = panels(page)["evolution"]["figures"]["0"]["data"]
    (labels, _) = [[text.get_text() for text in axis.get_ticklabels()] for axis in _axes_of(drawn["evolution"])]
    assert labels == [str(epoch) for epoch in trace["x"]]
    ranks = drawn["ranks"]
    (trace,) = panels(page)["ranks"]["figures"]["2"]["data"]  # of the smallest budget
    assert "10 % of the parameters" in ranks.axes[0].get_title()
    assert [text.get_text() for text in ranks.axes[0].texts] == [text for row in trace["text"] for text in row]
    np.testing.assert_allclose(ranks.axes[0].collections[0].get_array(), trace["z"])
    assert ranks.axes[0].yaxis_inverted()


def _axes_of(canvas):
    return canvas.axes[0].xaxis, canvas.axes[0].yaxis


def test_a_map_of_many_epochs_is_no_wider_than_one_of_some(results, tmp_path):
    def long(run):
        ranks = {name: [5] * 300 for name in run.evolution.ranks}
        return replace(run, evolution=replace(run.evolution, epochs=list(range(1, 301)), ranks=ranks))

    many = replace(results, runs=[long(run) if run.evolution else run for run in results.runs])
    (light, _) = write_pictures(many, tmp_path, ["evolution"])
    assert image.imread(light).shape[1] < 4000
    page = panels(written(many, tmp_path))["evolution"]["figures"]["0"]
    assert page["layout"]["meta"]["least"] < 2000


def test_pictures_of_nothing_are_not_made(results, tmp_path):
    assert write_pictures(replace(results, runs=[]), tmp_path) == []
    made = write_pictures(replace(results, runs=runs_of(results, "dense", None)), tmp_path)
    dense = ("params", "macs", "latency", "training")
    assert {path.name for path in made} == {f"{name}{theme}.png" for name in dense for theme in ("", "-dark")}


def test_pictures_know_what_they_were_drawn_of(results, tmp_path):
    only = ("params", "latency")
    made = write_pictures(results, tmp_path, only)
    bytes_ = [path.read_bytes() for path in made]
    assert stale_pictures(results, tmp_path, only) == []
    write_pictures(results, tmp_path, only)
    assert [path.read_bytes() for path in made] == bytes_
    changed = [replace(run, latency=replace(run.latency, speedup=9.0)) if run.latency else run for run in results.runs]
    latency = [tmp_path / "latency.png", tmp_path / "latency-dark.png"]
    assert stale_pictures(replace(results, runs=changed), tmp_path, only) == latency
    made[0].unlink()
    shutil.copy(latency[0], tmp_path / "extra.png")
    assert stale_pictures(results, tmp_path, only) == [made[0], tmp_path / "extra.png"]
    image.imsave(latency[1], np.zeros((2, 2, 3)))
    assert latency[1] in stale_pictures(results, tmp_path, only)


@pytest.mark.parametrize(
    ("values", "halves", "ends"),
    [
        ([0.8, 0.9], [None, None], (0.8, 0.9)),
        ([0.8, 0.9], [0.02, 0.03], (0.78, 0.93)),
        ([0.8, 0.9], [0.02, 0.5], (0.75, 0.95)),  # half of what the means spread, and no more
        ([0.1, 0.95], [0.2, 0.2], (0.0, 1.0)),  # an accuracy is in [0, 1]
        ([0.8], [0.1], (0.7, 0.9)),
    ],
)
def test_an_axis_holds_the_means_and_intervals_that_do_not_crush_them(values, halves, ends):
    low, high = accuracy_range([Mean(value, half, 3) for value, half in zip(values, halves, strict=True)])
    room = 0.06 * (ends[1] - ends[0])
    assert (low, high) == pytest.approx((ends[0] - room, ends[1] + room), abs=1e-5)


# ---- in a browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

PROBE = """<!DOCTYPE html><meta charset="utf-8"><iframe src="report.html" style="width:390px;height:4000px"></iframe>
<pre id="told"></pre><script>
const told = {errors: []};
addEventListener("load", () => {
  const inner = document.querySelector("iframe").contentWindow, page = inner.document;
  const plots = () => [...page.querySelectorAll(".plot")];
  told.drawn = plots().filter((p) => p.querySelector(".main-svg .scatter path.js-line, .main-svg .hm image")).length;
  told.scroll = page.documentElement.scrollWidth;
  told.paper = plots()[0].layout.paper_bgcolor;
  told.texts = plots().map((p) => p.textContent);
  const select = page.querySelector("#figure-ranks select"), map = page.querySelector("#figure-ranks .plot");
  const shown = () => JSON.stringify(map.data[0].text);
  told.before = shown();
  select.value = "1"; select.dispatchEvent(new inner.Event("change"));
  told.after = shown();
  inner.dispatchEvent(new inner.Event("beforeprint"));
  told.printed = [plots()[0].layout.width, plots()[0].layout.paper_bgcolor];
  inner.dispatchEvent(new inner.Event("afterprint"));
  told.again = [plots()[0].layout.width, plots()[0].layout.paper_bgcolor];
  document.getElementById("told").textContent = JSON.stringify(told);
});
</script>"""


def browse(file, profile, *flags):
    """The page's elements after its programs ran, and what it said in the console."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += ["--disable-component-update", "--no-first-run", "--allow-file-access-from-files", "--dump-dom"]
    command += [f"--user-data-dir={profile}", "--virtual-time-budget=10000", "--enable-logging=stderr", "--v=0", *flags]
    done = subprocess.run([*command, file.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_browser_draws_every_plot_without_complaint(results, tmp_path, theme):
    hostile = "<img src=x onerror=alert(1)></script>"
    runs = [replace(run, label=run.label + hostile) if run.label == "alds" else run for run in results.runs]
    write_report(replace(results, runs=runs), tmp_path / "report.html")
    probe = tmp_path / "probe.html"
    probe.write_text(PROBE)
    flags = [f"--blink-settings=preferredColorScheme={['dark', 'light'].index(theme)}"]
    elements, console = browse(probe, tmp_path / "profile", *flags)
    assert console == []
    told = json.loads(html.unescape(re.search(r'<pre id="told">(.*?)</pre>', elements, re.DOTALL)[1]))
    assert told["drawn"] == len(panels(parse(tmp_path / "report.html"))) == 7
    assert told["scroll"] <= 390
    assert any("<img src=x" in text for text in told["texts"])  # shown as written
    assert told["before"] != told["after"]
    assert told["paper"] == THEMES[theme]["$paper"]
    assert told["printed"] == [660, THEMES["light"]["$paper"]]
    assert told["again"][1] == THEMES[theme]["$paper"]
    assert told["again"][0] < 390
