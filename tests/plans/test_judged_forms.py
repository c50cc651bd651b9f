"""Options judged by outputs and the factors that are made for them, against the outputs of the layers themselves."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

import tenfold
from helpers import normal
from nets import TiedLinears
from tenfold.layers.input_moments import InputSide, input_moments
from tenfold.layers.matrix import low_rank_class
from tenfold.layers.spec import spec_of, to_weight
from tenfold.layers.tucker import TuckerConv, grouped_full
from tenfold.linalg.fold import Fold
from tenfold.linalg.output_decoders import decoder, factors, outer_basis, tucker_factors
from tenfold.linalg.output_forms import encoder_start
from tenfold.plans import judged_forms as judged_forms_module
from tenfold.plans.apply import build
from tenfold.plans.candidates import layer_plan
from tenfold.plans.judged_forms import judged_forms
from tenfold.plans.site_forms import SiteForms, relative_errors

LAYERS = {
    "linear": (lambda: nn.Linear(8, 6), (8,)),
    "wide linear": (lambda: nn.Linear(4, 12, bias=False), (4,)),
    "strided": (lambda: nn.Conv2d(4, 6, (3, 2), stride=2, padding=1, bias=False), (4, 7, 6)),
    "dilated": (lambda: nn.Conv2d(4, 6, 3, dilation=2, padding=2), (4, 7, 6)),
    "grouped": (lambda: nn.Conv2d(8, 6, 3, groups=2, padding=1), (8, 5, 5)),
    "transposed": (lambda: nn.ConvTranspose2d(6, 8, 3, stride=2, groups=2, bias=False), (6, 4, 5)),
    "pointwise": (lambda: nn.Conv2d(8, 6, 1), (8, 5, 5)),
    "one axis": (lambda: nn.Conv1d(6, 8, 3), (6, 12)),
}
FORMS = {
    "channel, every slice": {"slices": None},
    "channel": {},
    "spatial": {"folds": ("spatial", "spatial-t"), "slices": (1, 2)},
    "input": {"folds": ("input",), "slices": None},
    "tucker": {"tucker": True},
}
CASES = [(name, f) for name in LAYERS for f in FORMS if "linear" not in name or f.startswith("channel")]
FEW = pytest.mark.filterwarnings("ignore:.*tell enough")


def batches(shape, n=40, seed=0):
    """Neighbours alike, channels of unlike strength, a mean that matters."""
    x = normal(n, *shape, seed=seed).cumsum(-1) + 1.5
    return list((x * torch.linspace(0.3, 2, shape[0]).double().reshape(-1, *[1] * (len(shape) - 1))).split(17))


def one(name):
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    return nn.Sequential(make()).double().eval(), batches(shape)


def judged(net, data, **options):
    problem = tenfold.survey(net, data=data)
    return problem, judged_forms(problem, **{"samples": 1000, "memory": 1 << 30} | options)


def built(problem, found, name, i):
    """The network with one layer decomposed, the others dense."""
    choice = [i if t.name == name else 0 for t in found.tables]
    chosen = [layer_plan(t, c) if c else None for t, c in zip(found.tables, choice, strict=True)]
    return build(problem, problem.plan("test", chosen, **found.made(choice))).model


def some(table):
    """A few of the options, the first and the last among them."""
    return np.unique(np.linspace(1, len(table.rank) - 1, 4).astype(int)).tolist()


def uses(net, names, data):
    """The inputs that modules get in the dense network, all batches together."""
    seen = {name: [] for name in names}
    handles = [net.get_submodule(n).register_forward_pre_hook(lambda _, x, n=n: seen[n].append(x[0])) for n in names]
    with torch.no_grad():
        for x in data:
            net(x)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(xs) for name, xs in seen.items()}


@torch.no_grad()
def outputs(net, dense, inputs):
    """What modules put out for these inputs, less the bias that they have in the dense network; one row for each."""
    rows = []
    for name, x in inputs.items():
        y, bias = net.get_submodule(name)(x), dense.get_submodule(name).bias
        axis = 1 if spec_of(dense.get_submodule(name)).kernel_size else -1
        y = y.movedim(axis, -1).flatten(0, -2)
        rows.append(y if bias is None else y - bias)
    return torch.cat(rows)


def error(y, z, *, centred=False):
    gap = y - z
    gap = gap - gap.mean(0) if centred else gap
    return float((gap.square().sum() / (y - y.mean(0)).square().sum()).sqrt())


@FEW
@pytest.mark.parametrize(("name", "forms"), CASES)
def test_a_built_layer_errs_as_its_option_says_or_less_and_keeps_the_mean_and_no_weights_do_better(name, forms):
    """Less where alternation finds something; the free decomposition, at its best bias, is never better."""
    net, data = one(name)
    problem, found = judged(net, data, **FORMS[forms])
    (table,), inputs, spec = found.tables, uses(net, ["0"], data), spec_of(net[0])
    y = outputs(net, net, inputs)
    assert len(table.rank) > 1
    assert table.bias == (net[0].bias is None)
    for i in some(table):
        small = built(problem, found, "0", i)
        z = outputs(small, net, inputs)
        told = float(table.error[i])
        assert error(y, z) <= told * (1 + 1e-6) + 1e-6, (table.rank[i], table.slices[i])
        assert_close(z.mean(0), y.mean(0), rtol=1e-9, atol=1e-9)
        if table.folds == ("channel",) and table.slices[i] == 1 and table.rank.ndim == 1:  # the start is the optimum
            assert error(y, z) ** 2 == pytest.approx(told**2, abs=2e-6)  # damped by 1e-6 of the variance
        layer = layer_plan(table, i)
        if layer.decomposition == "tucker":
            free = TuckerConv.from_layer(net[0], spec, layer.rank)
        else:
            free = low_rank_class(spec).from_layer(net[0], spec, layer.rank, layer.slices, layer.fold)
        plain = outputs(nn.Sequential(free), net, inputs)
        assert error(y, z) <= error(y, plain, centred=True) * (1 + 1e-5) + 1e-6


@FEW
@pytest.mark.parametrize("name", LAYERS)
def test_every_possible_option_that_saves_its_bias_included_is_there_once(name):
    net, data = one(name)
    spec = spec_of(net[0])
    for folds, slices in ((("channel",), None), (("channel", "spatial", "input"), (1, 2))):
        (table,) = judged(net, data, folds=folds, slices=slices)[1].tables
        there = {(table.folds[f], int(k), int(r)) for f, k, r in zip(table.fold, table.slices, table.rank, strict=True)}
        assert len(there) == len(table.rank)
        expected = {(table.folds[0], 1, 0)}
        shapes = {}
        for fold in folds:  # of a kernel with one axis or none some folds are the same
            shapes.setdefault(Fold(spec.shape, spec.groups, 1, fold).encoder_axes, fold)
        for fold in shapes.values():
            for k in (k for k in range(1, spec.shape[1] + 1) if spec.shape[1] % k == 0):
                form = Fold(spec.shape, spec.groups, k, fold)
                each = form.encoder_params(1) + form.decoder_params(1)
                for r in range(1, form.full_rank + 1):
                    added = spec.out_channels if net[0].bias is None else 0
                    if (slices is None or k in slices) and r * each + added < spec.params:
                        expected.add((fold, k, r))
        assert there == expected


@FEW
def test_layers_with_one_weight_are_judged_together():
    torch.manual_seed(0)
    net, data = TiedLinears(8, True, False).double().eval(), batches((8,), 90)
    problem, found = judged(net, data, slices=None)
    (table,), inputs = found.tables, uses(net, ["a", "b"], data)
    y = outputs(net, net, inputs)
    for i in some(table):
        small = built(problem, found, "a", i)
        z = outputs(small, net, inputs)
        assert small.a.encoder.weight is small.b.encoder.weight
        assert error(y, z) <= float(table.error[i]) * (1 + 1e-6) + 1e-6
        assert_close(z.mean(0), y.mean(0), rtol=1e-9, atol=1e-9)


@FEW
@pytest.mark.parametrize("forms", FORMS.values(), ids=FORMS)
def test_neither_how_examples_are_split_nor_the_memory_matters_and_no_more_are_used_than_asked(forms):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3, groups=2, bias=False)).double().eval()
    x = torch.cat(batches((4, 7, 6)))
    more = torch.cat([x, 9 * x])
    ways = ([x], list(x.split([1, 30, len(x) - 31])), [more[:7], more[7:]], (part for part in x.split(13)))
    results = []
    little = 1 if "slices" not in forms else 1 << 30  # with slices it decides which forms compete
    for memory, data in zip((1 << 30, little, 1 << 30, 1 << 30), ways, strict=True):
        problem, found = judged(net, data, samples=len(x), memory=memory, **forms)
        choice = [min(3, len(t.rank) - 1) for t in found.tables]
        layers = [layer_plan(t, i) for t, i in zip(found.tables, choice, strict=True)]
        small = build(problem, problem.plan("test", layers, **found.made(choice))).model
        results.append((found.tables, small(x)))
    for tables, y in results[1:]:
        for a, b in zip(tables, results[0][0], strict=True):
            assert_close(torch.from_numpy(a.error), torch.from_numpy(b.error), rtol=1e-9, atol=1e-9)
        assert_close(y, results[0][1], rtol=1e-9, atol=1e-9)


@FEW
def test_inputs_that_exceed_the_memory_leave_the_unsliced_channel_fold_if_it_competes():
    net = nn.Sequential(nn.Linear(40, 6)).double()
    data = [normal(200, 40)]
    small = 8 * 40 * 40 - 1
    for slices, memory, left in ((None, small + 1, {1, 2, 4, 5}), (None, small, {1}), ((2, 4), small, {1, 2, 4})):
        _, found = judged(net, data, slices=slices, memory=memory)
        assert set(found.tables[0].slices) & {1, 2, 4, 5} == left
    _, whole = judged(net, data, slices=(1,))
    _, part = judged(net, data, slices=None, memory=small)
    assert_close(torch.from_numpy(whole.tables[0].error), torch.from_numpy(part.tables[0].error))


def test_few_examples_are_said_once_and_no_more_for_a_second_budget(recwarn):
    net = nn.Sequential(nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 12))
    problem, method = tenfold.survey(net, data=[torch.randn(10, 30)]), tenfold.ALDS(measure="output")
    for share in (0.5, 0.4):
        method.plan(problem, tenfold.Budget(params=share))
    assert ["saw 10 vectors of 30 numbers" in str(w.message) for w in recwarn.list] == [True]


@FEW
def test_a_second_budget_judges_nothing_anew_and_data_are_read_once(monkeypatch):
    net, data = nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 12)), iter([torch.randn(100, 20)])
    problem = tenfold.survey(net, data=data)
    first = tenfold.SVD(measure="output").plan(problem, tenfold.Budget(params=0.7))
    monkeypatch.setattr(judged_forms_module, "_judged", lambda *_: pytest.fail("judged again"))
    second = tenfold.SVD(measure="output").plan(problem, tenfold.Budget(params=0.5))
    assert second.params < first.params
    for plan in (first, second):
        tenfold.apply(net, plan)


def test_a_budget_out_of_reach_is_refused_before_data_are_looked_at(monkeypatch):
    net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.Conv2d(8, 8, 3))
    monkeypatch.setattr(judged_forms_module, "_judged", lambda *_: pytest.fail("looked"))
    for method in (tenfold.ALDS(measure="output"), tenfold.SVD(measure="output"), tenfold.Tucker(measure="output")):
        with pytest.raises(tenfold.BudgetError, match="reachable"):
            tenfold.plan(net, method, tenfold.Budget(params=0.01), data=[torch.randn(2, 3, 8, 8)])


def site_forms(net, data):
    """The one layer of a network with its moments."""
    (site,), side = tenfold.survey(net).sites, InputSide(("0",))
    ((_, moments),) = input_moments(net, {"0": side}, data, samples=1000)
    return SiteForms(site, side, moments)


def dense_error(net, data, kernel):
    """The error of a kernel in place of the layer's own, at its best bias."""
    inputs, other = uses(net, ["0"], data), copy.deepcopy(net)
    other[0].weight.data = to_weight(spec_of(net[0]), kernel)
    return error(outputs(net, net, inputs), outputs(other, net, inputs), centred=True)


