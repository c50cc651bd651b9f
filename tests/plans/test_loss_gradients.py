"""Which loss, along which axis: from labels or tokens where it is certain, from the user, or not at all."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tenfold
from tenfold.errors import ArgumentError, DataError
from tenfold.layers.calibration_batches import Batch
from tenfold.plans.loss_gradients import class_axis, total_loss

X = torch.zeros(4, 2)


def axis(shape, labels=None, inputs=X) -> int:
    return class_axis(torch.randn(shape), Batch(0, (inputs,), {}, labels))


def labels(*shape, classes=3):
    return torch.arange(classes).repeat(100)[: torch.Size(shape).numel()].reshape(shape)


CERTAIN = {
    "a classifier": ((4, 3), None, X, 1),
    "its labels": ((4, 3), labels(4), X, 1),
    "its labels, in a column": ((4, 3), labels(4, 1), X, 1),
    "its labels, as whole floats": ((4, 3), labels(4).double(), X, 1),
    "dense prediction": ((4, 3, 5, 6), labels(4, 5, 6), X, 1),
    "dense prediction, some left out": ((4, 3, 5, 6), labels(4, 5, 6) - 100 * (labels(4, 5, 6) == 0), X, 1),
    "dense prediction, last": ((4, 5, 6, 3), labels(4, 5, 6), X, 3),
    "a sequence": ((4, 3, 7), labels(4, 7), X, 1),
    "a sequence of tokens with labels": ((4, 7, 3), labels(4, 7), X, 2),
    "a sequence of tokens": ((4, 7, 3), None, torch.zeros(4, 7, dtype=torch.int64), 2),
}
UNCERTAIN = {
    "dense prediction or an image": ((4, 3, 5, 6), None, X),
    "a sequence of anything": ((4, 7, 3), None, X),
    "as many tokens as classes": ((4, 3, 3), None, torch.zeros(4, 3, dtype=torch.int64)),
    "as many positions as classes": ((4, 3, 3), labels(4, 3), X),
    "regression": ((4, 3), torch.randn(4, 3), X),
    "regression of images": ((4, 3, 5, 6), torch.randn(4, 3, 5, 6), X),
    "labels that are none": ((4, 3), torch.tensor([0.5, 1, 2, 0]), X),
    "labels from 1": ((4, 3), labels(4) + 1, X),
    "yes or no": ((4, 3), labels(4) > 0, X),
}


@pytest.mark.parametrize(("shape", "target", "inputs", "expected"), CERTAIN.values(), ids=CERTAIN)
def test_the_axis_of_the_classes_is_told_by_labels_or_tokens(shape, target, inputs, expected) -> None:
    assert axis(shape, target, inputs) == expected


@pytest.mark.parametrize(("shape", "target", "inputs"), UNCERTAIN.values(), ids=UNCERTAIN)
def test_what_is_not_certain_is_refused_and_the_remedy_named(shape, target, inputs) -> None:
    with pytest.raises(DataError, match=r"FisherSVD\(loss=\.\.\.\)"):
        axis(shape, target, inputs)


def test_the_drawn_loss_is_torchs_along_that_axis_and_leaves_out_what_is_ignored() -> None:
    logits, target = torch.randn(4, 3, 5, 6, requires_grad=True), labels(4, 5, 6).clone()
    target[0, 0] = -100
    g = torch.Generator().manual_seed(3)
    found = total_loss(logits, Batch(0, (X,), {}, target), None, g)
    flat = logits.permute(0, 2, 3, 1).reshape(-1, 3)
    drawn = torch.multinomial(flat.detach().softmax(1), 1, generator=torch.Generator().manual_seed(3))[:, 0]
    drawn = torch.where(target.flatten() == -100, -100, drawn).reshape(4, 5, 6)
    torch.testing.assert_close(found, F.cross_entropy(logits, drawn, reduction="sum"))


def test_probabilities_are_no_logits() -> None:
    p = torch.randn(4, 3).softmax(1).requires_grad_()
    with pytest.raises(DataError, match="are probabilities"):
        total_loss(p, Batch(0, (X,), {}), None, torch.Generator())


@pytest.mark.parametrize("output", [(X, X), {"out": X}, "text", X], ids=["tuple", "dict", "text", "no gradient"])
def test_outputs_without_logits_are_refused(output) -> None:
    with pytest.raises(DataError, match="whose output is logits"):
        total_loss(output, Batch(0, (X,), {}), None, torch.Generator())


# ---- the user's loss


def squared(output, target):
    return F.mse_loss(output, target)


def to_itself(output, inputs):
    return F.mse_loss(output, inputs)


def regression() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6)).double()


def test_the_metric_is_the_second_moment_of_the_given_losss_gradient() -> None:
    model = regression()
    data = [(torch.randn(n, 6, dtype=torch.float64), torch.randn(n, 6, dtype=torch.float64)) for n in (5, 3)]
    problem = tenfold.survey(model, data=data)
    found = problem.moments(samples=100, gradients=True, loss=squared)["2"].gradient[0]
    rows = torch.cat([2 * (model(x) - y) / 6 for x, y in data]).detach()  # of each example's own mean over 6 outputs
    torch.testing.assert_close(found, rows.T @ rows)
    other = problem.moments(samples=100, gradients=True, loss=to_itself)["2"].gradient[0]
    rows = torch.cat([2 * (model(x) - x) / 6 for x, _ in data]).detach()
    assert not torch.allclose(other, rows.T @ rows)  # the target goes to the loss, if there is one


def test_without_a_target_the_loss_is_given_the_inputs() -> None:
    model, x = regression(), torch.randn(7, 6, dtype=torch.float64)
    found = tenfold.survey(model, data=[x]).moments(samples=9, gradients=True, loss=to_itself)["2"].gradient[0]
    rows = (2 * (model(x) - x) / 6).detach()
    torch.testing.assert_close(found, rows.T @ rows)


def test_fisher_svd_compresses_a_regression_by_its_loss_and_refuses_it_without() -> None:
    model = regression()
    data = [(torch.randn(20, 6, dtype=torch.float64), torch.randn(20, 6, dtype=torch.float64))]
    with pytest.raises(DataError, match="that they number from 0: pass FisherSVD"):
        tenfold.compress(model, tenfold.FisherSVD(), tenfold.Budget(params=0.8), data=data)
    result = tenfold.compress(model, tenfold.FisherSVD(loss=squared), tenfold.Budget(params=0.8), data=data)
    assert result.plan.compresses


@pytest.mark.parametrize("loss", [lambda o, t: o, lambda o, t: 1.0, lambda o, t: o.detach().sum()])
def test_a_loss_that_is_no_scalar_with_a_gradient_is_refused(loss) -> None:
    data = [torch.randn(5, 6, dtype=torch.float64)]
    with pytest.raises(DataError, match="`loss` must return a scalar tensor"):
        tenfold.compress(regression(), tenfold.FisherSVD(loss=loss), tenfold.Budget(params=0.8), data=data)


def test_a_loss_is_written_as_its_name_and_found_again() -> None:
    for loss, name in ((squared, f"{__name__}:squared"), (F.mse_loss, "torch.nn.functional:mse_loss")):
        body = json.loads(json.dumps(tenfold.FisherSVD(loss=loss).to_dict()))
        assert body["loss"] == name
        assert tenfold.FisherSVD(**{k: v for k, v in body.items() if k != "method"}) == tenfold.FisherSVD(loss=loss)


@pytest.mark.parametrize("loss", [lambda o, t: o.sum(), nn.MSELoss()], ids=["lambda", "module"])
def test_a_loss_without_a_name_is_refused_when_it_is_written(loss) -> None:
    with pytest.raises(ArgumentError, match="`loss` must be a function at the top of a module"):
        tenfold.FisherSVD(loss=loss).to_dict()


def test_a_name_imports_nothing() -> None:
    import sys

    method = tenfold.FisherSVD(loss="this.module.is.not_there:loss")
    with pytest.raises(ArgumentError, match="a module that is not imported"):
        tenfold.compress(regression(), method, tenfold.Budget(params=0.8), data=[torch.randn(5, 6).double()])
    assert not any(name.startswith("this.module") for name in sys.modules)
    for wrong in ("mse_loss", "torch.nn.functional:no_such_loss", "torch:a-b", ":x"):
        with pytest.raises(ArgumentError, match="`loss` must be"):
            tenfold.FisherSVD(loss=wrong)
