"""Laws of every norm ball there is: a new one is tested by being in `balls.SETS`."""

import dataclasses
import io
import itertools
import json
import math

import pytest
import torch

from linalg.ball_cases import ALL, CASES, FIELDS, IDS, SHAPES, draw, number, subsets, total
from tenfold import balls
from tenfold.errors import ArgumentError, TenfoldError

R = 1.7
TIGHT = {"rtol": 1e-10, "atol": 1e-10}
MANY = 8
"""Random tensors per law, side by side."""
over_cases = pytest.mark.parametrize(("ball", "shape"), CASES, ids=IDS)
over_balls = pytest.mark.parametrize("ball", ALL, ids=str)


def dot(a, b) -> torch.Tensor:
    return (a.double() * b.double()).sum()


def dots(a, b) -> torch.Tensor:
    """One per tensor of a stack."""
    return (a * b).flatten(1).sum(1)


def each(values, x) -> torch.Tensor:
    return values.view(-1, *[1] * (x.ndim - 1))


def close(a, b, **tolerance) -> None:
    a, b = (torch.as_tensor(x, dtype=torch.float64) for x in (a, b))
    torch.testing.assert_close(a, b, **(tolerance or TIGHT))


# ---- the oracle, the gauge, the dual norm


@over_cases
def test_the_vertex_attains_the_dual_norm_on_the_boundary(ball, shape) -> None:
    g = draw(0, MANY, *shape)
    v = ball.lmo(g, R, stacked=True)
    assert v.shape == g.shape
    close(-dots(g, v), R * ball.support(g, stacked=True))
    close(ball.gauge(v, stacked=True), [R] * MANY)


@over_cases
def test_gauge_and_support_are_norms_and_bound_the_product(ball, shape) -> None:
    g, x = draw(0, MANY, *shape), draw(1, MANY, *shape)
    bound = ball.support(g, stacked=True) * ball.gauge(x, stacked=True)
    assert (dots(g, x).abs() <= bound * (1 + 1e-12)).all()
    for norm in (ball.gauge, ball.support):
        close(norm(-2.5 * x, stacked=True), 2.5 * norm(x, stacked=True))
        assert (norm(x + g, stacked=True) <= (norm(x, stacked=True) + norm(g, stacked=True)) * (1 + 1e-12)).all()


@over_cases
def test_no_random_point_of_the_set_beats_the_vertex(ball, shape) -> None:
    g = draw(0, *shape)
    best, k = dot(g, ball.lmo(g, R)), number(ball, shape)
    x = draw(1, 300, *shape)
    if isinstance(ball, balls.Spectral):  # low rank ones come nearer than full ones
        u, s, v = torch.linalg.svd(x.flatten(2), full_matrices=False)
        x = ((u[..., :k] * s[:, None, :k]) @ v[:, :k]).view_as(x)
    x = x - each(0.3 * torch.arange(300) % 6, x) * g
    x = x * each(R / ball.gauge(x, stacked=True), x)
    assert ball.contains(x, R, stacked=True).all()
    assert (dots(g, x) >= best - 1e-10).all()


@pytest.mark.parametrize(("ball", "shape"), [c for c in CASES if type(c[0].split).__name__ != "Values"], ids=str)
def test_no_vertex_is_better_than_the_one_found(ball, shape) -> None:
    """All of them: signs on k entries; on k entries or filters the direction of the gradient."""
    g, n, k = draw(3, *shape), total(ball, shape), number(ball, shape)
    if isinstance(ball, balls.Lp):
        pytest.skip("a smooth set has no list of vertices")
    rows = g.reshape(n, -1)
    values = []
    for s in subsets(n, k):
        part = torch.zeros_like(rows)
        if isinstance(ball, balls.L1 | balls.LInf | balls.KSparse):
            for signs in itertools.product((-1.0, 1.0), repeat=k):
                part[s, 0] = R * torch.tensor(signs, dtype=torch.float64)
                values.append(float(dot(rows, part)))
        else:
            part[s] = -R * rows[s] / rows[s].norm()
            values.append(float(dot(rows, part)))
    close(dot(g, ball.lmo(g, R)), min(values))


