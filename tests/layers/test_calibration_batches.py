"""A batch means what example inputs mean, with a target beside it or without, wherever data is taken."""

from collections import UserDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tenfold
from tenfold.errors import DataError
from tenfold.layers.calibration_batches import Batch, calibration_batches
from tenfold.layers.model_outputs import logits_of, output_tensors, positions

X, M, Y = torch.arange(12.0).reshape(4, 3), torch.ones(4, 3), torch.arange(4)


class One(nn.Module):
    def forward(self, x):
        return x + 0


class Two(nn.Module):
    def forward(self, x, mask):
        return x * mask


class Perhaps(nn.Module):
    def forward(self, x, mask=None):
        return x if mask is None else x + mask.sum()


class Ignoring(nn.Module):
    def forward(self, x, mask=None):
        return x + 0


class Strict(nn.Module):
    def forward(self, x, mask=None):
        return x if mask is None else x @ mask.T.float() @ mask.float() + (1 / 0 if mask.ndim < 2 else 0)


class Lossy(nn.Module):
    def forward(self, x, targets=None):
        return x if targets is None else (x, x.sum())


class Free(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


READ = {
    "a tensor": (One(), X, ((X,), {}), None),
    "a pair": (One(), (X, Y), ((X,), {}), Y),
    "a pair as a list": (One(), [X, Y], ((X,), {}), Y),
    "one in a list": (One(), [X], ((X,), {}), None),
    "a triple for one input": (One(), (X, Y, M), ((X,), {}), (Y, M)),
    "labels that are no tensor": (One(), (X, ["a"] * 4), ((X,), {}), ["a"] * 4),
    "two inputs": (Two(), (X, M), ((X, M), {}), None),
    "two inputs and a target": (Two(), (X, M, Y), ((X, M), {}), Y),
    "nested inputs": (Two(), ((X, M), Y), ((X, M), {}), Y),
    "nested inputs of a collated list": (Two(), [[X, M], Y], ((X, M), {}), Y),
    "nested inputs without a target": (Perhaps(), ((X, M), None), ((X, M), {}), None),
    "nested input with a target": (Perhaps(), ((X,), Y), ((X,), {}), Y),
    "a dict": (Perhaps(), {"x": X, "mask": None}, ((), {"x": X, "mask": None}), None),
    "a dict of another kind": (Two(), UserDict(x=X, mask=M), ((), {"x": X, "mask": M}), None),
    "a dict with labels": (Two(), {"x": X, "mask": M, "labels": Y}, ((), {"x": X, "mask": M}), Y),
    "a dict whose labels the model takes": (Lossy(), {"x": X, "targets": Y}, ((), {"x": X, "targets": Y}), Y),
    "a dict and a target": (Two(), ({"x": X, "mask": M}, Y), ((), {"x": X, "mask": M}), Y),
    "a second that the model does not look at": (Ignoring(), (X, Y), ((X,), {}), Y),
    "a second that the model fails on": (Strict(), (X, Y), ((X,), {}), Y),
    "an argument for targets": (Lossy(), (X, Y), ((X,), {}), Y),
    "whatever, for one input": (Free(One()), (X, Y), ((X,), {}), Y),
    "whatever, for two inputs": (Free(Two()), (X, M), ((X, M), {}), None),
    "whatever, by name": (Free(Two()), {"x": X, "mask": M}, ((), {"x": X, "mask": M}), None),
}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize(("model", "batch", "call", "target"), READ.values(), ids=READ)
def test_a_batch_is_a_call_and_a_target(model, batch, call, target) -> None:
    first, second = calibration_batches(model.train(), [batch, batch])
    for number, found in enumerate((first, second)):
        assert same((found.args, dict(found.kwargs)), call)
        assert same(found.target, target)
        assert (found.number, len(found)) == (number, 4)
    assert model.training
    found.run(model)


REFUSED = {
    "two inputs or one": (
        Perhaps(),
        [(X, M)],
        r"is ambiguous: of a tuple of 2, forward\(x, mask=None\).*Write \(\(x, ",
    ),
    "too many": (Two(), [X], None),
    "too few": (Two(), [(X,)], r"as many inputs as the model takes: forward\(x, mask\) does not fit batch 0"),
    "nothing": (One(), [()], "batch 0 is empty"),
    "text": (One(), ["text"], "batch 0 is a str"),
    "an array": (One(), [X.numpy()], "batch 0 is a ndarray"),
    "a strange key": (Two(), [{"x": X, "mask": M, "id": Y}], r"does not take 'id' of batch 0"),
    "keys that are no names": (Two(), [{0: X}], "names for keys"),
    "one tensor": (One(), X, r"not one tensor \(4, 3\)"),
    "one dict": (Two(), {"x": X, "mask": M}, r"an iterable of batches; got a dict. Pass \[batch\]"),
    "a number": (One(), 3, "an iterable of batches; got a int"),
    "NaN": (Two(), [(X, M), (X, M * float("nan"))], "NaN or infinite entries in batch 1"),
    "infinity": (One(), [X / 0], "NaN or infinite entries in batch 0"),
}


@pytest.mark.parametrize(("model", "data", "says"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_batch_or_ambiguous_is_refused_by_one_sentence(model, data, says) -> None:
    with pytest.raises(DataError, match=f"`data`.*{says or 'on batch 0 its forward pass failed with TypeError'}"):
        [batch.run(model) for batch in calibration_batches(model, data)]


def test_a_mask_may_hold_infinities() -> None:
    [batch] = calibration_batches(Two(), [(X, M * -float("inf"))])
    assert len(batch.args) == 2


def test_a_question_that_the_first_batch_left_open_is_not_asked_later() -> None:
    with pytest.raises(DataError, match="batch 1 has 2 entries, unlike the first"):
        list(calibration_batches(Perhaps(), [X, (X, M)]))


def test_trying_leaves_model_batch_and_generators_alone() -> None:
    class Writing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.drop = nn.BatchNorm1d(3), nn.Dropout()

        def forward(self, x, mask=None):
            x.mul_(2)
            return self.drop(self.norm(x)) + torch.rand(())

    model, x = Writing().train(), X.clone()
    before, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    [batch] = calibration_batches(model, [(x, Y)])
    assert torch.equal(x, X)
    assert torch.equal(batch.target, Y)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(m.training for m in model.modules())
    assert torch.equal(torch.get_rng_state(), random)


def test_a_batch_is_cut_along_its_examples_or_not_at_all() -> None:
    batch = Batch(0, (X, 3), {"mask": M}, Y).first(3)
    assert [len(batch), len(batch.kwargs["mask"]), len(batch.target), batch.args[1]] == [3, 3, 3, 3]
    whole = Batch(0, (X, torch.ones(3, 3)), {}, Y)
    assert whole.first(2) is whole
    assert whole.first(9) is whole


# ---- every door


class Net(nn.Module):
    """Batch norm and three layers, of which the second input shifts one."""

    def __init__(self, output=None) -> None:
        super().__init__()
        self.a, self.n, self.b = nn.Linear(12, 24), nn.BatchNorm1d(24), nn.Linear(24, 10)
        self.output = output or (lambda y: y)

    def forward(self, x, shift=None):
        y = self.a(x) if shift is None else self.a(x) + shift[:, None]
        return self.output(self.b(self.n(y).relu()))


def entries(n=3) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 12, generator=g), torch.randn(8, generator=g)) for _ in range(n)]


