"""An optimised model computes the same, is plain, and says what was chosen; choices follow measurements."""

import pytest
import torch
from torch import nn

import tenfold
from helpers import same_state, state
from nets import FanOut, Residual, WordAndImage, chain, image, linear_chain, lived
from tenfold.layers.matrix import LowRank
from tenfold.runtimes import optimize, timing
from tenfold.runtimes.optimize import optimized

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def statistics_of_its_own(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            lived(module)
    return model


def sliced_conv(slices=4):
    """A network whose one convolution is a sliced factor pair."""
    model = statistics_of_its_own(nn.Sequential(nn.Conv2d(16, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()))
    plan = tenfold.plan(model, tenfold.ALDS(slices=(slices,)), tenfold.Budget(params=0.9), target_modules=["0"])
    return tenfold.apply(model, plan)


@pytest.fixture
def chooses(monkeypatch):
    """Makes the last of two things measured come out as so many times as fast as the first."""

    def choose(joined, last_format):
        monkeypatch.setattr(optimize, "turns", lambda calls, *_, **__: [(joined, 1.0)] * 3)
        monkeypatch.setattr(optimize, "fastest", lambda calls, *_, **__: len(calls) - 1 if last_format else 0)

    return choose


CASES = {
    "residual": lambda: (statistics_of_its_own(Residual()), torch.randn(2, 3, 8, 8)),
    "compressed": lambda: (
        tenfold.compress(statistics_of_its_own(Residual()), tenfold.ALDS(), tenfold.Budget(params=0.6)).model,
        torch.randn(2, 3, 8, 8),
    ),
    "chain": lambda: (chain(), image()),
    "linear": lambda: (linear_chain(6, 8, 5), torch.randn(2, 3, 6)),
    "fan-out": lambda: (FanOut(), torch.randn(2, 4, 6, 6)),
    "volumes": lambda: (nn.Sequential(nn.Conv3d(3, 4, 3), lived(nn.BatchNorm3d(4))), torch.randn(2, 3, 5, 5, 5)),
    "keywords": lambda: (WordAndImage(), {"image": torch.randn(2, 3, 6, 6), "word": torch.tensor([4, 1])}),
}


@pytest.mark.parametrize("case", CASES)
def test_outputs_stay_and_the_model_is_left_alone(case):
    model, x = CASES[case]()
    before, modes, drawn = state(model), [m.training for m in model.modules()], torch.random.get_rng_state()
    hooks = [len(m._forward_pre_hooks) for m in model.modules()]
    fast = tenfold.optimize_for_inference(model, x)
    assert same_state(model, before)
    assert modes == [m.training for m in model.modules()]
    assert hooks == [len(m._forward_pre_hooks) for m in model.modules()]
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert not any(m.training for m in fast.modules())
    assert not {id(p) for p in fast.parameters()} & {id(p) for p in model.parameters()}
    model.eval()
    run = (lambda m: list(m(**x).values())) if isinstance(x, dict) else (lambda m: [m(x)])
    torch.testing.assert_close(run(fast), run(model), **CLOSE)


def test_norms_are_folded_and_named():
    model = statistics_of_its_own(Residual())
    found = optimized(model, torch.randn(2, 3, 8, 8))
    assert set(found.folded) == {n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert not any(isinstance(m, nn.BatchNorm2d) for m in found.model.modules())
    assert optimized(FanOut(), torch.randn(2, 4, 6, 6)).folded == ()


@pytest.mark.parametrize("last", [False, True])
def test_the_faster_memory_format_is_taken(chooses, last):
    chooses(1.0, last)
    model, x = Residual().to(memory_format=torch.channels_last), torch.randn(2, 3, 8, 8)
    found = optimized(model, x)
    assert found.memory_format == ("channels_last" if last else "contiguous")
    kernels = [m.weight for m in found.model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    form = torch.channels_last if last else torch.contiguous_format
    assert all(w.is_contiguous(memory_format=form) for w in kernels)
    torch.testing.assert_close(found.model(x), model.eval()(x), **CLOSE)
    assert optimized(linear_chain(3, 2), torch.randn(1, 3)).memory_format == "contiguous"  # nothing to choose


def test_an_onnx_graph_has_no_memory_format(chooses):
    pytest.importorskip("onnxruntime")
    chooses(1.0, True)
    assert optimized(chain(), image(), runtime="onnxruntime").memory_format == "contiguous"


@pytest.mark.parametrize(("faster", "joined"), [(2.0, ("0",)), (1.01, ()), (0.5, ())])
def test_sliced_layers_are_joined_where_that_is_clearly_faster(chooses, faster, joined):
    chooses(faster, True)
    model, x = sliced_conv(), torch.randn(2, 16, 6, 6)
    found = optimized(model, x)
    assert found.joined == joined
    assert any(isinstance(m, LowRank) for m in found.model.modules()) == (not joined)
    torch.testing.assert_close(found.model(x), model.eval()(x), **CLOSE)
    assert optimized(model[0], x).joined == (("",) if joined else ())  # the layer alone


@pytest.mark.parametrize(("second", "wanted"), [(1.0, 0), (0.98, 0), (0.9, 1)])
def test_in_doubt_the_first_is_taken(monkeypatch, second, wanted):
    monkeypatch.setattr(timing, "turns", lambda *_, **__: [(1.0, second, 1.1)] * 3)
    assert timing.fastest([lambda: None] * 3, torch.zeros(1), threads=1, rounds=3) == wanted


def test_a_model_of_chance_is_one_sentence():
    class Noise(nn.Module):
        def forward(self, x):
            return x + torch.randn_like(x)

    with pytest.raises(tenfold.TenfoldError, match="its outputs would differ"):
        tenfold.optimize_for_inference(Noise(), torch.zeros(2, 3))


def test_bad_arguments_are_refused():
    for given, says in (({"runtime": "fast"}, "`runtime`"), ({"threads": 0}, "`threads`")):
        with pytest.raises(tenfold.ArgumentError, match=says):
            tenfold.optimize_for_inference(chain(), image(), **given)
    with pytest.raises(tenfold.ArgumentError, match="inputs that the model accepts"):
        tenfold.optimize_for_inference(chain(), torch.zeros(1, 2))
