"""PCA, activation-aware and Fisher SVD on real layers: what they compute, what they keep, and what they refuse."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import tenfold
from helpers import counted
from nets import TiedLinears, TwoNames, conv_chain
from tenfold.layers.matrix import LowRank

pytestmark = pytest.mark.filterwarnings("ignore:.*tell enough")

METHODS = {m.name: m for m in (tenfold.PCA(), tenfold.ActivationSVD(), tenfold.FisherSVD())}
FORMS = {
    "alds": tenfold.ALDS(measure="output"),
    "svd": tenfold.SVD(measure="output", fold="spatial"),
    "tucker": tenfold.Tucker(measure="output"),
}
"""Their factors are made in a second pass, by `tenfold.plans.judged_forms`."""
KINDS = {
    "linear": (lambda bias: nn.Linear(12, 10, bias=bias), (3, 12)),
    "conv": (lambda bias: nn.Conv2d(4, 10, 3, stride=2, padding=1, bias=bias), (4, 9, 9)),
    "grouped": (lambda bias: nn.Conv2d(8, 12, 3, groups=2, bias=bias), (8, 6, 6)),
    "transposed": (lambda bias: nn.ConvTranspose2d(6, 10, 3, stride=2, groups=1, bias=bias), (6, 4, 4)),
    "grouped transposed": (lambda bias: nn.ConvTranspose2d(6, 12, 3, groups=2, bias=bias), (6, 4, 4)),
}


@pytest.fixture(params=METHODS.values(), ids=METHODS)
def method(request) -> tenfold.Method:
    return request.param


with_forms = pytest.mark.parametrize(
    "method", [*METHODS.values(), *FORMS.values()], ids=[*METHODS, *FORMS], indirect=True
)


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def kind(request):
    return request.param


def one_layer(make, bias=True) -> nn.Module:
    return nn.Sequential(make(bias)).double().eval()


def batches(shape, n=40) -> list[torch.Tensor]:
    """Inputs with a mean that matters and directions of unlike strength."""
    x = torch.randn(n, *shape, dtype=torch.float64)
    scale = torch.linspace(0.2, 2, x.shape[-1], dtype=torch.float64)
    return list((x.cumsum(-1) * scale + 1.5).split(16))


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(inplace=True),
        nn.Conv2d(12, 12, 3, groups=2, bias=False),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(12, 8, 2, stride=2),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 20),
        nn.ReLU(),
        nn.Linear(20, 10),
    ).eval()


def images(n=24) -> list[torch.Tensor]:
    return list(torch.randn(n, 3, 6, 6).split(8))


def rows(y: torch.Tensor, layer: nn.Module) -> np.ndarray:
    """``(g, positions, f')``."""
    flat = y.detach().movedim(-1 if isinstance(layer, nn.Linear) else 1, -1).flatten(0, -2).numpy()
    return np.stack(np.split(flat, getattr(layer, "groups", 1), axis=1))


def plain_svd(model: nn.Module, rank: int) -> nn.Module:
    """The best factors of the weight of layer '0', whatever the data."""
    dense = tenfold.plan(model, tenfold.SVD(), tenfold.Budget(params=1.0))
    return tenfold.apply(model, dense.edit("0", decomposition="low-rank", rank=rank))


# ---- what the layers compute


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("share", [0.6, 0.8])
def test_pca_keeps_the_mean_and_projects_the_rest_onto_the_principal_subspace(kind, bias, share):
    make, shape = kind
    model, data = one_layer(make, bias), batches(shape)
    small, plan, _ = tenfold.compress(model, tenfold.PCA(damping=0.0), tenfold.Budget(params=share), data=data)
    rank = plan.layers["0"].rank
    assert rank is not None
    x = torch.cat(data)
    y, found = rows(model(x), model[0]), rows(small(x), model[0])
    for part, other in zip(y, found, strict=True):
        mean = part.mean(0)
        vh = np.linalg.svd(part - mean, full_matrices=False)[2][:rank]
        np.testing.assert_allclose(other, mean + (part - mean) @ vh.T @ vh, rtol=0, atol=1e-10 * np.abs(part).max())


def test_pca_leaves_the_mean_output_of_every_layer_as_it_was_and_its_predicted_error_is_the_true_one(kind):
    make, shape = kind
    model, data = one_layer(make), batches(shape)
    with torch.no_grad():
        model[0].bias.fill_(50.0)  # counted twice it would show
    small, plan, _ = tenfold.compress(model, tenfold.PCA(damping=0.0), tenfold.Budget(params=0.7), data=data)
    x = torch.cat(data)
    y, found = rows(model(x), model[0]), rows(small(x), model[0])
    np.testing.assert_allclose(found.mean(1), y.mean(1), rtol=1e-9)
    spread = np.square(y - y.mean(1, keepdims=True)).sum()
    assert plan.layers["0"].error == pytest.approx(np.sqrt(np.square(y - found).sum() / spread), rel=1e-6)


def test_activation_svd_has_the_least_output_error_at_its_ranks(kind):
    make, shape = kind
    model, data = one_layer(make), batches(shape)
    small, plan, _ = tenfold.compress(model, tenfold.ActivationSVD(damping=0.0), tenfold.Budget(params=0.7), data=data)
    layer = plan.layers["0"]
    x = torch.cat(data)
    with torch.no_grad():
        bare = one_layer(make, False)
        bare[0].weight.copy_(model[0].weight)
    free = rows(bare(x), model[0])
    lost = np.square(rows(small(x), model[0]) - rows(model(x), model[0])).sum()
    least = sum((np.linalg.svd(part, compute_uv=False)[layer.rank :] ** 2).sum() for part in free)
    assert lost == pytest.approx(least, rel=1e-6)
    assert layer.error == pytest.approx(np.sqrt(least / np.square(free).sum()), rel=1e-6)
    # the plain factors of the weight, at the same rank
    plain = plain_svd(model, layer.rank)
    assert np.square(rows(plain(x), model[0]) - rows(model(x), model[0])).sum() > 1.01 * lost


def test_damping_moves_from_the_outputs_to_the_weight(kind):
    """All inputs white: the factors are those of the weight itself."""
    make, shape = kind
    model, data = one_layer(make), batches(shape)
    small = tenfold.compress(model, tenfold.ActivationSVD(damping=1e12), tenfold.Budget(params=0.7), data=data)
    plain = plain_svd(model, small.plan.layers["0"].rank)
    torch.testing.assert_close(small.model[0].weight + 0, plain[0].weight + 0, rtol=1e-6, atol=1e-8)


def test_fisher_svd_with_an_identity_for_a_metric_is_pca():
    model = nn.Sequential(nn.Conv2d(3, 12, 3, groups=3), nn.Flatten(), nn.Tanh(), nn.Linear(192, 12)).double().eval()
    data = batches((3, 6, 6))
    for name in ("0", "3"):
        both = [
            tenfold.compress(model, m, tenfold.Budget(params=0.999 if name == "0" else 0.7), data=data,
                             target_modules=[name])
            for m in (tenfold.PCA(damping=0.0), tenfold.FisherSVD(isotropic=1e12, damping=0.0))
        ]  # fmt: skip
        assert both[0].plan.layers[name].rank == both[1].plan.layers[name].rank is not None
        a, b = (r.model.get_submodule(name).weight + 0 for r in both)
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def test_fisher_svd_predicts_the_rise_of_the_loss_of_a_linear_classifier():
    """For one linear layer the Fisher metric is exact to second order: a small cut costs what the plan says."""
    model = nn.Sequential(nn.Linear(16, 12, bias=False)).double()
    u, _, v = torch.linalg.svd(model[0].weight.detach(), full_matrices=False)
    with torch.no_grad():
        model[0].weight.copy_((u * torch.tensor([1.0] * 5 + [0.02] * 7)) @ v)
    data = [torch.randn(4000, 16, dtype=torch.float64)]
    method = tenfold.FisherSVD(samples=4000, damping=0.0, isotropic=0.0)
    plan = tenfold.plan(model, method, tenfold.Budget(params=5 * 28 + 12), data=data)
    assert plan.layers["0"].rank == 5
    small = tenfold.apply(model, plan)
    p, q = (m(data[0]).log_softmax(1) for m in (model, small))
    rise = float((p.exp() * (p - q)).sum(1).mean().detach())
    problem = tenfold.survey(model, data=data)
    g = problem.moments(samples=4000, gradients=True)["0"].fisher[0]
    d = (model(data[0]) - small(data[0])).detach()
    predicted = float((d * (d @ g)).sum(1).mean() / 2)
    assert predicted == pytest.approx(rise, rel=0.15)


FEW = {
    "linear": (lambda: nn.Linear(12, 10), (12,)),
    "conv": (lambda: nn.Conv2d(4, 10, 3), (4, 3, 3)),
    "grouped": (lambda: nn.Conv2d(8, 12, 3, groups=2), (8, 3, 3)),
}


@pytest.mark.filterwarnings("ignore:.*too few examples")
@pytest.mark.parametrize("method", [tenfold.PCA(damping=0.0), tenfold.ActivationSVD(damping=0.0)], ids=lambda m: m.name)
@pytest.mark.parametrize(("make", "shape"), FEW.values(), ids=FEW)
def test_two_output_positions_are_reproduced_however_few_they_are(make, shape, method):
    model, x = nn.Sequential(make()).double(), torch.randn(2, *shape, dtype=torch.float64)
    small, plan, _ = tenfold.compress(model, method, tenfold.Budget(params=0.9), data=[x])
    assert plan.layers["0"].rank is not None
    assert plan.layers["0"].error < 1e-6
    torch.testing.assert_close(small(x), model(x), rtol=0, atol=1e-7)


def test_a_layer_that_puts_out_nothing_gives_finite_factors(method):
    model = net()
    with torch.no_grad():
        model[3].weight.zero_()
    result = tenfold.compress(model, method, tenfold.Budget(params=0.7), data=images())
    assert all(torch.isfinite(p).all() for p in result.model.parameters())


def test_fisher_svd_keeps_the_outputs_of_a_layer_that_the_loss_never_sees():
    class Blind(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(12, 10), nn.Linear(12, 10)

        def forward(self, x):
            return self.b(x) + 0 * self.a(x)

    model, data = Blind().double(), batches((12,))
    small, plan, _ = tenfold.compress(model, tenfold.FisherSVD(), tenfold.Budget(params=0.5), data=data)
    assert plan.layers["a"].rank is not None
    x = torch.cat(data)
    cut = (model.a(x) - small.a(x)).norm() / model.a(x).norm()
    assert cut < 0.9


# ---- the bias that PCA adds


def test_an_added_bias_is_in_the_plan_and_in_the_budget():
    model, data = net(), images()
    dense = sum(p.numel() for p in model.parameters())
    for limit in range(int(0.4 * dense), dense, 83):
        small, plan, report = tenfold.compress(model, tenfold.PCA(), tenfold.Budget(params=limit), data=data)
        assert plan.params == report.small.params == counted(small, data[0])[0] <= limit
        for name in ("0", "3"):
            low = plan.layers[name].decomposition != "dense"
            assert plan.layers[name].bias is low
            assert (small.get_submodule(name).bias is not None) is low
        assert not plan.layers["5"].bias


def test_an_added_bias_trains_as_the_weight_does():
    model, dense = net(), sum(p.numel() for p in net().parameters())
    model[3].weight.requires_grad_(False)
    for name, trains in (("0", True), ("3", False)):
        budget = tenfold.Budget(params=dense - 50)
        small = tenfold.compress(model, tenfold.PCA(), budget, data=images(), target_modules=[name]).model
        layer = small.get_submodule(name)
        assert isinstance(layer, LowRank)
        assert {p.requires_grad for p in layer.parameters()} == {trains}
        assert layer.bias is not None


TIES = {
    "both": lambda: TiedLinears(16),
    "none": lambda: TiedLinears(16, False, False),
    "first": lambda: TiedLinears(16, True, False),
    "second": lambda: TiedLinears(16, False, True),
    "one bias": lambda: TiedLinears(16, one_bias=True),
    "one module": lambda: TwoNames(16),
    "bare module": lambda: TwoNames(16, bias=False),
}


@with_forms
@pytest.mark.parametrize("ties", TIES.values(), ids=TIES)
def test_layers_with_one_weight_share_factors_and_each_keeps_the_mean(method, ties, tmp_path):
    model, data = ties().double().eval(), batches((16,))
    method = tenfold.PCA(damping=0.0) if method.name == "pca" else method
    small, plan, report = tenfold.compress(model, method, tenfold.Budget(params=0.8), data=data)
    assert plan.layers["a"].rank == plan.layers["b"].rank is not None
    assert plan.layers["b"].tied_to == "a"
    assert small.a.encoder.weight is small.b.encoder.weight
    assert small.a.decoder.weight is small.b.decoder.weight
    assert (small.a is small.b) == (model.a is model.b)
    assert plan.params == report.small.params == sum(p.numel() for p in small.parameters()) <= 0.8 * plan.dense_params
    assert plan == tenfold.Plan.from_json(plan.to_json())
    tenfold.save(small, tmp_path / "m", plan)
    x = torch.cat(data)
    assert torch.equal(tenfold.load(tmp_path / "m", model)(x), small(x))
    tenfold.save(small, tmp_path / "bare")
    assert torch.equal(tenfold.load(tmp_path / "bare", model)(x), small(x))
    if method.name == "pca":
        inputs = torch.cat([x, torch.tanh(model.a(x))])
        w = model.a.weight
        y = (inputs @ w.T).detach()
        mean = y.mean(0)
        vh = torch.linalg.svd(y - mean, full_matrices=False).Vh[: plan.layers["a"].rank]
        for one, other in ((model.a, small.a), (model.b, small.b)):
            expected = mean + (y - mean) @ vh.T @ vh + (0 if one.bias is None else one.bias)
            torch.testing.assert_close(other(inputs), expected, rtol=0, atol=1e-10)


def test_a_bias_that_another_layer_has_as_well_is_not_changed_behind_its_back():
    model = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16)).double()
    model[2].bias = model[0].bias
    with pytest.raises(tenfold.PlanError, match=r"share a bias.*exclude_modules"):
        tenfold.compress(model, tenfold.PCA(), tenfold.Budget(params=0.8), data=batches((16,)))
    small = tenfold.compress(model, tenfold.ActivationSVD(), tenfold.Budget(params=0.8), data=batches((16,))).model
    assert small[0].held_bias is small[2].held_bias


