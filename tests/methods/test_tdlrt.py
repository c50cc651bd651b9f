"""TDLRT as a method: what it trains, and what becomes of that."""

import copy
import io
import itertools
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tenfold
from nets import linear_chain
from tenfold.layers.tucker_protocol import factorised
from tenfold.optim.tucker.integrator import Integrator

pytestmark = pytest.mark.filterwarnings("ignore:the ranks of .* cannot grow")
INTEGRATORS = ("cycle", "two_pass", "one_pass", "fixed")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 24, 3, stride=2, padding=1)
        self.point = nn.Conv2d(24, 32, 1)
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.conv1(x)))
        x = F.relu(self.point(F.relu(self.conv2(x))))
        return self.head(x.mean((2, 3)))


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net()


def batch(step: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(step)
    y = torch.randint(10, (32,), generator=g)
    return torch.randn(32, 3, 8, 8, generator=g) + y[:, None, None, None] / 5, y


def train(method, model, optimizer, steps: int, first: int = 0) -> None:
    dtype = next(model.parameters()).dtype
    for step in range(first, first + steps):
        x, y = batch(step)
        x = x.to(dtype)

        def closure(x=x, y=y) -> torch.Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss

        if method.needs_closure:
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()


def trained(method, steps: int = 20, goal: int | None = 20):
    model = method.begin(net())
    optimizer = method.optimizer(model, lr=0.05, momentum=0.9, goal=None if goal is None else tenfold.Goal(steps=goal))
    train(method, model, optimizer, steps)
    return model, optimizer


def kernels(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: m.weight.detach().double() + 0 for name, m in model.named_modules() if hasattr(m, "weight")}


# ---- beginning


def test_the_model_that_is_trained_is_factorised_where_that_makes_it_smaller() -> None:
    model = tenfold.TDLRT().begin(net())
    layers = factorised(model)
    assert {name: layer.ranks for name, layer in layers.items()} == {
        "conv1": (4, 3),
        "conv2": (6, 4),
        "point": (6, 6),
        "head": (4, 4),
    }
    plain = tenfold.TDLRT().begin(nn.Sequential(net(), nn.Linear(10, 6)))
    assert isinstance(plain[1], nn.Linear)  # with 4 of 6 ranks it would not become smaller
    x = batch()[0]
    named = tenfold.TDLRT(ranks={"conv2": (24, 16), "head": 10}).begin(net())  # full ranks: the same function
    assert set(factorised(named)) == {"conv2", "head"}
    torch.testing.assert_close(named.eval()(x), net().eval()(x), rtol=1e-4, atol=1e-5)


def test_a_start_from_scratch_is_random_and_of_the_energy_of_the_weight() -> None:
    torch.manual_seed(1)
    a = tenfold.TDLRT(scratch=True).begin(net())
    torch.manual_seed(1)
    b = tenfold.TDLRT(scratch=True).begin(net())
    dense = net()
    for name, layer in factorised(a).items():
        assert torch.equal(layer.core, b.get_submodule(name).core)
        ratio = float(layer.core.detach().square().sum() / dense.get_submodule(name).weight.detach().square().sum())
        assert 0.6 < ratio < 1.5
        for basis in layer.bases:
            torch.testing.assert_close(basis.detach().mT @ basis.detach(), torch.eye(basis.shape[1]), rtol=0, atol=1e-6)


def test_a_model_with_nothing_to_factorise_is_refused_with_the_reasons() -> None:
    with pytest.raises(tenfold.UnsupportedLayer, match=r"'0': .*nothing would be saved"):
        tenfold.TDLRT().begin(nn.Sequential(nn.Linear(4, 4)))
    with pytest.raises(tenfold.ArgumentError, match="`ranks`"):
        tenfold.TDLRT(ranks={"nowhere": 3}).begin(net())


# ---- training


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_the_fields_reach_the_integrator(integrator) -> None:
    method = tenfold.TDLRT(tau=0.2, every=7, integrator=integrator, floor=2, multiple=2, columns=0.5, freeze=0.25)
    model = method.begin(net())
    optimizer = method.optimizer(model, base=torch.optim.AdamW, lr=0.1, weight_decay=0.3, goal=tenfold.Goal(steps=50))
    settings = optimizer.settings
    assert isinstance(optimizer, Integrator)
    assert isinstance(optimizer.inner, torch.optim.AdamW)
    assert optimizer.param_groups[0]["weight_decay"] == 0.3
    assert (settings.tau, settings.floor, settings.multiple, settings.columns) == (0.2, 2, 2, 0.5)
    assert (settings.freeze, settings.steps) == (38, 50)
    assert settings.every == (1 if integrator == "one_pass" else 7)
    assert (settings.twice, settings.pinned) == (integrator == "two_pass", integrator == "fixed")
    assert method.needs_closure == (integrator == "two_pass")
    assert method.settings().freeze is None


def test_attach_says_what_to_do_instead() -> None:
    model = tenfold.TDLRT().begin(net())
    with pytest.raises(tenfold.ArgumentError, match=r"method\.optimizer\("):
        tenfold.TDLRT().attach(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(tenfold.ArgumentError, match=r"method\.begin\(model\)"):
        tenfold.TDLRT().optimizer(net(), lr=0.1)


def test_ranks_stay_in_the_last_part_of_the_run() -> None:
    method = tenfold.TDLRT(tau=0.3, every=4, freeze=0.5, first=0.5)
    model = method.begin(net())
    optimizer = method.optimizer(model, lr=0.05, goal=tenfold.Goal(steps=40))
    train(method, model, optimizer, 20)
    settled = optimizer.ranks
    before = [u.detach().clone() for layer in factorised(model).values() for u in layer.bases]
    train(method, model, optimizer, 20)
    assert optimizer.ranks == settled != {n: m.ranks for n, m in factorised(method.begin(net())).items()}
    after = [u.detach() for layer in factorised(model).values() for u in layer.bases]
    assert not all(torch.allclose(a, b) for a, b in zip(before, after, strict=True))  # the bases go on moving


def test_with_a_budget_ahead_ranks_freeze_where_it_allows() -> None:
    method, budget, x = tenfold.TDLRT(tau=0.1, every=4, freeze=0.5), tenfold.Budget(params=0.3, macs=0.4), batch()[0]
    model = method.begin(net())
    goal = tenfold.Goal(steps=24, budget=budget, example_inputs=x)
    optimizer = method.optimizer(model, lr=0.05, goal=goal)
    train(method, model, optimizer, 24)
    result = method.finish(model, budget, example_inputs=x)
    assert result.report.kept["params"] <= 0.3
    assert result.report.kept["macs"] <= 0.4
    assert result.plan.level == 0  # nothing is lost in the end
    for name, ranks in optimizer.ranks.items():
        assert result.plan.layers[name].rank in (ranks, ranks[0])
    with pytest.raises(tenfold.BudgetError, match="reachable"):
        method.optimizer(method.begin(net()), lr=0.05, goal=tenfold.Goal(steps=9, budget=tenfold.Budget(params=1e-3)))


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize("named", [None, {"conv1": (8, 3), "conv2": (20, 16), "point": 20}])
@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_a_budget_without_steps_holds_from_the_first_cycle_on(integrator, named, begun) -> None:
    """Nobody knows when the ranks would freeze; those that "fixed" keeps never do. What is cut late is not trained."""
    method = tenfold.TDLRT(integrator=integrator, every=3, first=0.5, ranks=named)
    budget = tenfold.Budget(params=0.4)
    goal = tenfold.Goal(budget)
    model = method.begin(net(), goal=goal if begun else None)
    optimizer = method.optimizer(model, lr=0.05, goal=goal)
    train(method, model, optimizer, 3)
    ranks = optimizer.cut_ranks
    assert not begun or ranks == {n: x.ranks for n, x in factorised(method.begin(net(), goal=goal)).items()}
    train(method, model, optimizer, 6, first=3)
    assert optimizer.cut_ranks == ranks
    result = method.finish(model, budget)
    assert result.report.kept["params"] <= 0.4
    assert result.plan.level == 0  # nothing is lost in the end


@pytest.mark.parametrize("steps", [1, 2, 5, 24])
@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_however_short_the_run_the_cut_to_a_budget_is_not_the_last_thing_that_happens(integrator, steps) -> None:
    method, budget = tenfold.TDLRT(integrator=integrator, every=3, first=0.5), tenfold.Budget(params=0.3)
    goal = tenfold.Goal(budget, steps=steps)
    model = method.begin(net(), goal=goal)
    optimizer = method.optimizer(model, lr=0.05, goal=goal)
    trace = []
    for step in range(steps):
        train(method, model, optimizer, 1, first=step)
        trace.append(optimizer.cut_ranks)
    assert steps == 1 or trace[-2] == trace[-1]
    assert not any(bool(layer.augmented) for layer in factorised(model).values())
    result = method.finish(model, budget)
    assert result.report.kept["params"] <= 0.3
    assert result.plan.level == 0


def test_a_budget_for_ranks_that_never_freeze_is_refused_before_any_work() -> None:
    goal = tenfold.Goal(tenfold.Budget(params=0.4), steps=9)
    for integrator in ("cycle", "one_pass", "two_pass"):
        method = tenfold.TDLRT(freeze=0, integrator=integrator)
        for act in (method.begin, partial(method.optimizer, lr=0.1)):
            with pytest.raises(tenfold.ArgumentError, match="`freeze` must be above 0 with a budget; got 0"):
                act(method.begin(net()) if act != method.begin else net(), goal=goal)
    with pytest.raises(tenfold.BudgetError, match="reachable"):
        tenfold.TDLRT(integrator="fixed").begin(net(), goal=tenfold.Goal(tenfold.Budget(params=1e-3)))


def perceptron() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), *linear_chain(192, 48, 32, 10))


