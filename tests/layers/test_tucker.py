"""What is particular to convolutions in Tucker format; the laws of all factorised layers hold for them elsewhere."""

import math

import pytest
import torch
from layer_stubs import TUCKER, factorised, low_rank
from torch import nn

import tenfold
from helpers import relative
from nets import Residual, lived
from tenfold.errors import ArgumentError, PlanError, TenfoldError
from tenfold.layers import swap
from tenfold.layers.spec import spec_of
from tenfold.layers.tucker import TuckerConv, full_ranks
from tenfold.layers.tucker_model import to_tucker
from tenfold.linalg.tucker import hosvd_bound


@pytest.mark.parametrize("groups", [1, 2])
@torch.no_grad()
def test_a_cut_is_within_the_bound_of_the_higher_order_svd_and_no_better_than_the_best_matrices(groups: int) -> None:
    layer = nn.Conv2d(12, 8, 3, groups=groups).double()
    parts = layer.weight.chunk(groups)
    for rank in ((3, 2), (2, 4), (1, 1)):
        small = factorised(layer, rank, 1, TUCKER)
        lost = float((small.weight - layer.weight).square().sum())
        assert lost <= sum(hosvd_bound(w, rank) ** 2 for w in parts)
        for mode in (0, 1):
            tails = [torch.linalg.svdvals(w.movedim(mode, 0).flatten(1))[rank[mode] :] for w in parts]
            assert lost >= sum(float(s.square().sum()) for s in tails) * (1 - 1e-12)
        for w, u in zip(parts, small.decoder.weight.flatten(1).chunk(groups), strict=True):
            assert u.shape == (len(w), rank[0])
            assert relative(u.mT @ u, torch.eye(rank[0])) < 1e-12


@pytest.mark.parametrize(
    ("shape", "groups", "full"),
    [((8, 3, 3, 3), 1, (8, 3)), ((8, 4, 1), 1, (4, 4)), ((64, 3, 3, 3), 1, (27, 3)), ((12, 3, 2), 4, (3, 3))],
)
def test_full_ranks_are_those_of_a_generic_kernel(shape, groups: int, full) -> None:
    assert full_ranks(shape, groups) == full
    part = torch.randn(shape, dtype=torch.float64).chunk(groups)[0]
    assert full == tuple(int(torch.linalg.matrix_rank(part.movedim(i, 0).flatten(1))) for i in (0, 1))


@pytest.mark.parametrize("rank", [(0, 1), (9, 1), (1, 5), (5, 5), (8, 1, 1), (4,), ()])
def test_ranks_that_a_kernel_cannot_have_are_refused(rank: tuple[int, ...]) -> None:
    layer = nn.Conv1d(4, 8, 2)
    with pytest.raises(
        ArgumentError, match=r"`rank` must be a pair \(r_out, r_in\) with 1 <= r_out <= min\(8, 2 r_in\)"
    ):
        TuckerConv.from_layer(layer, spec_of(layer), rank)


def test_linear_layers_are_refused_by_name() -> None:
    layer = nn.Linear(4, 4)
    with pytest.raises(ArgumentError, match="the weight of a linear layer is a matrix"):
        TuckerConv.from_layer(layer, spec_of(layer), (2, 2))


def test_infinite_weights_are_refused_and_zero_ones_stay_zero() -> None:
    layer = nn.Conv2d(4, 4, 3)
    layer.weight.data.zero_()
    assert torch.equal(factorised(layer, (2, 2), 1, TUCKER).weight.detach(), layer.weight.detach())
    layer.weight.data[0, 0, 0, 0] = math.inf
    with pytest.raises(TenfoldError, match="NaN or infinite"):
        factorised(layer, (2, 2), 1, TUCKER)


def test_batch_norms_are_found_and_folded() -> None:
    net, x = Residual().eval(), torch.randn(2, 3, 8, 8)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            lived(m)
    small = swap.apply(net, low_rank(net, 3, TUCKER))
    assert tenfold.norm_after(small) == tenfold.norm_after(net)
    folded = tenfold.fold_batchnorm(small)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert relative(folded(x), small(x)) < 1e-5
    trained = to_tucker(net, {"layer1.0.conv1": 3}).model
    assert tenfold.norm_after(trained) == tenfold.norm_after(net)
    left = {f.norm: f.reason for f in tenfold.layers.fold_batchnorm.norm_folds(trained)}
    assert "TrainedTucker" in str(left["layer1.0.bn1"])


def test_a_plan_of_another_kind_of_layer_is_refused() -> None:
    net = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(PlanError, match=r"'0' with kernel .* cannot be built as planned: .* a matrix"):
        swap.apply(net, {"0": tenfold.LayerPlan("tucker", (2, 2))})


def test_print_tells_the_ranks() -> None:
    assert "rank=(3, 2)" in repr(factorised(nn.Conv2d(4, 6, 3), (3, 2), 1, TUCKER))
