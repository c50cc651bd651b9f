"""The Frank-Wolfe optimizer: inside its sets whatever happens, and a good citizen of torch."""

import copy
import io
import warnings

import pytest
import torch
from torch import nn

from tenfold import balls
from tenfold.errors import ArgumentError, TenfoldError, TenfoldWarning
from tenfold.linalg.frank_wolfe import RESCALINGS
from tenfold.optim.frank_wolfe.optimizer import FrankWolfe

SETS = [
    balls.L1(),
    balls.L2(),
    balls.LInf(),
    balls.Lp(p=1.5),
    balls.KSparse(k=0.2),
    balls.KSupport(k=0.2),
    balls.GroupKSupport(k=0.25),
    balls.Nuclear(),
    balls.SpectralKSparse(k=0.5),
    balls.SpectralKSupport(k=0.5),
]


def parameter(*shape, seed=0, scale=0.1, dtype=torch.float32) -> nn.Parameter:
    g = torch.Generator().manual_seed(seed)
    return nn.Parameter((scale * torch.randn(*shape, generator=g)).to(dtype))


def drive(optimizer, params, steps, seed=0) -> None:
    g = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, generator=g).to(p)
        optimizer.step()


def gauge(ball, p, radius) -> float:
    return float(ball.gauge(p.detach())) / radius


# ---- the set holds


@pytest.mark.parametrize("rescale", RESCALINGS)
@pytest.mark.parametrize("ball", SETS, ids=lambda b: type(b).__name__)
def test_after_many_wild_steps_every_tensor_is_in_its_set(ball, rescale) -> None:
    """Learning rates up to 10, gradients that jump: warm bases are as bad as they get."""
    p = parameter(4, 2, 2, scale=1e-3)
    optimizer = FrankWolfe([p], 1.0, rescale=rescale, constraint=ball, radius=3.0)
    gradients = torch.randn(60, *p.shape, generator=torch.Generator().manual_seed(0))
    for i, p.grad in enumerate(gradients):
        optimizer.param_groups[0]["lr"] = (10.0, 1.0, 0.1, 1e-3, 10.0)[i // 12]
        optimizer.step()
    assert gauge(ball, p, 3.0) <= 1 + 1e-5


def test_a_step_is_as_long_as_sgds_of_the_same_momentum() -> None:
    p = parameter(6, 5, dtype=torch.float64)
    q = nn.Parameter(p.detach().clone())
    mine = FrankWolfe([p], 0.05, constraint=balls.SpectralKSupport(k=2), radius=100.0)
    sgd = torch.optim.SGD([q], 0.05, momentum=0.9)
    for i in range(5):
        before, other = p.detach().clone(), q.detach().clone()
        p.grad = q.grad = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(i))
        mine.step()
        sgd.step()
        torch.testing.assert_close((p - before).norm(), (q - other).norm(), rtol=1e-10, atol=0)


def test_a_scaled_gradient_has_the_same_vertex() -> None:
    """So without rescaling the whole run is the same."""
    runs = []
    for scale in (1.0, 1e-6, 1e6):
        p = parameter(4, 6)
        optimizer = FrankWolfe([p], 0.1, rescale="none", constraint=balls.GroupKSupport(k=2), radius=2.0)
        for i in range(4):
            p.grad = scale * torch.randn(4, 6, generator=torch.Generator().manual_seed(i))
            optimizer.step()
        runs.append(p.detach())
    for other in runs[1:]:
        torch.testing.assert_close(other, runs[0], rtol=1e-4, atol=1e-6)


def test_an_l2_ball_with_the_radius_rescaling_is_sgd_with_a_decay_by_the_norm() -> None:
    p = parameter(7, dtype=torch.float64)
    theta, m, r, lr = p.detach().clone(), torch.zeros(7).double(), 9.0, 0.03
    optimizer = FrankWolfe([p], lr, momentum=0.8, rescale="radius", constraint=balls.L2(), radius=r)
    for i in range(6):
        g = torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(i))
        m = 0.8 * m + g
        theta = (1 - lr * m.norm() / r) * theta - lr * m
        p.grad = g.clone()
        optimizer.step()
    torch.testing.assert_close(p.detach(), theta, rtol=1e-10, atol=1e-12)