def deep() -> nn.Module:
    torch.manual_seed(2)
    layers: list[nn.Module] = []
    for inner, outer in itertools.pairwise((3, 16, 16, 24)):
        layers += [nn.Conv2d(inner, outer, 3, padding=1), nn.BatchNorm2d(outer), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10))


@pytest.mark.parametrize("make", [net, perceptron, deep])
def test_by_default_ranks_grow_with_the_training_without_a_word(make, recwarn) -> None:
    method = tenfold.TDLRT()
    model = method.begin(make())
    optimizer, seen = method.optimizer(model, lr=0.1, momentum=0.9, goal=tenfold.Goal(steps=50)), []
    for step in range(0, 50, 10):
        seen.append(optimizer.cut_ranks)
        train(method, model, optimizer, 10, first=step)
    seen.append(optimizer.cut_ranks)
    pairs = [(x, y) for a, b in itertools.pairwise(seen) for n in a for x, y in zip(a[n], b[n], strict=True)]
    assert any(x < y for x, y in pairs)
    assert not [w for w in recwarn if issubclass(w.category, tenfold.TenfoldWarning)]


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_static_storage_has_room_for_the_run_and_ends_at_the_same(integrator) -> None:
    """Ranks, growth and result are those of the ordinary storage, and the finished model has its true sizes."""
    found = []
    for static in (False, True):
        method = tenfold.TDLRT(tau=0.2, every=4, cap=0.25, columns=0.5, floor=2, integrator=integrator, static=static)
        model = method.begin(net().double())
        optimizer, trace = method.optimizer(model, lr=0.1, momentum=0.9, goal=tenfold.Goal(steps=16)), []
        shapes = [p.shape for p in model.parameters()]
        for step in range(16):
            train(method, model, optimizer, 1, first=step)
            trace.append(optimizer.ranks)
        assert not static or shapes == [p.shape for p in model.parameters()]
        found.append((trace, method.finish(model)))
    (ranks, expected), (same, result) = found
    assert ranks == same
    assert {n: x.rank for n, x in result.plan.layers.items()} == {n: x.rank for n, x in expected.plan.layers.items()}
    assert result.report.small == expected.report.small
    x = batch(99)[0].double()
    torch.testing.assert_close(result.model.eval()(x), expected.model.eval()(x), rtol=0, atol=1e-8)


