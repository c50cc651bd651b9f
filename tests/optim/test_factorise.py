"""A model in training put into factorised form in place: the function, momentum and the optimizer's order are kept."""

import copy
import io
from itertools import count

import pytest
import torch

import tenfold
from nets import Tied, chain, image, small_image, transposed
from tenfold.errors import CheckpointError
from tenfold.layers.swap import structure_of
from tenfold.optim.factorise import carried, factorise_, forms_in, unfactorise_
from tenfold.optim.saved_form import follow_checkpoints, read_forms

METHODS = {
    "channel": tenfold.SVD(),
    "spatial": tenfold.SVD(fold="spatial"),
    "spatial-t": tenfold.SVD(fold="spatial-t"),
    "input": tenfold.SVD(fold="input"),
    "decoupled": tenfold.SVD(fold="decoupled"),
    "tucker": tenfold.Tucker(),
}
OPTIMIZERS = {
    "sgd": lambda ps: torch.optim.SGD(ps, lr=0.01, momentum=0.9, weight_decay=1e-3),
    "adam": lambda ps: torch.optim.Adam(ps, lr=0.01, amsgrad=True),
    "rmsprop": lambda ps: torch.optim.RMSprop(ps, lr=0.001, momentum=0.5),
    "adagrad": lambda ps: torch.optim.Adagrad(ps, lr=0.01),
}
NETS = {
    "chain": (chain, image),
    "tied": (Tied, lambda: torch.arange(12).view(3, 4)),
    "transposed": (transposed, small_image),
}


def plan_of(model, method="channel", kept=0.7):
    return tenfold.plan(model, METHODS[method], tenfold.Budget(params=kept)).layers


def seen(x):
    return x.double() if x.is_floating_point() else x


def steps(model, optimizer, x, many=3):
    for _ in range(many):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("net", NETS)
def test_in_place_gives_what_apply_gives(net, method):
    make, x = NETS[net]
    torch.manual_seed(0)
    model, x = make().double().eval(), seen(x())
    plan = tenfold.plan(model, METHODS[method], tenfold.Budget(params=0.8))
    wanted, biases = tenfold.apply(model, plan), {n: p for n, p in model.named_parameters() if n.endswith("bias")}
    factorise_(model, plan.layers)
    torch.testing.assert_close(model(x), wanted(x), rtol=0, atol=1e-12)
    assert model.state_dict().keys() == wanted.state_dict().keys()
    kept = {id(p) for p in model.parameters()}
    assert all(id(p) in kept for p in biases.values())
    unfactorise_(model)
    torch.testing.assert_close(model(x), wanted(x), rtol=0, atol=1e-12)
    assert not structure_of(model)
    assert model.state_dict().keys() == make().state_dict().keys()


