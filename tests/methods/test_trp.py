"""Trained rank pruning: the update of the paper, step by step, and what bounds its ranks."""

import itertools

import pytest
import torch
from torch import nn

import tenfold
from methods.projection_by_hand import HYPER, batch, by_hand, close, energy_rank, rank_of, spectrum, train
from nets import conv_norm_chain
from tenfold.methods.contract.method import Goal
from tenfold.methods.contract.projection import STATE, Sites

T = 0.85


def trp(**fields) -> tenfold.TRP:
    return tenfold.TRP(**{"energy": T, "every": 3, "nuclear": 0.05, "threshold": 0.0} | fields)


def run(method, steps, *, model=None, goal=None, watch=None):
    """A training run; the model, its optimizer, the losses."""
    model = method.begin(conv_norm_chain() if model is None else model)
    optimizer = method.optimizer(model, goal=goal, **HYPER)
    losses = train(model, optimizer, range(steps), None if watch is None else lambda i: watch(i, model, optimizer))
    return model, optimizer, losses


def ranks_of(optimizer) -> dict[str, int]:
    return dict(optimizer.param_groups[0][STATE]["ranks"])


# ---- the update


@pytest.mark.parametrize("nuclear", [0.0, 0.05])
@pytest.mark.parametrize("steps", [2, 3, 4, 8])
def test_training_is_the_papers_update_written_out(steps, nuclear):
    """With momentum and weight decay; ``T = project(W)`` and the nuclear term on projection steps only."""

    def cut_(model):
        u, s, vh = spectrum(model.mid.weight)
        r = energy_rank(s, T)
        model.mid.weight.data = ((u[:, :r] * s[:r]) @ vh[:r]).view_as(model.mid.weight)
        return {model.mid.weight: nuclear * (u[:, :r] @ vh[:r]).view_as(model.mid.weight)}

    wanted, expected = by_hand(conv_norm_chain(), steps, cut_, every=3)
    got, _, losses = run(trp(nuclear=nuclear), steps)
    close(got, wanted, rtol=1e-7, atol=1e-8)
    assert losses == pytest.approx(expected, rel=1e-8)


def test_the_gradient_of_the_step_after_a_projection_is_taken_at_the_projection():
    """The weight that the forward pass sees is of the rank, and its loss is that of the cut network."""
    seen = []

    def watch(i, model, optimizer):
        seen.append(rank_of(model.mid.weight))

    run(trp(), 7, watch=watch)
    assert [rank < 12 for rank in seen] == [i % 3 == 2 for i in range(7)]


def test_the_nuclear_pull_comes_once_per_projection_and_lowers_the_nuclear_norm():
    norms = {}
    for nuclear in (0.0, 0.5):
        model, _, _ = run(trp(nuclear=nuclear, energy=1.0, every=2), 9)
        norms[nuclear] = float(spectrum(model.mid.weight)[1].sum())
    assert norms[0.5] < norms[0.0]


def test_the_pull_is_there_for_one_step_after_each_projection():
    def watch(i, model, optimizer):
        assert set(optimizer.param_groups[0][STATE]["pull"]) == ({"mid"} if i % 3 == 2 else set())

    run(trp(), 8, watch=watch)


@pytest.mark.parametrize("closure", [False, True])
def test_a_closure_is_pulled_as_well(closure):
    plain, _, _ = run(trp(nuclear=0.3), 6)
    method = trp(nuclear=0.3)
    model = method.begin(conv_norm_chain())
    optimizer = method.optimizer(model, **HYPER)
    for i in range(6):
        x, y = batch(i)

        def evaluate(x=x, y=y):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            return loss

        if closure:
            optimizer.step(evaluate)
        else:
            evaluate()
            optimizer.step()
    close(model, plain, rtol=0, atol=0)