def test_tensors_without_a_constraint_are_trained_as_by_sgd_to_the_bit() -> None:
    mine, other = [parameter(3, 4), parameter(5, seed=1)], [parameter(3, 4), parameter(5, seed=1)]
    drive(FrankWolfe(mine, 0.1, momentum=0.9, weight_decay=0.01), mine, 4)
    drive(torch.optim.SGD(other, 0.1, momentum=0.9, weight_decay=0.01), other, 4)
    for a, b in zip(mine, other, strict=True):
        assert torch.equal(a, b)


def test_equal_shapes_go_together_and_come_out_as_alone() -> None:
    ball = balls.SpectralKSupport(k=2)
    together = [parameter(4, 6, seed=i, dtype=torch.float64) for i in range(3)]
    optimizer = FrankWolfe(together, 0.1, constraint=ball, radius=[1.0, 2.0, 3.0])
    alone = [nn.Parameter(p.detach().clone()) for p in together]
    single = [FrankWolfe([p], 0.1, constraint=ball, radius=1.0 + i) for i, p in enumerate(alone)]
    for i in range(4):
        for j, (p, q) in enumerate(zip(together, alone, strict=True)):
            p.grad = q.grad = torch.randn(4, 6, generator=torch.Generator().manual_seed(10 * i + j)).double()
        optimizer.step()
        for one in single:
            one.step()
    for p, q in zip(together, alone, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("ball", SETS, ids=lambda b: type(b).__name__)
def test_tensors_of_several_shapes_come_out_as_alone_to_the_bit(ball) -> None:
    shapes = [(4, 3, 2), (5,), (4, 3, 2), (6, 5)]
    together = [parameter(*shape, seed=i) for i, shape in enumerate(shapes)]
    alone = [nn.Parameter(p.detach().clone()) for p in together]
    optimizer = FrankWolfe(together, 0.3, constraint=ball, radius=[1.0, 2.0, 3.0, 4.0])
    single = [FrankWolfe([p], 0.3, constraint=ball, radius=1.0 + i) for i, p in enumerate(alone)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some start outside
        for step in range(4):
            for i, (p, q) in enumerate(zip(together, alone, strict=True)):
                p.grad = q.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(10 * i + step))
            together[step % 4].grad = None  # one of them stands still
            alone[step % 4].grad = None
            for one in (optimizer, *single):
                one.step()
    for p, q in zip(together, alone, strict=True):
        if isinstance(ball, balls.Spectral):  # products of stacks are not those of matrices, to the bit
            torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-3, atol=1e-5)
        else:
            assert torch.equal(p, q)


# ---- edges


def test_a_start_outside_is_pulled_in_once_at_the_first_step_with_a_warning_that_names_it() -> None:
    model = nn.Linear(4, 3, bias=False)
    optimizer = FrankWolfe(model.named_parameters(), 0.0, constraint=balls.L2(), radius=0.1)
    before = model.weight.detach().clone()
    assert torch.equal(model.weight, before)  # constructing has changed nothing
    model.weight.grad = torch.ones(3, 4)
    with pytest.warns(TenfoldWarning, match="'weight' started outside"):
        optimizer.step()
    torch.testing.assert_close(model.weight.detach(), before * (0.1 / before.norm()))
    with torch.no_grad():
        model.weight.copy_(before)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()


@pytest.mark.parametrize("ball", SETS, ids=lambda b: type(b).__name__)
def test_a_zero_gradient_moves_nothing(ball) -> None:
    p = parameter(4, 5, scale=1e-3)
    before = p.detach().clone()
    optimizer = FrankWolfe([p], 1.0, rescale="none", constraint=ball, radius=1.0)
    p.grad = torch.zeros(4, 5)
    optimizer.step()
    assert torch.equal(p, before)
    assert optimizer.stats()[0].eta == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("whose", [0, 1, 2])
