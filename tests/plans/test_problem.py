"""What is found in a model: ties, uses, reasons, and spectra that are computed once."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import tenfold
from helpers import counted, same_state, state
from nets import ReusedTwoNames, Tied, chain, image, tokens
from tenfold.layers.cost import count_params
from tenfold.linalg.fold import slice_counts
from tenfold.plans import problem as module

METHODS = (
    tenfold.ALDS(),
    tenfold.ALDS(folds=("channel", "spatial"), measure="fro"),
    tenfold.SVD(),
    tenfold.SVD("decoupled"),
)


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("share", [0.4, 0.6, 0.9])
def test_tied_layers_are_counted_once_and_become_the_same(method, share):
    model, x = Tied(), tokens()
    small, plan, _ = tenfold.compress(model, method, tenfold.Budget(params=share), example_inputs=x)
    assert (plan.dense_params, plan.dense_macs) == counted(model, x)
    assert (plan.params, plan.macs) == counted(small, x)
    assert plan.params <= share * plan.dense_params
    first, second = plan.layers["first"], plan.layers["second"]
    assert (second.tied_to, second.params) == ("first", 0)
    assert (first.rank, first.slices, first.fold) == (second.rank, second.slices, second.fold)
    if first.rank is not None:
        assert small.first.encoder.weight is small.second.encoder.weight
    assert small.head.weight is small.table.weight
    assert "Embedding" in plan.layers["table"].reason


def test_the_calls_of_tied_layers_add_up():
    model, x = Tied(), tokens()
    problem = tenfold.survey(model, example_inputs=x)
    (site,) = (s for s in problem.sites if s.name == "first")
    assert site.cost.dense().params == 16 * 16
    assert site.cost.dense().macs == 2 * 15 * 16 * 16


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_a_module_under_two_names_is_one_layer_with_all_its_uses(method):
    model, x = ReusedTwoNames(), torch.randn(1, 6, 9, 9)
    small, plan, _ = tenfold.compress(model, method, tenfold.Budget(macs=0.6), example_inputs=x)
    assert (plan.params, plan.macs) == counted(small, x)
    assert plan.macs <= 0.6 * plan.dense_macs
    assert small.a is small.b
    (site,) = (s for s in tenfold.survey(model, example_inputs=x).sites if s.name == "a")
    assert site.cost.dense().macs == (81 + 81 + 16) * 6 * 6 * 9


def test_every_layer_is_in_the_plan_with_the_reason_why_it_stays_dense():
    model = Tied()
    model.normed = parametrizations.weight_norm(nn.Linear(8, 8))
    plan = tenfold.plan(
        model,
        tenfold.ALDS(),
        tenfold.Budget(params=0.95),
        target_modules=["first", "plain", "back"],
        exclude_modules="ba.k",
    )
    reasons = {name: layer.reason for name, layer in plan.layers.items() if layer.decomposition == "dense"}
    assert reasons["mix"] == "not in target_modules"
    assert reasons["back"] == "in exclude_modules"
    assert "tied to 'head'" in reasons["table"] or "Embedding" in reasons["table"]
    assert any("parametrized" in reason for name, reason in reasons.items() if name.startswith("normed"))
    assert all(reasons.values())
    decomposed = {name for name, layer in plan.layers.items() if layer.decomposition != "dense"}
    assert decomposed <= {"first", "second", "plain"}


def test_what_stays_dense_is_charged_to_the_budget():
    model = chain()
    with pytest.raises(tenfold.BudgetError) as all_layers:
        tenfold.plan(model, tenfold.ALDS(), tenfold.Budget(params=2))
    with pytest.raises(tenfold.BudgetError) as without_one:
        tenfold.plan(model, tenfold.ALDS(), tenfold.Budget(params=2), exclude_modules=["0"])
    saved = model[0].weight.numel() - (8 + 27)  # rank 1, one slice
    assert without_one.value.smallest["params"] - all_layers.value.smallest["params"] == saved


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(bad):
    model = chain()
    with torch.no_grad():
        model[3].weight[2, 1, 0, 0] = bad
    with pytest.raises(tenfold.TenfoldError, match=r"weight of '3' has NaN or infinite"):
        tenfold.survey(model)


@pytest.mark.parametrize("model", [nn.ReLU(), nn.BatchNorm2d(3), nn.Embedding(5, 4), nn.LSTMCell(4, 4)])
def test_a_model_without_layers_to_decompose_is_refused(model):
    with pytest.raises(tenfold.UnsupportedLayer, match="`model` has no layer that can be decomposed"):
        tenfold.plan(model, tenfold.ALDS(), tenfold.Budget(params=0.5))


def test_many_layers_with_one_reason_are_named_by_their_first():
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(5)])
    with pytest.raises(tenfold.UnsupportedLayer, match=r"posed: '0', '1', '2' and 2 more: a linear layer, which trp"):
        tenfold.plan(model, tenfold.TRP(), tenfold.Budget(params=0.5))


def test_a_layer_asked_for_by_name_is_not_left_dense_silently():
    with pytest.raises(tenfold.UnsupportedLayer, match=r"names '(head|table)', which stays dense"):
        tenfold.survey(Tied(), target_modules=["head"])


@pytest.mark.parametrize(
    "how", [{"target_modules": ["nowhere"]}, {"exclude_modules": "nowhere"}, {"target_modules": "("}]
)
def test_a_selection_that_matches_nothing_is_refused(how):
    with pytest.raises(tenfold.ArgumentError, match=f"`{next(iter(how))}`"):
        tenfold.survey(chain(), **how)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_a_budget_on_macs_without_inputs_says_what_is_missing(method):
    for budget in (tenfold.Budget(macs=0.5), tenfold.Budget(params=0.5, macs=0.5)):
        with pytest.raises(tenfold.ArgumentError, match="`example_inputs` must be given for a budget on macs"):
            tenfold.plan(chain(), method, budget)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_a_missing_budget_is_asked_for(method):
    with pytest.raises(tenfold.ArgumentError, match="`budget` must be given"):
        tenfold.plan(chain(), method)


def test_a_factorised_model_is_multiplied_back_first():
    """Ranks are chosen on whole kernels, and the budget is a share of the *dense* model."""
    model = chain()
    once = tenfold.compress(model, tenfold.ALDS(), tenfold.Budget(params=0.6)).model
    again = tenfold.survey(once)
    assert again.dense.params == sum(p.numel() for p in model.parameters())
    assert [s.name for s in again.sites] == [s.name for s in tenfold.survey(model).sites]
    dense = tenfold.to_dense(once)
    for site in again.sites:
        torch.testing.assert_close(site.kernel, dense.get_submodule(site.name).weight)
    twice, plan, _ = tenfold.compress(once, tenfold.ALDS(), tenfold.Budget(params=0.5))
    assert plan.params == sum(p.numel() for p in twice.parameters()) <= 0.5 * again.dense.params
    same = tenfold.compress(once, tenfold.ALDS(), tenfold.Budget(params=0.6)).plan
    assert same.level < 1e-3  # the same budget is met again without loss


def test_the_model_is_untouched():
    model = Tied()
    before = state(model)
    modules = [id(m) for m in model.modules()]
    tenfold.compress(model, tenfold.ALDS(), tenfold.Budget(params=0.5), example_inputs=tokens())
    assert [id(m) for m in model.modules()] == modules
    assert same_state(model, before)


@pytest.fixture
def factorised(monkeypatch):
    """How many kernels have had their spectra computed."""
    counted = []

    def counting(function):
        def wrapper(w, slices):
            counted.append(w.shape[0])
            return function(w, slices)

        return wrapper

    monkeypatch.setattr(module, "slice_spectra", counting(module.slice_spectra))
    return counted


def test_a_second_budget_computes_no_spectrum(factorised, monkeypatch):
    problem = tenfold.survey(chain(), example_inputs=image())
    first = tenfold.ALDS().plan(problem, tenfold.Budget(params=0.5))
    assert sum(factorised) == 3
    monkeypatch.setattr(torch.linalg, "eigvalsh", None)
    monkeypatch.setattr(torch.linalg, "eigh", None)
    monkeypatch.setattr(torch.linalg, "svd", None)
    monkeypatch.setattr(torch.linalg, "svdvals", None)
    second = tenfold.ALDS(measure="rss").plan(problem, tenfold.Budget(params=0.6, macs=0.7))
    tenfold.SVD().plan(problem, tenfold.Budget(params=0.5))
    assert sum(factorised) == 3
    assert second.params > first.params


def test_layers_of_one_shape_are_factorised_together_and_as_if_alone(factorised):
    layers = [nn.Conv2d(6, 6, 3) for _ in range(4)] + [nn.Conv2d(6, 6, 3, groups=2), nn.Linear(6, 4)]
    together = tenfold.survey(nn.Sequential(*layers)).spectra("channel")
    assert sorted(factorised) == [1, 1, 4]
    for layer, spectra in zip(layers, together, strict=True):
        (alone,) = tenfold.survey(layer).spectra("channel")
        assert set(alone) == set(spectra)
        for k, s in spectra.items():
            torch.testing.assert_close(s, alone[k], rtol=0, atol=1e-7)


def test_spectra_of_some_slices_are_those_of_all():
    model = chain()
    for fold in ("channel", "spatial", "input", "decoupled"):
        every = tenfold.survey(model).spectra(fold)
        some = tenfold.survey(model).spectra(fold, (1, 2))
        for site, a, b in zip(tenfold.survey(model).sites, every, some, strict=True):
            assert set(a) == set(slice_counts(site.cost.shape, fold))
            assert set(b) == {1, 2} & set(a)
            for k in b:
                torch.testing.assert_close(a[k], b[k], rtol=0, atol=1e-7)


# ---- every number of a model is in its plan


class PartlyShared(nn.Module):
    """A recurrent layer, one of whose matrices is also a linear layer's weight; either may come first."""

    def __init__(self, linear_first: bool) -> None:
        super().__init__()
        linear, recurrent = nn.Linear(6, 24), nn.LSTM(5, 6)
        recurrent.weight_hh_l0 = linear.weight
        for name, layer in (("fc", linear), ("lstm", recurrent))[:: 1 if linear_first else -1]:
            self.add_module(name, layer)
        self.twin = nn.LSTM(5, 6)
        self.twin.weight_ih_l0 = recurrent.weight_ih_l0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.lstm(x)[0] + self.twin(x)[0])