FORMS = {
    "nested": lambda x, shift: ((x, shift), None),
    "nested, labels": lambda x, shift: ([x, shift], torch.zeros(8, dtype=torch.int64)),
    "dict": lambda x, shift: {"x": x, "shift": shift},
    "dict, labels": lambda x, shift: {"x": x, "shift": shift, "label": torch.zeros(8, dtype=torch.int64)},
    "triple": lambda x, shift: (x, shift, torch.zeros(8, dtype=torch.int64)),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_all_forms_give_the_same_statistics_moments_and_models(form) -> None:
    model = Net()
    data = [form(*entry) for entry in entries()]
    plain = nn.Sequential(model.a)
    y = torch.cat([plain(x) + shift[:, None] for x, shift in entries()]).detach()
    again = Net()
    again.load_state_dict(model.state_dict())
    tenfold.reestimate_(again, data)
    torch.testing.assert_close(again.n.running_mean, y.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(again.n.running_var, y.var(0), rtol=1e-5, atol=1e-6)
    reference = [((x, shift), torch.zeros(8, dtype=torch.int64)) for x, shift in entries()]
    for method in (tenfold.SVD(), tenfold.PCA(), tenfold.ActivationSVD(), tenfold.FisherSVD()):
        a, b = (tenfold.compress(model, method, tenfold.Budget(params=0.7), data=d).model for d in (data, reference))
        for (name, p), q in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
            torch.testing.assert_close(p, q, msg=name)


def test_a_norm_that_is_called_by_name_is_counted() -> None:
    class ByName(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.n = nn.BatchNorm1d(3)

        def forward(self, x):
            return self.n(input=x)

    net = ByName()
    tenfold.reestimate_(net, [X])
    torch.testing.assert_close(net.n.running_mean, X.mean(0))


# ---- outputs


def test_maps_have_positions_and_vectors_and_sequences_are_one() -> None:
    maps = torch.zeros(2, 3, 4, 5)
    assert positions(maps) == 20
    assert positions({"small": maps[..., :2, :2], "large": maps, "vector": X}) == 20
    assert positions(torch.zeros(2, 3, 4, 5, 6)) == 120
    assert positions(torch.zeros(2, 7, 3)) == positions(torch.zeros(2, 3)) == positions(()) == 1


def test_tensors_are_found_in_tuples_dicts_and_dataclasses() -> None:
    modeling = pytest.importorskip("transformers.modeling_outputs")
    output = modeling.SequenceClassifierOutput(loss=None, logits=X, hidden_states=(M, Y))
    assert [t is u for t, u in zip(output_tensors(output), (X, M, Y), strict=True)] == [True] * 3
    assert logits_of(output) is X
    assert logits_of({"logits": X, "aux": M}) is X
    assert logits_of(X) is X
    assert logits_of({"out": X}) is None
    assert logits_of((X, M)) is None