def test_one_gradient_that_is_not_finite_moves_nothing_anywhere_and_is_counted(whose, bad) -> None:
    """Neither tensors in sets nor those that SGD trains, nor any momentum: the run goes on as if it had not been."""

    def fresh():
        params = [parameter(4, 5), parameter(4, 5, seed=1), parameter(6, seed=2)]
        groups = [
            {"params": params[:2], "constraint": balls.SpectralKSupport(k=2), "radius": 5.0},
            {"params": params[2:], "weight_decay": 0.1},
        ]
        return params, FrankWolfe(groups, 0.1)

    (params, optimizer), (others, straight) = fresh(), fresh()
    drive(optimizer, params, 2)
    drive(straight, others, 2)
    before = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.ones_like(p)
    params[whose].grad.view(-1)[3] = bad
    optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip(params, before, strict=True))
    assert [(t.steps, t.skipped) for t in optimizer.stats()] == [(2, 1), (2, 1)]
    drive(optimizer, params, 2, seed=5)
    drive(straight, others, 2, seed=5)
    for p, q in zip(params, others, strict=True):
        assert torch.equal(p, q)


def test_a_first_gradient_that_is_not_finite_does_not_even_pull_in() -> None:
    p, q = parameter(4, 5), parameter(3)
    optimizer = FrankWolfe([{"params": [p], "constraint": balls.L2(), "radius": 0.1}, {"params": [q]}], 0.1)
    before = [x.detach().clone() for x in (p, q)]
    p.grad, q.grad = torch.full((4, 5), torch.nan), torch.ones(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    assert torch.equal(p, before[0])
    assert torch.equal(q, before[1])
    p.grad = torch.ones(4, 5)
    with pytest.warns(TenfoldWarning, match="started outside"):
        optimizer.step()
    assert gauge(balls.L2(), p, 0.1) <= 1 + 1e-5


@pytest.mark.parametrize("rescale", RESCALINGS)
@pytest.mark.parametrize("ball", SETS, ids=lambda b: type(b).__name__)
def test_a_momentum_that_dies_away_through_the_least_numbers_leaves_the_weights_in_the_set(ball, rescale) -> None:
    """A dead layer: after its last gradient the momentum passes through subnormal numbers to zero."""
    p = parameter(4, 5, scale=1e-3)
    optimizer = FrankWolfe([p], 0.1, momentum=0.1, rescale=rescale, constraint=ball, radius=3.0)
    drive(optimizer, [p], 2)
    for step in range(60):
        p.grad = torch.zeros(4, 5)
        optimizer.step()
        assert step % 3 or gauge(ball, p, 3.0) <= 1 + 1e-5
    assert not optimizer.state[p]["momentum_buffer"].any()
    before = p.detach().clone()
    optimizer.step()
    assert torch.equal(p, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("ball", SETS, ids=lambda b: type(b).__name__)
def test_a_step_of_size_zero_moves_nothing_whatever_the_gradient(ball, dtype) -> None:
    for scale in (torch.finfo(dtype).smallest_normal / 64, torch.finfo(dtype).max / 4, 1.0):
        p = parameter(4, 5, scale=1e-3, dtype=dtype)
        before = p.detach().clone()
        optimizer = FrankWolfe([p], 0.0, constraint=ball, radius=3.0)
        for seed in range(3):
            u = torch.rand(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
            p.grad = ((2 * u - 1) * scale).to(dtype)
            optimizer.step()
        assert torch.equal(p, before)


def test_frozen_parameters_stay_and_may_thaw() -> None:
    p, q = parameter(4, 5), parameter(4, 5, seed=1)
    optimizer = FrankWolfe([p, q], 0.1, constraint=balls.SpectralKSupport(k=2), radius=5.0)
    before = q.detach().clone()
    drive(optimizer, [p], 3)
    assert torch.equal(q, before)
    assert len(optimizer.stats()) == 1
    drive(optimizer, [p, q], 3)
    assert not torch.equal(q, before)
    assert [t.steps for t in optimizer.stats()] == [6, 3]


def test_groups_can_be_added_later() -> None:
    p, q = parameter(4, 5), parameter(3)
    optimizer = FrankWolfe([p], 0.1, constraint=balls.L1(), width=20.0)
    drive(optimizer, [p], 2)
    optimizer.add_param_group({"params": [q], "constraint": balls.L2(), "radius": 4.0})
    drive(optimizer, [p, q], 2)
    assert gauge(balls.L2(), q, 4.0) <= 1
    with pytest.raises(ArgumentError, match="`radius` must be given for a tensor of zeros"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(3))], "constraint": balls.L2()})
    assert len(optimizer.param_groups) == 2