def lists_of_matrices() -> nn.Module:
    net = chain()
    net.add_module("list", nn.ParameterList([torch.randn(3, 4), torch.randn(2, 2), torch.randn(5)]))
    return net


def weight_normed(kind) -> nn.Module:
    return nn.Sequential(kind(nn.Conv2d(3, 4, 3)), nn.Linear(4, 4))


WHOLE = {
    "lstm": lambda: nn.Sequential(nn.LSTM(128, 64, num_layers=2, bidirectional=True)),
    "lstm with projections": lambda: nn.LSTM(8, 16, proj_size=4),
    "gru": lambda: nn.ModuleDict({"gru": nn.GRU(7, 6), "head": nn.Linear(6, 3)}),
    "attention": lambda: nn.MultiheadAttention(8, 2),
    "attention with sizes of its own": lambda: nn.MultiheadAttention(8, 2, kdim=4, vdim=6, add_bias_kv=True),
    "encoder": lambda: nn.TransformerEncoderLayer(8, 2, 16),
    "bilinear": lambda: nn.Sequential(nn.Bilinear(3, 4, 5), nn.LayerNorm(5)),
    "embedding": lambda: nn.Sequential(nn.Embedding(9, 4), nn.EmbeddingBag(5, 4), nn.Linear(4, 9)),
    "tied embedding": Tied,
    "one layer twice": ReusedTwoNames,
    "matrix shared with a later layer": lambda: PartlyShared(linear_first=False),
    "matrix shared with an earlier layer": lambda: PartlyShared(linear_first=True),
    "a shared recurrent layer": lambda: nn.ModuleList([nn.LSTM(3, 4)] * 2),
    "list": lists_of_matrices,
    "weight norm": lambda: weight_normed(parametrizations.weight_norm),
    "spectral norm": lambda: weight_normed(parametrizations.spectral_norm),
    "convolutions": chain,
}


