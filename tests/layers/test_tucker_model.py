"""A whole model into training form and back: who is converted, from where the numbers come, and what stays tied."""

import math
from typing import Any

import pytest
import torch
from test_tied import INPUTS, cases
from torch import nn

import tenfold
from helpers import relative, same_state, state
from nets import Residual, Tied, decaying_
from tenfold.errors import ArgumentError, PlanError, TenfoldError, UnsupportedLayer
from tenfold.layers.matrix import LowRank
from tenfold.layers.tucker import TuckerConv
from tenfold.layers.tucker_model import deploy, to_tucker
from tenfold.layers.tucker_protocol import factorised
from tenfold.layers.tucker_training import TrainedTucker

x = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def net() -> nn.Module:
    return Residual(16).double().eval()


def full_ranks_of(net: nn.Module) -> dict[str, Any]:
    return {name: 10**6 for name, m in net.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}


def defect(layer: Any) -> float:
    """How far the bases are from orthonormal columns, in every group."""
    parts = [u for basis in layer.bases for u in basis.detach().double().chunk(layer.groups)]
    return max(float((u.mT @ u - torch.eye(u.shape[1])).abs().max()) for u in parts)


# ---- from weights


def test_at_full_rank_the_model_computes_what_it_did(net: nn.Module) -> None:
    before, random = state(net), torch.get_rng_state()
    made = to_tucker(net, full_ranks_of(net))
    assert made.left == {}
    assert relative(made.model(x), net(x)) < 1e-12
    assert torch.equal(torch.get_rng_state(), random)
    assert same_state(net, before)


