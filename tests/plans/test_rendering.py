"""What is seen of plans, reports and results: in a terminal, in a notebook, on the command line."""

from dataclasses import replace
from io import StringIO
from xml.etree import ElementTree

import pytest
import rich.console
import torch
from rich.console import Console
from torch import nn

import tenfold
from nets import Tied, chain, image
from tenfold.cli import tables
from tenfold.plans import rendering

TAGS = {"all", "table", "caption", "thead", "tbody", "tfoot", "tr", "th", "td", "div"}
LONG = "features_of_the_first_stage_denseblock"


def deep(layers: int, name: str = LONG) -> nn.Module:
    """Many layers with long names that differ at their ends alone; some stay dense for reasons of their own."""
    odd = {0: nn.LSTM(12, 3), 1: nn.Bilinear(3, 3, 3), 2: nn.Embedding(5, 3), 3: nn.MultiheadAttention(8, 2)}
    made = {f"{name}_{i}": odd.get(i, nn.Linear(12 + i % 7, 16)) for i in range(layers)}
    return nn.Sequential(nn.ModuleDict(made))


def compressed(model: nn.Module, **inputs) -> tenfold.Result:
    return tenfold.compress(model, tenfold.SVD(), tenfold.Budget(params=0.8), **inputs)


def every(result: tenfold.Result) -> tuple[tenfold.Plan, tenfold.Report, tenfold.Result]:
    return result.plan, result.report, result


@pytest.mark.parametrize("layers", [5, 12, 13, 14, 100])
def test_printed_tables_are_short_and_narrow_and_plain(layers):
    for shown in every(compressed(deep(layers))):
        lines = str(shown).splitlines()
        assert len(lines) <= 25
        assert max(map(len, lines)) <= 80
        assert "\x1b" not in str(shown)
        assert lines == [each.rstrip() for each in lines]


def test_the_layers_that_change_most_are_shown_in_their_order_and_the_others_summed_up():
    plan = compressed(deep(100)).plan
    sheet = rendering.plan_sheet(plan, most=12)
    shown = [name for name in plan.layers if any(row[0].endswith(name[-8:]) for row in sheet.rows)]
    assert [row[0][-8:] for row in sheet.rows[:-1]] == [name[-8:] for name in shown]
    changed = {name: layer.dense_params - layer.params for name, layer in plan.layers.items()}
    assert min(changed[name] for name in shown) >= max(changed[name] for name in plan.layers if name not in shown)
    rest = [layer for name, layer in plan.layers.items() if name not in shown]
    assert sheet.rows[-1][0] == f"and {len(rest)} more" == f"and {len(plan.layers) - 12} more"
    assert rendering.change(sum(x.dense_params for x in rest), sum(x.params for x in rest)) in sheet.rows[-1]


@pytest.mark.parametrize("shown", [0, 1, 2], ids=["plan", "report", "result"])
def test_totals_are_always_there(shown):
    result = compressed(chain(), example_inputs=image())
    text = str(every(result)[shown])
    assert f"{result.report.kept['params']:.1%}" in text
    macs = rendering.change(result.plan.dense_macs, result.plan.macs) if shown == 0 else f"{result.plan.macs:,}"
    assert macs in text


def test_a_plan_of_few_layers_shows_them_all():
    plan = compressed(chain()).plan
    assert all(f"\n{name} " in str(plan) for name in plan.layers)
    assert "more" not in str(plan)


@pytest.mark.parametrize("model", [nn.ReLU(), nn.Linear(3, 3), Tied()], ids=["no layer", "one", "tied"])
def test_a_plan_in_which_nothing_changes_can_be_printed(model):
    plan = tenfold.plan(model, tenfold.Dense())
    assert "100.0%" in str(plan) or not plan.layers
    assert any(line.startswith("all ") for line in str(plan).splitlines())
    assert ">all</th>" in plan._repr_html_()


def test_the_command_line_shows_every_layer_by_the_same_code():
    plan = compressed(deep(30)).plan
    console = Console(width=200, record=True, file=StringIO())
    console.print(tables.plan(plan))
    found = console.export_text()
    assert all(name in found for name in plan.layers)
    assert f"{tables.plan(plan).renderables[0]}" == rendering.plan_sheet(plan).title == str(plan).splitlines()[0]


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "[red]", "[/]", "a&b", '"quoted"', ":smile:"])
def test_names_are_text_wherever_they_are_shown(name):
    result = compressed(deep(6, name))
    for shown in every(result):
        root = ElementTree.fromstring(f"<all>{shown._repr_html_()}</all>")
        assert {each.tag for each in root.iter()} <= TAGS
    root = ElementTree.fromstring(f"<all>{result.plan._repr_html_()}</all>")
    assert f"0.{name}_5"[-16:] in "".join(root.itertext())
    assert f"{name}_5"[-16:] in str(result.plan)


def test_a_notebook_shows_what_is_printed_and_printing_stays_text_there(monkeypatch):
    result = compressed(chain(), example_inputs=image())
    before = str(result)
    monkeypatch.setattr(rich.console, "_is_jupyter", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert str(result) == before
    root = ElementTree.fromstring(f"<all>{result._repr_html_()}</all>")
    cells = [cell.text for cell in root.iter() if cell.tag in ("td", "th") and cell.text]
    assert all(cell in before for cell in cells)


@pytest.mark.parametrize("layers", [5, 100])
def test_repr_is_one_short_line(layers):
    for shown in every(compressed(deep(layers))):
        assert "\n" not in repr(shown)
        assert len(repr(shown)) < 120
        assert repr(shown).startswith(type(shown).__name__ + "(")


def test_what_cannot_be_shown_is_refused():
    with pytest.raises(TypeError, match="`shown` must be a Plan, a Report or a Result; got int"):
        rendering.sheets(3)


@pytest.mark.parametrize(("before", "after", "text"), [(73_728, 18_400, "73.7k→18.4k"), (5, 5, "5"), (None, 5, "")])
def test_changes(before, after, text):
    assert rendering.change(before, after) == text


def test_tucker_ranks_and_added_factors_fit_the_columns():
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Conv2d(128, 128, 3) for _ in range(15)])
    plan = tenfold.plan(model, tenfold.Tucker(), tenfold.Budget(params=0.5))
    assert max(map(len, str(plan).splitlines())) <= 80
    assert "(" in str(plan)


def test_milliseconds_stand_beside_parameters_and_macs_where_they_were_measured():
    result = compressed(chain(), example_inputs=image())
    assert "milliseconds" not in str(result)
    plan = replace(result.plan, latency_ms=1.5, dense_latency_ms=3.0, conditions={"runtime": "eager", "threads": 1})
    rows = [line.split() for line in str(tenfold.Result(result.model, plan, result.report)).splitlines()]
    assert ["milliseconds", "3", "1.5", "50.0%"] in rows
    body = Console(file=StringIO(), width=100)
    body.print(tables.costs(result.report.dense, result.report.small, rendering.planned_ms(plan)))
    assert "50.0%" in body.file.getvalue()