@pytest.mark.parametrize("method", METHODS)
def test_momentum_is_what_factors_trained_all_along_would_have(method):
    """With the factors at rest, the optimizer of the factors would have averaged the chain rule's gradients."""
    torch.manual_seed(0)
    model = chain().double()
    plan = plan_of(model, method)
    small = tenfold.apply(model, tenfold.plan(model, METHODS[method], tenfold.Budget(params=0.7)))
    dense_like = copy.deepcopy(small)
    unfactorise_(dense_like)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.0, momentum=0.9) for m in (small, dense_like)]
    for seed in range(4):
        x = torch.randn(image().shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for m, optimizer in zip((small, dense_like), optimizers, strict=True):
            steps(m, optimizer, x, many=1)
    factorise_(dense_like, plan, optimizers[1])
    wanted = structure_of(small)
    found = structure_of(dense_like)
    assert found
    for name, layer in found.items():
        # the same factors up to signs: compare what does not depend on them
        for mine, theirs in zip(layer.factors, wanted[name].factors, strict=True):
            buffers = optimizers[1].state[mine]["momentum_buffer"], optimizers[0].state[theirs]["momentum_buffer"]
            torch.testing.assert_close((buffers[0] * mine).sum(), (buffers[1] * theirs).sum(), rtol=1e-8, atol=1e-12)
            torch.testing.assert_close(buffers[0].norm(), buffers[1].norm(), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_and_mean_squares_follow_the_chain_rule_entry_by_entry(method):
    torch.manual_seed(1)
    model = chain().double()
    factorise_(model, plan_of(model, method))
    layer = next(iter(structure_of(model).values()))
    value = torch.randn(layer.spec.weight_shape, dtype=torch.float64)
    made = carried(layer, {"exp_avg": value, "exp_avg_sq": value.square(), "step": torch.tensor(7.0), "other": value})
    eps = 1e-6
    for position, factor in enumerate(layer.factors):
        assert set(made[position]) == {"exp_avg", "exp_avg_sq", "step"}
        assert made[position]["step"] == 7
        for entry in range(0, factor.numel(), 5):
            before = layer.weight.detach().clone()
            with torch.no_grad():
                factor.view(-1)[entry] += eps
            change = (layer.weight.detach() - before) / eps
            with torch.no_grad():
                factor.view(-1)[entry] -= eps
            mean, square = (made[position][key].flatten()[entry] for key in ("exp_avg", "exp_avg_sq"))
            torch.testing.assert_close(mean, (value * change).sum(), rtol=1e-4, atol=1e-7)
            if method != "tucker" or position == 1:  # derivatives by a basis are sums over the core
                torch.testing.assert_close(square, (value.square() * change.square()).sum(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("net", NETS)
def test_training_goes_on_and_the_groups_keep_their_order(net, name):
    make, x = NETS[net]
    torch.manual_seed(0)
    model, x = make(), x()
    named = dict(model.named_parameters())
    half = len(named) // 2
    optimizer = OPTIMIZERS[name]([{"params": list(named.values())[:half]}, {"params": list(named.values())[half:]}])
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.1)
    steps(model, optimizer, x)
    group = {id(p): i for i, g in enumerate(optimizer.param_groups) for p in g["params"]}
    homes = {n: group[id(p)] for n, p in named.items()}
    factorise_(model, plan_of(model), optimizer)
    now = {id(p): i for i, g in enumerate(optimizer.param_groups) for p in g["params"]}
    assert set(now) == {id(p) for p in model.parameters()}
    for layer_name, layer in structure_of(model).items():
        if f"{layer_name}.weight" in homes:  # a tied weight is named once
            assert {now[id(f)] for f in layer.factors} == {homes[f"{layer_name}.weight"]}
    assert set(optimizer.state) == set(model.parameters())
    before = [p.detach().clone() for p in model.parameters()]
    steps(model, optimizer, x)
    schedule.step()
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("net", NETS)
def test_forms_are_read_from_the_shapes_of_a_state(net, method):
    make, x = NETS[net]
    torch.manual_seed(0)
    model, x = make().double().eval(), seen(x())
    small = tenfold.apply(model, tenfold.plan(model, METHODS[method], tenfold.Budget(params=0.8)))
    forms = read_forms(make(), small.state_dict())
    assert forms.keys() == structure_of(small).keys()
    factorise_(model, forms)
    model.load_state_dict(small.state_dict())
    torch.testing.assert_close(model(x), small(x), rtol=0, atol=1e-12)
    assert read_forms(make(), {f"net.{k}": v for k, v in small.state_dict().items()}, "net.") == forms
    assert read_forms(make(), make().state_dict()) == {}


def test_factors_that_no_layer_can_have_are_refused():
    model = chain()
    state = model.state_dict() | {"0.encoder.weight": torch.zeros(5, 7), "0.decoder.weight": torch.zeros(2, 5)}
    with pytest.raises(CheckpointError, match="factors of '0' have shapes"):
        read_forms(model, state)


def trained(x, switch_at, many):
    """A model that becomes factorised on its way, its optimizer, and both states at the end."""
    torch.manual_seed(3)
    model = chain()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    follow_checkpoints(model, optimizer, "own")
    optimizer.param_groups[0]["own"] = {"forms": None}
    for step in count():
        if step == switch_at:
            factorise_(model, plan_of(model), optimizer)
            optimizer.param_groups[0]["own"]["forms"] = {name: list(form) for name, form in forms_in(model).items()}
        if step == many:
            return model, optimizer
        steps(model, optimizer, x, many=1)
    raise AssertionError


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("start", ["dense", "other"])
def test_a_checkpoint_is_taken_up_whichever_part_is_loaded_first(order, start):
    x = image()
    model, optimizer = trained(x, 2, 4)
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    fresh, again = trained(x, 9, 1)
    if start == "other":
        factorise_(fresh, plan_of(fresh, "spatial"), again)
    for part in order:
        (fresh, again)[part].load_state_dict(saved[part])
    for m, o in ((model, optimizer), (fresh, again)):
        steps(m, o, x, many=3)
    for (name, a), (other, b) in zip(model.state_dict().items(), fresh.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(a, b)


def test_a_dense_checkpoint_makes_a_factorised_run_dense_again():
    x = image()
    dense, optimizer = trained(x, 9, 3)
    fresh, again = trained(x, 1, 2)
    fresh.load_state_dict(dense.state_dict())
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for m, o in ((dense, optimizer), (fresh, again)):
        steps(m, o, x, many=2)
    assert all(torch.equal(a, b) for a, b in zip(dense.parameters(), fresh.parameters(), strict=True))


def test_copies_and_pickles_of_the_model_are_free_of_the_run():
    x = image()
    model, optimizer = trained(x, 9, 2)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    other = trained(x, 1, 2)[0].state_dict()
    for loose in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        with pytest.raises(RuntimeError, match="Unexpected key"):
            loose.load_state_dict(other)
    assert not structure_of(model)
    steps(model, optimizer, x)


def test_a_part_of_a_state_changes_no_form():
    x = image()
    model, optimizer = trained(x, 1, 2)
    forms, head = forms_in(model), {"1.weight": torch.full((8,), 2.0)}
    model.load_state_dict(head, strict=False)
    assert forms_in(model) == forms
    assert bool((model[1].weight == 2).all())
    steps(model, optimizer, x)
