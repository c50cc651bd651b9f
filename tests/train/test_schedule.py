"""Schedules, by hand."""

import math

import pytest
import torch

from tenfold.errors import ArgumentError
from tenfold.train import Recipe
from tenfold.train.schedule import constant, cosine, linear, make_schedule, multistep, scheduler, warm_up, window


def test_values_by_hand():
    assert [constant()(t) for t in (0, 3.3, 99)] == [1, 1, 1]
    assert [cosine(4)(t) for t in (0, 1, 2, 4, 5)] == pytest.approx([1, (1 + math.sqrt(0.5)) / 2, 0.5, 0, 0])
    assert [linear(4)(t) for t in (0, 1, 2, 4, 5)] == [1, 0.75, 0.5, 0, 0]
    assert [multistep((2, 3), 0.1)(t) for t in (0, 1.99, 2, 2.9, 3, 9)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_warm_up_climbs_linearly_and_then_leaves_the_schedule_alone():
    f = warm_up(linear(10), 4)
    assert [f(t) for t in (0, 1, 2, 4, 6)] == pytest.approx([0, 0.9 / 4, 0.8 / 2, 0.6, 0.4])
    assert warm_up(constant(), 0)(0) == 1


def test_rewinding_is_the_end_of_the_schedule():
    f = multistep((91, 136), 0.1)
    again = window(f, 182, 60)
    assert [again(t) for t in (0, 13.9, 14, 59)] == [f(122), f(135.9), f(136), f(181)]
    assert window(f, 182, 182)(90) == f(90)
    with pytest.raises(ArgumentError, match=r"`last` must be in \[0, 182\]"):
        window(f, 182, 183)


def test_the_scheduler_uses_the_middle_of_each_step():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.5)
    rates = scheduler(optimizer, linear(2), steps_per_epoch=2)
    seen = []
    for _ in range(4):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        rates.step()
    assert seen == pytest.approx([0.5 * f for f in (7 / 8, 5 / 8, 3 / 8, 1 / 8)])


def test_a_milestone_falls_between_the_steps_for_any_number_of_steps():
    for steps in range(1, 60):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        rates = scheduler(optimizer, multistep((3,), 0.5), steps)
        factors = [rates.lr_lambdas[0](step) for step in range(4 * steps)]
        assert factors == [1.0] * (3 * steps) + [0.5] * steps


def test_recipes_build_the_schedule_they_name():
    multi = {"milestones": (1, 3), "gamma": 0.2}
    for name, extra in (("constant", {}), ("cosine", {}), ("linear", {}), ("multistep", multi)):
        recipe = Recipe(epochs=5, schedule=name, warmup=2.0, **extra)
        whole = make_schedule(name, 5, warmup=2.0, milestones=(1, 3), gamma=0.2)
        assert [recipe.factor()(t / 4) for t in range(20)] == [whole(t / 4) for t in range(20)]
        again = recipe.rewound(2)
        assert again.epochs == 2
        assert [again.factor()(t / 4) for t in range(8)] == pytest.approx([whole(3 + t / 4) for t in range(8)])
        assert again.rewound(4).factor()(0) == pytest.approx(whole(1))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("epochs", 1.5),
        ("batch_size", 0),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("momentum", 1.0),
        ("weight_decay", -1e-4),
        ("schedule", "cosin"),
        ("warmup", -1.0),
        ("milestones", (3, 2)),
        ("milestones", (2, 3)),  # given, but the schedule is not multistep
        ("gamma", 0.0),
        ("total", 3),
        ("label_smoothing", 1.0),
        ("clip_norm", 0.0),
        ("accumulate", 0),
        ("precision", "half"),
        ("augment", "flip"),
        ("seed", -1),
    ],
)
def test_recipes_refuse_what_is_out_of_range_by_name(field, value):
    with pytest.raises(ArgumentError, match=f"`{field}` must be"):
        Recipe(**{"epochs": 4, field: value})


def test_multistep_needs_milestones_and_rewinding_stays_inside():
    with pytest.raises(ArgumentError, match="`milestones`"):
        Recipe(schedule="multistep")
    with pytest.raises(ArgumentError, match=r"`epochs` must be in \[1, 4\]"):
        Recipe(epochs=4).rewound(5)
