"""LRPET: fixed ranks, the batch norm's metric, energy transfer; and the counts that the paper prints."""

import math
from fractions import Fraction

import pytest
import torch
from torch import nn

import tenfold
from methods.projection_by_hand import HYPER, by_hand, close, rank_of, train
from nets import PreActivation, conv_norm_chain
from tenfold.methods.contract.method import Goal
from tenfold.methods.contract.projection import STATE
from tenfold.plans.candidates import as_plan, shapes
from tenfold.plans.problem import survey

FULL = {"first": 8, "mid": 12, "point": 12}
NORMS = {"first": "norm1", "mid": "norm2", "point": "norm3"}


def scale_of(norm: nn.BatchNorm2d) -> torch.Tensor:
    return norm.weight.detach() / (norm.running_var + norm.eps).sqrt()


def cut(weight: torch.Tensor, rank: int, a: torch.Tensor, transfer: bool) -> torch.Tensor:
    """``diag(a)^-1 c SVD_r(diag(a) M)``, with the division."""
    m = a[:, None] * weight.detach().flatten(1)
    u, s, vh = torch.linalg.svd(m, full_matrices=False)
    c = s.norm() / s[:rank].norm() if transfer else 1.0
    return (c * (u[:, :rank] * s[:rank]) @ vh[:rank] / a[:, None]).view_as(weight)


def unlike_(model: nn.Module) -> nn.Module:
    """Scales and statistics that differ from channel to channel."""
    g = torch.Generator().manual_seed(9)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.weight.data = torch.randn(norm.num_features, generator=g).double() + 0.2
            norm.running_var.copy_(torch.rand(norm.num_features, generator=g) * 4 + 0.1)
    return model


def run(method, steps, *, model=None, goal=None, watch=None):
    model = method.begin(conv_norm_chain() if model is None else model)
    optimizer = method.optimizer(model, goal=goal, **HYPER)
    train(model, optimizer, range(steps), None if watch is None else lambda i: watch(i, model, optimizer))
    return model, optimizer


# ---- the update


