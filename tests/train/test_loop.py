"""The loop: what it computes, that seeds fix it, that a stopped run resumes to the same bits."""

import math
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from train_stubs import Counting, Plain, Recorder

from helpers import blobs, same_state, state
from nets import norm_dropout
from tenfold.errors import ArgumentError, CheckpointError, TenfoldError, TenfoldWarning
from tenfold.train import Recipe, batches, build_model, evaluate, fit, load_data
from tenfold.train.data.augment import crop_flip
from tenfold.train.engine import engine
from tenfold.train.run import Run, stream
from tenfold.train.schedule import linear, scheduler

QUIET = {"progress": False}
RECIPE = Recipe(epochs=4, batch_size=8, lr=0.05, augment="crop-flip", clip_norm=1.0, label_smoothing=0.1, warmup=1.0)


def test_the_loop_is_plain_sgd_with_momentum_decay_smoothing_and_clipping():
    data, recipe = blobs(), RECIPE
    trained = fit(norm_dropout(), Plain(), data, recipe, **QUIET).model
    model = norm_dropout()
    steps = len(data.train) // 8
    velocity = [torch.zeros_like(p) for p in model.parameters()]
    for epoch in range(1, 5):
        order = torch.Generator().manual_seed(stream(0, "data", epoch))
        loader = batches(data.train, 8, shuffle=True, generator=order, augment=crop_flip, drop_last=True)
        for i, (x, y) in enumerate(loader):
            t = epoch - 1 + (i + 0.5) / steps
            rate = 0.05 * min(1, t) * (1 + math.cos(math.pi * t / 4)) / 2
            log = F.log_softmax(model(x), 1)
            target = 0.9 * F.one_hot(y, 3) + 0.1 / 3
            gradient = torch.autograd.grad(-(target * log).sum(1).mean(), list(model.parameters()))
            norm = torch.sqrt(sum((g**2).sum() for g in gradient))
            factor = min(1.0, 1 / (float(norm) + 1e-6))
            with torch.no_grad():
                for p, g, v in zip(model.parameters(), gradient, velocity, strict=True):
                    v.mul_(0.9).add_(factor * g + 1e-4 * p)
                    p.sub_(rate * v)
    for mine, theirs in zip(trained.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_the_seed_fixes_the_run_and_the_world_outside_is_left_alone():
    data, model = blobs(), norm_dropout(dropout=0.3)
    before = state(model)
    torch.manual_seed(1)
    one = fit(model, Plain(), data, RECIPE, **QUIET)
    after = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(3))  # the global generator stands where it stood
    torch.manual_seed(2)
    two = fit(model, Plain(), data, RECIPE, **QUIET)
    other = fit(model, Plain(), data, Recipe(epochs=4, batch_size=8, lr=0.05, seed=1), **QUIET)
    assert same_state(one.model, two.model)
    assert not same_state(one.model, other.model)
    assert same_state(model, before)
    assert not any(name.startswith("_is_accelerate") or name == "forward" for name in vars(one.model))


