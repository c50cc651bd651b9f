"""What two networks' outputs are compared by: decided by what is certain, the same number by hand."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import normal
from tenfold.errors import ArgumentError, DataError
from tenfold.layers.calibration_batches import Batch
from tenfold.layers.logits import declared_logits
from tenfold.layers.output_loss import mean_output_loss, output_loss

X = torch.randn(6, 4)


@dataclass
class Outputs:
    logits: Tensor
    hidden: Tensor | None = None


def batch(target=None, x=X):
    return Batch(0, (x,), {}, target)


def divergence(z, t):
    """By its definition, at temperature 2, the classes last."""
    p, q = (t / 2).softmax(-1), (z / 2).softmax(-1)
    return 4 * (p * (p / q).log()).sum(-1).mean()


def test_a_tensor_alone_is_compared_by_its_squared_error_relative_to_the_dense_one():
    z, t = normal(6, 5), normal(6, 5, seed=1)
    by_hand = (z - t).square().sum() / t.square().sum()
    torch.testing.assert_close(output_loss(z, t, batch()), by_hand)


@pytest.mark.parametrize("form", ["labels", "named", "dict", "said"])
def test_declared_logits_are_compared_by_divergence(form):
    z, t = normal(6, 5), normal(6, 5, seed=1)
    wrap = {"named": Outputs, "dict": lambda x: {"logits": x, "more": 7 * x}}.get(form, lambda x: x)
    labels = torch.arange(6) % 5 if form == "labels" else None
    loss = "logits" if form == "said" else None
    torch.testing.assert_close(output_loss(wrap(z), wrap(t), batch(labels), loss), divergence(z, t))


def test_classes_are_found_along_either_axis_and_ignored_positions_do_not_count():
    z, t = normal(2, 5, 3), normal(2, 5, 3, seed=1)
    labels = torch.tensor([[0, 1, -100], [4, -100, 2]])
    counted = [x.movedim(1, 2)[labels >= 0] for x in (z, t)]
    torch.testing.assert_close(output_loss(z, t, batch(labels)), divergence(*counted))
    ids = torch.randint(9, (2, 3))
    last = [x.movedim(1, 2) for x in (z, t)]
    torch.testing.assert_close(output_loss(*map(Outputs, last), batch(x=ids)), divergence(*last))


def test_what_is_not_certain_is_no_logits():
    t = normal(6, 5)
    labels = torch.arange(6) % 5
    assert declared_logits(t, batch(labels)) == 1
    assert declared_logits(t, batch()) is None  # an embedding has this shape too
    assert declared_logits(t, batch(labels.double())) is None  # numbers to be regressed
    assert declared_logits(t, batch(labels + 1)) is None  # more classes than outputs
    assert declared_logits(t.softmax(1), batch(labels)) is None
    assert declared_logits(t[:, :1], batch(torch.zeros(6, dtype=torch.long))) is None
    assert declared_logits(Outputs(normal(2, 5, 4, 4)), batch()) is None
    assert declared_logits((t, t), batch(labels)) is None
    with pytest.raises(ArgumentError, match=r"`loss` must be a function.*\(2, 5, 4, 4\)"):
        output_loss(normal(2, 5, 4, 4), normal(2, 5, 4, 4), batch(), "logits")


def test_every_tensor_that_is_put_out_counts_alike_whatever_its_scale():
    z, t = [normal(6, 5), 1e3 * normal(6, 2)], [normal(6, 5, seed=1), 1e3 * normal(6, 2, seed=1)]
    each = [output_loss(a, b, batch()) for a, b in zip(z, t, strict=True)]
    nested = [{"a": x[0], "rest": (x[1], torch.arange(3))} for x in (z, t)]
    torch.testing.assert_close(output_loss(*nested, batch()), (each[0] + each[1]) / 2)


def test_outputs_that_do_not_fit_are_refused():
    for z, t in ((normal(6, 5), normal(6, 4)), ([normal(6, 5)], [normal(6, 5), normal(6, 5)]), ("a", "b")):
        with pytest.raises(DataError, match="Pass `loss`"):
            output_loss(z, t, batch())
    with pytest.raises(DataError, match=r"scalar tensor; got shape \(6,\)"):
        output_loss(normal(6, 5), normal(6, 5), batch(), lambda a, b: (a - b).abs().mean(1))
    assert float(output_loss("a", "b", batch(), lambda a, b: torch.tensor(3.0))) == 3.0


def test_the_mean_over_batches_is_that_over_examples_and_modes_are_kept():
    torch.manual_seed(0)
    small, dense = (nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5)).double().train() for _ in range(2))
    x = normal(10, 4)
    parts = [batch(torch.arange(len(p)) % 5, p) for p in x.split(4)]
    found = mean_output_loss(small, dense, parts)
    by_hand = 4 * F.kl_div(
        (small[0](x) / 2).log_softmax(1), (dense[0](x) / 2).softmax(1), reduction="batchmean"
    )  # fmt: skip
    assert found == pytest.approx(by_hand.item(), rel=1e-9)
    assert all(m.training for net in (small, dense) for m in net.modules())
    with pytest.raises(DataError, match="at least one batch"):
        mean_output_loss(small, dense, [])