def test_a_group_without_names_may_be_added_to_groups_with_names_and_the_other_way_round() -> None:
    p, q, r = parameter(4, 5), parameter(3), parameter(2)
    optimizer = FrankWolfe([("layer.weight", p)], 0.1, constraint=balls.L1(), width=20.0)
    optimizer.add_param_group({"params": q, "constraint": balls.L2(), "radius": 4.0})
    optimizer.add_param_group({"params": iter([r]), "constraint": None})
    drive(optimizer, [p, q, r], 2)
    assert [track.name for track in optimizer.stats()] == ["layer.weight", "1.0"]
    bare = FrankWolfe([p], 0.1, constraint=balls.L1(), width=20.0)
    bare.add_param_group({"params": [("bias", q)], "constraint": balls.L2(), "radius": 4.0})
    drive(bare, [p, q], 2)
    assert [track.name for track in bare.stats()] == ["0.0", "bias"]
    for one in (optimizer, bare):
        other = copy.deepcopy(one)
        other.load_state_dict(one.state_dict())
        assert other.stats() == one.stats()


@pytest.mark.parametrize("groups", [1, 2])
def test_filters_of_transposed_convolutions_stand_in_the_second_dimension(groups) -> None:
    """The set acts on the layer's filters: all but k of them come to zero after a step that lands on a vertex."""
    layer = nn.ConvTranspose2d(4, 6, 2, groups=groups, bias=False)
    optimizer = FrankWolfe(
        [layer.weight], 1.0, rescale="none", constraint=balls.GroupKSupport(k=2), radius=50.0, swapped=groups
    )
    drive(optimizer, [layer.weight], 1)
    out = layer(torch.randn(3, 4, 5, 5))
    assert int((out.abs().sum((0, 2, 3)) > 0).sum()) == 2


def test_channels_last_and_other_layouts_change_nothing() -> None:
    plain, last = (nn.Conv2d(3, 4, 3) for _ in range(2))
    last.load_state_dict(plain.state_dict())
    last = last.to(memory_format=torch.channels_last)
    for layer in (plain, last):
        optimizer = FrankWolfe([layer.weight], 0.1, constraint=balls.SpectralKSupport(k=2), radius=9.0)
        drive(optimizer, [layer.weight], 3)
    torch.testing.assert_close(plain.weight, last.weight)
    assert last.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("constraint", [None, balls.GroupKSupport(k=2)])
def test_half_precision_weights_have_a_float32_copy_that_small_steps_add_up_in(constraint) -> None:
    half = parameter(4, 5, dtype=torch.bfloat16)
    whole = nn.Parameter(half.detach().float())
    for p in (half, whole):
        optimizer = FrankWolfe([p], 1e-4, constraint=constraint, radius=5.0 if constraint else None)
        for _ in range(60):
            p.grad = torch.ones_like(p)
            optimizer.step()
    torch.testing.assert_close(half.detach(), whole.detach().bfloat16())
    assert half.dtype == torch.bfloat16


def test_the_copy_follows_weights_that_are_set_from_outside() -> None:
    p = parameter(4, 5, dtype=torch.bfloat16)
    optimizer = FrankWolfe([p], 1e-4, constraint=balls.L2(), radius=50.0)
    drive(optimizer, [p], 2)
    with torch.no_grad():
        p.fill_(1.5)
    drive(optimizer, [p], 1)
    torch.testing.assert_close(p.detach().float(), torch.full((4, 5), 1.5), rtol=0.01, atol=0)