def test_parts_of_a_batch_give_the_gradient_of_the_whole():
    data = blobs()
    recipe = {"epochs": 2, "batch_size": 12, "lr": 0.05, "clip_norm": 0.5}
    whole = fit(norm_dropout(norm=False), Plain(), data, Recipe(**recipe), **QUIET)
    parts = fit(norm_dropout(norm=False), Plain(), data, Recipe(**recipe, accumulate=5), **QUIET)  # 3 + 3 + 3 + 3
    uneven = fit(norm_dropout(norm=False), Plain(), data, Recipe(**recipe, accumulate=8), **QUIET)
    for a, b, c in zip(whole.model.parameters(), parts.model.parameters(), uneven.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(a, c, rtol=1e-4, atol=1e-6)
    assert whole.history[-1].loss == pytest.approx(parts.history[-1].loss, rel=1e-4)


@pytest.mark.parametrize("closure", [False, True])
def test_one_optimizer_step_per_batch_at_the_rates_of_the_schedule(closure):
    data = blobs()
    method = Recorder(needs_closure=closure)
    recipe = Recipe(epochs=3, batch_size=9, lr=0.2, schedule="multistep", milestones=(1,), accumulate=2)
    history = fit(norm_dropout(), method, data, recipe, **QUIET).history
    steps, rest = divmod(len(data.train), 9)
    assert rest  # the smaller last batch is left out
    assert method.made.closures == [closure] * 3 * steps
    assert method.made.rates == pytest.approx([0.2] * steps + [0.02] * 2 * steps)
    assert [row.lr for row in history] == pytest.approx([0.2, 0.02, 0.02])


def test_a_closure_gives_the_same_training():
    plain = fit(norm_dropout(), Recorder(), blobs(), RECIPE, **QUIET)
    closure = fit(norm_dropout(), Recorder(needs_closure=True), blobs(), RECIPE, **QUIET)
    assert same_state(plain.model, closure.model)
    assert plain.history[-1].accuracy == closure.history[-1].accuracy


def test_retraining_uses_the_end_of_the_schedule():
    data, method = blobs(), Recorder()
    whole = Recipe(epochs=4, batch_size=8, lr=0.2, schedule="linear")
    history = fit(norm_dropout(), method, data, whole, **QUIET).history
    rates = method.made.rates
    assert [row.lr for row in history] == rates[len(rates) // 4 - 1 :: len(rates) // 4]
    fit(norm_dropout(), method, data, whole.rewound(2), **QUIET)
    assert method.made.rates == pytest.approx(rates[len(rates) // 2 :])


def test_a_model_in_evaluation_mode_is_trained_in_training_mode():
    recipe = Recipe(epochs=1, batch_size=8, lr=0.05)
    assert same_state(
        fit(norm_dropout().eval(), Plain(), blobs(), recipe, **QUIET).model,
        fit(norm_dropout(), Plain(), blobs(), recipe, **QUIET).model,
    )


def test_a_data_set_smaller_than_the_batch_is_one_batch():
    method = Recorder()
    fit(norm_dropout(), method, blobs(), Recipe(epochs=2, batch_size=1000, lr=0.05), **QUIET)
    assert len(method.made.rates) == 2


def test_history_reports_the_validation_of_the_model_returned():
    data = blobs()
    result = fit(norm_dropout(), Plain(), data, Recipe(epochs=3, batch_size=8, lr=0.05), **QUIET)
    last = result.history[-1]
    score = evaluate(result.model, data.validation)
    assert (last.validation_loss, last.validation_accuracy) == (score.loss, score.accuracy)
    assert [row.epoch for row in result.history] == [1, 2, 3]
    assert result.seconds == sum(row.seconds for row in result.history) > 0
    assert last.throughput > 0


def test_the_figures_of_an_epoch_are_means_over_its_examples():
    data = blobs()
    frozen = Recipe(epochs=1, batch_size=len(data.train), lr=1e-12, momentum=0.0)
    row = fit(norm_dropout(norm=False), Plain(), data, frozen, **QUIET).history[0]
    score = evaluate(norm_dropout(norm=False), data.train)
    assert (row.loss, row.accuracy) == (pytest.approx(score.loss, rel=1e-5), score.accuracy)


def test_evaluate_equals_a_computation_in_numpy_and_restores_the_modes():
    model, split = norm_dropout(dropout=0.5), blobs().test
    model[1].eval()
    before = [module.training for module in model.modules()]
    score = evaluate(model, split, batch_size=7)
    assert [module.training for module in model.modules()] == before
    model.eval()
    x = (split.x.float() - torch.tensor(split.mean)[:, None, None]) / torch.tensor(split.std)[:, None, None]
    logits = model(x).detach().double().numpy()
    log = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    y = split.y.numpy()
    assert score.loss == pytest.approx(-log[np.arange(len(y)), y].mean(), rel=1e-6)
    assert score.accuracy == (logits.argmax(1) == y).mean()


def test_bf16_trains_and_the_precision_of_one_run_is_not_that_of_the_next():
    data = blobs()
    recipe = {"epochs": 2, "batch_size": 8, "lr": 0.05}
    full = fit(norm_dropout(), Plain(), data, Recipe(**recipe), **QUIET)
    half = fit(norm_dropout(), Plain(), data, Recipe(**recipe, precision="bf16"), **QUIET)
    again = fit(norm_dropout(), Plain(), data, Recipe(**recipe), **QUIET)
    assert same_state(full.model, again.model)
    assert not same_state(full.model, half.model)
    assert all(p.dtype == torch.float32 for p in half.model.parameters())
    assert half.history[-1].loss == pytest.approx(full.history[-1].loss, rel=0.1)


def test_the_users_own_accelerator_is_as_it_was_after_a_run():
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
    fit(norm_dropout(), Plain(), blobs(), Recipe(epochs=1), **QUIET)
    own = Accelerator(mixed_precision="bf16")  # Accelerate refuses a second precision in a process
    fit(norm_dropout(), Plain(), blobs(), Recipe(epochs=1), **QUIET)
    assert own.mixed_precision == "bf16"
    AcceleratorState._reset_state()


@pytest.mark.skipif(torch.cuda.is_available(), reason="fp16 works here")
def test_fp16_without_a_gpu_is_refused_in_a_sentence():
    with pytest.raises(TenfoldError, match=r"`precision` must be one that this device can do; got 'fp16'"):
        fit(norm_dropout(), Plain(), blobs(), Recipe(epochs=1, precision="fp16"), **QUIET)


def test_a_step_that_the_scaler_skips_does_not_happen_and_does_not_count():
    model, data = norm_dropout(norm=False), blobs()
    x, y = next(iter(batches(data.train, 8)))
    with engine("no") as accelerator:
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)  # what fp16 has on a GPU
        optimizer = Counting(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.0)
        rates = scheduler(optimizer, linear(10), 1)
        wrapped = accelerator.prepare_optimizer(optimizer, device_placement=False)
        run = Run(Recipe(), accelerator, model, wrapped, rates, closure=False)
        run.step(x, y, "step 1")
        before = [p.clone() for p in model.parameters()]
        overflow = model[0].weight.register_hook(lambda g: g * math.inf)
        run.step(x, y, "step 2")
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        overflow.remove()
        run.step(x, y, "step 3")
    assert not torch.equal(before[0], model[0].weight)
    assert optimizer.rates == pytest.approx([0.095, 0.085])
    assert run.parts.others["scaler"].state_dict()["scale"] == 2.0


# ---- stopping and resuming


def test_interrupted_and_resumed_is_bitwise_the_straight_run(tmp_path):
    data = blobs()
    straight = fit(norm_dropout(dropout=0.2), Recorder(), data, RECIPE, **QUIET)
    steps = len(data.train) // 8
    with pytest.raises(KeyboardInterrupt):  # in the middle of the third epoch
        fit(norm_dropout(dropout=0.2), Recorder(fail_at=2 * steps + 3), data, RECIPE, out=tmp_path, **QUIET)
    torch.manual_seed(99)
    resumed = fit(norm_dropout(dropout=0.2), Recorder(), blobs(), RECIPE, out=tmp_path, resume=True, **QUIET)
    assert same_state(straight.model, resumed.model)
    figures = [(row.epoch, row.lr, row.loss, row.validation_loss) for row in straight.history]
    assert [(row.epoch, row.lr, row.loss, row.validation_loss) for row in resumed.history] == figures


def test_two_epochs_and_two_more_are_four_where_the_schedule_does_not_know_the_end(tmp_path):
    recipe = {"batch_size": 8, "lr": 0.05, "schedule": "multistep", "milestones": (1, 3)}
    straight = fit(norm_dropout(), Plain(), blobs(), Recipe(epochs=4, **recipe), **QUIET)
    fit(norm_dropout(), Plain(), blobs(), Recipe(epochs=2, **recipe), out=tmp_path, **QUIET)
    resumed = fit(norm_dropout(), Plain(), blobs(), Recipe(epochs=4, **recipe), out=tmp_path, resume=True, **QUIET)
    assert same_state(straight.model, resumed.model)


def test_a_finished_run_is_returned_with_a_word(tmp_path):
    data, recipe = blobs(), Recipe(epochs=2, batch_size=8, lr=0.05)
    first = fit(norm_dropout(), Plain(), data, recipe, out=tmp_path, **QUIET)
    stamp = (tmp_path / "checkpoint" / "run.json").stat().st_mtime_ns
    with pytest.warns(TenfoldWarning, match="a finished run of 2 epochs"):
        again = fit(norm_dropout(), Plain(), data, recipe, out=tmp_path, resume=True, **QUIET)
    assert same_state(first.model, again.model)
    assert again.history == first.history
    assert (tmp_path / "checkpoint" / "run.json").stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"recipe": {"lr": 0.1}}, r"`lr`: 0.05 -> 0.1"),
        ({"recipe": {"epochs": 3}}, r"`epochs`: 2 -> 3"),  # the cosine would have been another
        ({"method": Plain("other")}, r"method: Plain\(name='plain'\) -> Plain\(name='other'\)"),
        ({"data": blobs(seed=1)}, r"data: blobs"),
        ({"model": norm_dropout(channels=2, classes=4)}, r"does not fit this model.*size mismatch"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(72, 3))}, r"does not fit this model"),
    ],
)
def test_another_runs_checkpoint_is_refused(tmp_path, change, says):
    recipe = {"epochs": 2, "batch_size": 8, "lr": 0.05}
    fit(norm_dropout(), Plain(), blobs(), Recipe(**recipe), out=tmp_path, **QUIET)
    with pytest.raises(CheckpointError, match=says):
        fit(
            change.get("model", norm_dropout()),
            change.get("method", Plain()),
            change.get("data", blobs()),
            Recipe(**{**recipe, **change.get("recipe", {})}),
            out=tmp_path,
            resume=True,
            **QUIET,
        )