def test_bases_are_orthonormal_and_ranks_the_share_asked_for(net: nn.Module) -> None:
    made = to_tucker(net, first=0.25, floor=3)
    layers = factorised(made.model)
    assert len(layers) + len(made.left) == len(full_ranks_of(net))
    for name, layer in layers.items():
        n_out, n_in, *k = layer.weight.shape
        wanted = [max(3, n_out // 4), max(3, n_in // 4)]
        wanted = [min(*wanted, n_out, n_in)] * 2 if math.prod(k) == 1 else [min(wanted[0], n_out), min(wanted[1], n_in)]
        assert list(layer.ranks) == wanted, name
        assert defect(layer) < 1e-13
        lost = net.get_submodule(name).weight.detach() - layer.weight.detach()
        energy = net.get_submodule(name).weight.detach().square().sum()  # what is kept and what is lost are orthogonal
        torch.testing.assert_close(layer.core.detach().square().sum() + lost.square().sum(), energy)


def test_tau_bounds_the_error_of_every_layer_and_is_nearly_used() -> None:
    net = nn.Sequential(nn.Conv2d(16, 16, 3), nn.Conv2d(16, 12, 3, groups=2), nn.Linear(20, 24)).double()
    decaying_(net, 0.7, torch.Generator().manual_seed(3))
    for tau in (0.05, 0.3):
        made = to_tucker(net, {"0": 99, "1": 99, "2": 99}, floor=1, tau=tau)
        errors = [relative(m.weight, net[i].weight) for i, m in enumerate(made.model)]
        assert max(errors) <= tau * (1 + 1e-9)
        assert min(errors) > 0.2 * tau
        assert any(a < b for m in made.model for a, b in zip(m.ranks, m.sizes, strict=False))
    capped = to_tucker(net, {"0": 2}, tau=0.0).model[0]
    assert capped.ranks == (2, 2)
    raised = to_tucker(net, {"0": 9}, floor=5, tau=0.9).model[0]
    assert raised.ranks == (5, 5)


@pytest.mark.parametrize("groups", [1, 2])
def test_spatial_modes_are_active_only_where_asked_for_and_large(groups: int) -> None:
    net = nn.Sequential(nn.Conv2d(8, 8, 5, groups=groups), nn.Conv2d(8, 8, 3), nn.Linear(8, 8)).double()
    ranks = {"0": 3, "1": 3, "2": 3}
    made = to_tucker(net, ranks, spatial=True).model
    assert [m.ranks for m in made] == [(3, 3, 3, 3), (3, 3), (3, 3)]
    assert [m.ranks for m in to_tucker(net, ranks).model] == [(3, 3)] * 3
    full = to_tucker(net, {"0": 99}, spatial=True).model[0]
    assert relative(full.weight, net[0].weight) < 1e-13


# ---- from scratch


def test_from_scratch_the_core_has_the_energy_of_the_weight_in_expectation() -> None:
    net = nn.Sequential(nn.Conv2d(16, 16, 3, groups=2), nn.Linear(32, 32)).double()
    energies = {"0": [], "1": []}
    g = torch.Generator().manual_seed(0)
    for _ in range(60):
        made = to_tucker(net, {"0": (4, 3), "1": 8}, generator=g).model
        for name, layer in factorised(made).items():
            energies[name].append(float(layer.weight.detach().square().sum()))
            assert defect(layer) < 1e-13
    for name, values in energies.items():
        wanted = float(net.get_submodule(name).weight.detach().square().sum())
        count = factorised(made)[name].core.numel()
        spread = wanted * math.sqrt(2 / count / len(values))  # of the mean of a chi square
        assert abs(sum(values) / len(values) - wanted) < 4 * spread


def test_from_scratch_the_generator_alone_decides(net: nn.Module) -> None:
    random = torch.get_rng_state()
    a, b = (to_tucker(net, generator=torch.Generator().manual_seed(5)).model for _ in range(2))
    assert torch.equal(torch.get_rng_state(), random)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(p, q)
    other = to_tucker(net, generator=torch.Generator().manual_seed(6)).model
    assert not torch.equal(a.layer1[1].conv1.core, other.layer1[1].conv1.core)


# ---- which layers


def test_what_stays_dense_is_listed_with_the_reason() -> None:
    net = nn.ModuleDict(
        {
            "depthwise": nn.Conv2d(16, 16, 3, groups=16),
            "one": nn.Conv2d(1, 16, 3),
            "frozen": nn.Conv2d(16, 16, 3),
            "narrow": nn.Linear(4, 4),
            "table": nn.Embedding(9, 4),
            "excluded": nn.Linear(32, 32),
            "taken": nn.Conv2d(16, 16, 3),
        }
    )
    net["frozen"].weight.requires_grad_(False)
    made = to_tucker(net, exclude_modules=["excluded"])
    assert [name for name, m in made.model.named_modules() if isinstance(m, TrainedTucker)] == ["taken"]
    assert list(made.left) == ["depthwise", "one", "frozen", "narrow", "table", "excluded"]
    parts = ("depthwise", "of one channel", "no gradient", "nothing would be saved", "an Embedding", "exclude_modules")
    assert all(part in reason for part, reason in zip(parts, made.left.values(), strict=True))
    assert to_tucker(net, target_modules="taken").left["excluded"] == "not in target_modules"
    assert to_tucker(net, {"taken": 2}).left["excluded"] == "not in `ranks`"


def test_a_first_convolution_is_clamped_to_what_its_kernel_can_have() -> None:
    assert to_tucker(nn.Sequential(nn.Conv2d(3, 64, 3)), {"0": (64, 64)}).model[0].ranks == (27, 3)


@cases
@pytest.mark.parametrize("scratch", [False, True])
def test_ties_are_kept_in_training_deployed_and_dense(kind: type[nn.Module], scratch: bool) -> None:
    net, inputs = kind().double(), torch.randn(INPUTS[kind], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0) if scratch else None
    made = to_tucker(net, {"a": 2}, generator=generator).model
    small, dense = deploy(made), tenfold.to_dense(made)
    assert len(factorised(made)) == 1
    assert made.a.core is made.b.core
    assert made.a.augmented is made.b.augmented
    assert (made.a is made.b) == (small.a is small.b) == (dense.a is dense.b) == (net.a is net.b)
    assert dense.a.weight is dense.b.weight
    assert [id(p) for p in small.a.factors] == [id(p) for p in small.b.factors]
    for model in (made, small, dense):
        assert (_biases(model.a) == _biases(model.b)) == (net.a.bias is net.b.bias)
        assert relative(model(inputs), made(inputs)) < 1e-12


# ---- and back


def test_deployed_layers_are_plain_and_compute_the_same(net: nn.Module) -> None:
    made = to_tucker(net).model
    small = deploy(made)
    assert relative(small(x), made(x)) < 1e-12
    assert relative(tenfold.to_dense(made)(x), made(x)) < 1e-12
    kinds = {name: type(m) for name, m in small.named_modules() if isinstance(m, (TuckerConv, LowRank))}
    assert set(kinds) == set(factorised(made))
    assert {issubclass(k, TuckerConv) for n, k in kinds.items() if "down" not in n and n != "fc"} == {True}
    assert {p.data_ptr() for p in small.parameters()}.isdisjoint({p.data_ptr() for p in made.parameters()})
    assert not any(isinstance(m, TrainedTucker) for m in small.modules())


def test_a_plan_of_the_trained_ranks_gives_the_same_model(net: nn.Module) -> None:
    made = to_tucker(net, first=0.25).model
    problem = tenfold.survey(made)
    layers = factorised(made)
    chosen = []
    for site in problem.sites:
        ranks = layers[site.name].ranks
        matrix = math.prod(site.cost.shape[2:]) == 1
        chosen.append(tenfold.LayerPlan("low-rank", ranks[0]) if matrix else tenfold.LayerPlan("tucker", ranks))
    plan = problem.plan("by hand", chosen)
    small = tenfold.apply(problem.model, tenfold.Plan.from_json(plan.to_json()))
    assert relative(small(x), made(x)) < 1e-10
    assert tenfold.cost(small) == tenfold.cost(deploy(made)) == tenfold.Cost(plan.params)


def test_a_model_in_training_form_is_not_saved_as_a_compressed_one(net: nn.Module, tmp_path) -> None:
    made = to_tucker(net).model
    with pytest.raises(PlanError, match="in the form in which it is trained"):
        tenfold.save(made, tmp_path / "saved")
    small = deploy(made)
    tenfold.save(small, tmp_path / "saved")
    assert torch.equal(tenfold.load(tmp_path / "saved", net)(x), small(x))


def test_a_checkpoint_of_other_ranks_loads_into_a_fresh_model(net: nn.Module) -> None:
    names = list(factorised(to_tucker(net).model))
    made, fresh = (to_tucker(net, dict.fromkeys(names, r)).model for r in (7, 3))
    fresh.load_state_dict(made.state_dict())
    assert torch.equal(fresh(x), made(x))


# ---- refusals


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"tau": 1.0}, r"`tau` must be in \[0, 1\)"),
        ({"tau": 0.1, "generator": torch.Generator()}, "`tau` must be None from scratch"),
        ({"ranks": {"conv9": 2}}, "`ranks` must name layers .* got 'conv9'. Nearest"),
        ({"ranks": {"conv1": (2, 2, 2)}}, "`ranks` must be 2 integers >= 1, or one, for 'conv1'"),
        ({"ranks": {"conv1": 0}}, "`ranks` must be"),
    ],
)
def test_arguments_out_of_range_are_refused(net: nn.Module, call: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        to_tucker(net, **call)


@pytest.mark.parametrize("value", [0, 1.5, "a", float("nan")])
def test_the_first_share_is_checked(net: nn.Module, value: Any) -> None:
    with pytest.raises(ArgumentError, match="`first` must be"):
        to_tucker(net, first=value)


def test_a_layer_that_is_named_is_never_left_dense_silently() -> None:
    net = nn.ModuleDict(
        {"depthwise": nn.Conv2d(8, 8, 3, groups=8), "table": nn.Embedding(9, 4), "fine": nn.Linear(8, 8)}
    )
    for name, reason in (("depthwise", "depthwise"), ("table", "an Embedding")):
        with pytest.raises(UnsupportedLayer, match=f"`ranks` names '{name}', which stays dense: .*{reason}"):
            to_tucker(net, {name: 2, "fine": 2})


def test_weights_that_are_not_finite_and_wrapped_models_are_refused(net: nn.Module) -> None:
    with pytest.raises(ArgumentError, match="wrapped"):
        deploy(nn.DataParallel(net))
    net.layer1[0].conv1.weight.data[0, 0, 0, 0] = float("inf")
    with pytest.raises(TenfoldError, match=r"weight of 'layer1\.0\.conv1' has NaN"):
        to_tucker(net)


def test_an_embedding_tied_to_a_head_stays() -> None:
    made = to_tucker(Tied(), {"first": 2}).model
    assert made.head.weight is made.table.weight
    assert made.first.core is made.second.core


def _biases(layer: nn.Module) -> list[int]:
    return [id(p) for name, p in layer.named_parameters() if name.endswith("bias")]
