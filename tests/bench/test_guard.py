"""The guard finds the border that is there, within its resolution, and says so when there is none."""

import pytest
import torch

import tenfold
from nets import linear_chain
from tenfold.bench.budget_search import smallest_budget
from tenfold.errors import ArgumentError, TenfoldError


@pytest.fixture
def problem():
    torch.manual_seed(0)
    return tenfold.survey(linear_chain(40, 60, 50, 10))


def share(problem):
    """An accuracy that is the share of the parameters kept."""
    return lambda model: tenfold.cost(model).params / problem.dense.params


@pytest.mark.parametrize("least", [0.2, 0.37, 0.8])
@pytest.mark.parametrize("resolution", [0.01, 0.1])
def test_the_border_is_found_within_the_resolution(problem, least, resolution):
    seen = []
    found = smallest_budget(problem, tenfold.ALDS(), share(problem), least, resolution=resolution, report=seen.append)
    assert least <= found.probe.score == found.probe.kept <= found.probe.budget
    assert found.probe.budget - least <= resolution + 0.01  # the method uses up its budget but for one rank
    assert tuple(seen) == found.probes
    assert found.probe == min((p for p in seen if p.enough), key=lambda p: p.budget)
    assert tenfold.cost(found.model).params == found.plan.params
    assert all(p.enough == (p.score >= least) for p in seen)


def test_the_smallest_reachable_is_tried_first_and_taken_if_it_will_do(problem):
    found = smallest_budget(problem, tenfold.SVD(), lambda _: 1.0, 0.5)
    assert len(found.probes) == 1
    with pytest.raises(tenfold.BudgetError):
        tenfold.SVD().plan(problem, tenfold.Budget(params=found.plan.params - 1))


def test_spectra_are_computed_once(problem, monkeypatch):
    smallest_budget(problem, tenfold.ALDS(), share(problem), 0.5)
    monkeypatch.setattr("tenfold.plans.problem.slice_spectra", None)
    smallest_budget(problem, tenfold.ALDS(), share(problem), 0.3)


def test_where_nothing_is_enough_the_best_is_named(problem):
    with pytest.raises(TenfoldError, match=r"no budget below 100 % keeps.*at 0\.999 .*The best, at 99\.\d%"):
        smallest_budget(problem, tenfold.ALDS(), lambda model: 0.9 * share(problem)(model), 0.999)
    with pytest.raises(TenfoldError, match="no budget below 100 %"):
        smallest_budget(problem, tenfold.Dense(), share(problem), 0.5)


@pytest.mark.parametrize(("field", "value"), [("least", float("nan")), ("resolution", 0.0), ("resolution", 0.9)])
def test_numbers_out_of_range_are_refused(problem, field, value):
    with pytest.raises(ArgumentError, match=f"`{field}`"):
        smallest_budget(problem, tenfold.ALDS(), share(problem), **{"least": 0.5} | {field: value})