def test_a_loss_that_is_not_finite_names_the_step_and_keeps_the_checkpoint(tmp_path):
    data, recipe = blobs(), Recipe(epochs=1, batch_size=8, lr=0.05, schedule="constant")
    fit(norm_dropout(), Plain(), data, recipe, out=tmp_path, **QUIET)
    kept = (tmp_path / "checkpoint" / "run.json").read_bytes()
    wild = norm_dropout(norm=False)
    with torch.no_grad():
        wild[6].weight[0, 0] = math.nan
    with pytest.raises(TenfoldError, match=r"The loss is nan in epoch 1, step 1 of \d+.*smaller `lr`"):
        fit(wild, Plain(), data, recipe, out=tmp_path, **QUIET)
    assert (tmp_path / "checkpoint" / "run.json").read_bytes() == kept


def test_resume_and_tensorboard_need_a_folder():
    for option in ("resume", "tensorboard"):
        with pytest.raises(ArgumentError, match="`out` must be given"):
            fit(norm_dropout(), Plain(), blobs(), Recipe(epochs=1), **{option: True}, **QUIET)


def test_resume_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="There is no checkpoint in"):
        fit(norm_dropout(), Plain(), blobs(), Recipe(epochs=1), out=tmp_path, resume=True, **QUIET)