def test_a_start_outside_in_half_precision_is_pulled_in_as_the_warning_says() -> None:
    p = parameter(4, 5, scale=1.0, dtype=torch.bfloat16)
    optimizer = FrankWolfe([p], 0.0, constraint=balls.L2(), radius=0.5)
    p.grad = torch.ones_like(p)
    with pytest.warns(TenfoldWarning, match="started outside"):
        optimizer.step()
    assert gauge(balls.L2(), p, 0.5) == pytest.approx(1, rel=2**-8)


class Half:
    """A layer with a set and one without, of which weights, type and optimizer state are changed between steps."""

    def __init__(self, dtype=torch.bfloat16) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(5, 4).to(dtype)
        groups = [
            {"params": [self.model.weight], "constraint": balls.GroupKSupport(k=2), "radius": 5.0},
            {"params": [self.model.bias]},
        ]
        self.optimizer = FrankWolfe(groups, 0.05)
        self.seed = 0

    def step(self) -> None:
        drive(self.optimizer, list(self.model.parameters()), 1, seed=(seed := self.seed))
        self.seed = seed + 1

    def load(self, other: "Half", which: str) -> None:
        if "w" in which:
            self.model.load_state_dict(copy.deepcopy(other.model.state_dict()))
        if "o" in which:
            self.optimizer.load_state_dict(copy.deepcopy(other.optimizer.state_dict()))


CHANGES = {
    "float": lambda me, _: me.model.float(),
    "bfloat16": lambda me, _: me.model.bfloat16(),
    "float16": lambda me, _: me.model.half(),
    "float64": lambda me, _: me.model.double(),
    "load weights": lambda me, other: me.load(other, "w"),
    "load optimizer": lambda me, other: me.load(other, "o"),
    "load weights, then optimizer": lambda me, other: (me.load(other, "w"), me.load(other, "o")),
    "load optimizer, then weights": lambda me, other: (me.load(other, "o"), me.load(other, "w")),
    "step": lambda me, _: me.step(),
}


