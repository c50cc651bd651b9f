"""SFW as a method: which tensor gets which set, of what size, and that constructing it changes nothing."""

import json
import math
import warnings

import pytest
import torch
from torch import nn

import tenfold
from tenfold import balls
from tenfold.cli import parse
from tenfold.methods.sfw import expected_norm
from tenfold.optim.frank_wolfe.statistics import SPENT

GROUP = balls.GroupKSupport(k=0.25)


class Net(nn.Module):
    """Every kind of parameter that a set might be put on, or not."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.pointwise = nn.Conv2d(8, 12, 1)
        self.up = nn.ConvTranspose2d(12, 4, 2, groups=2)
        self.line = nn.Conv1d(4, 6, 3)
        self.head = nn.Linear(6, 10)
        self.tied = nn.Linear(6, 10)
        self.tied.weight = self.head.weight
        self.table = nn.Embedding(5, 6)
        self.oddity = nn.Parameter(torch.ones(2, 3, 4))
        self.nothing = nn.Parameter(torch.zeros(3, 4))


def rows(method, model, **goal) -> dict:
    return {row["parameter"]: row for row in method.describe(model, tenfold.Goal(**goal))}


@pytest.mark.parametrize("method", [tenfold.SFW(), tenfold.SFW(GROUP, vectors="l2"), tenfold.SFW(linear=True)])
def test_every_parameter_is_in_exactly_one_group(method) -> None:
    model = Net()
    model.first.weight.requires_grad_(False)
    optimizer = method.optimizer(model, lr=0.1)
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    names = [name for group in optimizer.param_groups for name in group["param_names"]]
    assert sorted(names) == sorted(rows(method, model))


def test_convolutions_get_the_set_other_matrices_an_l2_ball_and_vectors_sgd() -> None:
    found = {name: row["set"] for name, row in rows(tenfold.SFW(GROUP), Net()).items()}
    structured = {"first", "depthwise", "pointwise", "up", "line"}
    for name, kind in found.items():
        owner, _, leaf = name.rpartition(".")
        if owner in structured and leaf == "weight":
            assert kind == "GroupKSupport", name
        elif name in ("head.weight", "table.weight", "oddity"):
            assert kind == "L2", name
        else:
            assert kind == "SGD", name


def test_the_papers_preset_leaves_sgd_only_what_has_no_scale() -> None:
    found = rows(tenfold.SFW(vectors="l2"), Net())
    free = {name: row["note"] for name, row in found.items() if row["set"] == "SGD"}
    assert set(free) == {"norm.bias", "nothing"}
    assert all("zeros" in note for note in free.values())


def test_linear_layers_join_by_the_field_or_by_name() -> None:
    assert rows(tenfold.SFW(linear=True), Net())["head.weight"]["set"] == "SpectralKSupport"
    named = rows(tenfold.SFW(), Net(), target_modules=["head", "tied", "first"])
    assert named["head.weight"]["set"] == "SpectralKSupport"
    assert named["pointwise.weight"]["set"] == "L2"
    assert rows(tenfold.SFW(), Net(), exclude_modules=["first"])["first.weight"]["set"] == "L2"


def test_a_depthwise_kernel_has_no_rank_to_lose_and_keeps_a_note() -> None:
    row = rows(tenfold.SFW(), Net())["depthwise.weight"]
    assert (row["set"], row["note"]) == ("L2", "depthwise: it has no rank to lose")


def test_k_counts_filters_of_transposed_convolutions_on_their_second_dimension() -> None:
    assert rows(tenfold.SFW(GROUP), Net())["up.weight"]["k"] == 1  # a quarter of 4 filters
    assert rows(tenfold.SFW(GROUP), Net())["first.weight"]["k"] == 2
    assert rows(tenfold.SFW(balls.SpectralKSupport(k=0.5)), Net())["first.weight"]["k"] == 4


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Conv2d(16, 24, 3),
        lambda: nn.Conv2d(16, 24, 3, groups=4),
        lambda: nn.Linear(40, 30),
        lambda: nn.ConvTranspose2d(12, 20, 3, groups=2),
    ],
)
def test_the_scale_is_the_mean_norm_of_many_initialisations(make) -> None:
    """To 1 %, for weights; biases are few numbers, and are looked at by their mean square instead."""
    layers = [make() for _ in range(200)]
    weights = torch.tensor([float(layer.weight.detach().norm()) for layer in layers])
    rho, default = expected_norm(layers[0], layers[0].weight)
    assert default
    assert rho == pytest.approx(float(weights.mean()), rel=0.01)
    assert rho == pytest.approx(math.sqrt(layers[0].weight.shape[0] / 3))
    squares = torch.stack([layer.bias.detach().square().sum() for layer in layers])
    assert expected_norm(layers[0], layers[0].bias)[0] == pytest.approx(float(squares.mean().sqrt()), rel=0.05)


def test_a_default_start_is_always_known_as_one_and_others_are_not() -> None:
    for seed in range(100):
        torch.manual_seed(seed)
        layer = nn.Conv2d(4, 6, 3)
        assert expected_norm(layer, layer.weight)[1]
        assert expected_norm(layer, layer.bias)[1]
        nn.init.kaiming_normal_(layer.weight)
        assert expected_norm(layer, layer.weight) == (pytest.approx(float(layer.weight.norm())), False)


def test_the_diameter_is_twice_the_width_in_norms_at_initialisation() -> None:
    model = nn.Conv2d(6, 12, 3, bias=False)
    for ball in (balls.Lp(p=1.5), balls.Nuclear(), balls.SpectralKSparse(k=0.5), GROUP):
        radius = rows(tenfold.SFW(ball, width=3.0), model)["weight"]["radius"]
        assert ball.diameter(radius, (12, 6, 3, 3)) == pytest.approx(2 * 3.0 * math.sqrt(12 / 3))


def test_constructing_changes_no_weight_and_draws_no_random_number() -> None:
    model = Net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    method = tenfold.SFW(GROUP, width=0.1)  # far outside
    method.describe(model)
    method.optimizer(model, lr=0.1)
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_narrow_sets_pull_in_a_start_and_wide_ones_do_not() -> None:
    """The k-support kinds hold a default start from ``w ~ 1 / sqrt(share)`` on."""
    for width, outside in ((1.0, True), (3.0, False)):
        model = nn.Conv2d(16, 20, 3, bias=False)
        optimizer = tenfold.SFW(GROUP, width=width).optimizer(model, lr=0.01)
        model(torch.randn(1, 16, 5, 5)).sum().backward()
        if outside:
            with pytest.warns(tenfold.TenfoldWarning, match="'weight' started outside"):
                optimizer.step()
        else:
            optimizer.step()
        assert optimizer.stats()[0].gauge <= 1 + 1e-5


def test_it_refuses_an_optimizer_of_another_kind_and_says_what_to_do() -> None:
    model = nn.Conv2d(3, 4, 3)
    with pytest.raises(tenfold.ArgumentError, match=r"Use optimizer = method.optimizer\(model"):
        tenfold.SFW().attach(model, torch.optim.AdamW(model.parameters()))
    with pytest.raises(tenfold.ArgumentError, match="`base`"):
        tenfold.SFW().optimizer(model, base=torch.optim.AdamW, lr=0.1)


@pytest.mark.parametrize(
    ("text", "ball"),
    [
        ("spectral-k-support:k=0.1", balls.SpectralKSupport(k=0.1)),
        ("SpectralKSupport:k=3", balls.SpectralKSupport(k=3)),
        ("group-k-support:k=0.5", balls.GroupKSupport(k=0.5)),
        ("lp:p=1.5", balls.Lp(p=1.5)),
        ("l-inf", balls.LInf()),
        ("nuclear", balls.Nuclear()),
    ],
)
def test_a_ball_can_be_typed(text, ball) -> None:
    made = parse.method("sfw", [f"constraint={text}", "width=3"])
    assert made == tenfold.SFW(constraint=ball, width=3.0)
    assert parse.recorded_method(json.loads(json.dumps(made.to_dict()))) == made


@pytest.mark.parametrize(
    "text", ["spectral-k-support", "l2:k=3", "k-support:k=many", "octahedron", "spectral-k-support:k=2.5"]
)
def test_a_ball_that_cannot_be_read_is_refused(text) -> None:
    with pytest.raises(tenfold.ArgumentError, match=r"`constraint`|`k`"):
        tenfold.SFW(constraint=text)


def test_the_plan_is_the_uniform_fraction_and_dense_without_a_budget() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3))
    budget = tenfold.Budget(params=0.5)
    mine, uniform = (tenfold.plan(model, m, budget) for m in (tenfold.SFW(), tenfold.SVD()))
    assert {n: x.rank for n, x in mine.layers.items()} == {n: x.rank for n, x in uniform.layers.items()}
    dense = tenfold.plan(model, tenfold.SFW())
    assert all("no budget was given" in (x.reason or "") for x in dense.layers.values())


def test_training_on_a_low_rank_set_makes_weights_of_low_rank() -> None:
    """With eta clipped to 1 the weight is a vertex: exactly k singular values."""
    model = nn.Conv2d(8, 8, 3, bias=False)
    method = tenfold.SFW(balls.SpectralKSupport(k=2), width=2.0)
    optimizer = method.optimizer(model, lr=100.0)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 8, 6, 6)).square().sum().backward()
        optimizer.step()
    s = tenfold.linalg.singular_values(model.weight.detach().flatten(1))
    assert s[2] <= 1e-5 * s[0]
    assert optimizer.stats()[0].kept == 0


def after_a_quarter(lr: float, width: float, steps: int = 80) -> list[str]:
    """What is said in a run of random gradients of length one each, at a rate that falls linearly."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3))
    method = tenfold.SFW(tenfold.balls.GroupKSupport(k=0.5), width=width)
    optimizer = method.optimizer(model, lr=lr, momentum=0.0, goal=tenfold.Goal(steps=steps))
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    generator = torch.Generator().manual_seed(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(steps):
            for p in model.parameters():
                p.grad = torch.randn(p.shape, generator=generator)
                p.grad /= p.grad.norm()
            optimizer.step()
            falling.step()
    return [str(w.message) for w in caught if "a quarter of them" in str(w.message)]


def test_a_run_whose_length_is_known_is_told_early_where_it_leads_to_nothing() -> None:
    assert after_a_quarter(lr=0.5, width=2.0) == []
    (slow,) = after_a_quarter(lr=1e-4, width=2.0)
    assert "SFW after 20 steps" in slow
    assert "2 of 2 tensors forget their start too slowly" in slow
    assert "clipped" not in slow
    (wild,) = after_a_quarter(lr=100.0, width=2.0)
    assert "2 of 2 tensors jump between vertices: 100%" in wild
    assert "forget" not in wild
    assert after_a_quarter(lr=1e-4, width=2.0, steps=20) == []  # too short to tell


def test_what_will_be_left_of_the_start_is_foretold_by_what_is_left_after_a_quarter() -> None:
    """At a rate that falls linearly the step sizes do; ``log F`` is their sum."""
    steps, first = 400, 0.02
    sizes = [first * (1 - t / steps) for t in range(steps)]
    early, end = (math.prod(1 - eta for eta in sizes[:n]) for n in (steps // 4, steps))
    assert early ** (1 / SPENT) == pytest.approx(end, rel=0.02)


def test_arguments_that_its_optimizer_does_not_have_are_refused_by_name() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3))
    with pytest.raises(tenfold.ArgumentError, match="`fused`"):
        tenfold.SFW().optimizer(model, lr=0.1, fused=True)
    with pytest.raises(tenfold.ArgumentError, match="`lr`"):
        tenfold.SFW().optimizer(model)


def test_a_layer_without_outputs_has_no_scale_and_harms_nothing():
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 0))
    optimizer = tenfold.SFW(linear=True).optimizer(model, lr=0.1)
    model[0](torch.randn(3, 6)).sum().backward()
    optimizer.step()
    assert torch.isfinite(model[0].weight).all()