def test_static_layers_have_room_for_the_largest_ranks_grown_once_and_no_more() -> None:
    model = tenfold.TDLRT(cap=0.25, columns=0.5, floor=2, static=True).begin(net())
    assert {name: layer.stored for name, layer in factorised(model).items()} == {
        "conv1": (6, 3),
        "conv2": (9, 6),
        "point": (9, 9),
        "head": (3, 3),
    }
    fixed = tenfold.TDLRT(integrator="fixed", static=True, ranks={"conv2": (3, 4), "point": 30}).begin(net())
    assert {name: layer.stored for name, layer in factorised(fixed).items()} == {"conv2": (6, 8), "point": (32, 24)}


def test_fixed_ranks_are_the_ones_given() -> None:
    ranks = {"conv1": (5, 3), "conv2": (6, 5), "point": 7}
    given = {"conv1": (5, 3), "conv2": (6, 5), "point": (7, 7)}
    method = tenfold.TDLRT(integrator="fixed", ranks=ranks, every=5)
    model = method.begin(net())
    optimizer = method.optimizer(model, lr=0.05)
    for step in range(11):  # once in a cycle they grow and are cut
        assert (optimizer.ranks == given) == (step % 5 == 0)
        train(method, model, optimizer, 1, first=step)
    _, optimizer = trained(method, 13, 13)
    assert optimizer.ranks == given


