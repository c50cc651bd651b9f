"""A sweep is many compressions of one model, each measured as it would be alone."""

import json

import pytest
import torch

import tenfold
from helpers import same_state, state
from nets import chain
from tenfold.layers.swap import structure_of


def data(n=2) -> list[tuple[torch.Tensor, torch.Tensor]]:
    g = torch.Generator().manual_seed(0)
    return [(torch.randn(16, 3, 8, 8, generator=g), torch.randint(10, (16,), generator=g)) for _ in range(n)]


def accuracy(model) -> float:
    hits = [(model.eval()(x).argmax(1) == y) for x, y in data()]
    return float(torch.cat(hits).double().mean())


def test_each_row_is_the_compression_alone_and_the_model_is_untouched() -> None:
    model = chain()
    model[1].running_mean.fill_(5.0)  # stale: nothing gets through the ReLU behind it
    before = state(model)
    calibration = [x for x, _ in data(3)]
    rows = tenfold.sweep(
        model, tenfold.SVD(), [0.0, 0.3, 0.5], data(), data=calibration, example_inputs=calibration[0][:1]
    )
    for row in rows:
        small = tenfold.compress(model, tenfold.SVD(), tenfold.Budget(params=1 - row.removed)).model
        assert row.params == tenfold.cost(small).params <= (1 - row.removed) * tenfold.cost(model).params
        assert row.macs == tenfold.cost(small, calibration[0][:1]).macs
        assert row.right_after == accuracy(small)
        tenfold.reestimate_(small, calibration)
        assert row.reestimated == accuracy(small)
        assert json.loads(json.dumps(row.to_dict()))["removed"] == row.removed
    assert any(row.reestimated != row.right_after for row in rows)
    assert same_state(model, before)


def test_a_cut_of_ranks_takes_the_same_share_of_each_and_leaves_what_would_grow() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(16, 20, 3), torch.nn.Conv2d(20, 20, 3))
    for share, wanted in ((0.0, {}), (0.2, {"0": 16, "1": 16}), (0.6, {"0": 8, "1": 8}), (0.99, {"0": 1, "1": 1})):
        layers = structure_of(tenfold.RankCut()(model, share))
        assert {name: layer.rank for name, layer in layers.items()} == wanted


def test_filters_and_any_function_can_be_swept_and_a_failure_is_a_row() -> None:
    pytest.importorskip("torch_pruning")
    model = tenfold.build_model("cnn", 10, 3, 8)
    rows = tenfold.sweep(model, tenfold.FilterCut(data()[0][0]), [0.0, 0.5], data())
    assert rows[0].params == tenfold.cost(model).params > 2 * rows[1].params
    assert rows[1].reestimated is None
    (row,) = tenfold.sweep(model, lambda m, share: m, [0.5], data())
    assert row.params == tenfold.cost(model).params
    (failed,) = tenfold.sweep(chain(), tenfold.SVD(), [0.99], data())
    assert "`budget` is below" in failed.failure
    assert failed.right_after is None


def test_what_cannot_be_gone_through_twice_and_shares_out_of_range_are_refused() -> None:
    with pytest.raises(tenfold.ArgumentError, match="`loader`"):
        tenfold.sweep(chain(), tenfold.SVD(), [0.1], iter(data()))
    with pytest.raises(tenfold.ArgumentError, match="`remove`"):
        tenfold.sweep(chain(), tenfold.SVD(), [1.0], data())
