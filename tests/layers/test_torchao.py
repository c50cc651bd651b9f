"""Factors in int8 by torchao: quantized, run, and kept by their state; what tenfold cannot do with them it says."""

import copy

import pytest
import torch
from torch import nn

import tenfold
from tenfold.errors import ArgumentError

quantization = pytest.importorskip("torchao.quantization", exc_type=ImportError)

CONFIGS = {
    "weights": quantization.Int8WeightOnlyConfig,
    "weights and activations": quantization.Int8DynamicActivationInt8WeightConfig,
}


def small():
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)).eval()
    return tenfold.compress(dense, tenfold.SVD(), tenfold.Budget(params=0.6), example_inputs=torch.zeros(1, 64)).model


def quantized(model, config):
    model = copy.deepcopy(model)
    quantization.quantize_(model, CONFIGS[config]())
    return model


@pytest.mark.parametrize("config", CONFIGS)
def test_every_factor_becomes_int8_and_the_outputs_hardly_move(config):
    model, x = small(), torch.randn(32, 64)
    int8 = quantized(model, config)
    factors = [m.weight for m in int8.modules() if isinstance(m, nn.Linear)]
    assert len(factors) == 6
    assert all(factor.qdata.dtype == torch.int8 for factor in factors)
    error = (int8(x) - model(x)).norm() / model(x).norm()
    assert 0 < error < 0.03


@pytest.mark.parametrize("config", CONFIGS)
def test_saved_by_tenfold_and_quantized_after_loading_gives_the_same_outputs(config, tmp_path):
    model, x = small(), torch.randn(8, 64)
    tenfold.save(model, tmp_path / "small")
    dense = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)).eval()
    again = quantized(tenfold.load(tmp_path / "small", dense), config)
    torch.testing.assert_close(again(x), quantized(model, config)(x), rtol=0, atol=0)
    fresh = quantized(small(), config)
    fresh.load_state_dict(quantized(model, config).state_dict())
    torch.testing.assert_close(fresh(x), again(x), rtol=0, atol=0)


def test_a_quantized_model_is_refused_where_its_numbers_are_needed(tmp_path):
    int8 = quantized(small(), "weights")
    told = "plain tensors as parameters; '0.encoder.weight' is a Int8Tensor.*before it is quantized"
    with pytest.raises(ArgumentError, match=told):
        tenfold.save(int8, tmp_path / "int8")
    with pytest.raises(ArgumentError, match=told):
        tenfold.plan(int8, tenfold.SVD(), tenfold.Budget(params=0.5))
    assert not (tmp_path / "int8").exists()
