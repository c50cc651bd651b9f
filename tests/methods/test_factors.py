"""Factors of fixed rank, trained as they are: the baseline of dynamical low-rank training."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tenfold
from helpers import blobs, counted
from nets import Tied, chain, image, labelled_images, small_image, transposed
from tenfold.layers.matrix import LowRank
from tenfold.layers.swap import structure_of
from tenfold.linalg.fold import NAMES
from tenfold.linalg.multilinear import feasible, random_tucker
from tenfold.linalg.tucker import tucker_full
from tenfold.train import Recipe, fit


def plain(**fields) -> tenfold.Factors:
    """The baseline as published: uniform ranks, factors from the first step, each of them decayed."""
    return tenfold.Factors(**{"ranks": "uniform", "start": 0, "decay": "factors"} | fields)


BOTH = pytest.mark.parametrize("format", ["matrix", "tucker"])
HALF = tenfold.Budget(params=0.5)


def net() -> nn.Module:
    """A first convolution, a grouped one, a strided pointwise one, a transposed one, a head."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, groups=2, bias=False),
        nn.ReLU(),
        nn.Conv2d(24, 20, 1, stride=2),
        nn.ReLU(),
        nn.ConvTranspose2d(20, 18, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(18, 10),
    )


def begun(method, model, budget=None, x=None):
    return method.begin(model, goal=tenfold.Goal(budget=budget, example_inputs=x))


def ranks(model) -> dict:
    return {name: layer.rank for name, layer in structure_of(model).items()}


