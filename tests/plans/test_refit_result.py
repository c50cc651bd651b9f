"""The refit that compressions end with: by whatever method, the same as by hand, and shown."""

import pytest
import torch

import tenfold
from helpers import same_state, state
from nets import chain, image, labelled_images
from tenfold.errors import ArgumentError
from tenfold.layers.swap import structure_of

# A few images are enough for laws that hold of any.
pytestmark = pytest.mark.filterwarnings("ignore:.*tell enough")

METHODS = tenfold.list_methods()


def trained():
    torch.manual_seed(0)
    net = chain()
    net[1].running_mean.normal_()
    net[1].running_var.uniform_(0.5, 2)
    return net.eval()


def batches():
    return [torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(3)]


@pytest.mark.parametrize("factors", ["last", "both"])
@pytest.mark.parametrize("name", METHODS)
def test_every_methods_result_is_refitted_as_by_hand_towards_the_dense_outputs(name, factors):
    net, data = trained(), batches()
    budget = None if name == "dense" else tenfold.Budget(params=0.7)
    given = {"example_inputs": image(), "data": data, "target_modules": ".*"}
    kept = state(net)
    result = tenfold.compress(net, METHODS[name](), budget, refit=factors, **given)
    assert same_state(net, kept)
    if name == "dense":
        assert result.report.output_error == {}
        return
    error = result.report.output_error
    # Each layer comes nearer to its own outputs; what was made for the outputs of the network may lose a little there.
    assert error["refitted"] <= error["built"] * (1.1 if METHODS[name].needs_data else 1)
    assert result.report.seconds["refit"] > 0
    assert tenfold.cost(result.model, image()) == result.report.small
    assert "Error of the outputs: built" in str(result.report)
    by_hand = tenfold.compress(net, METHODS[name](), budget, norms="keep", **given).model
    tenfold.refit_(by_hand, net, data, factors=factors)
    assert same_state(by_hand, result.model)  # batch norm too keeps the statistics of the dense network
    again = tenfold.compress(net, METHODS[name](), budget, refit=factors, norms="reestimate", **given).model
    tenfold.reestimate_(by_hand, data)
    assert same_state(by_hand, again)


def test_the_error_is_that_of_the_outputs_and_is_not_there_where_nobody_asked():
    net, data = trained(), batches()
    result = tenfold.compress(net, tenfold.SVD(), tenfold.Budget(params=0.6), data=data, refit="both")
    with torch.no_grad():
        y, z = (torch.stack([model(x) for x in data]) for model in (net, result.model))
    by_hand = ((z - y).square().sum((1, 2)) / y.square().sum((1, 2))).mean()
    assert result.report.output_error["refitted"] == pytest.approx(by_hand.item(), rel=1e-5)
    bare = tenfold.compress(net, tenfold.SVD(), tenfold.Budget(params=0.6), data=data)
    assert bare.report.output_error == {}
    assert "refit" not in bare.report.seconds


def test_a_loader_that_shuffles_is_read_once_and_no_more_than_is_needed():
    read = []

    class Loader:
        def __iter__(self):
            for i in range(40):
                read.append(i)
                yield torch.randn(64, 3, 8, 8)

    tenfold.compress(trained(), tenfold.SVD(), tenfold.Budget(params=0.6), data=Loader(), refit="last")
    assert read == list(range(16))  # 1,024 examples


def test_a_run_finishes_refitted_and_goes_on_as_if_nothing_had_been_asked():
    run = tenfold.begin(trained(), tenfold.LRPET(every=1), tenfold.Budget(params=0.6), target_modules=".*")
    optimizer = run.optimizer(torch.optim.SGD, lr=0.01)
    x, y = labelled_images(0)
    torch.nn.functional.cross_entropy(run.model(x), y).backward()
    optimizer.step()
    kept = state(run.model)
    result = run.finish(data=batches(), refit="both")
    assert structure_of(result.model)
    assert result.report.output_error["refitted"] < result.report.output_error["built"]
    assert same_state(run.model, kept)


def test_a_refit_needs_data_that_last_and_a_word_that_is_known():
    net = trained()
    for way in (
        lambda **more: tenfold.compress(net, tenfold.SVD(), tenfold.Budget(params=0.6), **more),
        lambda **more: tenfold.begin(net, tenfold.Factors(), tenfold.Budget(params=0.6)).finish(**more),
    ):
        with pytest.raises(ArgumentError, match=r"`data` must be given for refit='both'.*no labels"):
            way(refit="both")
        with pytest.raises(ArgumentError, match="`refit` must be 'last', 'both' or None; got True"):
            way(refit=True, data=batches())
        with pytest.raises(ArgumentError, match="`data` is gone through twice"):
            way(refit="last", data=iter(batches()))