def test_steps_that_the_scaler_skips_neither_count_nor_use_up_the_pull():
    """Two skipped steps among the others change nothing."""
    wanted, _, _ = run(trp(nuclear=0.3), 7)
    method = trp(nuclear=0.3)
    for fused in (False, True):
        model = method.begin(conv_norm_chain())
        optimizer = method.optimizer(model, fused=fused, **HYPER)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        for i in [0, 1, -1, 2, -1, 3, 4, 5, 6]:  # the second comes right after a projection, with its pull at hand
            x, y = batch(max(i, 0))
            kept = [{k: v.clone() for k, v in norm.state_dict().items()} for norm in norms]
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y) * (float("inf") if i < 0 else 1)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            if i < 0:
                for norm, state in zip(norms, kept, strict=True):
                    norm.load_state_dict(state)
        assert optimizer.param_groups[0][STATE]["steps"] == 7
        close(model, wanted, rtol=1e-6, atol=1e-8)


# ---- layers and ranks


def test_convolutions_larger_than_1x1_are_taken_but_the_first():
    plan = tenfold.plan(conv_norm_chain(), trp())
    reasons = {name: layer.reason for name, layer in plan.layers.items()}
    assert reasons["mid"] is None
    for name, word in {"first": "first convolution", "point": "1x1", "head": "linear"}.items():
        assert word in reasons[name]
        assert "target_modules" in reasons[name]


def test_what_the_user_names_is_taken_as_it_is():
    plan = tenfold.plan(conv_norm_chain(), trp(energy=0.5), target_modules=["first", "head"])
    assert {name for name, layer in plan.layers.items() if layer.rank} == {"first", "head"}
    _, optimizer, _ = run(trp(energy=0.5), 3, goal=Goal(target_modules=["first", "head"]))
    assert set(ranks_of(optimizer)) == {"first", "head"}


@pytest.mark.parametrize("energy", [0.3, 0.6, 0.85, 0.99, 1.0])
def test_the_rank_is_the_least_that_holds_the_energy(energy):
    model = conv_norm_chain()
    wanted = energy_rank(spectrum(model.mid.weight)[1], energy)
    assert trp(energy=energy).project_(model) == {"mid": wanted}
    assert rank_of(model.mid.weight) == wanted


def test_a_grouped_convolution_has_one_rank_by_the_energy_of_all_groups():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3, groups=2)).double()
    s = torch.stack([torch.linalg.svdvals(w.flatten(1)) for w in model[1].weight.detach().chunk(2)])
    wanted = energy_rank((s**2).sum(0).sqrt(), T)
    assert trp().project_(model) == {"1": wanted}
    assert [rank_of(w) for w in model[1].weight.detach().chunk(2)] == [wanted, wanted]


def test_the_floor_and_the_threshold_bound_the_rank():
    s = spectrum(conv_norm_chain().mid.weight)[1]
    low = energy_rank(s, 0.3)
    assert trp(energy=0.3, floor=low + 2).project_(conv_norm_chain()) == {"mid": low + 2}
    assert trp(energy=0.3, floor=99).project_(conv_norm_chain()) == {"mid": 12}
    threshold = float((s[4] + s[5]) / 2 / s[0])  # five values are above it
    assert trp(energy=1.0, threshold=threshold).project_(conv_norm_chain()) == {"mid": 5}
    assert trp(energy=1.0, threshold=threshold, floor=7).project_(conv_norm_chain()) == {"mid": 7}


def test_ranks_fall_on_weights_that_stand_still():
    """Why there are floors, freezing and budgets."""
    model, method = conv_norm_chain(), trp(energy=0.8)
    seen = [method.project_(model)["mid"] for _ in range(20)]
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] < min(seen[0], 1 / (1 - 0.8))


