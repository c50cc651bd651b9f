"""Streamed moments against numpy over outputs that are all kept, and against autograd's own gradients."""

import copy
import tracemalloc

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tenfold
from nets import Idle, Tied, UsedTwice, tokens
from tenfold.errors import DataError
from tenfold.plans.output_moments import collect
from tenfold.plans.problem import survey

BATCHES = (5, 5, 3)
LAYERS = {
    "conv": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (4, 7, 7)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2, bias=False), (4, 7, 7)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding_mode="circular", padding=1), (4, 9)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (4, 5, 5)),
    "linear": (lambda: nn.Linear(7, 6), (7,)),
    "linear with leading axes": (lambda: nn.Linear(7, 6), (3, 2, 7)),
}


def batches(shape, sizes=BATCHES):
    return [torch.randn(n, *shape, dtype=torch.float64) + 0.5 for n in sizes]


def seen(model, data, samples=10_000, **options):
    problem = survey(model.double(), data=data)
    return problem.moments(samples=samples, **options)


def explicit(outputs, bias, groups, axis):
    """``(g, positions, f')`` of all outputs together, the bias taken off."""
    rows = []
    for y in outputs:
        flat = np.moveaxis(y.detach().numpy(), axis, -1)
        flat = flat.reshape(-1, flat.shape[-1])
        rows.append(flat if bias is None else flat - bias.detach().numpy())
    return np.stack(np.split(np.concatenate(rows), groups, axis=1))


def check_moments(found, y):
    """Against `numpy`'s own mean, product and covariance, in the coordinates that are recorded."""
    assert found.positions == y.shape[1]
    if found.basis is not None:
        q = found.basis.numpy()
        np.testing.assert_allclose(
            q.swapaxes(1, 2) @ q, np.broadcast_to(np.eye(q.shape[2]), found.outer.shape), atol=1e-12
        )
        np.testing.assert_allclose(y @ q @ q.swapaxes(1, 2), y, rtol=1e-10, atol=1e-11)  # nothing is lost
        y = y @ q
    np.testing.assert_allclose(found.mean, y.mean(1), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found.second, np.einsum("gni,gnj->gij", y, y) / y.shape[1], rtol=1e-10, atol=1e-12)
    covariance = np.stack([np.atleast_2d(np.cov(part.T, bias=True)) for part in y])
    np.testing.assert_allclose(found.covariance, covariance, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS)
def test_moments_are_those_of_all_outputs_together_without_the_bias(make, shape):
    layer, data = make().double(), batches(shape)
    found = seen(nn.Sequential(layer), [(x, None) for x in data])["0"]
    axis = -1 if isinstance(layer, nn.Linear) else 1
    check_moments(found, explicit([layer(x) for x in data], layer.bias, getattr(layer, "groups", 1), axis))
    assert found.samples == sum(BATCHES)
    assert found.gradient is None


def test_a_layer_used_twice_counts_both_uses():
    model, data = UsedTwice().double(), batches((4, 6))
    first = [model.layer(x) for x in data]
    second = [model.layer(torch.relu(y)[:, :2]) for y in first]
    check_moments(seen(model, data)["layer"], explicit(first + second, model.layer.bias, 1, -1))


def test_layers_with_one_weight_are_seen_together_each_without_its_own_bias():
    model = Tied().double()
    data = [tokens(), tokens()]
    first = [model.first(model.table(t)) for t in data]
    second = [model.second(torch.relu(y)) for y in first]
    y = np.concatenate([explicit(first, model.first.bias, 1, -1), explicit(second, None, 1, -1)], axis=1)
    check_moments(seen(model, data)["first"], y)


@pytest.mark.parametrize("samples", [4, 5, 7, 13, 99])
def test_only_so_many_samples_are_used_even_if_that_cuts_a_batch(samples):
    model, data = nn.Sequential(nn.Linear(4, 3)).double(), batches((4,))
    found = seen(model, data, samples)["0"]
    used = min(samples, sum(BATCHES))
    assert found.samples == found.positions == used
    check_moments(found, explicit([model(torch.cat(data)[:used])], model[0].bias, 1, -1))


