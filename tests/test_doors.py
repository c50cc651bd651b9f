"""Every door refuses the same models in one sentence, before any work: sharded, lazy, wrapped, scripted ones."""

import importlib
import json

import pytest
import torch
from torch import distributed, nn
from torch.nn.utils import prune

import tenfold
from helpers import same_state, state
from tenfold.bench.doctor import diagnose
from tenfold.bench.export import export

INPUTS = torch.randn(2, 8)
HALF = tenfold.Budget(params=0.5)


def net():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


DOORS = {
    "cost": lambda model, _: tenfold.cost(model),
    "cost of inputs": lambda model, _: tenfold.cost(model, INPUTS),
    "survey": lambda model, _: tenfold.survey(model),
    "plan": lambda model, _: tenfold.plan(model, tenfold.SVD(), HALF),
    "compress": lambda model, _: tenfold.compress(model, tenfold.SVD(), HALF),
    "finish": lambda model, _: tenfold.TDLRT().finish(model),
    "apply": lambda model, _: tenfold.apply(model, tenfold.plan(net(), tenfold.SVD(), HALF)),
    "to_dense": lambda model, _: tenfold.to_dense(model),
    "deploy": lambda model, _: tenfold.deploy(model),
    "fold_batchnorm": lambda model, _: tenfold.fold_batchnorm(model),
    "optimize_for_inference": lambda model, _: tenfold.optimize_for_inference(model, INPUTS),
    "runtime": lambda model, _: tenfold.runtimes.get_runtime("eager").prepare(model, INPUTS),
    "refit_": lambda model, _: tenfold.refit_(model, net(), [INPUTS]),
    "prune_filters": lambda model, _: tenfold.prune_filters(model, keep=0.5, example_inputs=INPUTS),
    "save": lambda model, path: tenfold.save(model, path / "a"),
    "load": lambda model, path: tenfold.save(net(), path / "a") or tenfold.load(path / "a", model),
    "begin": lambda model, _: tenfold.begin(model, tenfold.LRPET(), HALF, steps_per_epoch=1),
    "attach": lambda model, _: tenfold.LRPET(every=1).attach(model, torch.optim.SGD(net().parameters())),
    "export": lambda model, path: export(model, INPUTS, path / "a.pt2", format="torch-export"),
    "doctor": lambda model, _: diagnose(model, INPUTS),
}


@pytest.fixture(scope="module")
def one_process():
    if not distributed.is_available():
        pytest.skip("torch was built without distributed")
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def sharded(_):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = net()
    fully_shard(model[0], mesh=init_device_mesh("cpu", (1,)))
    return model


def lazy(_):
    return nn.Sequential(nn.Linear(8, 16), nn.LazyLinear(4))


KINDS = {
    "sharded": (sharded, "`model` must not be sharded.*'0.weight'"),
    "lazy": (lazy, "`model` must have all its parameters; '1.weight' is lazy"),
    "wrapped": (lambda _: nn.DataParallel(net()), "`model` must not be wrapped in DataParallel"),
    "scripted": (lambda _: torch.jit.script(net()), "`model` must be a plain module; got a scripted one"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_door_refuses(door, kind, tmp_path, one_process):
    if door == "prune_filters":
        pytest.importorskip("torch_pruning")
    make, says = KINDS[kind]
    with pytest.raises(tenfold.ArgumentError, match=says) as refused:
        DOORS[door](make(one_process), tmp_path)
    assert str(refused.value).count("`model`") == 1


def test_sfw_trains_sharded_models_and_begins_with_whole_ones(one_process):
    with pytest.raises(tenfold.ArgumentError, match="sharded"):
        tenfold.begin(sharded(one_process), tenfold.SFW())
    assert tenfold.SFW().assignments(sharded(one_process))


@pytest.mark.parametrize("name", tenfold.list_methods())
def test_an_optimizer_made_before_sharding_is_refused_at_its_first_step(name, one_process):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    method = tenfold.get_method(name)
    budget = HALF if method.needs_budget else None
    run = tenfold.begin(net(), method, budget, target_modules=["0", "2"], steps=9, steps_per_epoch=3)
    optimizer = run.optimizer(lr=0.1)
    fully_shard(run.model, mesh=init_device_mesh("cpu", (1,)))

    def closure():
        loss = run.model(INPUTS).square().mean()
        loss.backward()
        return loss

    with pytest.raises(tenfold.ArgumentError, match=r"`model` must have the parameters|`model` must not be sharded"):
        optimizer.step(closure)


@pytest.fixture
def inference():
    torch.manual_seed(1)
    with torch.inference_mode():
        return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 4))