def test_ranks_move_both_ways_until_they_are_frozen():
    def ranks_by_step(freeze, every=2, steps=16):
        seen = []

        def watch(i, model, optimizer):
            if (i + 1) % every == 0:
                seen.append(ranks_of(optimizer)["mid"])

        method = trp(every=every, energy=0.93, freeze=freeze, nuclear=0.0)
        run(method, steps, goal=Goal(steps_per_epoch=4), watch=watch)
        return seen

    free, frozen = ranks_by_step(None), ranks_by_step(1)
    assert len(set(free)) > 1
    assert frozen[:2] == free[:2]  # steps 2 and 4: the first epoch
    assert set(frozen[2:]) == {frozen[1]}
    assert set(ranks_by_step(0.25, every=3)) == {
        ranks_by_step(None, every=3)[0]
    }  # frozen ahead of the first projection
    assert set(ranks_by_step(0)) == {free[0]}


def test_freezing_needs_the_length_of_an_epoch_where_there_are_steps():
    with pytest.raises(tenfold.ArgumentError, match=r"`goal` must say how many steps an epoch has, for `freeze`"):
        run(trp(freeze=2), 1)
    assert trp(freeze=2).project_(conv_norm_chain())


@pytest.mark.parametrize("shed", [True, False])
def test_ranks_that_save_nothing_are_projected_as_published_or_not_at_all(shed):
    method = trp(energy=0.999, shed=shed, nuclear=0.0)
    model = conv_norm_chain()
    rank = energy_rank(spectrum(model.mid.weight)[1], 0.999)
    assert rank * (72 + 12) >= model.mid.weight.numel()
    before = model.mid.weight.detach().clone()
    projected = method.project_(model)
    assert projected == ({"mid": rank} if shed else {})
    assert torch.equal(model.mid.weight, before) == (not shed or rank == 12)
    layer = tenfold.plan(conv_norm_chain(), method).layers["mid"]
    assert layer.rank is None
    assert "saves nothing" in layer.reason


@pytest.mark.parametrize("share", [0.55, 0.7, 0.85])
def test_with_a_budget_the_ranks_are_scaled_to_fit_it_in_training_and_in_the_end(share):
    budget = tenfold.Budget(params=share)
    everything = [n for n, _ in conv_norm_chain().named_modules() if n in ("first", "mid", "point", "head")]
    goal = Goal(budget=budget, target_modules=everything)
    model, optimizer, _ = run(trp(), 6, goal=goal)
    fixed = ranks_of(optimizer)
    sizes = {"first": (8, 27), "mid": (12, 72), "point": (16, 12), "head": (10, 16)}
    others = sum(p.numel() for p in model.parameters()) - sum(a * b for a, b in sizes.values())
    used = others + sum(
        (a + b) * fixed[n] if (a + b) * fixed.get(n, 99) < a * b else a * b for n, (a, b) in sizes.items()
    )
    limit = share * sum(p.numel() for p in model.parameters())
    assert used <= limit
    result = trp().finish(model, budget, target_modules=everything)
    assert result.report.small.params <= limit


def test_a_budget_out_of_reach_is_refused_before_the_first_step():
    with pytest.raises(tenfold.BudgetError) as caught:
        run(trp(), 1, goal=Goal(budget=tenfold.Budget(params=0.01)))
    assert "reachable" in str(caught.value)
    run(trp(), 1, goal=Goal(budget=tenfold.Budget(params=caught.value.smallest["params"])))


ALL = ["first", "mid", "point", "head"]
FULL = {"first": 8, "mid": 12, "point": 12, "head": 10}


@pytest.mark.parametrize("floor", [1, 3, 4, 9, 99])
@pytest.mark.parametrize("limits", [{"params": 0.8}, {"macs": 0.8}, {"params": 0.9, "macs": 0.8}], ids=str)
def test_no_rank_falls_below_the_floor_to_keep_a_budget_while_training_and_in_the_end(floor, limits):
    budget, x = tenfold.Budget(**limits), torch.randn(1, 3, 6, 6).double()
    goal = Goal(budget=budget, example_inputs=x, target_modules=ALL)
    method = trp(floor=floor, energy=0.3)
    try:
        model, optimizer, _ = run(method, 6, goal=goal)
    except tenfold.BudgetError:
        assert floor > 4
        return
    plan = method.finish(model, budget, example_inputs=x, target_modules=ALL).plan
    ended = {name: layer.rank for name, layer in plan.layers.items() if layer.rank}
    assert ended
    for ranks in (ranks_of(optimizer), ended):
        assert all(rank >= min(floor, FULL[name]) for name, rank in ranks.items())