# ---- plans


@with_forms
def test_ranks_survive_json_but_factors_do_not(method):
    model, data = net(), images()
    plan = tenfold.plan(model, method, tenfold.Budget(params=0.6), data=data)
    read = tenfold.Plan.from_json(plan.to_json())
    assert read == plan
    assert [x.rank for x in read.layers.values()] == [x.rank for x in plan.layers.values()]
    assert '"factors"' not in plan.to_json()
    with pytest.raises(
        tenfold.PlanError, match=rf"made by {method.name} from calibration data.*Plan again on the data"
    ):
        tenfold.apply(model, read)
    assert tenfold.apply(model, plan) is not None


@with_forms
def test_an_edit_drops_the_factors_of_its_layer_alone(method):
    model, data = net(), images()
    plan = tenfold.plan(model, method, tenfold.Budget(params=0.5), data=data)
    name = next(n for n, x in plan.layers.items() if x.rank not in (None, 1, (1, 1)))
    edited = plan.edit(name, rank=1 if isinstance(plan.layers[name].rank, int) else (1, 1))
    assert set(plan.factors) - set(edited.factors) == {name}
    with pytest.raises(tenfold.PlanError, match=f"no factors for '{name}'.*an edited rank loses them"):
        tenfold.apply(model, edited)
    small = tenfold.apply(model, plan.edit(name, decomposition="dense"))
    assert type(small.get_submodule(name)) is type(model.get_submodule(name))