def test_no_batch_beyond_the_samples_is_asked_for():
    def endless():
        while True:
            yield torch.randn(4, 4, dtype=torch.float64)

    assert seen(nn.Sequential(nn.Linear(4, 3)), endless(), 10)["0"].samples == 10


def small_net(inplace=False):
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, groups=1),
        nn.ReLU(inplace=inplace),
        nn.Dropout(0.5, inplace=inplace),
        nn.Conv2d(5, 4, 3, bias=False),
        nn.ReLU(inplace=inplace),
        nn.Flatten(),
        nn.Linear(16, 3),
    ).double()


@pytest.mark.parametrize("inplace", [False, True])
def test_gradients_are_autograds_at_every_output_for_the_labels_that_were_drawn(inplace):
    data = batches((2, 6, 6))
    found = seen(small_net_at(0, inplace), data, gradients=True, seed=4)
    model, generator = small_net_at(0).eval(), torch.Generator().manual_seed(4)
    outputs = {"0": [], "3": [], "6": []}
    rows = {name: [] for name in outputs}
    for x in data:
        kept, h = {}, x
        for name, layer in model.named_children():
            h = layer(h)
            if name in outputs:
                kept[name] = h
                outputs[name].append(h)
        p = h.float().softmax(1)
        labels = torch.multinomial(p.detach(), 1, generator=generator)[:, 0]
        loss = -F.log_softmax(h.float(), 1)[torch.arange(len(x)), labels].sum()
        for name, g in zip(kept, torch.autograd.grad(loss, list(kept.values())), strict=True):
            rows[name].append(g.movedim(1, -1).reshape(-1, g.shape[1]))
    for name, parts in rows.items():
        g = torch.cat(parts).numpy()
        np.testing.assert_allclose(found[name].gradient[0], g.T @ g, rtol=1e-6, atol=1e-9)
        check_moments(found[name], explicit(outputs[name], model[int(name)].bias, 1, 1))


def small_net_at(seed, inplace=False):
    torch.manual_seed(seed)
    return small_net(inplace)


def test_gradients_of_a_sequence_of_logits_count_every_token():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    [x] = batches((5, 4), (6,))
    labels = torch.zeros(6, 5, dtype=torch.int64)  # they tell that the last axis has the classes, and no more
    found = seen(model, [(x, labels)], gradients=True, seed=1)["2"]
    logits = model(x).reshape(-1, 3)
    p = logits.float().softmax(1)
    labels = torch.multinomial(p.detach(), 1, generator=torch.Generator().manual_seed(1))[:, 0]
    g = (p - F.one_hot(labels, 3)).detach().double()
    torch.testing.assert_close(found.fisher[0], g.T @ g / 30, rtol=1e-6, atol=1e-8)


def test_the_labels_drawn_follow_the_models_own_distribution():
    """The mean of ``g g^T`` at the logits is ``diag(p) - p p^T``."""
    model = nn.Sequential(nn.Linear(3, 3)).double()
    x = torch.ones(20_000, 3, dtype=torch.float64)
    p = model(x[:1])[0].detach().softmax(0)
    found = seen(model, [x], samples=20_000, gradients=True)["0"].fisher[0]
    torch.testing.assert_close(found, torch.diag(p) - torch.outer(p, p), rtol=0, atol=0.01)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("train", [False, True])
