"""What calibration takes: the smaller side of each layer, blocks of its outputs, once for all budgets, as it says."""

import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import tenfold
from tenfold.plans import output_moments

METHODS = {m.name: m for m in (tenfold.PCA(), tenfold.ActivationSVD(), tenfold.FisherSVD())}


@pytest.fixture(params=METHODS.values(), ids=METHODS)
def method(request):
    return request.param


class Float64(TorchDispatchMode):
    """The most memory that float64 tensors take at a time: the networks here are float32, calibration is not."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for t in tree_leaves(made):
            if isinstance(t, torch.Tensor) and t.dtype == torch.float64 and t.untyped_storage() not in self.known:
                storage = t.untyped_storage()
                self.known.add(storage)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._gone, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return made

    def _gone(self, size):
        self.now -= size


class Counted:
    def __init__(self, batches):
        self.batches, self.passes = batches, 0

    def __iter__(self):
        self.passes += 1
        return iter(self.batches)


def wide() -> nn.Sequential:
    """Few inputs and many outputs: of 4,000 outputs the second moment alone would take 128 MB."""
    return nn.Sequential(nn.Linear(24, 4000), nn.ReLU(), nn.Linear(4000, 10)).eval()


def every_output(module, spec, gradients):
    g, f = spec.groups, spec.out_channels // spec.groups
    zeros = [torch.zeros(g, f, f, dtype=torch.float64) for _ in range(2)]
    found = output_moments.Moments(0, 0, torch.zeros(g, f, dtype=torch.float64), zeros[0])
    if gradients:
        found.gradient, found.trace = zeros[1], torch.zeros(g, dtype=torch.float64)
    return found


def convs() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 96, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(96, 10),
    ).eval()


NETS = {
    "wide": (wide, lambda: [torch.randn(64, 24) for _ in range(3)]),
    "convs": (convs, lambda: [torch.randn(48, 3, 24, 24) for _ in range(2)]),
    "one large image": (convs, lambda: [torch.randn(2, 3, 128, 128) for _ in range(12)]),
}


@pytest.mark.parametrize("net", NETS)
def test_the_memory_that_a_plan_states_is_the_peak_that_is_measured(method, net, monkeypatch):
    monkeypatch.setattr(output_moments, "_NUMBERS", 1 << 16)
    make, batches = NETS[net]
    model, data = make(), batches()
    problem = tenfold.survey(model, data=data)
    problem.spectra("channel", (1,))  # of the weights, whatever the data
    with Float64() as meter:
        plan = method.plan(problem, tenfold.Budget(params=0.5))
    assert 0.9 * meter.peak <= plan.calibration_bytes <= 1.6 * meter.peak
    assert plan.calibration_bytes < 16e6


def test_a_layer_with_fewer_inputs_than_outputs_is_seen_by_its_inputs(method):
    problem = tenfold.survey(wide(), data=[torch.randn(64, 24)])
    method.plan(problem, tenfold.Budget(params=0.5))
    (moments,) = problem._moments.values()
    assert moments["0"].outer.shape == (1, 24, 24)
    assert moments["0"].basis is not None
    assert moments["2"].outer.shape == (1, 10, 10)
    assert moments["2"].basis is None


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.Linear(5, 14, bias=False), (5,)),
        (lambda: nn.Conv2d(4, 36, 2, groups=2), (4, 5, 5)),
        (lambda: nn.ConvTranspose1d(3, 20, 2, stride=2), (3, 7)),
    ],
    ids=["linear", "grouped", "transposed"],
)
def test_the_smaller_side_gives_the_factors_of_the_whole(method, make, shape, monkeypatch):
    """The same layer with all its outputs recorded, and no coordinates."""
    model = nn.Sequential(make(), nn.Flatten(), nn.Tanh(), nn.LazyLinear(6)).double().eval()
    data = [torch.randn(60, *shape, dtype=torch.float64) + 0.3]
    model(data[0])
    params = sum(p.numel() for p in model.parameters())
    budget = tenfold.Budget(params=params - model[0].weight.numel() // 5)
    small = tenfold.compress(model, method, budget, data=data, target_modules=["0"])
    assert small.plan.layers["0"].rank is not None
    monkeypatch.setattr(output_moments, "_empty", every_output)
    whole = tenfold.compress(model, method, budget, data=data, target_modules=["0"])
    assert whole.plan.layers["0"].rank == small.plan.layers["0"].rank
    assert small.plan.layers["0"].error == pytest.approx(whole.plan.layers["0"].error, rel=1e-6)
    torch.testing.assert_close(small.model(data[0]), whole.model(data[0]), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("numbers", [1, 7, 64, 1 << 20])
def test_the_size_of_the_blocks_changes_nothing(method, numbers, monkeypatch):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 12)).double().eval()
    data = [torch.randn(40, 3, 5, 5, dtype=torch.float64), torch.randn(9, 3, 5, 5, dtype=torch.float64)]
    options = {"samples": 44, "gradients": True}
    expected = tenfold.survey(model, data=data).moments(**options)
    monkeypatch.setattr(output_moments, "_NUMBERS", numbers)
    for name, found in tenfold.survey(model, data=data).moments(**options).items():
        for field in ("positions", "total", "outer", "gradient", "trace"):
            torch.testing.assert_close(getattr(found, field), getattr(expected[name], field), rtol=1e-9, atol=1e-9)


def test_any_number_of_budgets_looks_at_the_data_once_and_solves_each_layer_once(method, monkeypatch):
    model, data = convs(), Counted([torch.randn(24, 3, 6, 6) for _ in range(5)])
    problem = tenfold.survey(model, example_inputs=data.batches[0], data=data, align=None)
    solved = []
    basis = type(method)._basis
    monkeypatch.setattr(type(method), "_basis", lambda *args: solved.append(1) or basis(*args))
    plans = [
        method.plan(problem, tenfold.Budget(**limit)) for limit in ({"params": 0.6}, {"macs": 0.5}, {"params": 0.3})
    ]
    assert data.passes == 1
    assert len(solved) == len(problem.sites)
    for plan in plans:
        tenfold.apply(model, plan)
    monkeypatch.undo()
    again = tenfold.plan(model, method, tenfold.Budget(params=0.3), example_inputs=data.batches[0], data=data)
    assert again == plans[2]


# ---- too few examples


def test_too_few_examples_are_said_by_the_layer_that_suffers_most(method):
    model = nn.Sequential(nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 12))
    with pytest.warns(tenfold.TenfoldWarning, match=r"too few examples: '0' puts out 10 vectors.*of 20.*1 more"):
        tenfold.plan(model, method, tenfold.Budget(params=0.5), data=[torch.randn(10, 30)])


@pytest.mark.filterwarnings("ignore:.*too few examples")
def test_no_cut_is_predicted_to_lose_nothing_where_examples_are_fewer_than_outputs(method):
    model = nn.Sequential(nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 16)).double()
    problem = tenfold.survey(model, data=[torch.randn(5, 30, dtype=torch.float64)])
    plan = method.plan(problem, tenfold.Budget(params=0.6))
    cut = [layer for layer in plan.layers.values() if layer.rank is not None]
    assert cut
    assert all(layer.error > 1e-3 for layer in cut)
