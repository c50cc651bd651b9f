"""Factors stored at their largest size and padded with zeros: the same training, and no parameter changes its shape."""

import io
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from optim.networks import around, batch, net
from optim.test_integrator_state import OPTIMIZERS
from optim.toys import run
from tenfold.layers.tucker_protocol import factorised
from tenfold.optim.tucker.settings import IntegratorSettings

pytestmark = pytest.mark.filterwarnings("ignore:the ranks of .* cannot grow")
SETTINGS = {
    "cycle": IntegratorSettings(0.25, every=4),
    "two_pass": IntegratorSettings(0.001, twice=True),
    "one_pass": IntegratorSettings(1e-4, every=1),
    "fixed": IntegratorSettings(0.0, every=3, pinned=True),
}


def loss(model: nn.Module, step: int) -> torch.Tensor:
    x, y = batch(step)
    return F.cross_entropy(model(x), y)


def padding(layer, x: torch.Tensor) -> torch.Tensor:
    """Of a tensor that is stored like the core: everything beyond the ranks."""
    outside = x.detach().clone().unflatten(0, (layer.groups, -1))
    outside[(slice(None), *(slice(r) for r in layer.ranks))] = 0
    return outside


@pytest.mark.parametrize("base", ["sgd", "adamw"])
@pytest.mark.parametrize("name", SETTINGS)
def test_it_computes_what_the_ordinary_storage_does(name, base) -> None:
    found = []
    for static in (False, True):
        model = net(static=static)
        make, hyper = OPTIMIZERS[base]
        optimizer, trace = around(model, SETTINGS[name], base=make, **hyper | {"lr": 0.05}), []
        torch.manual_seed(1)  # dropout
        for step in range(14):
            run(model, optimizer, lambda m, _, step=step: loss(m, step), 1)
            trace.append(optimizer.ranks)
        others = [model.norm.weight, model.norm.running_var, model.head.bias]
        found.append((trace, [layer.kernel for layer in factorised(model).values()] + others, optimizer.report))
    (ranks, weights, report), (same, found_weights, other) = found
    assert ranks == same
    if base == "adamw":  # with it they grow in one step, too
        assert ranks[-1] != {n: layer.ranks for n, layer in factorised(net()).items()}
    for a, b in zip(weights, found_weights, strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=1e-9)
    assert report["growth"].keys() == other["growth"].keys()
    for measure in ("error", "growth", "share"):
        torch.testing.assert_close(other[measure], report[measure], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_padding_has_no_gradient_and_stays_zero_exactly(name) -> None:
    model = net(static=True)
    base, hyper = OPTIMIZERS[name]
    optimizer = around(model, IntegratorSettings(0.25, every=3), base=base, **hyper)
    layers = factorised(model)
    shapes = [p.shape for p in model.parameters()]
    seen = set()
    for step in range(8):
        optimizer.zero_grad()
        loss(model, step).backward()
        caught = {layer: [u.grad for u in layer.bases] for layer in layers.values()}
        for layer, grads in caught.items():
            assert not padding(layer, layer.core.grad).any()
            assert not any(g[:, r:].any() for g, r in zip(grads, layer.ranks, strict=True))
            assert all(g.any() for g in (layer.core.grad, *grads))
        optimizer.step()
        for layer in layers.values():
            assert not padding(layer, layer.core).any()
            assert not any(u[:, r:].any() for u, r in zip(layer.bases, layer.ranks, strict=True))
            state = optimizer.state[layer.core]
            assert not any(padding(layer, state[k]).any() for k in ("exp_avg", "momentum_buffer") if k in state)
        seen.add(str(optimizer.ranks))
        assert [p.shape for p in model.parameters()] == shapes
        assert all(p.requires_grad for p in model.parameters())
    assert len(seen) > 1


@pytest.mark.parametrize("stop", [5, 8])
def test_a_run_that_is_saved_goes_on_to_the_same_bits(stop) -> None:
    def start():
        model = net(static=True).eval()
        return model, around(model, IntegratorSettings(0.25, every=4), base=torch.optim.AdamW, lr=0.05)

    whole, optimizer = start()
    run(whole, optimizer, loss, stop)
    file = io.BytesIO()
    torch.save({"model": whole.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    assert tuple(saved["model"]["conv.present"].tolist()) == whole.conv.ranks
    resumed, again = start()
    resumed.load_state_dict(saved["model"])
    again.load_state_dict(saved["optimizer"])
    assert again.ranks == optimizer.ranks
    for model, opt in ((whole, optimizer), (resumed, again)):
        run(model, opt, loss, 9)
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def check_compiler() -> None:
    from torch._dynamo.testing import CompileCounter

    warnings.simplefilter("ignore")
    counts = []
    for static in (True, False):
        torch._dynamo.reset()
        model, counter = net(static=static), CompileCounter()
        optimizer = around(model, IntegratorSettings(0.4, every=3), lr=0.5, momentum=0.9)
        compiled, seen = torch.compile(model, fullgraph=True, backend=counter), set()
        step_ = torch.compile(optimizer.step, backend=counter)  # left out of the graph, growth and cuts and all
        for step in range(10):
            seen.add(str(optimizer.ranks))
            optimizer.zero_grad()
            loss(compiled, step).backward()
            step_()
        assert len(seen) > 2
        counts.append(counter.frame_count)
    assert counts[0] == 1, counts
    assert counts[1] > 1, counts


def test_it_compiles_once() -> None:
    """In a process of its own: dynamo cannot see through the shape checker that tests install."""
    done = subprocess.run(
        [sys.executable, "-c", "from optim import test_static; test_static.check_compiler()"],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