def expected(model: nn.Module, a: float) -> tuple[dict, int]:
    """The Tucker ranks at share ``a``, and what the whole model then has, written out."""
    found, params = {}, sum(p.numel() for p in model.parameters())
    for name, layer in model.named_modules():
        if not isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            continue
        w, g = layer.weight, getattr(layer, "groups", 1)
        f, c = (w.shape[1] * g, w.shape[0] // g) if isinstance(layer, nn.ConvTranspose2d) else w.shape[:2]
        k = math.prod(w.shape[2:])
        if k == 1:
            full = min(f // g, c)
            rank = max(1, math.floor(a * full + 0.5))
            cost = rank * (f + g * c)
        else:
            full = feasible((f // g, c), (f // g, c), k)
            j = max(1, math.floor(a * max(full) + 0.5))
            pair = [max(1, round(j / max(full) * n)) for n in full]
            rank = feasible(pair, (f // g, c), k)
            cost = g * c * rank[1] + g * k * rank[0] * rank[1] + f * rank[0]
        if cost < w.numel():
            found[name], params = rank, params - w.numel() + cost
    return found, params


@pytest.mark.parametrize("make", [chain, transposed, net])
@pytest.mark.parametrize("share", [0.3, 0.45, 0.6, 0.9])
def test_tucker_ranks_are_the_largest_common_share_that_fits(make, share):
    model = make()
    limit = int(share * sum(p.numel() for p in model.parameters()))
    fitting = [ranks for ranks, params in (expected(model, a / 997) for a in range(1, 998)) if params <= limit]
    method = plain(format="tucker")
    if not fitting:
        with pytest.raises(tenfold.BudgetError):
            begun(method, model, tenfold.Budget(params=share))
        return
    assert ranks(begun(method, model, tenfold.Budget(params=share))) == fitting[-1]


@pytest.mark.parametrize("fold", NAMES)
def test_matrix_ranks_and_factors_are_those_of_a_uniform_svd(fold):
    model = net().double()
    a = begun(plain(fold=fold), model, HALF)
    b = tenfold.compress(model, tenfold.SVD(fold=fold), HALF).model
    assert ranks(a) == ranks(b)
    for p, q in zip(tenfold.to_dense(a).parameters(), tenfold.to_dense(b).parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12)


@BOTH
@pytest.mark.parametrize("budget", [{"params": 0.5}, {"macs": 0.5}, {"params": 0.8, "macs": 0.6}])
def test_what_is_built_keeps_the_budget_and_is_what_is_kept_in_the_end(format, budget):
    model, x, method = transposed(), small_image(), plain(format=format)
    budget = tenfold.Budget(**budget)
    small = begun(method, model, budget, x).eval()
    used, dense = counted(small, x), counted(model, x)
    for name, value in budget.limits.items():
        assert used[("params", "macs").index(name)] <= value * dense[("params", "macs").index(name)]
    with torch.no_grad():  # as a training leaves it
        for p in small.parameters():
            p += 0.1 * torch.randn_like(p)
    result = method.finish(small, budget, example_inputs=x)
    assert ranks(result.model) == ranks(small)
    assert counted(result.model, x) == used
    torch.testing.assert_close(result.model.eval()(x), small(x), rtol=1e-4, atol=1e-5)
    assert all(layer.error < 1e-6 for layer in result.plan.layers.values())


@BOTH
def test_trained_ranks_stay_without_a_budget_and_under_a_larger_one(format):
    method, model = plain(format=format), net()
    small = begun(method, model, tenfold.Budget(params=0.4))
    for budget in (None, tenfold.Budget(params=0.4), tenfold.Budget(params=0.7)):
        assert ranks(method.finish(small, budget).model) == ranks(small)
    assert ranks(begun(method, small, tenfold.Budget(params=0.9))) == ranks(small)  # trained further as it is


@BOTH
def test_a_smaller_budget_lowers_the_share_and_raises_no_rank(format):
    method, model = plain(format=format), net()
    small = begun(method, model, tenfold.Budget(params=0.6))
    result = method.finish(small, tenfold.Budget(params=0.4))
    assert result.report.small.params <= 0.4 * result.report.dense.params
    before, after = ranks(small), ranks(result.model)
    assert before.keys() <= after.keys()
    for name, rank in before.items():
        assert (torch.tensor(after[name]) <= torch.tensor(rank)).all()
    assert result.plan.level < method.plan(tenfold.survey(model), tenfold.Budget(params=0.6)).level
    # A uniform start cut down is the uniform start of the smaller budget.
    assert after == ranks(begun(method, model, tenfold.Budget(params=0.4)))


@BOTH
def test_ranks_of_other_shapes_than_a_line_are_kept_and_scaled(format):
    dense = net()
    plan = tenfold.plan(dense, tenfold.Tucker() if format == "tucker" else tenfold.SVDEnergy(), HALF)
    small = tenfold.apply(dense, plan)
    method = plain(format=format)
    assert ranks(method.finish(small, HALF).model) == ranks(small)
    less = ranks(method.finish(small, tenfold.Budget(params=0.4)).model)
    assert all((torch.tensor(less[n]) <= torch.tensor(r)).all() for n, r in ranks(small).items())


@BOTH
def test_a_step_is_the_gradient_step_in_every_factor_and_no_more(format):
    model = plain(format=format).begin(nn.Sequential(nn.Conv2d(8, 8, 3, bias=False)).double())
    layer = model[0]
    goal = torch.randn(8, 8, 3, 3, dtype=torch.float64)
    optimizer = plain(format=format).optimizer(model, lr=0.1)
    factors = [f.detach().clone() for f in layer.factors]
    g = (layer.weight - goal).detach()
    (0.5 * (layer.weight - goal).square().sum()).backward()
    optimizer.step()
    if format == "matrix":
        right, left = (f.flatten(1) for f in factors)
        want = [right - 0.1 * left.mT @ g.flatten(1), left - 0.1 * g.flatten(1) @ right.mT]
    else:
        inner, core, outer = factors[0].flatten(1).mT, factors[1], factors[2].flatten(1)
        want = [
            (inner - 0.1 * torch.einsum("oihw,op,pqhw->iq", g, outer, core)).mT,
            core - 0.1 * torch.einsum("oihw,op,iq->pqhw", g, outer, inner),
            outer - 0.1 * torch.einsum("oihw,iq,pqhw->op", g, inner, core),
        ]
    for factor, value in zip(layer.factors, want, strict=True):
        torch.testing.assert_close(factor.detach(), value.reshape(factor.shape), rtol=0, atol=1e-14)


@pytest.mark.parametrize("method", [plain(scratch=True, fold=f) for f in NAMES]
                         + [plain(format="tucker", scratch=True)], ids=repr)  # fmt: skip
def test_from_scratch_the_norm_is_that_of_the_weight_and_nothing_else_is(method):
    model, other = net(), net()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        q.data = p.data.flip(0) if p.ndim > 1 else p.data  # another weight of the same norm
    energy, numbers, seeds = {}, {}, range(6)
    for seed in seeds:
        torch.manual_seed(seed)
        small = method.begin(model)
        for name, layer in structure_of(small).items():
            share = layer.weight.detach().norm() / model.get_submodule(name).weight.detach().norm()
            energy[name] = energy.get(name, 0) + float(share**2) / len(seeds)
            numbers[name] = (
                layer._fold.batch * layer.rank**2 if isinstance(layer, LowRank) else layer.factors[1].numel()
            )
    assert energy
    for name, share in energy.items():  # a mean of squares of that many normal numbers
        assert share == pytest.approx(1, abs=4.5 * (2 / (len(seeds) * numbers[name])) ** 0.5), name
    torch.manual_seed(seed)
    for a, b in zip(structure_of(small).values(), structure_of(method.begin(other)).values(), strict=True):
        for p, q in zip(a.factors, b.factors, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
    for layer in structure_of(small).values():
        if isinstance(layer, LowRank):
            encoder, decoder = (f.detach().double().square().sum() for f in layer.factors)
            assert float(encoder / decoder) == pytest.approx(1, rel=1e-5)


def test_random_tucker_tensors_have_orthonormal_bases_and_the_norm_in_expectation():
    g, energy = torch.Generator().manual_seed(0), 0.0
    for _ in range(200):
        core, bases = random_tucker((7, 5, 3), (4, 2), 3.0, g, groups=2)
        assert [tuple(x.shape) for x in (core, *bases)] == [(8, 2, 3), (14, 4), (10, 2)]
        whole = [
            tucker_full(c, [u, v]) for c, u, v in zip(core.chunk(2), bases[0].chunk(2), bases[1].chunk(2), strict=True)
        ]
        energy += sum(float(w.square().sum()) for w in whole) / 200
        for basis in (*bases[0].chunk(2), *bases[1].chunk(2)):
            torch.testing.assert_close(basis.mT @ basis, torch.eye(basis.shape[1], dtype=torch.float64))
    assert energy == pytest.approx(9, rel=0.1)


@BOTH
@pytest.mark.parametrize("scratch", [False, True])
def test_ties_stay_and_frozen_layers_stay_dense(format, scratch):
    model = Tied()
    model.back.weight.requires_grad_(False)
    small = plain(format=format, scratch=scratch).begin(model)
    assert small.first.decoder.weight is small.second.decoder.weight
    assert torch.equal(small.back.weight, model.back.weight)
    for p in model.parameters():
        p.requires_grad_(False)
    with pytest.raises(tenfold.UnsupportedLayer, match="frozen: its weight requires no gradient"):
        plain(format=format).begin(model)


def test_what_the_goal_excludes_is_never_factorised():
    goal = tenfold.Goal(budget=tenfold.Budget(params=0.8), exclude_modules=["9", "6"])
    assert ranks(plain().begin(net(), goal=goal)).keys() == {"0", "2", "4"}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"format": "cp"}, "`format` must be one of matrix, tucker"),
        ({"fold": "diagonal"}, "`fold` must be one of channel"),
        ({"format": "tucker", "fold": "spatial"}, "`fold` must be left out for format 'tucker'"),
        ({"share": 0}, r"`share` must be in \(0, 1\]"),
        ({"share": 1.5}, r"`share` must be in \(0, 1\]"),
        ({"scratch": 1}, "`scratch` must be True or False"),
    ],
)
def test_values_out_of_range_are_named(fields, says):
    with pytest.raises(tenfold.ArgumentError, match=says):
        tenfold.Factors(**fields)


def test_an_impossible_budget_is_refused_before_the_first_step_and_names_what_can_be():
    for format in ("matrix", "tucker"):
        method = plain(format=format)
        with pytest.raises(tenfold.BudgetError) as caught:
            begun(method, net(), tenfold.Budget(params=0.01))
        begun(method, net(), tenfold.Budget(params=caught.value.smallest["params"]))
    with pytest.raises(tenfold.ArgumentError, match="`example_inputs` must be given"):
        begun(plain(), net(), tenfold.Budget(macs=0.5))


@BOTH
def test_the_training_loop_builds_what_its_goal_allows(format):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(64, 3))
    method, goal = plain(format=format), tenfold.Goal(budget=tenfold.Budget(params=0.4))
    trained = fit(model, method, blobs(), Recipe(epochs=3, batch_size=8, lr=0.05), goal=goal, progress=False)
    assert ranks(trained.model) == ranks(method.begin(model, goal=goal))
    assert sum(p.numel() for p in trained.model.parameters()) <= 0.4 * sum(p.numel() for p in model.parameters())
    assert trained.history[-1].loss < trained.history[0].loss
    result = method.finish(trained.model, goal.budget)
    assert ranks(result.model) == ranks(trained.model)


def test_weight_decay_and_adamw_reach_every_factor():
    small = plain(format="tucker").begin(chain())
    before = {name: p.detach().clone() for name, p in small.named_parameters()}
    optimizer = plain().optimizer(small, base=torch.optim.AdamW, lr=1e-2, weight_decay=0.1)
    F.cross_entropy(small(image()), torch.tensor([0, 1])).backward()
    optimizer.step()
    assert all(not torch.equal(p, before[name]) for name, p in small.named_parameters())


# ---- the default: dense, then factors at allocated ranks


def short(model, method, budget, *, steps=10, done=10, lr=0.05, base=torch.optim.SGD, steps_per_epoch=None, **hyper):
    """A run of so many steps, its optimizer, and the model's form before each step."""
    run = tenfold.begin(model, method, budget, steps=steps, steps_per_epoch=steps_per_epoch)
    optimizer = run.optimizer(base, lr=lr, **hyper)
    seen = []
    for seed in range(done):
        x, y = labelled_images(seed)
        seen.append(len(structure_of(run.model)))
        optimizer.zero_grad()
        F.cross_entropy(run.model(x), y).backward()
        optimizer.step()
    return run, optimizer, seen


@BOTH
@pytest.mark.parametrize("start", [None, 0.0, 0.25])
def test_it_is_dense_until_the_start_and_factorised_within_the_budget_from_then_on(format, start):
    torch.manual_seed(0)
    run, optimizer, seen = short(chain(), tenfold.Factors(format=format, start=start), HALF, momentum=0.9)
    due = round(10 * (0.4 if start is None else start))
    assert [bool(n) for n in seen] == [step >= due for step in range(10)]
    assert sum(p.numel() for p in run.model.parameters()) <= 0.5 * sum(p.numel() for p in chain().parameters())
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in run.model.parameters()}
    result = run.finish()
    assert ranks(result.model) == ranks(run.model)
    assert {n: x.fold for n, x in structure_of(result.model).items()} == {
        n: x.fold for n, x in structure_of(run.model).items()
    }
    x = image()
    torch.testing.assert_close(result.model.eval()(x), run.model.eval()(x))


def test_allocated_ranks_are_those_of_the_least_largest_error_in_spatial_folds():
    torch.manual_seed(0)
    model = chain().double()
    begun_model = tenfold.Factors(start=0).begin(model, goal=tenfold.Goal(budget=HALF))
    alds = tenfold.ALDS(folds=("spatial", "spatial-t"), slices=(1,), measure="rss")
    wanted = tenfold.compress(model, alds, HALF).model
    assert ranks(begun_model) == ranks(wanted)
    for name, layer in structure_of(begun_model).items():
        torch.testing.assert_close(layer.weight, wanted.get_submodule(name).weight)


def test_a_run_that_stops_before_its_start_ends_as_it_would_have_been_cut():
    torch.manual_seed(0)
    run, _, seen = short(chain(), tenfold.Factors(start=0.9), HALF, done=5)
    assert not any(seen)
    result = run.finish()
    assert result.report.small.params <= 0.5 * result.report.dense.params
    assert structure_of(result.model)


def test_a_smaller_budget_than_was_trained_for_lowers_all_ranks_and_cuts_no_dense_layer():
    torch.manual_seed(0)
    method = tenfold.Factors()
    run, *_ = short(chain(), method, tenfold.Budget(params=0.7))
    lower = method.finish(run.model, tenfold.Budget(params=0.45))
    assert lower.report.small.params <= 0.45 * lower.report.dense.params
    before, after = ranks(run.model), ranks(lower.model)
    assert after.keys() <= before.keys()
    assert all(after[name] <= before[name] for name in after)


def test_a_resumed_run_ends_with_the_same_bits_on_either_side_of_the_cut():
    def halves(stop):
        torch.manual_seed(0)
        model = chain()
        runs = [tenfold.begin(model, tenfold.Factors(), HALF, steps=8) for _ in range(2)]
        optimizers = [run.optimizer(lr=0.05, momentum=0.9, weight_decay=1e-2) for run in runs]
        for step in range(8):
            if step == stop:
                second = copy.deepcopy([runs[0].model.state_dict(), optimizers[0].state_dict()])
                runs[1].model.load_state_dict(second[0])
                optimizers[1].load_state_dict(second[1])
            at = 1 if step >= stop else 0
            x, y = labelled_images(step)
            optimizers[at].zero_grad()
            F.cross_entropy(runs[at].model(x), y).backward()
            optimizers[at].step()
        return runs[1 if stop < 8 else 0].model.state_dict()

    whole = halves(8)
    for stop in (2, 6):
        found = halves(stop)
        assert all(torch.equal(found[name], value) for name, value in whole.items())


@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("format", ["matrix", "tucker"])
def test_decay_of_the_product_is_the_gradient_of_its_squared_norm(format, base):
    """Without a loss: L' = L - lr lambda (L R) R^T, R' = R - lr lambda L^T (L R), and the like in Tucker format."""
    torch.manual_seed(0)
    model = plain(format=format, share=0.5).begin(nn.Sequential(nn.Conv2d(6, 8, 3, bias=False)).double())
    (layer,) = structure_of(model).values()
    lr, decay = 0.1, 0.3
    optimizer = tenfold.Factors(format=format).optimizer(model, base=base, lr=lr, weight_decay=decay)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    wanted = []
    for factor in layer.factors:
        free = factor.detach().clone().requires_grad_()
        with torch.no_grad():
            kept = factor.clone()
        value = decay / 2 * parts_product(layer, factor, free).square().sum()
        wanted.append(kept - lr * torch.autograd.grad(value, free)[0])
    optimizer.step()
    for factor, want in zip(layer.factors, wanted, strict=True):
        torch.testing.assert_close(factor.detach(), want, rtol=1e-9, atol=1e-12)


def parts_product(layer, factor, free):
    """The weight of a layer with another tensor in the place of one of its factors."""
    other = copy.deepcopy(layer)
    held = dict(zip(map(id, layer.factors), [n for n, p in layer.named_parameters() if p.ndim > 1], strict=True))
    *path, name = held[id(factor)].split(".")
    part = other.get_submodule(".".join(path))
    del part._parameters[name]
    setattr(part, name, free)
    return other._product()


def test_scratch_knows_no_dense_start():
    with pytest.raises(tenfold.ArgumentError, match="`start` must be 0 with scratch"):
        tenfold.Factors(scratch=True, start=0.4)
    begun_model = tenfold.Factors(scratch=True).begin(chain(), goal=tenfold.Goal(budget=HALF, steps=10))
    assert structure_of(begun_model)


def test_settled_waits_until_no_stable_rank_moves_by_more_than_a_twentieth_over_an_epoch():
    torch.manual_seed(0)
    model = chain().double()
    run = tenfold.begin(model, tenfold.Factors(start="settled"), HALF, steps=50, steps_per_epoch=2)
    optimizer = run.optimizer(torch.optim.SGD, lr=1.0)
    weight, scales = run.model[0].weight, iter([3.0, 1.5, 1.04, 1.0])
    cut = []
    for step in range(8):
        optimizer.zero_grad()
        for p in run.model.parameters():
            p.grad = torch.zeros_like(p)
        if step % 2 and not cut:
            u, s, v = torch.linalg.svd(weight.detach().flatten(1), full_matrices=False)
            s[0] *= next(scales) ** 0.5  # moves the stable rank of this layer alone
            weight.grad = weight.detach() - ((u * s) @ v).view_as(weight)
        optimizer.step()
        if structure_of(run.model) and not cut:
            cut.append(step + 1)
    assert cut == [6]  # the third change, by at most four per cent, is the first that counts as none


def test_weights_that_never_settle_are_cut_at_six_tenths_and_an_epoch_must_be_known():
    torch.manual_seed(0)
    run, _, seen = short(chain(), tenfold.Factors(start="settled"), HALF, steps=10, steps_per_epoch=20)
    assert [bool(n) for n in seen] == [step >= 6 for step in range(10)]
    run = tenfold.begin(chain(), tenfold.Factors(start="settled"), HALF, steps=10)
    with pytest.raises(tenfold.ArgumentError, match="how many steps an epoch has"):
        run.optimizer(lr=0.1)
