"""Every loop trains the same: closures, accumulation, scalers, wrapped optimizers, selections and budgets.

Laws over all methods that train. What a method cannot do it says in one sentence, a `TenfoldError`; nothing is skipped.
"""

import copy
import warnings
from collections.abc import Callable
from dataclasses import fields

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tenfold

STEPS = 6
EVERY = ".*"
STRONG = {
    "every": 2,
    "strength": 0.05,
    "mu": 0.5,
    "nuclear": 0.01,
    "tau": 0.3,
}
"""Settings under which a method's work shows after a few steps, for the fields that it has."""


def trains(kind: type[tenfold.Method]) -> bool:
    own = (kind.begin, kind.optimizer, kind.attach)
    return own != (tenfold.Method.begin, tenfold.Method.optimizer, tenfold.Method.attach)


def strong(kind: type[tenfold.Method], **more) -> tenfold.Method:
    names = {field.name for field in fields(kind)}
    return kind(**{name: value for name, value in STRONG.items() if name in names} | more)


KINDS = {name: kind for name, kind in tenfold.list_methods().items() if trains(kind)}
METHODS = {name: strong(kind) for name, kind in KINDS.items()}
METHODS |= {f"{name}-proximal": strong(KINDS[name], update="proximal") for name in ("group-lasso", "nuclear-norm")}
METHODS |= {f"tdlrt-{how}": strong(KINDS["tdlrt"], integrator=how) for how in ("one_pass", "fixed")}
GOAL = tenfold.Goal(tenfold.Budget(params=0.7), target_modules=EVERY, steps_per_epoch=2, steps=STEPS)


@pytest.fixture(params=METHODS.values(), ids=METHODS)
def method(request) -> tenfold.Method:
    return request.param


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 12, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(48, 10),
    ).double()