@with_forms
def test_a_plan_is_not_applied_to_weights_that_changed_after_it(method):
    """Its factors would put the old ones back."""
    model, data = net(), images()
    plan = tenfold.plan(model, method, tenfold.Budget(params=0.6), data=data)
    name = next(n for n, x in plan.layers.items() if x.rank)
    trained = copy.deepcopy(model)
    with torch.no_grad():
        trained.get_submodule(name).weight.view(-1)[3] += 1e-3
    with pytest.raises(tenfold.PlanError, match=f"the weight of '{name}' is not the one.*Plan again on the model"):
        tenfold.apply(trained, plan)
    with pytest.raises(tenfold.PlanError, match="Plan again"):
        tenfold.apply(trained, dataclasses.replace(plan, level=None))
    tenfold.apply(trained, plan.edit(name, decomposition="dense"))  # what stays dense may have changed


@with_forms
def test_a_plan_fits_the_same_weights_elsewhere(method):
    """A copy, a wider dtype, another memory format; and a factorised model, which is multiplied back each time."""
    model, data = net(), images()
    plan = tenfold.plan(model, method, tenfold.Budget(params=0.6), data=data)
    for same in (copy.deepcopy(model), copy.deepcopy(model).double(), net().to(memory_format=torch.channels_last)):
        same.load_state_dict(model.state_dict())
        tenfold.apply(same, plan)
    small = tenfold.compress(model, tenfold.SVD(), tenfold.Budget(params=0.9)).model
    tenfold.apply(small, tenfold.plan(small, method, tenfold.Budget(params=0.6), data=data))


