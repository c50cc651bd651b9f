"""A weight that is read by another module's forward is found, whoever reads it and however; metadata is no read."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tenfold
from tenfold.layers.cost import trace


class Reading(nn.Module):
    """Two linear layers, and a forward that does to the first one's weight what it is told."""

    def __init__(self, read) -> None:
        super().__init__()
        self.first = nn.Linear(12, 8)
        self.second = nn.Linear(8, 12)
        self.read = read

    def forward(self, x):
        return self.second(torch.relu(self.first(x))) + self.read(self, x)


READS = {
    "tied by hand": lambda m, x: F.linear(m.first(x), m.first.weight.t()),
    "data": lambda m, x: m.first.weight.data.sum(),
    "norm": lambda m, x: torch.linalg.vector_norm(m.first.weight, dim=1).sum(),
    "cast": lambda m, x: m.first.weight.to(x.dtype).mean(),
    "in a list": lambda m, x: torch.cat([m.first.weight, m.first.weight]).mean(),
    "by keyword": lambda m, x: torch.sum(input=m.first.weight),
}
METADATA = {
    "nothing": lambda m, x: 0,
    "dtype": lambda m, x: torch.zeros((), dtype=m.first.weight.dtype, device=m.first.weight.device),
    "shape": lambda m, x: m.first.weight.shape[0] + m.first.weight.size(1) + m.first.weight.numel(),
    "type of inputs": lambda m, x: x.to(m.first.weight.dtype).mean(),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_a_read_is_seen(read):
    assert trace(Reading(read), torch.randn(3, 12), ["first", "second"]).read == {"first"}


@pytest.mark.parametrize("look", METADATA.values(), ids=METADATA)
def test_metadata_is_no_read(look):
    assert trace(Reading(look), torch.randn(3, 12), ["first", "second"]).read == set()


def test_a_tie_between_modules_is_no_read():
    model = nn.Sequential(nn.Embedding(10, 6), nn.Linear(6, 10, bias=False))
    model[1].weight = model[0].weight
    assert trace(model, torch.randint(10, (2, 3)), ["1"]).read == set()


@pytest.mark.parametrize("budget", [{"params": 0.7}, {"macs": 0.7}], ids=str)
def test_such_a_layer_stays_dense_with_the_reason_unless_it_is_named(budget):
    model, x = Reading(READS["tied by hand"]), torch.randn(3, 12)
    model.second = nn.Linear(8, 12)
    with pytest.raises(tenfold.BudgetError, match="its weight is read outside its own forward"):
        tenfold.plan(model, tenfold.SVD(), tenfold.Budget(params=0.55), example_inputs=x)
    try:
        plan = tenfold.plan(model, tenfold.SVD(), tenfold.Budget(**budget), example_inputs=x)
    except tenfold.BudgetError as error:
        assert "'first'" in str(error)  # noqa: PT017 - one of two right answers
    else:
        assert plan.layers["first"].decomposition == "dense"
        assert "name it in target_modules" in (plan.layers["first"].reason or "")
        assert tenfold.cost(tenfold.apply(model, plan), x).macs == plan.macs
    named = tenfold.plan(model, tenfold.SVD(), tenfold.Budget(params=0.75), example_inputs=x, target_modules=["first"])
    assert named.layers["first"].decomposition == "low-rank"