# ---- finishing


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_the_finished_model_has_the_trained_ranks_and_computes_what_was_trained(integrator) -> None:
    method = tenfold.TDLRT(integrator=integrator, tau=0.3, every=5)
    model, optimizer = trained(method)
    result = method.finish(model)
    for name, ranks in optimizer.ranks.items():
        layer = result.plan.layers[name]
        assert layer.rank == (ranks if layer.decomposition == "tucker" else ranks[0])
        assert layer.error == 0
    x = batch(99)[0]
    torch.testing.assert_close(result.model.eval()(x), model.eval()(x), rtol=1e-4, atol=1e-4)
    assert result.report.small.params == sum(p.numel() for p in result.model.parameters())
    assert not any(isinstance(m, type(model.conv1)) for m in result.model.modules())


def test_a_model_in_the_middle_of_a_cycle_is_cut_first() -> None:
    method = tenfold.TDLRT(tau=0.2, every=10)
    model, optimizer = trained(method, 13, None)
    assert all(bool(layer.augmented) for layer in factorised(model).values())
    result = method.finish(model)
    whole, cut = kernels(tenfold.to_dense(model)), kernels(tenfold.to_dense(result.model))
    for name, ranks in optimizer.ranks.items():
        layer = result.plan.layers[name]
        if layer.decomposition == "dense":
            continue
        error = float((whole[name] - cut[name]).norm() / whole[name].norm())
        assert error <= 0.2 * (1 + 1e-4)
        assert layer.error >= error * (1 - 1e-4)
        assert tuple(torch.atleast_1d(torch.tensor(layer.rank)).tolist()) < ranks
    assert max(layer.error for layer in result.plan.layers.values()) > 1e-3  # something is cut, of what has grown
    optimizer.end_cycle_()
    for name, layer in factorised(model).items():
        error = float((whole[name] - layer.kernel.detach().double().reshape(whole[name].shape)).norm())
        assert error <= 0.2 * (1 + 1e-5) * float(whole[name].norm())