@pytest.mark.parametrize("name", ["params", "macs"])
@pytest.mark.parametrize("floor", [1, 2, 5])
def test_a_budget_that_the_floor_does_not_allow_is_refused_at_every_door_and_the_one_named_is_kept(floor, name):
    x, method = torch.randn(1, 3, 6, 6).double(), trp(floor=floor, energy=0.3)
    given = {"example_inputs": x, "target_modules": ALL}

    def doors(limit):
        budget = tenfold.Budget(**{name: limit})
        goal = Goal(budget=budget, **given)
        return (
            lambda: tenfold.plan(conv_norm_chain(), method, budget, **given),
            lambda: method.finish(conv_norm_chain(), budget, **given).plan,
            lambda: tenfold.begin(conv_norm_chain(), method, budget, **given),
            lambda: method.begin(conv_norm_chain(), goal=goal),
            lambda: method.optimizer(conv_norm_chain(), goal=goal, **HYPER),
            lambda: method.project_(conv_norm_chain(), goal),
        )

    named = set()
    for door in doors(2):
        with pytest.raises(tenfold.BudgetError, match=f"ranks below {floor}" if floor > 1 else "more layers") as caught:
            door()
        named.add(caught.value.smallest[name])
    (least,) = named
    for door in doors(least):
        found = door()
        if isinstance(found, tenfold.Plan):
            assert getattr(found, name) <= least
            assert all(layer.rank in (None, min(floor, FULL[n])) for n, layer in found.layers.items())
    for door in doors(least - 1):
        with pytest.raises(tenfold.BudgetError):
            door()


def test_given_ranks_that_exceed_a_budget_are_refused_before_the_first_step():
    method, budget = trp(ranks={"mid": 6, "first": 5}), tenfold.Budget(params=0.5)
    goal = Goal(budget=budget)
    for door in (
        lambda: tenfold.plan(conv_norm_chain(), method, budget),
        lambda: tenfold.begin(conv_norm_chain(), method, budget),
        lambda: method.optimizer(conv_norm_chain(), goal=goal, **HYPER),
    ):
        with pytest.raises(tenfold.BudgetError, match="lower `ranks`") as caught:
            door()
    least = tenfold.Budget(params=caught.value.smallest["params"])
    plan = tenfold.plan(conv_norm_chain(), method, least)
    assert {name: layer.rank for name, layer in plan.layers.items() if layer.rank} == {"mid": 6, "first": 5}


# ---- the decoupled fold


def uneven(filters: int, groups: int = 1) -> nn.Module:
    """A convolution of strong filters of low rank and weak ones that use every direction, behind one left dense."""
    made = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, filters, 3, groups=groups)).double()
    with torch.no_grad():
        for i, each in enumerate(made[1].weight):
            u, s, vh = torch.linalg.svd(each.flatten(1), full_matrices=False)
            s = 0.01 * s**0.5 if i % 3 == 0 else (s / s[0]) ** 6
            each.copy_(((u * s) @ vh).view_as(each))
    return made


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("energy", [0.4, 0.7, 0.9, 0.99])
def test_decoupled_every_filter_keeps_its_share_and_the_rank_is_the_least_that_does(energy, groups):
    """The rank of each filter's ``C x k`` matrix by the energy rule; the layer's is the largest of them."""
    model, method = uneven(12, groups), trp(energy=energy, fold="decoupled")
    filters = [w.flatten(1) for w in model[1].weight.detach().clone()]
    spectra = torch.stack([torch.linalg.svdvals(w) for w in filters])
    wanted = max(energy_rank(s, energy) for s in spectra)
    assert energy_rank(spectra.square().sum(0).sqrt(), energy) < wanted  # pooled, the weak ones would lose more
    assert tenfold.plan(model, method).layers["1"].rank in (wanted, None)  # None: it saves nothing
    assert method.project_(model) == {"1": wanted}
    for old, new in zip(filters, model[1].weight.detach(), strict=True):
        assert new.square().sum() >= energy * old.square().sum() * (1 - 1e-12)
        assert (torch.linalg.svdvals(new.flatten(1)) > 1e-6 * new.norm()).sum() <= wanted