def test_a_plan_says_what_calibration_took_in_memory(method):
    model, data = net(), images()
    problem = tenfold.survey(model, data=data)
    plan = method.plan(problem, tenfold.Budget(params=0.6))
    (moments,) = problem._moments.values()
    assert plan.calibration_bytes > sum(m.bytes for m in moments.values())
    assert tenfold.Plan.from_json(plan.to_json()).calibration_bytes == plan.calibration_bytes
    assert tenfold.SVD().plan(problem, tenfold.Budget(params=0.6)).calibration_bytes == 0


@with_forms
def test_the_dense_equivalent_computes_what_the_compressed_model_does_added_biases_included(method):
    model, data = net().double(), [x.double() for x in images()]
    small, plan, _ = tenfold.compress(model, method, tenfold.Budget(params=0.5), data=data)
    dense = tenfold.to_dense(small)
    torch.testing.assert_close(dense(data[0]), small(data[0]), rtol=1e-10, atol=1e-10)
    for name, layer in plan.layers.items():
        had = model.get_submodule(name).bias is not None
        assert (dense.get_submodule(name).bias is not None) == (had or layer.bias)
    assert any(layer.bias for layer in plan.layers.values()) == (method.name != "activation-svd")


@with_forms
def test_a_built_model_is_saved_and_loaded_to_the_same_bits(method, tmp_path):
    model, data = net(), images()
    small, plan, _ = tenfold.compress(model, method, tenfold.Budget(params=0.6), data=data)
    tenfold.save(small, tmp_path / "m", plan)
    assert torch.equal(tenfold.load(tmp_path / "m", net()).eval()(data[0]), small.eval()(data[0]))