@pytest.mark.parametrize("transfer", [True, False])
@pytest.mark.parametrize("rectify", [True, False])
@pytest.mark.parametrize("steps", [2, 3, 7])
def test_training_is_plain_training_with_projections_between(steps, rectify, transfer):
    """With momentum and weight decay, the metric by the statistics as they are at the projection."""

    def cut_(model):
        for name, norm in NORMS.items():
            weight = model.get_submodule(name).weight
            a = scale_of(model.get_submodule(norm)) if rectify else torch.ones(len(weight)).double()
            weight.data = cut(weight, FULL[name] // 2, a, transfer)
        return {}

    wanted, _ = by_hand(unlike_(conv_norm_chain()), steps, cut_, every=3)
    method = tenfold.LRPET(every=3, rectify=rectify, transfer=transfer)
    got, _ = run(method, steps, model=unlike_(conv_norm_chain()))
    close(got, wanted, rtol=1e-6, atol=1e-7)


def test_after_each_projection_the_weights_are_of_the_ranks():
    def watch(i, model, optimizer):
        cuts = {name: rank_of(model.get_submodule(name).weight) == full // 2 for name, full in FULL.items()}
        assert set(cuts.values()) == {i % 2 == 1}

    _, optimizer = run(tenfold.LRPET(every=2), 6, watch=watch)
    assert optimizer.param_groups[0][STATE]["ranks"] == {name: full // 2 for name, full in FULL.items()}


def test_energy_transfer_leaves_what_the_network_computes_in_training_mode_to_the_directions_alone():
    """A batch norm right behind takes c out again."""
    x = torch.randn(8, 3, 6, 6).double()
    outputs = []
    for transfer in (True, False):
        model = unlike_(conv_norm_chain())
        tenfold.LRPET(transfer=transfer).project_(model)
        outputs.append(model.train()(x).detach())
    torch.testing.assert_close(*outputs, rtol=1e-3, atol=1e-4)  # but for the norms' eps
    assert not torch.allclose(conv_norm_chain().train()(x), outputs[0], rtol=1e-2)


def test_the_tail_keeps_its_share_while_training_and_is_gone_in_the_end():
    model = unlike_(conv_norm_chain())
    method = tenfold.LRPET(tail=0.5)
    before = model.mid.weight.detach().clone()
    method.project_(model)
    a = scale_of(model.norm2)[:, None]
    s, t = (torch.linalg.svdvals(a * w.detach().flatten(1)) for w in (before, model.mid.weight))
    torch.testing.assert_close(t.norm(), s.norm())
    torch.testing.assert_close(t[6:], 0.5 * s[6:])
    small = method.finish(unlike_(conv_norm_chain())).model
    torch.testing.assert_close(small.mid.weight, cut(before, 6, a[:, 0], True), rtol=1e-6, atol=1e-7)


# ---- ranks


@pytest.mark.parametrize("ratio", ["0", "0.1", "0.3", "0.57", "0.58", "0.62", "0.65", "0.7", "0.9", "0.99"])
def test_the_rank_is_the_floor_of_what_the_ratio_leaves(ratio):
    """In exact arithmetic: 0.1 of 10 is 1, whatever 1 - 0.9 is."""
    sizes = [1, 3, 10, 16, 20, 50, 64, 100, 512]
    model = nn.Sequential(*(nn.Conv2d(n, n, 3) for n in sizes))
    problem = survey(model)
    method = tenfold.LRPET(prune_ratio=float(ratio))
    ranks, level = method.rule(method.sites(problem, shapes(problem, "channel"), None, None))
    assert ranks == [max(1, math.floor(n * (1 - Fraction(ratio)))) for n in sizes]
    assert level == float(ratio)


def test_every_convolution_is_taken_and_linear_layers_where_asked_for():
    for linear in (False, True):
        layers = tenfold.plan(conv_norm_chain(), tenfold.LRPET(prune_ratio=0.7, linear=linear)).layers
        assert all(layers[name].rank for name in FULL)
        assert (layers["head"].rank == 3) == linear
    assert "linear" in (tenfold.plan(conv_norm_chain(), tenfold.LRPET()).layers["head"].reason or "")


@pytest.mark.parametrize("kind", ["params", "macs"])
@pytest.mark.parametrize("share", [0.45, 0.6, 0.8])
def test_a_budget_is_met_by_the_smallest_ratio_that_meets_it(kind, share):
    x, budget = torch.randn(1, 3, 6, 6).double(), tenfold.Budget(**{kind: share})
    plan = tenfold.plan(conv_norm_chain(), tenfold.LRPET(), budget, example_inputs=x)
    ratio = plan.level
    ranks = {name: max(1, math.floor(full * (1 - ratio) + 1e-9)) for name, full in FULL.items()}
    for name, rank in ranks.items():
        assert plan.layers[name].rank in (rank, None)

    def used(p):
        made = tenfold.plan(conv_norm_chain(), tenfold.LRPET(prune_ratio=p), example_inputs=x)
        return getattr(made, kind)

    dense = getattr(plan, f"dense_{kind}")
    assert getattr(plan, kind) == used(ratio) <= share * dense
    smaller = max(1 - (rank + 1) / FULL[name] for name, rank in ranks.items() if rank < FULL[name])
    assert used(max(0.0, smaller)) > share * dense


def test_the_budget_of_the_goal_sets_the_ranks_from_the_first_step():
    budget = tenfold.Budget(params=0.6)
    method = tenfold.LRPET(every=2)
    model, optimizer = run(method, 2, goal=Goal(budget=budget))
    result = method.finish(model, budget)
    planned = {name: layer.rank for name, layer in result.plan.layers.items() if layer.rank}
    assert optimizer.param_groups[0][STATE]["ranks"] == planned
    for name, rank in planned.items():
        assert rank_of(model.get_submodule(name).weight) == rank
    with pytest.raises(tenfold.BudgetError):
        run(method, 1, goal=Goal(budget=tenfold.Budget(params=0.01)))


def test_by_default_the_first_convolution_of_a_small_network_is_not_cut_to_rank_1_and_as_published_it_is():
    """Nine numbers to a kernel: there is next to nothing to save."""
    model, budget = tenfold.build_model("cnn", classes=10, channels=1, size=28), tenfold.Budget(params=0.25)
    ranks = {share: tenfold.plan(model, tenfold.LRPET(negligible=share), budget).layers for share in (0.01, 0.0)}
    first = next(iter(ranks[0.0]))
    assert ranks[0.0][first].rank == 1
    assert ranks[0.01][first].rank is None
    assert "too little to be worth an error" in ranks[0.01][first].reason
    assert ranks[0.01][first].params < 0.01 * sum(p.numel() for p in model.parameters())


def test_a_rank_that_saves_nothing_leaves_the_layer_dense_and_unprojected():
    method = tenfold.LRPET(prune_ratio=0.25, every=1)  # point: rank 9 of a 16 x 12 kernel
    model, optimizer = run(method, 3)
    assert "point" not in optimizer.param_groups[0][STATE]["ranks"]
    assert rank_of(model.point.weight) == 12
    result = method.finish(model)
    assert result.plan.layers["point"].rank is None
    assert "saves nothing" in result.plan.layers["point"].reason
    assert torch.equal(result.model.point.weight, model.point.weight)


# ---- which norm


class Ways(nn.Module):
    """Convolutions with a norm right behind, behind a ReLU, a pool, a fork, none, and one shared by two."""

    def __init__(self) -> None:
        super().__init__()
        names = ("direct", "relu", "pool", "fork", "bare", "one", "two")
        self.convs = nn.ModuleDict({name: nn.Conv2d(6, 6, 3, padding=1) for name in names})
        self.norms = nn.ModuleDict({name: nn.BatchNorm2d(6) for name in (*names[:4], "shared", "other")})
        self.maximum = nn.MaxPool2d(3, 1, 1)
        self.double()

    def forward(self, x):
        c, n = self.convs, self.norms
        x = n["direct"](c["direct"](x))
        x = n["relu"](torch.relu(c["relu"](x)))
        x = n["pool"](self.maximum(c["pool"](x)))
        y = c["fork"](x)
        x = n["fork"](y) + y
        return n["shared"](c["two"](n["shared"](c["one"](torch.relu(c["bare"](x))))))


@pytest.mark.parametrize("given", [None, {"convs.bare": "norms.other", "convs.direct": "norms.relu"}])
def test_the_metric_is_that_of_the_norm_which_alone_follows_and_else_the_users(given):
    torch.manual_seed(4)
    model = unlike_(Ways())
    before = {name: conv.weight.detach().clone() for name, conv in model.convs.items()}
    tenfold.LRPET(norms=given).project_(model)
    norm = {"direct": "direct"} if given is None else {"direct": "relu", "bare": "other"}
    for name, conv in model.convs.items():
        a = scale_of(model.norms[norm[name]]) if name in norm else torch.ones(6).double()
        torch.testing.assert_close(conv.weight.detach(), cut(before[name], 3, a, True), rtol=1e-6, atol=1e-7)


def test_in_a_pre_activation_network_the_norm_of_the_next_convolution_counts_where_it_follows_directly():
    torch.manual_seed(4)
    model = unlike_(PreActivation(6).double())
    one, two = (conv.weight.detach().clone() for conv in (model.conv1, model.conv2))
    tenfold.LRPET().project_(model)
    ones = torch.ones(6).double()
    torch.testing.assert_close(
        model.conv1.weight.detach(), cut(one, 3, scale_of(model.bn2), True), rtol=1e-6, atol=1e-7
    )
    torch.testing.assert_close(model.conv2.weight.detach(), cut(two, 3, ones, True), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("same", [False, True])
def test_a_tied_weight_has_a_metric_only_where_all_its_layers_have_the_same_norm(same):
    torch.manual_seed(4)
    model = unlike_(nn.Sequential(*(m for _ in range(2) for m in (nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6)))).double())
    model[2].weight = model[0].weight
    before = model[0].weight.detach().clone()
    tenfold.LRPET(norms={"0": "1", "2": "1"} if same else None).project_(model)
    a = scale_of(model[1]) if same else torch.ones(6).double()
    torch.testing.assert_close(model[0].weight.detach(), cut(before, 3, a, True), rtol=1e-6, atol=1e-7)


def test_norms_that_do_not_fit_are_refused():
    with pytest.raises(tenfold.ArgumentError, match="must map layers to batch norms"):
        tenfold.LRPET(norms={"mid": "relu1"}).project_(conv_norm_chain())
    with pytest.raises(tenfold.ArgumentError, match="`norms` must be batch norms of as many channels"):
        tenfold.LRPET(norms={"mid": "norm1"}).project_(conv_norm_chain())


# ---- the end


@pytest.mark.parametrize("fold", ["channel", "spatial", "spatial-t", "input", "decoupled"])
@pytest.mark.parametrize("rectify", [True, False])
def test_the_end_projects_once_more_and_exports_what_the_projected_network_computes(rectify, fold):
    method = tenfold.LRPET(every=2, rectify=rectify, fold=fold, prune_ratio=0.7)
    model, _ = run(method, 5, model=unlike_(conv_norm_chain()))
    dense = method.begin(model).eval()
    ranks = method.project_(dense)
    result = method.finish(model)
    small = result.model.eval()
    assert {name: layer.rank for name, layer in result.plan.layers.items() if layer.rank} == ranks
    x = torch.randn(4, 3, 6, 6).double()
    torch.testing.assert_close(small(x), dense(x), rtol=1e-7, atol=1e-8)
    assert not torch.allclose(model.eval()(x), dense(x), rtol=1e-3)  # it was not projected before
    again = method.finish(dense).model.eval()
    torch.testing.assert_close(again(x), dense(x), rtol=1e-7, atol=1e-8)


def test_switched_off_channels_cost_the_others_nothing_at_export():
    """With scales of zero the matrix has few directions in the metric; the factors must not fit the dead rows."""
    model = conv_norm_chain().eval()
    model.norm2.weight.data[5:] = 0.0
    x = torch.randn(4, 3, 6, 6).double()
    small = tenfold.LRPET(ranks={"mid": 6}, transfer=False).finish(model).model.eval()
    torch.testing.assert_close(small(x), model(x), rtol=1e-3, atol=1e-4)


def test_data_brings_the_statistics_that_the_transfer_makes_stale():
    method = tenfold.LRPET(every=2, prune_ratio=0.7)
    model, _ = run(method, 5)
    data = [torch.randn(8, 3, 6, 6).double() for _ in range(3)]
    stale, fresh = method.finish(model).model, method.finish(model, data=data, norms="reestimate").model
    wanted = method.finish(model).model
    tenfold.reestimate_(wanted, data)
    close(fresh, wanted, rtol=0, atol=0)
    assert not torch.allclose(stale.norm1.running_var, fresh.norm1.running_var, rtol=1e-2)


def test_the_norm_folds_into_the_second_factor():
    method = tenfold.LRPET(every=2, prune_ratio=0.7)
    small = method.finish(run(method, 5)[0]).model.eval()
    folded = tenfold.fold_batchnorm(small)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    x = torch.randn(4, 3, 6, 6).double()
    torch.testing.assert_close(folded(x), small(x), rtol=1e-10, atol=1e-10)


# ---- the counts of the paper

PRINTED = [
    # net, size, classes, p, MACs, parameters, in units of
    ("resnet56", 32, 10, 0.57, "125.49", "0.849", "56.06", "0.39", 1e6),
    ("resnet110", 32, 10, 0.65, "252.89", "1.72", "93.78", "0.65", 1e6),
    ("resnet18_imagenet", 224, 1000, 0.58, "1.814", "11.68", "0.861", "5.81", 1e9),
    ("resnet34", 224, 1000, 0.58, "3.664", "21.78", "1.715", "10.51", 1e9),
    ("resnet50", 224, 1000, 0.62, "4.089", "25.50", "1.903", "12.89", 1e9),
]


def printed(value: float, text: str) -> bool:
    """Whether ``value`` is ``text`` to its digits; rounded or cut off, as the paper does both."""
    digits = len(text.partition(".")[2])
    return text in (f"{value:.{digits}f}", f"{math.floor(value * 10**digits) / 10**digits:.{digits}f}")


def counts(name, size, classes, ratio):
    """The plan by shapes alone, and the parameters of the norms, which the paper does not count."""
    model = tenfold.build_model(name, classes=classes, channels=3, size=size)
    method = tenfold.LRPET(prune_ratio=ratio, negligible=0.0)  # as published
    problem = method.narrowed(survey(model, example_inputs=torch.zeros(1, 3, size, size)))
    tables = shapes(problem, "channel")
    ranks, _ = method.rule(method.sites(problem, tables, None, None))
    plan = as_plan(problem, "lrpet", tables, ranks, None)  # every rank saves: an index beyond the table would raise
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    return plan, sum(2 * m.num_features for m in norms)


@pytest.mark.parametrize(
    ("name", "size", "classes", "ratio", "dense_macs", "dense_params", "macs", "params", "unit"), PRINTED
)
def test_the_counts_are_those_that_the_paper_prints(
    name, size, classes, ratio, dense_macs, dense_params, macs, params, unit
):
    plan, norms = counts(name, size, classes, ratio)
    assert printed(plan.dense_macs / unit, dense_macs)
    assert printed((plan.dense_params - norms) / 1e6, dense_params)
    assert printed(plan.macs / unit, macs)
    assert printed((plan.params - norms) / 1e6, params)


def test_the_counts_of_googlenet_are_the_papers_with_a_bias_per_convolution():
    plan, norms = counts("googlenet", 32, 10, 0.60)
    assert printed(plan.macs / 1e9, "0.74")
    assert printed((plan.params - norms + norms // 2) / 1e6, "3.03")