@FEW
@pytest.mark.parametrize("name", ["strided", "grouped", "transposed"])
def test_what_is_told_of_a_rank_is_the_error_of_the_start_with_its_best_decoder(name):
    net, data = one(name)
    site = site_forms(net, data)
    most = site.site.cost.shape[1]
    for fold, slices in (("channel", 1), ("channel", most), ("spatial", 1), ("spatial-t", most)):
        form = site.form(fold, slices)
        told = relative_errors(form, 2)
        for r in range(1, 1 + len(told)):
            v = encoder_start(form)[:, :, :r]
            left, right = factors(form, v, decoder(form, v))
            found = dense_error(net, data, form.fold.kernel(left @ right))
            assert found**2 == pytest.approx(float(told[r - 1]) ** 2, abs=2e-6)
    form, inner = site.form("input"), [1, 3]
    for r, row in zip(inner, site.pair_errors(inner), strict=True):
        v = encoder_start(form)[:, :, :r]
        for q in (1, 2):
            core, outer, basis = tucker_factors(form, v, decoder(form, v), outer_basis(form, v, q))
            kernel = grouped_full(core, [outer, basis], site.site.cost.groups)
            assert dense_error(net, data, kernel) ** 2 == pytest.approx(float(row[q - 1]) ** 2, abs=2e-6)


@FEW
def test_tucker_factors_start_from_the_weights_own_where_these_are_better():
    """White inputs: the orthogonal iteration on the weight is all but the optimum before any alternation."""
    torch.manual_seed(0)
    net, data = nn.Sequential(nn.Conv2d(6, 8, 3, bias=False)).double(), [normal(1000, 6, 3, 3)]
    site, spec, better = site_forms(net, data), spec_of(net[0]), 0
    for ranks in ((2, 2), (4, 2), (3, 4), (6, 3)):
        (core, outer, inner), _ = site.tucker(ranks, rounds=0)
        found = dense_error(net, data, grouped_full(core, [outer, inner]))
        free = TuckerConv.from_layer(net[0], spec, ranks)
        assert found <= dense_error(net, data, free.kernel.detach()) * (1 + 1e-6)
        better += found < float(site.pair_errors([ranks[1]])[0, ranks[0] - 1]) * (1 - 1e-4)
    assert better
