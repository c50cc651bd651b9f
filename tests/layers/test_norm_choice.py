"""Batch norm after a compression: the nearer of the old and the new statistics, told with both figures."""

import copy
import itertools

import pytest
import torch
from torch import nn

import tenfold
from helpers import same_state, state
from tenfold.layers import norm_choice
from tenfold.layers.norm_choice import settle_norms_


def net(seed=0) -> nn.Sequential:
    """A network whose statistics are those of its data."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(2, 12, 3, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 16, 3, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 5),
    )
    model = model.double()
    tenfold.reestimate_(model, [images(600, 9)])
    return model.eval()


def images(count, seed=0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, 7, 7, generator=g, dtype=torch.float64) + 0.5


def rescaled(model) -> nn.Module:
    """The same function once its statistics are estimated again, another one until then."""
    small = copy.deepcopy(model)
    with torch.no_grad():
        small[0].weight.mul_(3)
    return small


def nudged(model) -> nn.Module:
    """Nearly the same function: statistics from few examples are worse than those it has."""
    small = copy.deepcopy(model)
    with torch.no_grad():
        small[3].weight.add_(1e-3 * torch.randn_like(small[3].weight))
    return small


def by_hand(small, dense, x) -> float:
    s, d = small(x).detach(), dense(x).detach()
    return float((s - d).square().sum() / (s.norm() * d.norm()))


def test_new_statistics_are_taken_where_they_bring_the_outputs_nearer():
    dense = net()
    small, data = rescaled(dense), list(images(200).split(40))
    before = copy.deepcopy(small)
    choice = settle_norms_(small, dense, data, "auto")
    assert choice.reestimated
    assert (choice.examples, choice.held_out) == (150, 50)
    used, held = (torch.cat([part(batch) for batch in data]) for part in (lambda b: b[:30], lambda b: b[30:]))
    again = copy.deepcopy(before)
    tenfold.reestimate_(again, [batch[:30] for batch in data])
    assert same_state(small, again)
    assert len(used) == 150
    assert choice.kept_distance == pytest.approx(by_hand(before, dense, held), rel=1e-9)
    assert choice.reestimated_distance == pytest.approx(by_hand(again, dense, held), rel=1e-9)
    assert choice.reestimated_distance < 0.1 * choice.kept_distance
    assert f"{choice.kept_distance:.3g}" in choice.sentence
    assert f"{choice.reestimated_distance:.3g}" in choice.sentence


def test_the_old_statistics_stay_to_the_bit_where_few_examples_would_make_worse_ones():
    dense = net()
    small = nudged(dense)
    before = state(small)
    choice = settle_norms_(small, dense, [images(8)], "auto")
    assert not choice.reestimated
    assert choice.kept_distance < choice.reestimated_distance
    assert same_state(small, before)
    assert "Examples are few" in choice.sentence
    assert "kept" in choice.sentence


def test_a_network_that_is_the_dense_one_keeps_its_statistics_whatever_the_data():
    dense = net()
    small = copy.deepcopy(dense)
    choice = settle_norms_(small, dense, [images(400) * 2 + 1], "auto")
    assert choice.kept_distance == 0
    assert same_state(small, dense)


@pytest.mark.parametrize("sizes", [(100,), (50, 50), (32, 32, 32, 4), (7,) * 14 + (2,), (2,) * 50, (1,) * 100], ids=str)
def test_one_example_in_four_is_held_out_however_they_are_batched(sizes):
    dense = net()
    choice = settle_norms_(rescaled(dense), dense, images(100).split(list(sizes)), "auto")
    assert choice.examples + choice.held_out == 100
    assert 23 <= choice.held_out <= 26
    assert choice.reestimated


@pytest.mark.parametrize("norms", ["auto", "reestimate"])
def test_no_more_examples_are_asked_for_than_count(norms):
    asked = []

    def endless():
        for seed in itertools.count():
            asked.append(seed)
            yield images(300, seed)

    dense = net()
    choice = settle_norms_(rescaled(dense), dense, endless(), norms)
    assert choice.examples + choice.held_out == norm_choice.NORM_EXAMPLES == 1024
    assert len(asked) == 4


def test_reestimate_uses_every_example_and_measures_nothing():
    dense = net()
    small = rescaled(dense)
    again = copy.deepcopy(small)
    choice = settle_norms_(small, dense, [images(60)], "reestimate")
    tenfold.reestimate_(again, [images(60)])
    assert same_state(small, again)
    assert choice == norm_choice.NormChoice(True, 60)


def test_keep_and_networks_without_statistics_change_nothing():
    dense = net()
    small = rescaled(dense)
    before = state(small)
    assert settle_norms_(small, dense, [images(60)], "keep") is None
    assert same_state(small, before)
    bare = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, track_running_stats=False)).double()
    assert settle_norms_(bare, bare, [images(60)], "auto") is None


class Uneven(nn.Module):
    """As many outputs as there are large ones."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        y = self.inner(x)
        return y[y > 0.0]