@over_cases
def test_vertices_have_as_few_parts_as_the_set_says(ball, shape) -> None:
    v, n, k = ball.lmo(draw(4, *shape), R), total(ball, shape), number(ball, shape)
    name = type(ball.split).__name__
    if name == "Values":
        assert torch.linalg.matrix_rank(v.flatten(1), rtol=1e-10) == k
    else:
        assert (v.reshape(n, -1).abs().amax(-1) > 0).sum() == k


@over_cases
@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1e9, 1e30])
def test_the_scale_of_the_gradient_does_not_matter(ball, shape, scale) -> None:
    g = draw(0, *shape)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        v = ball.lmo(g.to(dtype), R)
        close(ball.lmo((scale * g).to(dtype), R), v, rtol=0, atol=tolerance)
        close(ball.lmo(g.to(dtype), 3 * R), 3 * v, rtol=1e-6, atol=tolerance)
        close(ball.lmo(-g.to(dtype), R), -v, rtol=1e-6, atol=tolerance)


# ---- one set as another


@pytest.mark.parametrize("one", [1, 1e-9])
@pytest.mark.parametrize("every", [7, 99, 1.0])
def test_the_families_collapse_at_their_ends(one, every) -> None:
    x = draw(5, 7)
    m = draw(6, 7, 9)
    s = torch.linalg.svdvals(m)
    for ball, norm, dual in (
        (balls.KSparse(one), x.abs().sum(), x.abs().max()),
        (balls.KSupport(one), x.abs().sum(), x.abs().max()),
        (balls.KSparse(every), x.abs().max(), x.abs().sum()),
        (balls.KSupport(every), x.norm(), x.norm()),
        (balls.L1(), x.abs().sum(), x.abs().max()),
        (balls.L2(), x.norm(), x.norm()),
        (balls.LInf(), x.abs().max(), x.abs().sum()),
        (balls.Lp(2.0), x.norm(), x.norm()),
        (balls.SpectralKSparse(one), s.sum(), s[0]),
        (balls.SpectralKSupport(one), s.sum(), s[0]),
        (balls.Nuclear(), s.sum(), s[0]),
        (balls.SpectralKSparse(every), s[0], s.sum()),
        (balls.SpectralKSupport(every), m.norm(), m.norm()),
        (balls.GroupKSupport(one), m.norm(dim=1).sum(), m.norm(dim=1).max()),
        (balls.GroupKSupport(every), m.norm(), m.norm()),
    ):
        of = x if type(ball.split).__name__ == "Entries" else m
        close(ball.gauge(of), norm)
        close(ball.support(of), dual)


@pytest.mark.parametrize("k", [1, 2, 4, 0.5, 1.0])
def test_groups_of_one_are_entries_and_a_diagonal_is_a_vector(k) -> None:
    x = draw(0, 6)
    for ball, plain in (
        (balls.GroupKSupport(k), balls.KSupport(k)),
        (balls.SpectralKSupport(k), balls.KSupport(k)),
        (balls.SpectralKSparse(k), balls.KSparse(k)),
        (balls.Nuclear(), balls.L1()),
    ):
        lift = torch.diag if isinstance(ball, balls.Spectral) else (lambda y: y[:, None, None])
        close(ball.lmo(lift(x), R), lift(plain.lmo(x, R)))
        close(ball.gauge(lift(x)), plain.gauge(x))
        close(ball.support(lift(x)), plain.support(x))
        close(ball.project(lift(x), 0.4), lift(plain.project(x, 0.4)), rtol=1e-8, atol=1e-8)
        close(ball.diameter(R, lift(x).shape), plain.diameter(R, x.shape))


@pytest.mark.parametrize(("ball", "shape"), [c for c in CASES if isinstance(c[0], balls.Spectral)], ids=str)
def test_rotations_go_through_a_ball_of_singular_values(ball, shape) -> None:
    g = draw(7, *shape)
    p, q = (torch.linalg.qr(draw(8 + i, n, n))[0] for i, n in enumerate(g.flatten(1).shape))

    def turn(x):
        return (p @ x.flatten(1) @ q).view(shape)

    close(ball.lmo(turn(g), R), turn(ball.lmo(g, R)))
    close(ball.gauge(turn(g)), ball.gauge(g))
    close(ball.support(turn(g)), ball.support(g))
    close(ball.project(turn(g), 0.5), turn(ball.project(g, 0.5)), rtol=1e-8, atol=1e-8)
    close(ball.lmo(g.flatten(1).T, R), ball.lmo(g, R).flatten(1).T)