@pytest.mark.parametrize("inside", [False, True])
def test_models_made_under_inference_mode_become_models_that_can_be_trained(inference, inside):
    with torch.inference_mode(inside):
        small = tenfold.compress(inference, tenfold.SVD(), HALF, data=[INPUTS]).model
        dense = tenfold.to_dense(small)
    for model in (small, dense, tenfold.begin(inference, tenfold.TDLRT(), HALF, steps=9).model):
        model(INPUTS).sum().backward()
        assert all(p.grad is not None for p in model.parameters())


def test_in_place_work_on_them_is_refused(inference, tmp_path):
    load = importlib.import_module("tenfold.train.models.own").load_weights_
    torch.save(inference.state_dict(), tmp_path / "w.pt")
    for work in (
        lambda: tenfold.reestimate_(inference, [INPUTS]),
        lambda: tenfold.refit_(inference, inference, [INPUTS]),
        lambda: load(inference, tmp_path / "w.pt"),
    ):
        with pytest.raises(tenfold.ArgumentError, match=r"made outside torch.inference_mode.*'0.weight'"):
            work()


def quantized(kind):
    dense = nn.Sequential(net(), nn.LSTM(4, 4))
    return torch.ao.quantization.quantize_dynamic(dense, {kind})


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("kind", [nn.Linear, nn.LSTM])
def test_quantized_modules_are_not_counted_as_nothing(kind):
    for work in (tenfold.cost, tenfold.survey, lambda m: tenfold.compress(m, tenfold.SVD(), HALF)):
        with pytest.raises(
            tenfold.ArgumentError, match=rf"floating point to be counted; '\S+' is a quantized {kind.__name__}"
        ):
            work(quantized(kind))


def planned(model, **changes):
    """A plan for ``model`` that somebody edited."""
    body = json.loads(tenfold.plan(model, tenfold.SVD(), HALF).to_json())
    for layer in body["layers"].values():
        layer |= changes if layer["decomposition"] != "dense" else {}
    return tenfold.Plan.from_json(json.dumps(body))


def test_a_bias_that_a_layer_has_is_not_counted_twice():
    with pytest.raises(tenfold.PlanError, match="`bias` must be true only where a bias is added"):
        tenfold.apply(net(), planned(net(), bias=True))
    bare = nn.Sequential(nn.Linear(8, 16, bias=False), nn.ReLU(), nn.Linear(16, 8, bias=False))
    plan = planned(bare, bias=True)
    assert tenfold.cost(tenfold.apply(bare, plan)).params == plan.params


def test_nor_is_that_of_one_module_under_two_names():
    one = nn.Linear(8, 8, bias=False)
    twice = nn.Sequential(one, one)
    with pytest.raises(tenfold.PlanError, match="count it twice"):
        tenfold.apply(twice, planned(twice, bias=True))


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_pruning_a_factorised_layer_is_one_sentence(name):
    small = tenfold.compress(net(), tenfold.SVD(), HALF).model
    layer = next(m for m in small.modules() if isinstance(m, tenfold.LowRankLinear))
    before = state(small)
    with pytest.raises(tenfold.ArgumentError, match=f"pruning of its {name}"):
        prune.l1_unstructured(layer, name, 0.5)
    assert same_state(small, before)
    small(INPUTS)