# ---- the surroundings


def test_missing_accelerate_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(TenfoldError, match=r"pip install 'tenfold\[train\]'"):
        fit(norm_dropout(), Plain(), blobs(), Recipe(epochs=1), **QUIET)


def test_tensorboard_gets_the_history(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = Recipe(epochs=2, batch_size=8, lr=0.05)
    history = fit(norm_dropout(), Plain(), blobs(), recipe, out=tmp_path, tensorboard=True, **QUIET).history
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [e.value for e in events.Scalars("loss")] == pytest.approx([row.loss for row in history])
    assert [e.step for e in events.Scalars("validation_accuracy")] == [1, 2]


def test_the_bar_shows_the_figures_on_a_terminal_only(monkeypatch, capfd):
    recipe = Recipe(epochs=2, batch_size=8, lr=0.05)
    fit(norm_dropout(), Plain(), blobs(), recipe)
    assert capfd.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes this for a terminal
    monkeypatch.setenv("COLUMNS", "200")
    fit(norm_dropout(), Plain(), blobs(), recipe)
    out, err = capfd.readouterr()
    assert out == ""
    assert all(word in err for word in ("epoch", "loss", "accuracy", "examples/s"))
    fit(norm_dropout(), Plain(), blobs(), recipe, progress=False)
    assert capfd.readouterr().err == ""


def test_the_small_network_learns_the_digits():
    data = load_data("digits")
    torch.manual_seed(0)
    model = build_model("cnn", data.classes, data.channels, data.size)
    result = fit(model, Plain(), data, Recipe(epochs=8, augment="crop"), **QUIET)
    assert evaluate(result.model, data.test).accuracy > 0.97


def test_the_method_is_told_how_long_the_training_is() -> None:
    method = Recorder()
    fit(norm_dropout(), method, blobs(), RECIPE, progress=False)
    assert method.goal.steps == len(method.made.rates)
    assert method.goal.steps_per_epoch * RECIPE.epochs == method.goal.steps


def test_the_memory_format_changes_the_layout_and_nothing_else() -> None:
    one = fit(norm_dropout(), Plain(), blobs(), Recipe(epochs=2, batch_size=8), **QUIET)
    two = fit(norm_dropout(), Plain(), blobs(), Recipe(epochs=2, batch_size=8, memory_format="channels_last"), **QUIET)
    kernels = [p for p in two.model.parameters() if p.ndim == 4]
    assert kernels
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)
    for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