@pytest.mark.parametrize("case", ["one example", "no comparison"])
def test_what_cannot_be_measured_keeps_the_old_statistics_and_says_so(case):
    dense = net()
    small = rescaled(dense)
    data = [images(3)] if case == "one example" else [images(80)]
    if case == "no comparison":
        dense, small = Uneven(dense), Uneven(small)
    before = state(small)
    choice = settle_norms_(small, dense, data, "auto")
    assert choice == norm_choice.NormChoice(False, 3 if case == "one example" else 60)
    assert same_state(small, before)
    assert "too few examples, or outputs that cannot be compared" in choice.sentence


@pytest.mark.parametrize("which", ["kept", "new"])
def test_statistics_that_give_no_numbers_are_never_chosen(which, monkeypatch):
    dense = net()
    small = rescaled(dense)
    values = {"kept": (float("nan"), 5.0), "new": (5.0, float("nan"))}[which]
    monkeypatch.setattr(norm_choice, "_distances", lambda *_: values)
    assert settle_norms_(small, dense, [images(80)], "auto").reestimated is (which == "kept")


def test_modes_random_numbers_and_the_dense_network_are_as_before_and_errors_leave_the_statistics():
    dense, before = net(), torch.get_rng_state()
    small = rescaled(dense).train()
    kept, stood = state(dense), state(small)
    before = torch.get_rng_state()

    def failing():
        yield images(40)
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        settle_norms_(small, dense, failing(), "auto")
    assert same_state(small, stood)
    settle_norms_(small, dense, [images(80)], "auto")
    assert torch.equal(torch.get_rng_state(), before)
    assert same_state(dense, kept)
    assert all(m.training for m in small.modules())
    assert not any(m.training for m in dense.modules())


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [((0.0, 4.0, 4.0), 0.0), ((0.0, 0.0, 0.0), 0.0), ((8.0, 4.0, 4.0), 2.0), ((4.0, 0.0, 4.0), float("inf"))],
)
def test_the_distance_is_none_for_the_same_two_for_the_unrelated_and_endless_for_the_dead(numbers, expected):
    assert norm_choice.distance(*numbers) == expected


def test_compress_and_a_training_run_settle_alike_and_the_report_says_what_was_found():
    model, data = net().float(), [x.float() for x in images(200).split(50)]
    budget = tenfold.Budget(params=0.5)
    result = tenfold.compress(model, tenfold.ALDS(), budget, data=data)
    choice = result.report.norms
    assert choice is not None
    assert (choice.examples, choice.held_out) == (150, 50)
    assert choice.sentence in " ".join(str(result.report).split())
    run = tenfold.begin(model, tenfold.ALDS(), budget)
    run.optimizer(lr=0.1)
    assert run.finish(data).report.norms == choice
    kept = tenfold.compress(model, tenfold.ALDS(), budget, data=data, norms="keep")
    assert kept.report.norms is None
    assert torch.equal(kept.model[1].running_mean, model[1].running_mean)
    again = tenfold.compress(model, tenfold.ALDS(), budget, data=data, norms="reestimate").report.norms
    assert again == norm_choice.NormChoice(True, 200)