def test_model_mode_hooks_and_random_state_are_as_before(gradients, train):
    model = small_net().train(train)
    model[0].weight.requires_grad_(False)
    before, copied = torch.get_rng_state(), copy.deepcopy(model.state_dict())
    data = batches((2, 6, 6))
    before = torch.get_rng_state()
    seen(model, data, gradients=gradients)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, copied[name]) for name, a in model.state_dict().items())
    assert all(m.training == train for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == [False, *[True] * 4]
    assert not any(m._forward_hooks for m in model.modules())


def test_gradients_do_not_depend_on_grad_mode_or_on_earlier_calls():
    data = batches((2, 6, 6))
    a = seen(small_net_at(0), data, gradients=True)["3"].gradient
    torch.randn(7)
    with torch.no_grad():
        b = seen(small_net_at(0), data, gradients=True)["3"].gradient
    assert torch.equal(a, b)


def test_memory_does_not_grow_with_the_data():
    model = nn.Sequential(nn.Conv2d(2, 5, 3)).double()

    def peak(count):
        tracemalloc.start()
        found = seen(model, (torch.ones(4, 2, 9, 9, dtype=torch.float64) for _ in range(count)))["0"]
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found.bytes, found.total.shape, found.outer.shape, used

    peak(2)
    short, long = peak(3), peak(200)
    assert short[:3] == long[:3] == (8 * (5 + 25), (1, 5), (1, 5, 5))
    assert long[3] < 2 * short[3] + 100_000  # what Python itself holds: no list of batches, no list of outputs


def test_no_batch_is_kept_alive():
    import weakref

    alive = []

    def stream():
        for _ in range(20):
            x = torch.randn(4, 2, 9, 9, dtype=torch.float64)
            alive.append(weakref.ref(x))
            yield x
            del x
            assert sum(r() is not None for r in alive) <= 2

    seen(nn.Sequential(nn.Conv2d(2, 5, 3)), stream())


def test_moments_are_collected_once_per_question():
    asked = []

    class Data:
        def __iter__(self):
            asked.append(1)
            return iter(batches((4,)))

    problem = survey(nn.Sequential(nn.Linear(4, 3)).double(), data=Data())
    first = problem.moments(samples=5)
    assert problem.moments(samples=5) is first
    problem.moments(samples=6)
    assert len(asked) == 2


# ---- what is refused


@pytest.mark.parametrize("data", [[], iter(()), (x for x in [])], ids=["list", "iterator", "generator"])
def test_empty_data_is_refused(data):
    with pytest.raises(DataError, match=r"`data` must hold at least one batch.*list or a DataLoader"):
        seen(nn.Sequential(nn.Linear(4, 3)), data)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_entries_that_are_not_finite_are_refused_by_the_number_of_their_batch(bad):
    data = batches((4,))
    data[1][2, 3] = bad
    with pytest.raises(DataError, match="`data` has NaN or infinite entries in batch 1"):
        seen(nn.Sequential(nn.Linear(4, 3)), data)


def test_outputs_that_overflow_are_refused_by_the_name_of_their_layer():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3)).double()
    with torch.no_grad():
        model[0].weight.fill_(1e200)
        model[1].weight.fill_(1e200)
    with pytest.raises(DataError, match="outputs of '1' on `data` are NaN or infinite"):
        seen(model, [torch.ones(2, 4, dtype=torch.float64)])


def test_a_layer_that_the_data_never_reaches_is_refused_by_name():
    with pytest.raises(DataError, match=r"never reaches the layer 'idle'.*exclude_modules"):
        seen(Idle(lambda: nn.Linear(4, 3)), batches((4,)))
    problem = survey(Idle(lambda: nn.Linear(4, 3)).double(), data=batches((4,)), exclude_modules=["idle"])
    assert list(problem.moments(samples=5)) == ["used"]


@pytest.mark.parametrize("width", [1, None])
def test_gradients_of_what_are_no_logits_are_refused(width):
    model = nn.Sequential(nn.Linear(4, width or 3), *([] if width else [nn.Flatten(0)]))
    with pytest.raises(DataError, match="output is logits"):
        seen(model, batches((4,)), gradients=True)


@pytest.mark.parametrize("data", [torch.ones(3, 4), [{"x": torch.ones(3, 4)}], ["text"]], ids=["tensor", "dict", "str"])
def test_what_are_no_batches_is_refused(data):
    with pytest.raises(DataError, match="`data` must"):
        seen(nn.Sequential(nn.Linear(4, 3)), data)


def test_hooks_are_gone_after_an_error_too():
    model = nn.Sequential(nn.Linear(4, 3)).double()
    with pytest.raises(DataError, match=r"on batch 0 its forward pass failed with RuntimeError: .*shapes"):
        seen(model, [torch.ones(2, 5, dtype=torch.float64)])
    assert not model[0]._forward_hooks


def test_collect_takes_the_layers_that_it_is_given():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)).double()
    spec = survey(model).sites[1].options
    found = collect(model, {"1": (spec, ["1"])}, batches((4,)), samples=4)
    assert list(found) == ["1"]
    assert isinstance(tenfold.DataError("x"), DataError)
