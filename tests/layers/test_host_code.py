"""What code that knows nothing of factors does to a factorised layer: write to it, walk over it, script it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import tenfold
from tenfold.errors import ArgumentError, CheckpointError

METHODS = [tenfold.SVD(), tenfold.Tucker(), tenfold.ALDS(slices=(2,))]


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 10),
    ).eval()  # fmt: skip


def _small(method: tenfold.Method) -> nn.Module:
    net = _net()
    return tenfold.apply(net, tenfold.plan(net, method, tenfold.Budget(params=0.6)))


def _assign(layer: Any, value: Any) -> None:
    layer.weight = value


def _add(layer: Any) -> None:
    layer.weight += 1


WRITES: dict[str, Callable[[Any], Any]] = {
    "init.zeros_": lambda m: nn.init.zeros_(m.weight),
    "init.kaiming_uniform_": lambda m: nn.init.kaiming_uniform_(m.weight),
    "init.trunc_normal_": lambda m: nn.init.trunc_normal_(m.weight),
    "data.mul_": lambda m: m.weight.data.mul_(2),
    "clamp_": lambda m: m.weight.clamp_(0),
    "detach": lambda m: m.weight.detach().clamp_(0),
    "view of a view": lambda m: m.weight.view(-1)[3:].zero_(),
    "item": lambda m: m.weight.__setitem__(0, 1.0),
    "+=": _add,
    "data =": lambda m: setattr(m.weight, "data", torch.zeros(3)),
    "requires_grad_": lambda m: m.weight.requires_grad_(False),
    "requires_grad =": lambda m: setattr(m.weight, "requires_grad", False),
    "grad =": lambda m: setattr(m.weight, "grad", None),
    "out=": lambda m: torch.renorm(m.weight, 2, 0, 1.0, out=m.weight),
    "foreach": lambda m: torch._foreach_mul_([m.weight], 2.0),
    "inplace=": lambda m: nn.functional.relu(m.weight, inplace=True),
    "hook": lambda m: m.weight.register_hook(print),
    "vector_to_parameters": lambda m: nn.utils.vector_to_parameters(torch.zeros(m.weight.numel()), [m.weight]),
    "a parameter": lambda m: _assign(m, nn.Parameter(torch.zeros(1))),
    "a tensor": lambda m: _assign(m, torch.zeros(1)),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_write_to_the_dense_equivalent_is_refused_and_changes_nothing(write: Callable[[Any], Any]) -> None:
    layer = cast("nn.Sequential", _small(tenfold.SVD()))[6]
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    with (
        pytest.raises(ArgumentError, match=r"`weight`.*encoder\.weight and decoder\.weight.*to_dense"),
        torch.no_grad(),
    ):
        write(layer)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_fusing_a_norm_into_a_factorised_layer_is_refused() -> None:
    layer = cast("nn.Sequential", _small(tenfold.SVD()))[6]
    with pytest.raises(ArgumentError, match="to_dense"):
        nn.utils.fuse_linear_bn_eval(cast("nn.Linear", layer), nn.BatchNorm1d(24).eval())


def test_reading_the_dense_equivalent_works_as_before() -> None:
    layer: Any = cast("nn.Sequential", _small(tenfold.SVD()))[6]
    plain = layer.decoder.weight @ layer.encoder.weight
    torch.testing.assert_close(layer.weight.detach().t().clone(), plain.detach().t())
    copied = torch.zeros_like(plain).copy_(layer.weight)
    assert type(copied) is Tensor
    copied.zero_()
    torch.testing.assert_close(layer.weight + 0, plain)
    layer.weight.square().sum().backward()
    assert layer.encoder.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_code_that_collects_parameters_module_by_module_finds_each_once(method: tenfold.Method) -> None:
    small = _small(method)
    held = [
        value
        for module in small.modules()
        for name in ("weight", "bias")
        if isinstance(value := getattr(module, name, None), nn.Parameter)
    ]
    assert sorted(map(id, held)) == sorted(map(id, small.parameters()))


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_the_bias_of_a_factorised_layer_can_be_written_and_has_its_gradient(method: tenfold.Method) -> None:
    layer: Any = cast("nn.Sequential", _small(method))[3]
    nn.init.ones_(layer.bias)
    layer.bias.data.mul_(2)
    assert torch.equal(layer.decoder.bias, torch.full((32,), 2.0))
    layer.bias.sum().backward()
    assert torch.equal(layer.decoder.bias.grad, torch.ones(32))


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
@pytest.mark.parametrize("how", [torch.jit.script, torch.fx.symbolic_trace], ids=["script", "fx"])
def test_a_compressed_model_is_scripted_and_traced_as_the_dense_one(
    method: tenfold.Method, how: Callable[[nn.Module], Any]
) -> None:
    small = _small(method)
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(how(small)(x), small(x))


@pytest.mark.parametrize("how", [torch.jit.script, torch.fx.symbolic_trace], ids=["script", "fx"])
@pytest.mark.parametrize("slices", [1, 2])
@pytest.mark.parametrize("leading", [(), (2,), (2, 3), (0,)])
def test_a_linear_pair_takes_any_leading_axes_scripted_or_traced(
    how: Callable[[nn.Module], Any], slices: int, leading: tuple[int, ...]
) -> None:
    net = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 10))
    small = tenfold.apply(net, tenfold.plan(net, tenfold.ALDS(slices=(slices,)), tenfold.Budget(params=0.6)))
    x = torch.randn(*leading, 32)
    assert torch.equal(how(small)(x), small(x))
    torch.testing.assert_close(small(x), tenfold.to_dense(small)(x))


class _Pretrained(nn.Module):
    """Saves itself as Hugging Face's models do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)

    def save_pretrained(self, folder: Path) -> None:
        torch.save(self.state_dict(), folder / "weights.pt")


def test_save_pretrained_refuses_a_compressed_model_and_saves_a_dense_one(tmp_path: Path) -> None:
    net: Any = nn.Sequential(_Pretrained())
    small: Any = tenfold.apply(net, tenfold.plan(net, tenfold.SVD(), tenfold.Budget(params=0.5)))
    for compressed in (small, copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        with pytest.raises(CheckpointError, match=r"tenfold\.save"):
            compressed[0].save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    cast("Any", tenfold.to_dense(small))[0].save_pretrained(tmp_path)
    net[0].save_pretrained(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["weights.pt"]
