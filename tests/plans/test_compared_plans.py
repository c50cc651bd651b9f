"""Several plans, the best one taken: first looks are held against first looks."""

import pytest
import torch
from torch import nn

import tenfold
from tenfold.plans import compared_plans as subject

LOOKS = {"ahead": 0.9, "near": 1.3, "far": 10.0}


@pytest.mark.parametrize("best", ["ahead", "near"])
def test_a_plan_near_the_best_at_the_first_look_is_refitted_however_little_the_other_loses_then(best, monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 12)).eval()
    problem = tenfold.survey(model)
    shares = dict(zip(LOOKS, (0.8, 0.6, 0.4), strict=True))
    plans = {name: tenfold.SVD().plan(problem, tenfold.Budget(params=share)) for name, share in shares.items()}
    least, other = 0.1, 0.2  # a full refit loses a fraction of what the look does
    after = {"ahead": other, "near": other} | {best: least}
    script = iter([*LOOKS.values(), after["ahead"], after["near"]])
    fitted = []
    monkeypatch.setattr(subject, "refit_", lambda small, *_, **__: fitted.append(small))
    monkeypatch.setattr(subject, "mean_output_loss", lambda *_: next(script))
    data = [torch.randn(64, 12) for _ in range(4)]
    plan = subject.best_refitted(problem, plans, data, data[:1], factors="both", loss=None, memory=1 << 20)
    assert not plan.diff(plans[best])
    assert len(fitted) == 5  # three looks, two refits
    expected = after | {"far": least * LOOKS["far"] / LOOKS["ahead"]}
    assert plan.compared == pytest.approx(expected)


@pytest.mark.parametrize(("examples", "side", "looks"), [(8, 8, 3), (8, 5, 0), (7, 20, 0), (256, 1, 3), (255, 1, 0)])
def test_examples_with_maps_for_outputs_count_their_positions_in_a_first_look(examples, side, looks, monkeypatch):
    """A quarter of them tells enough from 256 positions of eight examples on, or 256 examples of one."""
    torch.manual_seed(0)
    maps = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1))
    model = (maps if side > 1 else nn.Sequential(*maps, nn.Flatten())).eval()
    problem = tenfold.survey(model)
    plans = {f"{s}": tenfold.SVD().plan(problem, tenfold.Budget(params=s)) for s in (0.9, 0.7, 0.5)}
    seen = []
    monkeypatch.setattr(subject, "refit_", lambda small, model, data, **_: seen.append(sum(len(x[0]) for x, _ in data)))
    monkeypatch.setattr(subject, "mean_output_loss", lambda *_: 1.0)
    data = [((torch.randn(examples, 4, side, side),), None)]
    subject.best_refitted(problem, plans, data, data, factors="both", loss=None, memory=1 << 20)
    assert seen == [examples // 4] * looks + [examples] * 3