def test_decoupled_the_plan_has_the_rank_of_the_filter_that_needs_most():
    model = uneven(12)
    filters = [w.flatten(1) for w in model[1].weight.detach()]
    wanted = max(energy_rank(torch.linalg.svdvals(w), 0.4) for w in filters)
    assert tenfold.plan(model, trp(energy=0.4, fold="decoupled")).layers["1"].rank == wanted > 1


@pytest.mark.parametrize("energy", [0.3, 0.6, 0.9, 1.0])
def test_for_one_filter_the_decoupled_rule_is_the_plain_one(energy):
    spectrum_ = torch.rand(7).double().sort(descending=True)[0]
    sites = Sites([], [7], None, [spectrum_[None]])
    ranks = [trp(energy=energy, fold=fold, threshold=0.2).rule(sites)[0] for fold in ("channel", "decoupled")]
    above = int((spectrum_ >= 0.2 * spectrum_[0]).sum())
    assert ranks[0] == ranks[1] == [min(energy_rank(spectrum_, energy), above)]


# ---- the end


@pytest.mark.parametrize("fold", ["channel", "spatial", "decoupled"])
def test_the_end_is_one_more_projection_and_exports_what_the_projected_network_computes(fold):
    method = trp(energy=0.6, fold=fold)
    model, _, _ = run(method, 5)
    small = method.finish(model).model.eval()
    dense = method.begin(model).eval()
    assert method.project_(dense) == {"mid": small.mid.rank}
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(small(x), dense(x), rtol=1e-7, atol=1e-8)


def test_given_ranks_stand_in_place_of_the_energy_rule():
    method = trp(ranks={"mid": 4, "first": 2})
    model, optimizer, _ = run(method, 6)
    assert ranks_of(optimizer) == {"mid": 4, "first": 2}
    assert (rank_of(model.mid.weight), rank_of(model.first.weight), rank_of(model.point.weight)) == (4, 2, 12)
    plan = method.finish(model).plan
    assert {name: layer.rank for name, layer in plan.layers.items() if layer.rank} == {"mid": 4, "first": 2}
    assert plan.layers["point"].reason == "not in `ranks`"


@pytest.mark.parametrize(("field", "value"), [("energy", 0), ("energy", 1.5), ("nuclear", -1.0), ("floor", 0)])
def test_values_out_of_range_are_refused(field, value):
    with pytest.raises(tenfold.ArgumentError, match=f"`{field}`"):
        tenfold.TRP(**{field: value})


def test_every_fold_of_the_paper_saves_what_its_formula_says():
    """``r (C kh kw + N)``, ``r (C kh + N kw)``, ``r N (C + kh kw)``."""
    formulas = {"channel": 8 * 9 + 12, "spatial": 8 * 3 + 12 * 3, "decoupled": 12 * (8 + 9)}
    for (fold, each), energy in itertools.product(formulas.items(), (0.3, 0.6)):
        layer = trp(energy=energy, fold=fold).finish(conv_norm_chain()).plan.layers["mid"]
        assert layer.rank is not None
        assert layer.params == layer.rank * each
