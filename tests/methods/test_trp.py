"""Trained rank pruning: the update of the paper, step by step, and what bounds its ranks."""

import itertools

import pytest
import torch
from torch import nn

import tenfold
from methods.projection_by_hand import HYPER, batch, by_hand, close, energy_rank, rank_of, spectrum, train
from nets import conv_norm_chain
from tenfold.methods.contract.method import Goal
from tenfold.methods.contract.projection import STATE

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