def batch(i: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(i)
    return torch.randn(8, 2, 6, 6, dtype=torch.float64, generator=g), torch.randint(10, (8,), generator=g)


Backward = Callable[[torch.Tensor], None]


def once(model, i: int, backward: Backward = torch.Tensor.backward) -> torch.Tensor:
    x, y = batch(i)
    loss = F.cross_entropy(model(x), y)
    backward(loss)
    return loss


def plain(model, optimizer) -> None:
    """The loop that all others are held against."""
    for i in range(STEPS):
        optimizer.zero_grad()
        once(model, i)
        optimizer.step()


def by_closure(model, optimizer) -> None:
    def closure(i: int) -> torch.Tensor:
        optimizer.zero_grad()
        return once(model, i)

    for i in range(STEPS):
        optimizer.step(lambda i=i: closure(i))


def in_parts(model, optimizer) -> None:
    """Gradients of halves of the batch, added up."""
    for i in range(STEPS):
        optimizer.zero_grad()
        for x, y in zip(*(part.split(4) for part in batch(i)), strict=True):
            (F.cross_entropy(model(x), y) / 2).backward()
        optimizer.step()


def scaled(model, optimizer, overflows: tuple[int, ...] = ()) -> None:
    """A scale that is a power of two changes no digit; an overflow is a step that has not been."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=100)
    for i in range(STEPS):
        for bad in (True, False) if i in overflows else (False,):
            optimizer.zero_grad()
            once(model, i, lambda loss, bad=bad: scaler.scale(loss * (torch.inf if bad else 1.0)).backward())
            scaler.step(optimizer)
            scaler.update()


def overflowing(model, optimizer) -> None:
    scaled(model, optimizer, overflows=(0, 3))


def begun(method, goal=GOAL) -> nn.Module:
    torch.manual_seed(1)
    return method.begin(net(), goal=goal)


def result(method, loop, **hyper) -> list[torch.Tensor]:
    model = begun(method)
    loop(model, method.optimizer(model, lr=0.05, goal=GOAL, **hyper))
    return [p.detach() for p in model.parameters()]


def same(one, other, tolerance: float = 0.0) -> None:
    assert [p.shape for p in one] == [p.shape for p in other]
    for p, q in zip(one, other, strict=True):
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)


def or_a_sentence(work: Callable[[], object]) -> object:
    """What ``work`` gives, or None where it is refused in one sentence that names what is meant."""
    try:
        return work()
    except tenfold.TenfoldError as error:
        said = str(error)  # refusing is one of two right answers
    assert said.startswith("`")
    assert said.endswith(".")
    return None


def test_the_method_does_something_at_all(method) -> None:
    """So that the laws below are about its work: beside the bare optimizer, the weights or the layers differ."""
    mine = result(method, plain)
    model = net()
    plain(model, torch.optim.SGD(model.parameters(), lr=0.05))
    other = [p.detach() for p in model.parameters()]
    assert [p.shape for p in mine] != [p.shape for p in other] or not all(map(torch.equal, mine, other))


@pytest.mark.parametrize("loop", [by_closure, scaled, overflowing])
@pytest.mark.parametrize("fused", [None, True])
def test_closures_and_scalers_train_as_the_plain_loop_to_the_bit(method, loop, fused) -> None:
    hyper = {} if fused is None else {"fused": True}
    wanted = or_a_sentence(lambda: result(method, plain, **hyper))
    if wanted is not None:
        same(result(method, loop, **hyper), wanted)


def test_accumulated_gradients_train_as_those_of_the_whole_batch(method) -> None:
    same(result(method, in_parts), result(method, plain), tolerance=1e-9)


def test_an_optimizer_of_the_model_before_begin_is_refused(method) -> None:
    model = net()
    early = torch.optim.SGD(model.parameters(), lr=0.05)
    with pytest.raises(tenfold.ArgumentError, match=r"`optimizer`|`tdlrt`"):
        method.attach(method.begin(model, goal=GOAL), early, goal=GOAL)


@pytest.mark.parametrize("first", ["method", "accelerate"])
def test_an_optimizer_that_accelerate_prepares_trains_as_the_plain_loop_in_either_order(method, first) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    model = begun(method)
    if first == "method":
        optimizer = method.optimizer(model, lr=0.05, goal=GOAL)
        prepared, optimizer = accelerator.prepare(model, optimizer)
    else:
        prepared, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.05))
        optimizer = or_a_sentence(lambda: method.attach(model, optimizer, goal=GOAL))
        if optimizer is None:
            return
    for i in range(STEPS):
        optimizer.zero_grad()
        once(prepared, i, accelerator.backward)
        optimizer.step()
    same([p.detach() for p in model.parameters()], result(method, plain))


def worked_on(method, goal) -> set[str]:
    """The layers that a method has changed with gradients of zero, made into others, or put into its set."""
    dense, model = net(), begun(method, goal)
    optimizer = method.optimizer(model, lr=0.05, goal=goal)
    for _ in range(STEPS):
        optimizer.zero_grad()
        sum((0 * p).sum() for p in model.parameters()).backward()
        optimizer.step()
    found = {row["parameter"].removesuffix(".weight") for row in method.describe(net(), goal) if row.get("k")}
    for name, layer in dense.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            mine = model.get_submodule(name)
            if type(mine) is not type(layer) or not torch.equal(mine.weight, layer.weight):
                found.add(name)
    return found


def test_excluded_layers_are_left_alone(method) -> None:
    everything = worked_on(method, GOAL)
    assert "2" in everything
    goal = tenfold.Goal(tenfold.Budget(params=0.8), exclude_modules=["2"], target_modules=EVERY, steps=STEPS,
                        steps_per_epoch=2)  # fmt: skip
    assert "2" not in worked_on(method, goal)


AIMLESS = {"sfw", "group-lasso", "nuclear-norm"}
"""Methods that shape weights for budgets of any size: theirs is told to `finish`."""


def test_the_budget_of_the_goal_is_aimed_at(method) -> None:
    found = []
    for share in (0.3, 0.8):
        goal = tenfold.Goal(tenfold.Budget(params=share), target_modules=EVERY, steps_per_epoch=2, steps=STEPS)
        model = begun(method, goal)
        plain(model, method.optimizer(model, lr=0.05, goal=goal))
        small = method.finish(model, goal.budget, target_modules=EVERY)
        assert small.plan.params <= share * small.plan.dense_params
        found.append([p.detach() for p in model.parameters()])
    alike = [p.shape for p in found[0]] == [p.shape for p in found[1]] and all(map(torch.equal, *found))
    assert alike == (method.name in AIMLESS)


def test_an_optimizer_that_trains_nothing_of_the_model_is_refused(method) -> None:
    model = begun(method)
    other = torch.optim.SGD(copy.deepcopy(model).parameters(), lr=0.1)
    with pytest.raises(tenfold.ArgumentError, match=r"`optimizer`|`tdlrt`"):
        method.attach(model, other, goal=GOAL)


def test_finishing_without_a_budget_compresses_or_says_that_it_does_not(method) -> None:
    model = begun(method)
    if method.needs_budget:
        with pytest.raises(tenfold.ArgumentError, match="`budget` must be given"):
            method.finish(model)
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plan = method.finish(model, target_modules=EVERY).plan
    said = [str(w.message) for w in caught if "the model that comes back is dense" in str(w.message)]
    assert len(said) == (not plan.compresses)