@over_cases
def test_order_and_signs_of_filters_go_through_every_ball(ball, shape) -> None:
    g = draw(10, *shape)
    order = torch.randperm(shape[0], generator=torch.Generator().manual_seed(0))
    sign = torch.tensor([(-1.0) ** i for i in range(shape[0])], dtype=torch.float64).view(-1, *[1] * (len(shape) - 1))

    def turn(x):
        return sign * x[order]

    close(ball.lmo(turn(g), R), turn(ball.lmo(g, R)))
    close(ball.gauge(turn(g)), ball.gauge(g))


def test_a_share_is_rounded_up_and_a_number_is_capped() -> None:
    for k, n, wanted in ((0.1, 30, 3), (0.07, 100, 7), (0.1, 31, 4), (1e-9, 5, 1), (1.0, 5, 5), (1, 5, 1), (9, 5, 5)):
        assert (balls.KSparse(k).lmo(draw(11, n), R) != 0).sum() == wanted


# ---- diameter and radius


@over_cases
def test_the_diameter_is_the_largest_distance_of_two_points(ball, shape) -> None:
    """From many starts: the vertex farthest along x is longer than x, so that the iteration climbs to a longest one."""
    ones = torch.ones(1, *shape, dtype=torch.float64)
    first = torch.zeros_like(ones)
    first.view(-1)[0] = 1
    diagonal = torch.eye(*ones[0].flatten(1).shape).view_as(ones) if len(shape) > 1 else ones
    x = torch.cat([draw(23, 40, *shape), ones, first, diagonal])
    for _ in range(30):
        x = ball.lmo(-x, R, stacked=True)
    close(ball.diameter(R, shape), 2 * x.flatten(1).norm(dim=1).max(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("ball", [balls.L1(), balls.LInf(), balls.KSparse(2), balls.KSparse(3)], ids=str)
def test_the_diameter_is_that_of_all_pairs_of_vertices(ball) -> None:
    n = 4
    k = number(ball, (n,))
    points = []
    for s in subsets(n, k):
        for signs in itertools.product((-1.0, 1.0), repeat=k):
            x = torch.zeros(n, dtype=torch.float64)
            x[s] = R * torch.tensor(signs, dtype=torch.float64)
            points.append(x)
    close(ball.diameter(R, (n,)), torch.cdist(torch.stack(points), torch.stack(points)).max())


@over_cases
def test_the_radius_gives_the_diameter_that_was_asked_for(ball, shape) -> None:
    rho, width = 0.83, 10.0
    r = ball.radius(2 * width * rho, shape)
    close(ball.diameter(r, shape), 2 * width * rho)
    close(ball.diameter(3 * r, shape), 3 * ball.diameter(r, shape))


# ---- into the set


@over_cases
def test_pulling_in_ends_on_the_boundary_and_leaves_the_inside_alone(ball, shape) -> None:
    x = draw(20, *shape)
    r = 0.3 * float(ball.gauge(x))
    near = ball.pull_in(x, r)
    close(near, 0.3 * x)
    assert ball.contains(near, r)
    assert not ball.contains(x, r)
    assert torch.equal(ball.pull_in(x, 4 * r), x)


@pytest.mark.parametrize(("ball", "shape"), [c for c in CASES if c[0].projects], ids=str)
def test_the_projection_is_the_nearest_point(ball, shape) -> None:
    """By the variational inequality: ``<x - Px, y - Px> <= 0`` for all y in the set; the worst y is a vertex."""
    x, y = draw(21, MANY, *shape), draw(22, MANY, *shape)
    gauge = ball.gauge(x, stacked=True)
    r = gauge * torch.linspace(1e-3, 0.999, MANY, dtype=torch.float64)
    p = ball.project(x, r, stacked=True)
    close(ball.gauge(p, stacked=True), r, rtol=1e-9, atol=0)
    close(r * ball.support(x - p, stacked=True), dots(x - p, p), rtol=1e-7, atol=1e-8)
    close(ball.project(p, r, stacked=True), p, rtol=1e-8, atol=1e-9)
    moved = (p - ball.project(y, r, stacked=True)).flatten(1).norm(dim=1)
    assert (moved <= (x - y).flatten(1).norm(dim=1) * (1 + 1e-9)).all()
    assert torch.equal(ball.project(x, gauge * 1.01, stacked=True), x)


@over_balls
def test_an_unknown_projection_is_refused_by_name(ball) -> None:
    shape = SHAPES[type(ball.split).__name__][0]
    if ball.projects:
        assert ball.contains(ball.project(draw(12, *shape), 0.1), 0.1)
    else:
        with pytest.raises(TenfoldError, match=r"Lp\(.*pull_in"):
            ball.project(draw(12, *shape), 0.1)


# ---- stacks, types, and what is not generic


@over_cases
def test_a_stack_is_its_tensors_one_by_one(ball, shape) -> None:
    g = draw(13, 3, *shape)
    radii = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    before = g.clone()
    verbs = [ball.lmo, ball.pull_in] + ([ball.project] if ball.projects else [])
    for verb in verbs:
        got = verb(g, radii, stacked=True)
        close(got, torch.stack([verb(x, float(r)) for x, r in zip(g, radii, strict=True)]))
    for norm in (ball.gauge, ball.support):
        close(norm(g, stacked=True), torch.stack([norm(x) for x in g]))
    assert ball.contains(g, 2 * ball.gauge(g, stacked=True), stacked=True).tolist() == [True] * 3
    assert torch.equal(g, before)


@over_cases
def test_a_zero_gradient_gives_zero_and_leaves_its_neighbours_alone(ball, shape) -> None:
    g = draw(14, 3, *shape)
    g[1] = 0
    v = ball.lmo(g, R, stacked=True)
    assert not v[1].any()
    close(v[2], ball.lmo(g[2], R))
    zero = torch.zeros(shape)
    assert ball.gauge(zero) == 0
    assert ball.support(zero) == 0
    assert torch.equal(ball.pull_in(zero, R), zero)
    if ball.projects:
        assert torch.equal(ball.project(zero, R), zero)


@over_cases
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_gives_nan_throughout_and_leaves_its_neighbours_alone(ball, shape, bad) -> None:
    g = draw(15, 3, *shape)
    g[1].view(-1)[1] = bad
    v = ball.lmo(g, R, stacked=True)
    assert v[1].isnan().all()
    close(v[2], ball.lmo(g[2], R))
    assert ball.gauge(g, stacked=True).isnan().tolist() == [False, True, False]
    assert ball.support(g, stacked=True).isnan().tolist() == [False, True, False]
    assert not ball.contains(g, 1e9, stacked=True)[1]
    if ball.projects:
        assert torch.equal(ball.project(g, 1e-3, stacked=True)[1].isnan(), g[1].isnan())


@over_cases
@pytest.mark.parametrize("value", [1.0, -2.0, 1 / 3])
def test_exact_ties_take_no_more_than_the_set_allows(ball, shape, value) -> None:
    for g in (torch.full(shape, value), torch.full(shape, value, dtype=torch.float64)):
        v = ball.lmo(g, R)
        close(ball.gauge(v), R, rtol=1e-6, atol=0)
        close(-dot(g, v), R * ball.support(g), rtol=1e-6, atol=0)


@pytest.mark.parametrize("ball", [kind() for kind in balls.SETS.values() if kind.powers], ids=str)
def test_gauge_and_support_of_a_tensor_in_parts_are_norms_of_those_of_its_parts(ball) -> None:
    x = draw(0, 9)
    parts = x.split([4, 0, 5])
    assert ball.powers is not None
    for measure, p in zip((ball.gauge, ball.support), ball.powers, strict=True):
        close(torch.linalg.vector_norm(torch.stack([measure(part) for part in parts]), p), measure(x))


@pytest.mark.parametrize("ball", [balls.L1(), balls.KSparse(k=1), balls.KSupport(k=1)], ids=str)
def test_of_tied_entries_a_single_one_is_the_first(ball) -> None:
    g = torch.tensor([0.5, -2.0, 1.0, 2.0, -2.0]).repeat(500)
    assert ball.lmo(g, 3.0).nonzero().tolist() == [[1]]


@pytest.mark.parametrize("ball", [balls.L2(), balls.KSupport(k=0.9), balls.SpectralKSupport(k=1.0)], ids=str)
def test_vertices_of_millions_of_float32_entries_are_on_the_boundary(ball) -> None:
    """Added up one after the other, the squares would be 4e-5 off."""
    g = torch.randn(512, 4000, generator=torch.Generator().manual_seed(0))
    v = ball.lmo(g, 3.0).double()
    assert float(v.norm()) == pytest.approx(3.0, rel=1e-6)  # the largest L2 norm in each of these sets


@over_cases
@pytest.mark.parametrize(("dtype", "eps"), [(torch.float32, 1e-6), (torch.bfloat16, 4e-3), (torch.float16, 5e-4)])
def test_coarse_types_are_worked_on_in_finer_ones(ball, shape, dtype, eps) -> None:
    g = (1e-4 * draw(16, *shape)).to(dtype)  # squares of that vanish in float16
    v = ball.lmo(g, R)
    assert v.dtype == dtype
    assert ball.contains(v, R, 2 * eps)
    close(-dot(g, v), R * ball.support(g), rtol=4 * eps, atol=0)
    x = draw(17, *shape).to(dtype)
    assert ball.pull_in(x, 0.1).dtype == dtype
    assert ball.contains(ball.pull_in(x, 0.1), 0.1, 2 * eps)


def extremes(shape, dtype) -> dict[str, torch.Tensor]:
    """Finite gradients from the least number of a type to the largest."""
    info, n = torch.finfo(dtype), math.prod(shape)
    least = info.smallest_normal * info.eps
    u = draw(24, *shape)
    u = u / u.abs().max()
    mixed = u * torch.logspace(math.log10(info.tiny) - 1, math.log10(info.max) - 1, n, dtype=torch.float64).view(shape)
    dead, last = u.clone(), torch.zeros(shape, dtype=torch.float64)
    dead[0] = 0
    last.view(-1)[-1] = least
    found = {
        "zero": 0 * u,
        "the least": u.sign() * least,
        "a single one of the least": last,
        "subnormal": u * info.tiny / 8,
        "the least normal": u * info.tiny * 2,
        "mixed": mixed,
        "large": u * info.max / 8,
        "the largest": u.sign() * info.max,
        "a dead filter": dead,
        "one beside the least": torch.where(u.abs() == 1, u, least),
    }
    return {name: g.to(dtype) for name, g in found.items()}


@over_cases
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_vertex_of_any_finite_gradient_is_finite_in_the_set_and_optimal(ball, shape, dtype) -> None:
    eps = 1e-6 if dtype in (torch.float32, torch.float64) else 4 * torch.finfo(dtype).eps
    for name, g in extremes(shape, dtype).items():
        assert torch.isfinite(g).all()
        for radius in (1e4, 1e-2):
            v = ball.lmo(g, radius)
            assert torch.isfinite(v).all(), name
            assert ball.contains(v, radius, eps), name
            scale = float(g.double().abs().max()) or 1.0
            unit = g.double() / scale
            close(-dot(unit, v), radius * ball.support(unit), rtol=4 * eps, atol=1e-12)


@over_cases
@pytest.mark.parametrize("scale", [2.0**-900, 2.0**900])
def test_gauge_support_and_projection_are_of_any_scale_that_float64_has(ball, shape, scale) -> None:
    x = draw(25, *shape)
    assert ball.gauge(scale * x) == scale * ball.gauge(x)
    assert ball.support(scale * x) == scale * ball.support(x)
    r = 0.3 * float(ball.gauge(x))
    close(ball.pull_in(scale * x, scale * r) / scale, ball.pull_in(x, r))
    if ball.projects:
        close(ball.project(scale * x, scale * r) / scale, ball.project(x, r))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("p", [1 + 1e-15, 1 + 1e-9, 1.0001, 1.01, 30.0, 1e6, 1e300])
def test_near_its_ends_a_power_ball_keeps_its_vertices_in_the_set(p, dtype) -> None:
    g = draw(26, 4000)
    g[:5] = 0
    g[5:1000] = g.abs().max()  # tied: near p = 1 all of them share the radius
    for x in (g.to(dtype), (1e-3 * g).to(dtype)):
        v = balls.Lp(p).lmo(x, R)
        assert balls.Lp(p).contains(v, R, 1e-5)
        close(-dot(x, v), R * balls.Lp(p).support(x), rtol=1e-5, atol=0)
        assert not v[:5].any()


KERNELS = {
    "1x1": (6, 4, 1, 1),
    "depthwise": (8, 1, 3, 3),
    "grouped": (8, 2, 3, 3),
    "linear": (5, 7),
    "conv1d": (4, 3, 5),
    "conv3d": (3, 2, 2, 2, 2),
    "bias": (9,),
    "scalar": (),
    "one": (1, 1, 1, 1),
    "empty": (0, 3),
}


@over_balls
@pytest.mark.parametrize("shape", KERNELS.values(), ids=KERNELS)
def test_every_kind_of_parameter_has_its_vertex(ball, shape) -> None:
    for g in (draw(18, *shape).float(), draw(18, 2, *shape).float()):
        stacked = g.ndim > len(shape)
        v = ball.lmo(g, R, stacked=stacked)
        assert v.shape == g.shape
        assert ball.contains(v, R, stacked=stacked).all()
        if g.numel():
            close(ball.gauge(v, stacked=stacked), [R] * len(g) if stacked else R, rtol=1e-5, atol=0)
            assert 0 < ball.radius(2.0, shape) <= 1 + 1e-12
        assert ball.pull_in(g, 0.1, stacked=stacked).shape == g.shape
    if len(shape) == 4:
        last = g.to(memory_format=torch.channels_last) if g.ndim == 4 else g[0].to(memory_format=torch.channels_last)
        close(ball.lmo(last, R), ball.lmo(last.contiguous(), R))


# ---- plain data


@over_balls
def test_a_ball_is_plain_data(ball) -> None:
    assert balls.from_dict(json.loads(json.dumps(ball.to_dict()))) == ball
    file = io.BytesIO()
    torch.save(ball.to_dict(), file)
    file.seek(0)
    again = balls.from_dict(torch.load(file, weights_only=True))
    assert again == ball
    assert type(again) is type(ball)
    assert hash(again) == hash(ball)


def test_every_set_with_fields_is_tried_with_some() -> None:
    assert {name for name, kind in balls.SETS.items() if dataclasses.fields(kind)} == set(FIELDS)
    assert {type(ball).__name__ for ball in ALL} == set(balls.SETS)


@pytest.mark.parametrize("kind", [kind for name, kind in balls.SETS.items() if "k" in FIELDS.get(name, [{}])[0]])
@pytest.mark.parametrize("k", [0, -1, 0.0, 1.5, True, math.nan])
def test_a_number_out_of_range_is_refused(kind, k) -> None:
    with pytest.raises(ArgumentError, match="`k` must be an int"):
        kind(k)


@pytest.mark.parametrize("p", [1.0, 0.5, math.inf, math.nan])
def test_a_power_out_of_range_is_refused(p) -> None:
    with pytest.raises(ArgumentError, match="`p` must be > 1"):
        balls.Lp(p)


@over_balls
def test_a_radius_that_is_not_positive_is_refused(ball) -> None:
    x = draw(19, 4, 4)
    for radius in (0.0, -1.0, math.nan):
        for verb in [ball.lmo, ball.pull_in, ball.contains] + ([ball.project] if ball.projects else []):
            with pytest.raises(ArgumentError, match="`radius` must be > 0"):
                verb(x, radius)


@pytest.mark.parametrize("data", [{}, {"ball": "Sphere"}, {"ball": "KSparse", "k": 0}])
def test_data_of_no_ball_is_refused(data) -> None:
    with pytest.raises(ArgumentError):
        balls.from_dict(data)
