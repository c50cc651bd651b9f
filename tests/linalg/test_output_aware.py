"""Output factors against explicit weighted approximations: an SVD of ``W S``, a Cholesky factor of the metric."""

import numpy as np
import pytest
import scipy.linalg
import torch

from tenfold.linalg.output_aware import damped, output_basis, output_factors

M, N, RANK, SAMPLES = 6, 9, 3, 50


def generic(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def colored(generator, n=N, samples=SAMPLES):
    """Inputs of unlike directions, ``(n, samples)``."""
    strength = torch.logspace(0, -2, n, dtype=torch.float64)[:, None]
    return generic(generator, n, n) @ (strength * generic(generator, n, samples))


def output_moment(w, x):
    y = w @ x
    return (y @ y.mT / x.shape[1])[None]


def approximation(w, basis, rank):
    left, right = output_factors(w[None], basis[0], basis[1], rank)
    return (left @ right)[0]


def loss(w, other, x, metric=None):
    """``E ||G^{1/2} (W - other) x||^2`` over the samples."""
    d = (w - other) @ x
    return float((d * (d if metric is None else metric @ d)).sum() / x.shape[1])


def spd(generator, m, rank=None):
    a = generic(generator, m, m if rank is None else rank)
    return a @ a.mT


@pytest.mark.parametrize("rank", range(1, M + 1))
def test_the_factors_are_those_of_the_svd_of_the_weight_times_a_root_of_the_input_moment(generator, rank):
    w, x = generic(generator, M, N), colored(generator)
    moment = (x @ x.mT / SAMPLES).numpy()
    root = scipy.linalg.cholesky(moment, lower=True)
    u, s, vh = np.linalg.svd(w.numpy() @ root, full_matrices=False)
    expected = np.linalg.solve(root.T, ((u[:, :rank] * s[:rank]) @ vh[:rank]).T).T
    basis = output_basis(output_moment(w, x))
    torch.testing.assert_close(approximation(w, basis, rank), torch.from_numpy(expected), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(basis[2][0], torch.from_numpy(s**2), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("weighted", [False, True])
def test_no_matrix_of_the_same_rank_has_less_output_error(generator, weighted):
    w, x = generic(generator, M, N), colored(generator)
    metric = spd(generator, M) if weighted else None
    basis = output_basis(output_moment(w, x), None if metric is None else metric[None])
    best = approximation(w, basis, RANK)
    least = loss(w, best, x, metric)
    left, right = output_factors(w[None], basis[0], basis[1], RANK)
    for scale in (1e-4, 1e-2, 1.0):
        for _ in range(50):  # close by, and anywhere
            rival = (left[0] + scale * generic(generator, M, RANK)) @ (right[0] + scale * generic(generator, RANK, N))
            assert loss(w, rival, x, metric) >= least
    plain = torch.linalg.svd(w)
    rival = (plain.U[:, :RANK] * plain.S[:RANK]) @ plain.Vh[:RANK]
    assert loss(w, rival, x, metric) > least
    # stationary in both factors: the gradient of the true loss vanishes
    a, b = left[0].clone().requires_grad_(), right[0].clone().requires_grad_()
    d = (w - a @ b) @ x
    (d * (d if metric is None else metric @ d)).sum().backward()
    assert float(a.grad.norm() + b.grad.norm()) < 1e-8 * float(((w @ x) ** 2).sum())


@pytest.mark.parametrize("weighted", [False, True])
def test_the_energy_left_out_is_the_mean_squared_error_on_the_data(generator, weighted):
    w, x = generic(generator, M, N), colored(generator)
    metric = spd(generator, M) if weighted else None
    basis = output_basis(output_moment(w, x), None if metric is None else metric[None])
    for rank in range(1, M + 1):
        found = loss(w, approximation(w, basis, rank), x, metric)
        assert found == pytest.approx(float(basis[2][0, rank:].sum()), rel=1e-9, abs=1e-9 * float(basis[2].sum()))


@pytest.mark.parametrize("rank", range(1, M + 1))
def test_with_a_metric_they_are_those_of_the_weighted_problem_through_its_cholesky_factor(generator, rank):
    w, x, metric = generic(generator, M, N), colored(generator), spd(generator, M)
    c = scipy.linalg.cholesky(metric.numpy())  # G = C^T C
    y = c @ (w @ x).numpy() / np.sqrt(SAMPLES)
    u, s, _ = np.linalg.svd(y, full_matrices=False)
    expected = np.linalg.solve(c, u[:, :rank] @ (u[:, :rank].T @ (c @ w.numpy())))
    basis = output_basis(output_moment(w, x), metric[None])
    torch.testing.assert_close(approximation(w, basis, rank), torch.from_numpy(expected), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(basis[2][0], torch.from_numpy(s**2), rtol=1e-8, atol=1e-8)


def test_an_identity_for_a_metric_changes_nothing_whatever_its_scale(generator):
    w, x = generic(generator, M, N), colored(generator)
    plain = approximation(w, output_basis(output_moment(w, x)), RANK)
    for scale in (1e-12, 1.0, 1e12):
        metric = scale * torch.eye(M, dtype=torch.float64)[None]
        torch.testing.assert_close(
            approximation(w, output_basis(output_moment(w, x), metric), RANK), plain, rtol=1e-8, atol=1e-8
        )


@pytest.mark.parametrize("weighted", [False, True])
def test_full_rank_is_the_weight_itself(generator, weighted):
    w = generic(generator, M, N)
    for x in (colored(generator), colored(generator, samples=2)):
        metric = spd(generator, M)[None] if weighted else None
        basis = output_basis(output_moment(w, x), metric)
        torch.testing.assert_close(approximation(w, basis, M), w, rtol=1e-8, atol=1e-8)


def test_few_samples_are_reproduced_exactly_at_as_many_ranks(generator):
    w, x = generic(generator, M, N), colored(generator, samples=2)
    basis = output_basis(output_moment(w, x))
    torch.testing.assert_close(approximation(w, basis, 2) @ x, w @ x, rtol=1e-8, atol=1e-8)
    assert (basis[2] >= 0).all()


def test_a_rank_deficient_metric_counts_only_what_it_sees(generator):
    w, x, metric = generic(generator, M, N), colored(generator), spd(generator, M, 2)
    basis = output_basis(output_moment(w, x), metric[None])
    best = approximation(w, basis, 2)
    assert torch.isfinite(best).all()
    assert loss(w, best, x, metric) < 1e-9 * loss(w, torch.zeros_like(w), x, metric)


@pytest.mark.parametrize("weighted", [False, True])
def test_moments_that_are_zero_give_finite_factors_and_no_energy(generator, weighted):
    w, zero = generic(generator, 2, M, N), torch.zeros(2, M, M, dtype=torch.float64)
    a, b, energy = output_basis(zero, zero if weighted else None)
    assert not energy.any()
    left, right = output_factors(w, a, b, RANK)
    assert torch.isfinite(left).all()
    assert torch.isfinite(right).all()


def test_factors_are_balanced_and_in_the_dtype_of_the_weight(generator):
    w, x = generic(generator, M, N), colored(generator)
    a, b, _ = output_basis(output_moment(w, x), spd(generator, M)[None])
    left, right = output_factors(w[None], a, b, RANK)
    torch.testing.assert_close(left.norm(dim=-2), right.norm(dim=-1))
    assert {f.dtype for f in output_factors(w[None].float(), a, b, RANK)} == {torch.float32}


def test_groups_are_treated_one_by_one(generator):
    w, x = generic(generator, 3, M, N), generic(generator, 3, N, SAMPLES)
    moment = torch.cat([output_moment(w[i], x[i]) for i in range(3)])
    left, right = output_factors(w, *output_basis(moment)[:2], RANK)
    for i in range(3):
        alone = approximation(w[i], output_basis(moment[i : i + 1]), RANK)
        torch.testing.assert_close((left @ right)[i], alone, rtol=1e-9, atol=1e-9)


def test_damping_is_a_share_of_white_inputs_of_equal_output_energy(generator):
    w, x = generic(generator, M, N), colored(generator)
    inputs = x @ x.mT / SAMPLES
    share = torch.trace(w @ inputs @ w.mT) / torch.trace(w @ w.mT)
    expected = w @ (inputs + 0.3 * share * torch.eye(N, dtype=torch.float64)) @ w.mT
    torch.testing.assert_close(damped(output_moment(w, x), w[None], 0.3)[0], expected, rtol=1e-10, atol=1e-10)
    assert torch.isfinite(damped(torch.zeros(1, M, M, dtype=torch.float64), torch.zeros_like(w)[None], 0.3)).all()
