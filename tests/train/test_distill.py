"""Knowledge distillation: the gradient is the one of the paper, and no teacher is no change."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from train_stubs import Plain, Recorder

from helpers import blobs, same_state, state
from nets import norm_dropout
from tenfold.errors import ArgumentError, CheckpointError
from tenfold.layers.output_loss import distillation
from tenfold.train import Recipe, batches, fit
from tenfold.train.run import stream

QUIET = {"progress": False}
RECIPE = Recipe(epochs=3, batch_size=8, lr=0.05, distill=0.3, temperature=2.0)


def teacher():
    """Another network, with weights of its own, in training mode, and with dropout."""
    torch.manual_seed(11)
    return nn.Sequential(nn.Flatten(), nn.Linear(72, 3), nn.Dropout(0.5), nn.BatchNorm1d(3))


def test_the_soft_loss_is_the_divergence_times_the_temperature_squared():
    z, t = torch.randn(2, 5, 4, dtype=torch.float64)
    p, q = (t / 3).softmax(1), (z / 3).softmax(1)
    by_hand = 9 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(distillation(z, t, 3.0), by_hand)
    assert float(distillation(t, t, 3.0)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize(("a", "temperature"), [(0.3, 2.0), (1.0, 4.0), (0.5, 1.0)])
def test_a_step_goes_down_the_gradient_computed_by_hand(a, temperature, accumulate):
    data, start, asked = blobs(), norm_dropout(norm=False), teacher().eval()
    recipe = Recipe(epochs=1, batch_size=len(data.train), lr=1.0, momentum=0, weight_decay=0, schedule="constant",
                    distill=a, temperature=temperature, label_smoothing=0.1, accumulate=accumulate)  # fmt: skip
    trained = fit(start, Plain(), data, recipe, teacher=asked, **QUIET).model
    order = torch.Generator().manual_seed(stream(0, "data", 1))
    ((x, y),) = batches(data.train, len(data.train), shuffle=True, generator=order)
    z, t = start(x), asked(x).detach()
    hard = z.softmax(1) - (0.9 * F.one_hot(y, 3) + 0.1 / 3)
    soft = temperature * ((z / temperature).softmax(1) - (t / temperature).softmax(1))
    gradients = torch.autograd.grad(z, list(start.parameters()), ((1 - a) * hard + a * soft).detach() / len(y))
    for before, after, gradient in zip(start.parameters(), trained.parameters(), gradients, strict=True):
        torch.testing.assert_close(before - after, gradient, rtol=1e-3, atol=1e-5)


def test_without_a_share_the_run_is_bitwise_the_one_without_a_teacher():
    recipe = Recipe(epochs=2, batch_size=8, lr=0.05, label_smoothing=0.1)
    one = fit(norm_dropout(dropout=0.3), Plain(), blobs(), recipe, **QUIET)
    two = fit(norm_dropout(dropout=0.3), Plain(), blobs(), recipe, teacher=teacher(), **QUIET)
    assert same_state(one.model, two.model)
    assert [row.loss for row in one.history] == [row.loss for row in two.history]


def test_the_teacher_is_asked_in_eval_mode_and_never_changed():
    asked = teacher()
    before = state(asked)
    one = fit(norm_dropout(), Plain(), blobs(), RECIPE, teacher=asked, **QUIET)
    assert same_state(asked, before)
    assert all(m.training for m in asked.modules())
    assert all(p.requires_grad and p.grad is None for p in asked.parameters())
    two = fit(norm_dropout(), Plain(), blobs(), RECIPE, teacher=asked.eval(), **QUIET)
    assert same_state(one.model, two.model)
    assert not same_state(
        one.model, fit(norm_dropout(), Plain(), blobs(), Recipe(epochs=3, batch_size=8), **QUIET).model
    )


def test_a_teacher_may_teach_a_copy_of_itself():
    model = norm_dropout()
    assert fit(model, Plain(), blobs(), RECIPE, teacher=model, **QUIET).history[-1].accuracy > 0.5


def test_a_closure_gives_the_same_training():
    closure = fit(norm_dropout(), Recorder(needs_closure=True), blobs(), RECIPE, teacher=teacher(), **QUIET)
    assert same_state(closure.model, fit(norm_dropout(), Recorder(), blobs(), RECIPE, teacher=teacher(), **QUIET).model)


def test_a_stopped_run_resumes_to_the_same_bits_with_the_same_teacher_only(tmp_path):
    straight = fit(norm_dropout(), Recorder(), blobs(), RECIPE, teacher=teacher(), **QUIET)
    steps = len(blobs().train) // 8
    with pytest.raises(KeyboardInterrupt):
        fit(norm_dropout(), Recorder(fail_at=steps + 1), blobs(), RECIPE, teacher=teacher(), out=tmp_path, **QUIET)
    other = teacher()
    other[1].bias.data.add_(1)
    with pytest.raises(CheckpointError, match=r"another run .*teacher"):
        fit(norm_dropout(), Recorder(), blobs(), RECIPE, teacher=other, out=tmp_path, resume=True, **QUIET)
    resumed = fit(norm_dropout(), Recorder(), blobs(), RECIPE, teacher=teacher(), out=tmp_path, resume=True, **QUIET)
    assert same_state(straight.model, resumed.model)


def test_a_record_from_before_there_was_a_teacher_is_the_same_recipe():
    recipe = Recipe()
    saved = {k: v for k, v in vars(recipe).items() if k not in ("distill", "temperature")}
    assert recipe.differences(saved | {"milestones": []}) == []


def test_what_cannot_be_is_refused():
    with pytest.raises(ArgumentError, match="`teacher` must be given where `distill` is above 0"):
        fit(norm_dropout(), Plain(), blobs(), RECIPE, **QUIET)
    with pytest.raises(ArgumentError, match=r"`teacher` must be a model with outputs \(8, 3\).*\(8, 4\)"):
        fit(norm_dropout(), Plain(), blobs(), RECIPE, teacher=norm_dropout(classes=4), **QUIET)
    for field, value in (("distill", 1.1), ("distill", -0.1), ("temperature", 0.0), ("temperature", float("inf"))):
        with pytest.raises(ArgumentError, match=f"`{field}` must be"):
            Recipe(**{field: value})