@with_forms
def test_two_budgets_on_one_problem_look_at_the_data_once(method):
    model = net()
    problem = tenfold.survey(model, data=(x for x in images()))
    for share in (0.6, 0.8):
        plan = method.plan(problem, tenfold.Budget(params=share))
        assert plan.params <= share * plan.dense_params
        tenfold.apply(model, plan)


@with_forms
def test_batches_may_carry_labels_and_their_sizes_do_not_matter(method):
    model, x = net().double(), torch.cat(images()).double()
    budget = tenfold.Budget(params=0.6)
    a = tenfold.plan(model, method, budget, data=list(x.split(8)))
    b = tenfold.plan(model, method, budget, data=[(part, torch.zeros(len(part))) for part in x.split(24)])
    assert [v.rank for v in a.layers.values()] == [v.rank for v in b.layers.values()]


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_what_a_rule_leaves_of_a_budget_is_spent(share):
    """On what it minimises: the lost energy of all layers (L-Rank), the product of the kept shares (PCA)."""
    torch.manual_seed(0)
    net, data = conv_chain(4, 12, 10, size=8, classes=6).double(), [torch.randn(64, 4, 8, 8, dtype=torch.float64)]
    energy = {
        name.removesuffix(".weight"): float(w.detach().square().sum())
        for name, w in net.named_parameters()
        if w.ndim > 1
    }

    def loss(method):
        made = tenfold.plan(net, method, tenfold.Budget(params=share), data=data)
        assert made.params <= share * made.dense_params
        errors = {name: layer.error or 0.0 for name, layer in made.layers.items()}
        if method.name == "pca":
            return sum(-np.log(1 - e**2) for e in errors.values())
        return sum(e**2 * energy[name] for name, e in errors.items())

    for kind in (tenfold.LRank, tenfold.PCA):
        assert loss(kind()) <= loss(kind(spend=False)) * (1 + 1e-9)


# ---- what is refused


@with_forms
def test_data_must_be_given(method):
    with pytest.raises(tenfold.ArgumentError, match=f"`data` must be given for {method.name}: batches of inputs"):
        tenfold.plan(net(), method, tenfold.Budget(params=0.6))
    with pytest.raises(tenfold.ArgumentError, match=f"`data` must be given for {method.name}"):
        tenfold.compress(net(), method, tenfold.Budget(params=0.6))


@with_forms
def test_a_generator_that_would_be_exhausted_is_refused(method):
    """`compress` goes through the data twice, for the moments and for batch norm; `plan` once."""
    with pytest.raises(tenfold.ArgumentError, match="`data` is gone through twice; got a generator"):
        tenfold.compress(net(), method, tenfold.Budget(params=0.6), data=(x for x in images()))
    once = iter(images())
    tenfold.plan(net(), method, tenfold.Budget(params=0.6), data=once)
    with pytest.raises(tenfold.DataError, match=r"at least one batch.*Pass a list or a DataLoader"):
        tenfold.plan(net(), method, tenfold.Budget(params=0.6), data=once)


@with_forms
def test_data_that_is_not_finite_is_refused_by_name(method):
    data = images()
    data[2][0, 1, 2, 3] = float("nan")
    with pytest.raises(tenfold.DataError, match="`data` has NaN or infinite entries in batch 2"):
        tenfold.compress(net(), method, tenfold.Budget(params=0.6), data=data)


def test_fisher_svd_refuses_a_model_with_one_output():
    model = nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 1)).double()
    with pytest.raises(tenfold.DataError, match="two classes or more"):
        tenfold.compress(model, tenfold.FisherSVD(), tenfold.Budget(params=0.6), data=batches((12,)))