def test_a_budget_lowers_the_trained_ranks_one_sidedly_and_never_raises_them() -> None:
    method = tenfold.TDLRT(tau=0.1, every=5)
    model, optimizer = trained(method)
    own = method.finish(model)
    kept = own.report.kept["params"]
    wide = method.finish(model, tenfold.Budget(params=1.0))
    assert {n: x.rank for n, x in wide.plan.layers.items()} == {n: x.rank for n, x in own.plan.layers.items()}
    assert wide.plan.level == 0
    levels = []
    x = batch()[0]
    for share in (0.9, 0.7, 0.5):
        for budget in (tenfold.Budget(params=share * kept), tenfold.Budget(macs=share * kept)):
            result = method.finish(model, budget, example_inputs=x)
            name = next(iter(budget.limits))
            assert result.report.kept[name] <= share * kept
            for layer, ranks in optimizer.ranks.items():
                rank = result.plan.layers[layer].rank
                assert all(
                    r <= most for r, most in zip(rank if isinstance(rank, tuple) else (rank,), ranks, strict=False)
                )
            levels += [result.plan.level] if name == "params" else []
    assert levels == sorted(levels)
    assert levels[0] > 0
    with pytest.raises(tenfold.BudgetError, match="reachable"):
        method.finish(model, tenfold.Budget(params=1e-4))


def test_a_model_that_was_not_trained_so_is_cut_to_tau() -> None:
    g = torch.Generator().manual_seed(0)
    model = net()
    with torch.no_grad():  # a weight that is nearly of low rank, and others that are not
        a, b = torch.randn(24, 3, generator=g), torch.randn(4, 16, generator=g)
        core = torch.randn(3, 4, 3, 3, generator=g)
        model.conv2.weight.copy_(torch.einsum("abxy,oa,bi->oixy", core, a, b))
        model.conv2.weight += 0.01 * model.conv2.weight.norm() / 59 * torch.randn(24, 16, 3, 3, generator=g)
    result = tenfold.compress(model, tenfold.TDLRT(tau=0.05))
    assert result.plan.layers["conv2"].rank == (3, 4)
    assert result.plan.layers["conv2"].error <= 0.05
    assert result.plan.layers["conv1"].decomposition == "dense"


def test_a_layer_that_the_goal_leaves_out_is_dense_and_stays_so() -> None:
    method, goal = tenfold.TDLRT(tau=0.9), tenfold.Goal(exclude_modules=["conv2"])
    model = method.begin(net(), goal=goal)
    assert set(factorised(model)) == set(factorised(method.begin(net()))) - {"conv2"}
    assert method.finish(net()).plan.layers["conv2"].decomposition == "tucker"  # it would be cut
    result = method.finish(model)
    assert result.plan.layers["conv2"].decomposition == "dense"
    assert torch.equal(result.model.conv2.weight, model.conv2.weight)


def test_a_trained_model_and_its_optimizer_go_through_files_and_finish_alike() -> None:
    method = tenfold.TDLRT(tau=0.2, every=10)
    model, optimizer = trained(method, 13, None)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = method.begin(net())
    again.load_state_dict(saved["model"])
    assert method.finish(again).plan == method.finish(model).plan
    assert copy.deepcopy(model).state_dict().keys() == model.state_dict().keys()


def test_the_smallest_layers_stay_dense_unless_they_are_named() -> None:
    """A head of ten classes at rank four could neither be learned nor grow, and there is nothing to save on it."""
    net = nn.Sequential(nn.Linear(64, 256), nn.Linear(256, 256), nn.Linear(256, 10, bias=False), nn.Linear(10, 10))
    assert set(factorised(tenfold.TDLRT().begin(net))) == {"0", "1", "2"}  # the last: nothing would be saved
    assert set(factorised(tenfold.TDLRT(negligible=0.04).begin(net))) == {"0", "1"}
    assert set(factorised(tenfold.TDLRT(negligible=0.04).begin(net, goal=tenfold.Goal(target_modules=["1", "2"])))) == {
        "1",
        "2",
    }
    assert set(factorised(tenfold.TDLRT(negligible=0.04, ranks={"1": 8, "2": 4}).begin(net))) == {"1", "2"}
    alone = nn.Sequential(nn.Linear(64, 64))
    assert set(factorised(tenfold.TDLRT(negligible=0.9).begin(alone))) == {"0"}