@pytest.mark.parametrize("chosen", [None, tenfold.LayerPlan("low-rank", 1)], ids=["dense", "rank 1"])
@pytest.mark.parametrize("make", WHOLE.values(), ids=list(WHOLE))
def test_the_layers_of_a_plan_hold_every_matrix_of_the_model_once(make, chosen):
    model = make()
    vectors = sum(p.numel() for p in model.parameters() if p.ndim < 2)
    problem = tenfold.survey(model)
    plan = problem.plan("by hand", [chosen] * len(problem.sites))
    assert sum(found.params for found in problem.found) + vectors == count_params(model)
    assert sum(layer.dense_params for layer in plan.layers.values()) + vectors == count_params(model)
    assert sum(layer.params for layer in plan.layers.values()) + vectors == plan.params
    assert tenfold.Plan.from_json(plan.to_json()) == plan
    if chosen is None or not problem.sites:
        assert plan.params == plan.dense_params
    else:
        assert count_params(tenfold.apply(model, plan)) == plan.params != plan.dense_params


class Whole(nn.LSTM):
    """A subclass, which stays as it is."""


def test_a_recurrent_layer_that_stays_whole_is_one_entry_with_all_its_matrices():
    model = nn.Sequential(Whole(128, 64, num_layers=2, bidirectional=True), nn.Flatten(), nn.Linear(5, 5))
    plan = tenfold.plan(model, tenfold.Dense())
    assert plan.layers["0"].params == 2 * (4 * 64 * (128 + 64) + 4 * 64 * (128 + 64))
    assert "a Whole with more than a plain layer has" in plan.layers["0"].reason
    assert [found.name for found in tenfold.survey(model).found] == ["0", "2"]


@pytest.mark.parametrize("linear_first", [True, False])
def test_a_layer_that_shares_a_matrix_with_a_recurrent_one_is_traced(linear_first):
    model, x = PartlyShared(linear_first), torch.randn(3, 2, 5)
    plan = tenfold.plan(model, tenfold.Dense(), example_inputs=x)
    assert plan.macs == 6 * (2 * 24 * (5 + 6) + 6 * 24)
    recurrence = plan.layers["lstm.weight_hh_l0"]
    assert plan.layers["fc"].tied_to == (None if linear_first else "lstm.weight_hh_l0")
    assert recurrence.tied_to == ("fc" if linear_first else None)
    assert plan.layers["twin.weight_ih_l0"].tied_to == "lstm.weight_ih_l0"
