"""A Cholesky factor that survives singular matrices, against the matrix itself and its leading blocks."""

import pytest
import torch
from torch.testing import assert_close

from linalg.unfolded import generic
from tenfold.linalg.nested_cholesky import nested_cholesky, solve, whiten

M = 7


def product(k):
    factor, d = nested_cholesky(k)
    return d[:, :, None] * (factor @ factor.mT) * d[:, None, :]


def grams(generator, rank, scale=1.0):
    a = generic(generator, 3, M, rank) * scale
    return a @ a.mT


@pytest.mark.parametrize("rank", [1, 4, M, 20])
@pytest.mark.parametrize("scale", [1e-100, 1.0, 1e100])
def test_it_is_a_factor_of_the_matrix_whatever_its_rank_and_scale(generator, rank, scale):
    k = grams(generator, rank, scale)
    assert_close(product(k) / scale**2, k / scale**2, rtol=1e-10, atol=1e-10)


def test_rows_without_length_take_no_part(generator):
    k = grams(generator, 20)
    k[1, 3], k[1, :, 3] = 0, 0
    kept = [i for i in range(M) if i != 3]
    x = generic(generator, 3, M, 2)
    found = solve(*nested_cholesky(k), x)
    assert not found[1, 3].any()
    assert_close(found[1, kept], torch.linalg.solve(k[1][kept][:, kept], x[1, kept]), rtol=1e-8, atol=1e-8)
    assert not solve(*nested_cholesky(k * 0), x).any()


def test_rows_below_the_floor_have_no_length(generator):
    k = grams(generator, 20)
    floor = torch.zeros(3, M, dtype=k.dtype)
    floor[:, 2] = 2 * k[:, 2, 2]
    without = k.clone()
    without[:, 2], without[:, :, 2] = 0, 0
    for one, other in zip(nested_cholesky(k, floor), nested_cholesky(without), strict=True):
        assert torch.equal(one, other)


def test_whitened_rows_have_the_inner_products_of_the_inverse(generator):
    k, x = grams(generator, 20), generic(generator, 3, M, 2)
    white = whiten(*nested_cholesky(k), x)
    assert_close(white.mT @ white, x.mT @ torch.linalg.solve(k, x), rtol=1e-8, atol=1e-8)


def test_the_factor_of_a_leading_block_is_the_leading_block_of_the_factor(generator):
    k = grams(generator, 20)
    whole, d = nested_cholesky(k)
    for m in range(1, M):
        part, e = nested_cholesky(k[:, :m, :m])
        assert_close(whole[:, :m, :m], part)
        assert_close(d[:, :m], e)


def test_rows_of_unlike_length_do_not_matter(generator):
    k = grams(generator, 20)
    lengths = torch.logspace(-8, 8, M, dtype=torch.float64)
    one, _ = nested_cholesky(k)
    other, d = nested_cholesky(k * lengths[:, None] * lengths)
    assert_close(one, other, rtol=1e-9, atol=1e-9)
    assert_close(d, k.diagonal(dim1=-2, dim2=-1).sqrt() * lengths)


def test_solving_with_a_singular_matrix_gives_its_least_squares_solution(generator):
    k = grams(generator, 4)
    wanted = k @ generic(generator, 3, M, 2)
    x = solve(*nested_cholesky(k), wanted)
    assert torch.isfinite(x).all()
    assert_close(k @ x, wanted, rtol=1e-7, atol=1e-7)


def test_a_singular_matrix_in_a_batch_leaves_the_others_exact(generator):
    k = torch.stack([grams(generator, 2)[0], grams(generator, 20)[0]])
    assert_close(nested_cholesky(k)[0][1], nested_cholesky(k[1:])[0][0], rtol=0, atol=0)


def test_where_rows_depend_on_each_other_no_solution_explodes(generator):
    """Rounding makes half of such matrices look positive definite, with pivots that are noise."""
    a = generic(generator, 100, M, 20)
    a[:, 3] = a[:, 1] + a[:, 2]
    k = a @ a.mT
    x = generic(generator, 100, M, 1)
    noise = 1e-14 * k.abs().amax() * generic(generator, 100, M, 1)
    found = solve(*nested_cholesky(k), k @ x + noise)
    assert float(found.norm(dim=1).max()) < 10 * float(x.norm(dim=1).max())