@pytest.mark.parametrize("start", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("first", CHANGES)
def test_in_every_order_of_load_cast_and_step_the_next_step_starts_at_the_weights_there_are(first, start) -> None:
    """The weight is the truth: a step of size zero leaves it where it is, a step of some size moves it."""
    for i, second in enumerate(CHANGES):
        me, other = Half(start), Half((torch.bfloat16, torch.float32)[i % 2])
        me.step()
        other.step()
        other.step()
        CHANGES[first](me, other)
        CHANGES[second](me, other)
        goes_on_from_its_weights(me)


def goes_on_from_its_weights(me: Half) -> None:
    before = [p.detach().clone() for p in me.model.parameters()]
    for group in me.optimizer.param_groups:
        group["lr"] = 0.0
    me.step()
    assert all(torch.equal(p, old) for p, old in zip(me.model.parameters(), before, strict=True))
    for group in me.optimizer.param_groups:
        group["lr"] = 0.05
    me.step()
    for p, old in zip(me.model.parameters(), before, strict=True):
        assert torch.isfinite(p).all()
        assert not torch.equal(p, old)
    assert gauge(balls.GroupKSupport(k=2), me.model.weight, 5.0) <= 1 + 2**-8


# ---- as a torch optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_state_loads_with_weights_only_and_the_run_goes_on_to_the_same_bits(dtype) -> None:
    def fresh():
        params = [parameter(4, 5, dtype=dtype), parameter(3, seed=1, dtype=dtype)]
        groups = [
            {"params": params[:1], "constraint": balls.SpectralKSupport(k=0.5), "width": 5.0},
            {"params": params[1:]},
        ]
        return params, FrankWolfe(groups, 0.1)

    params, optimizer = fresh()
    drive(optimizer, params, 3)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    others, resumed = fresh()
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for p, q in zip(params, others, strict=True):
        q.data.copy_(p)
    drive(optimizer, params, 3, seed=7)
    drive(resumed, others, 3, seed=7)
    for p, q in zip(params, others, strict=True):
        assert torch.equal(p, q)
    assert resumed.stats() == optimizer.stats()
    assert resumed.param_groups[0]["constraint"] == {"ball": "SpectralKSupport", "k": 0.5}


def test_schedulers_closures_clipping_and_copies_work() -> None:
    p = parameter(4, 5)
    optimizer = FrankWolfe([p], 0.1, constraint=balls.KSupport(k=3), radius=5.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 5)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (p - 1).square().sum()
        loss.backward()
        nn.utils.clip_grad_norm_([p], 0.5)
        return loss

    losses = []
    for _ in range(5):
        losses.append(float(optimizer.step(closure).detach()))
        schedule.step()
    assert losses == sorted(losses, reverse=True)
    assert optimizer.param_groups[0]["lr"] == 0
    assert copy.deepcopy(optimizer).stats() == optimizer.stats()


def test_a_gradient_scaler_skips_overflows() -> None:
    p = parameter(4, 5)
    optimizer = FrankWolfe([p], 0.1, constraint=balls.L2(), radius=5.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = p.detach().clone()
    scaler.scale((p * float("inf")).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(p, before)
    optimizer.zero_grad()
    scaler.scale(p.sum()).backward()
    scaler.step(optimizer)
    assert not torch.equal(p, before)


def test_the_gap_is_an_upper_bound_of_what_a_convex_loss_can_still_fall() -> None:
    p = parameter(6, dtype=torch.float64)
    optimizer = FrankWolfe([p], 0.1, constraint=balls.L2(), radius=1.0)
    target = torch.full((6,), 2.0).double()
    (0.5 * (p - target).square().sum()).backward()
    best = 0.5 * (target.norm() - 1) ** 2  # the nearest point of the ball
    now = 0.5 * (p.detach() - target).square().sum()
    assert optimizer.fw_gap() >= float(now - best) > 0
    with torch.no_grad():
        p.copy_(target / target.norm())
    p.grad = p.detach() - target
    assert abs(optimizer.fw_gap()) <= 1e-10


def test_stats_tell_the_share_of_clipped_steps_the_gauge_and_what_is_left_of_the_start() -> None:
    p = parameter(4, 5)
    optimizer = FrankWolfe([("layer.weight", p)], 0.25, rescale="none", constraint=balls.L2(), radius=2.0)
    drive(optimizer, [p], 3)
    track = optimizer.stats()[0]
    assert (track.name, track.eta, track.clamped, track.steps) == ("layer.weight", 0.25, 0.0, 3)
    assert track.kept == pytest.approx(0.75**3)
    assert track.gauge == pytest.approx(float(p.detach().norm()) / 2)
    optimizer.param_groups[0]["lr"] = 5.0
    drive(optimizer, [p], 1)
    track = optimizer.stats()[0]
    assert (track.clamped, track.kept, track.eta) == (0.25, 0.0, 1.0)


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("lr", -0.1),
        ("momentum", 1.0),
        ("dampening", 2.0),
        ("rescale", "nonsense"),
        ("constraint", "nonsense"),
        ("radius", -1.0),
        ("radius", [1.0, 2.0]),
        ("width", 0),
        ("weight_decay", -1.0),
        ("max_eta", 1.5),
        ("swapped", -1),
    ],
)
def test_values_out_of_range_are_refused_by_name(field, bad) -> None:
    fields = {"lr": 0.1, "constraint": balls.L2(), "radius": 1.0} | ({} if field != "width" else {"radius": None})
    with pytest.raises(ArgumentError, match=f"`{field}`"):
        FrankWolfe([parameter(3)], **fields | {field: bad})


def test_weight_decay_on_a_constrained_group_and_sparse_gradients_are_refused() -> None:
    p = parameter(3)
    with pytest.raises(ArgumentError, match="`weight_decay`"):
        FrankWolfe([{"params": [p], "constraint": balls.L2(), "radius": 1.0, "weight_decay": 0.1}], 0.1)
    table = nn.Embedding(5, 3, sparse=True)
    table(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(TenfoldError, match="sparse"):
        FrankWolfe(table.parameters(), 0.1).step()
