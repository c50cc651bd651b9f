"""The contract of a method, proved on three throw-away methods, each added as one file.

Everything happens inside ``optimizer.step()``: the loops here are plain, and know nothing of the method.
"""

import io
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tenfold
from helpers import same_state, state, train
from methods.drop_in import methods_from
from methods.throwaway import CLIP, PAIR, PULL
from tenfold.layers.matrix import LowRank

OPTIMIZERS = {
    "sgd": {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4},
    "adamw": {"base": torch.optim.AdamW, "lr": 1e-2},
    "fused": {"lr": 0.1, "momentum": 0.9, "fused": True},
}
SHRINKS = ("0", "3", "7")
"""The layers that rank 2 makes smaller; the last one of the net is too small for that."""


@pytest.fixture(autouse=True)
def _files(tmp_path):
    for name, text in {"clip": CLIP, "pull": PULL, "pair": PAIR}.items():
        (tmp_path / f"{name}.py").write_text(text)
    with methods_from(tmp_path):
        yield


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 16),
        nn.ReLU(),
        nn.Linear(16, 2),
    )


def batch(seed: int, size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(2, (size,), generator=g)
    return torch.randn(size, 3, 6, 6, generator=g) + 3 * y[:, None, None, None], y


def loss_of(model: nn.Module, seed: int) -> torch.Tensor:
    x, y = batch(seed)
    return F.cross_entropy(model(x), y)


def step(model, optimizer, seed) -> float:
    return train(model, optimizer, batch, [seed])[0]


def rank(model: nn.Module, name: str) -> int:
    layer = model.get_submodule(name)
    w = layer.weight.detach().double()
    groups = getattr(layer, "groups", 1)
    return int(torch.linalg.matrix_rank(w.reshape(groups, w.shape[0] // groups, -1), rtol=1e-5).max())


def clipped(model: nn.Module) -> bool:
    return all(rank(model, name) == 2 for name in SHRINKS)


def saved_state(model, optimizer) -> bytes:
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    return file.getvalue()


def test_the_files_are_methods():
    assert {"clip", "pull", "pair"} <= set(tenfold.list_methods())
    method = tenfold.get_method("clip", rank=3)
    assert (method.rank, method.every) == (3, 3)
    assert (
        tenfold.get_method(**{"name": "clip"} | {k: v for k, v in method.to_dict().items() if k != "method"}) == method
    )
    with pytest.raises(tenfold.ArgumentError, match="`every` must be >= 1; got 0"):
        tenfold.get_method("clip", every=0)


@pytest.mark.parametrize("hyper", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_projection_method_works_in_a_plain_loop(hyper):
    start = net()
    before = state(start)
    method = tenfold.get_method("clip", rank=2, every=4)
    model = method.begin(start)
    optimizer = method.optimizer(model, **hyper)
    losses = []
    for i in range(1, 41):
        losses.append(step(model, optimizer, i))
        assert clipped(model) == (i % 4 == 0)
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert same_state(start, before)  # what was given to `begin` is untouched

    result = method.finish(model, data=[batch(i) for i in range(3)], norms="reestimate")
    assert {name: layer.rank for name, layer in result.plan.layers.items()} == {"0": 2, "3": 2, "7": 2, "9": None}
    assert max(layer.error for layer in result.plan.layers.values()) < 1e-6
    dense = tenfold.to_dense(result.model)
    for name in (*SHRINKS, "9"):
        torch.testing.assert_close(
            dense.get_submodule(name).weight, model.get_submodule(name).weight, rtol=0, atol=1e-5
        )
    assert not torch.equal(result.model[1].running_mean, model[1].running_mean)
    assert result.report.small.params == sum(p.numel() for p in result.model.parameters()) < result.report.dense.params
    assert result.model.training == model.training


def test_finish_loses_nothing_and_leaves_the_model():
    method = tenfold.get_method("clip", rank=2, every=5)
    model = method.begin(net())
    optimizer = method.optimizer(model, lr=0.05)
    for i in range(10):
        step(model, optimizer, i)
    x, _ = batch(99)
    model.eval()
    expected = model(x)
    small = method.finish(model).model
    torch.testing.assert_close(small(x), expected, rtol=0, atol=1e-5)
    assert torch.equal(model(x), expected)
    assert sum(isinstance(m, LowRank) for m in small.modules()) == 3


def test_finish_takes_a_model_in_mid_cycle_or_trained_elsewhere():
    model = net()
    result = tenfold.get_method("clip").finish(model)
    assert not clipped(model)
    assert result.plan.layers["7"].rank == 2
    assert result.plan.layers["7"].error > 0.1


def test_attach_gives_back_the_optimizer_with_its_groups():
    method = tenfold.get_method("clip", every=1)
    model = method.begin(net())
    mine = torch.optim.SGD(
        [{"params": model[0].parameters(), "lr": 0.01}, {"params": list(model[1:].parameters())}], lr=0.1, momentum=0.9
    )
    assert method.attach(model, mine) is mine
    rates = torch.optim.lr_scheduler.StepLR(mine, 2)
    for i in range(2):
        step(model, mine, i)
        rates.step()
        assert clipped(model)
    assert [group["lr"] for group in mine.param_groups] == pytest.approx([0.001, 0.01])


@pytest.mark.parametrize("hyper", [OPTIMIZERS["sgd"], OPTIMIZERS["fused"]], ids=["sgd", "fused"])
def test_steps_that_the_gradient_scaler_skips_do_not_count(hyper):
    method = tenfold.get_method("clip", rank=2, every=3)
    model = method.begin(net())
    optimizer = method.optimizer(model, **hyper)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    done = 0
    for i in range(12):
        overflow = i % 4 == 1
        before = model[7].weight.detach().clone()
        optimizer.zero_grad()
        loss = scaler.scale(loss_of(model, i))
        (loss * float("inf") if overflow else loss).backward()
        scaler.step(optimizer)
        scaler.update()
        done += not overflow
        assert torch.equal(before, model[7].weight) == overflow
        if not overflow:
            assert clipped(model) == (done % 3 == 0)
    assert done == 9
    assert optimizer.param_groups[0]["clip_steps"] == 9


def test_accumulated_gradients_count_as_one_step():
    method = tenfold.get_method("clip", every=2)
    model = method.begin(net())
    optimizer = method.optimizer(model, lr=0.05)
    for i in range(12):
        (loss_of(model, i) / 3).backward()
        if i % 3 == 2:
            optimizer.step()
            optimizer.zero_grad()
            assert clipped(model) == (i % 6 == 5)


def test_a_step_with_a_closure_counts_once():
    method = tenfold.get_method("clip", every=2)
    model = method.begin(net())
    optimizer = method.optimizer(model, lr=0.05)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        return loss

    assert [clipped(model) for _ in range(4) if optimizer.step(closure) is not None] == [False, True, False, True]


@pytest.mark.parametrize("name", ["clip", "pull", "pair"])
@pytest.mark.parametrize("stop", [4, 5])
def test_a_run_stopped_in_mid_cycle_resumes_to_the_same_bits(name, stop):
    """Run state lives in the model and the optimizer: loading both into fresh ones is all there is to resuming."""
    method = tenfold.get_method(name)
    start = net()

    def fresh():
        model = method.begin(start)
        return model, method.optimizer(model, lr=0.05)

    model, optimizer = fresh()
    for i in range(9):
        if i == stop:
            saved = saved_state(model, optimizer)
        step(model, optimizer, i)

    other, resumed = fresh()
    loaded = torch.load(io.BytesIO(saved), weights_only=True)
    other.load_state_dict(loaded["model"])
    resumed.load_state_dict(loaded["optimizer"])
    for i in range(stop, 9):
        step(other, resumed, i)
    assert same_state(model, other)


def test_one_method_serves_two_runs_at_once():
    """The method is configuration: two models trained in turn by one object do not disturb each other."""
    method = tenfold.get_method("clip", every=2)
    runs = []
    for _ in range(2):
        model = method.begin(net())
        runs.append((model, method.optimizer(model, lr=0.05)))
    for i, (model, optimizer) in itertools.product(range(1, 4), runs[:1]):
        step(model, optimizer, i)
        assert clipped(model) == (i % 2 == 0)
    model, optimizer = runs[1]
    step(model, optimizer, 0)
    assert not clipped(model)
    step(model, optimizer, 1)
    assert clipped(model)


def test_a_method_that_is_an_optimizer_trains_and_refuses_another():
    method = tenfold.get_method("pull")
    model = method.begin(net())
    with pytest.raises(tenfold.ArgumentError, match=r"call method\.optimizer"):
        method.attach(model, torch.optim.SGD(model.parameters()))
    optimizer = method.optimizer(model, lr=0.1)
    losses = [step(model, optimizer, i) for i in range(20)]
    assert losses[-1] < losses[0]
    with pytest.warns(tenfold.TenfoldWarning, match="pull compressed nothing"):
        result = method.finish(model)
    assert result.plan.params == result.plan.dense_params


def test_a_method_that_trains_factors_begins_with_them_and_keeps_their_ranks():
    method = tenfold.get_method("pair", rank=3)
    start = net()
    model = method.begin(start)
    assert not any(isinstance(m, LowRank) for m in start.modules())
    factors = {name: m for name, m in model.named_modules() if isinstance(m, LowRank)}
    assert factors
    bases = {name: m.encoder.weight.detach().clone() for name, m in factors.items()}
    optimizer = method.optimizer(model, base=torch.optim.AdamW, lr=1e-2, weight_decay=0.1)
    losses = [step(model, optimizer, i) for i in range(20)]
    assert losses[-1] < losses[0]
    for name, m in factors.items():
        assert torch.equal(m.encoder.weight, bases[name])  # not in the optimizer, so that no decay reaches it
    x, _ = batch(99)
    model.eval()
    result = method.finish(model)
    assert {n: layer.rank for n, layer in result.plan.layers.items() if layer.rank} == dict.fromkeys(factors, 3)
    torch.testing.assert_close(result.model(x), model(x), rtol=0, atol=1e-5)
    assert result.report.dense.params == sum(p.numel() for p in start.parameters())


def test_any_methods_plan_can_be_applied_after_anothers_training():
    clip = tenfold.get_method("clip", rank=2, every=1)
    model = clip.begin(net())
    step(model, clip.optimizer(model, lr=0.05), 0)
    plan = tenfold.plan(model, tenfold.ALDS(), tenfold.Budget(params=0.7))
    assert plan.level < 1e-6  # rank 2 everywhere is within the budget, and costs nothing
    small = tenfold.apply(model, plan)
    x, _ = batch(99)
    torch.testing.assert_close(small.eval()(x), model.eval()(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", [tenfold.ALDS(), tenfold.PCA()], ids=lambda m: m.name)
def test_what_a_method_needs_is_asked_for_whichever_way_it_is_called(method) -> None:
    problem = tenfold.survey(torch.nn.Linear(6, 6))
    with pytest.raises(tenfold.ArgumentError, match="`budget`"):
        method.plan(problem)
    if method.needs_data:
        with pytest.raises(tenfold.ArgumentError, match=f"`data` must be given for {method.name}"):
            method.plan(problem, tenfold.Budget(params=0.9))
    with pytest.raises(tenfold.UnsupportedLayer):
        tenfold.ALDS().plan(tenfold.survey(torch.nn.ReLU()), tenfold.Budget(params=0.5))
