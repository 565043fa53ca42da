from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmerge.adapters import lowrank
from fedmerge.adapters.lowrank import orthonormal, truncate_dense, truncate_product
from fedmerge.adapters.refactor import balanced_factors


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def product(low):
    return low.left @ torch.diag(low.values) @ low.right


def ill_conditioned(condition):
    """Ten columns whose Gram matrix, scaled, has about this condition number."""
    first = normal(40, 1)
    return torch.cat([first, first + normal(40, 9, seed=1) / math.sqrt(condition)], dim=1)


def check_basis(matrix, size):
    basis = orthonormal(matrix)
    vectors = basis.lift(torch.eye(size, dtype=torch.float64))
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(size, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(vectors @ basis.triangle, matrix, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("condition", [1e2, 1e5, 1e8, 1e14, 1e40])
def test_the_basis_is_orthonormal_at_any_condition(condition):
    check_basis(ill_conditioned(condition), 10)


@pytest.mark.parametrize("condition, by_qr", [(1e3, False), (1e9, True), (1e40, True)])
def test_qr_is_used_where_cholesky_would_lose_digits(condition, by_qr):
    assert (orthonormal(ill_conditioned(condition)).upper is None) == by_qr


def test_columns_of_zeros_and_of_any_size_take_no_harm():
    check_basis(normal(20, 5) * torch.tensor([1e-30, 0.0, 1.0, 1e9, 0.0], dtype=torch.float64), 3)


def test_more_columns_than_rows():
    check_basis(normal(4, 9), 4)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 6), st.integers(1, 7), st.integers(0, 1000))
def test_property_products_are_truncated_as_numpy_truncates_them(outputs, inputs, inner, rank, seed):
    left, core, right = (
        normal(outputs, inner, seed=seed),
        normal(inner, inner),
        normal(inner, inputs, seed=seed + 1),
    )
    low = truncate_product(left, core, right, rank, 1e-13)
    dense = (left @ core @ right).numpy()
    u, s, vh = np.linalg.svd(dense, full_matrices=False)
    np.testing.assert_allclose(product(low), (u[:, :rank] * s[:rank]) @ vh[:rank], atol=1e-9 * s[0])
    np.testing.assert_allclose(low.energy, (s**2).sum(), rtol=1e-9)
    np.testing.assert_allclose(low.discarded, (s[rank:] ** 2).sum(), atol=1e-12 * s[0] ** 2)


@pytest.mark.parametrize("matrix", [normal(20, 5), ill_conditioned(1e12), normal(20, 3) * 1e-170])
def test_the_basis_can_be_formed(matrix):
    basis = orthonormal(matrix)
    torch.testing.assert_close(basis.formed(), basis.lift(torch.eye(matrix.shape[1], dtype=torch.float64)))
    torch.testing.assert_close(basis.formed() @ basis.triangle, matrix, atol=1e-180, rtol=1e-9)


def test_effective_rank_counts_directions():
    """Of equal length: their number. Where one dominates: little more than 1."""
    turn = torch.linalg.qr(normal(6, 6))[0]
    for values, rank in [([2.0] * 4 + [0.0] * 2, 4.0), ([1.0, 1e-9, 0, 0, 0, 0], 1.0), ([0.0] * 6, 0.0)]:
        low = truncate_dense(turn @ torch.diag(torch.tensor(values, dtype=torch.float64)), 6, 1e-12)
        np.testing.assert_allclose(low.effective_rank, rank, atol=1e-7)


def test_a_zero_product_has_no_values():
    low = truncate_product(torch.zeros(4, 2).double(), torch.eye(2).double(), normal(2, 5), 3, 1e-12)
    assert (low.left.shape, low.values.shape, low.right.shape) == ((4, 0), (0,), (0, 5))
    assert low.energy == low.discarded == 0


def test_the_largest_entry_of_each_left_vector_is_positive():
    low = truncate_dense(-normal(8, 6), 4, 1e-12)
    top = low.left.abs().argmax(dim=0)
    assert (low.left[top, torch.arange(4)] > 0).all()


@pytest.mark.parametrize("kind", ["flat", "steep", "low"])
@pytest.mark.parametrize("hinted", [False, True])
def test_subspace_iteration_discards_hardly_more_than_the_exact_svd(monkeypatch, kind, hinted):
    matrix, hint = normal(300, 260), normal(12, 260, seed=1)
    if kind == "steep":
        matrix = matrix @ torch.diag(0.9 ** torch.arange(260, dtype=torch.float64))
    if kind == "low":
        matrix = normal(300, 12) @ hint + 0.01 * matrix
    exact = truncate_dense(matrix, 16, 1e-12)
    monkeypatch.setattr(lowrank, "EXACT_SIDE", 8)
    iterated = truncate_dense(matrix, 16, 1e-12, hint if hinted else None)
    assert not torch.equal(iterated.left, exact.left)
    assert -1e-12 * exact.energy < iterated.discarded - exact.discarded < 1e-5 * exact.energy
    assert math.isclose(iterated.energy, exact.energy, rel_tol=1e-12)
    assert torch.equal(iterated.left, truncate_dense(matrix, 16, 1e-12, hint if hinted else None).left)


@pytest.mark.parametrize("truncate", [
    lambda m: truncate_dense(m, 2, 1e-12),
    lambda m: truncate_product(m, torch.eye(3).double(), normal(3, 3), 2, 1e-12),
])  # fmt: skip
def test_what_is_not_finite_is_an_overflow(truncate):
    with pytest.raises(OverflowError):
        truncate(torch.full((3, 3), math.inf, dtype=torch.float64))


@pytest.mark.parametrize("scaling", [0.25, 1.0, 8.0])
def test_factors_are_balanced_and_give_the_product(scaling):
    low = truncate_dense(normal(8, 6), 4, 1e-12)
    a, b = balanced_factors(low, scaling, 4, normal(4, 6, seed=1))
    torch.testing.assert_close(scaling * b @ a, product(low))
    torch.testing.assert_close(b.norm(dim=0), a.norm(dim=1))


def test_left_over_ranks_can_be_trained():
    """B's new columns are 0, A's new rows are not, and they are orthogonal to what the product spans."""
    low, received = truncate_dense(normal(8, 2) @ normal(2, 6), 4, 1e-12), normal(4, 6, seed=1)
    a, b = balanced_factors(low, 2.0, 4, received)
    torch.testing.assert_close(2.0 * b @ a, product(low))
    assert (b[:, 2:] == 0).all()
    assert (a[2:].norm(dim=1) > 0.1 * received.norm(dim=1).mean()).all()
    torch.testing.assert_close(a[2:] @ low.right.T, torch.zeros(2, 2).double(), atol=1e-12, rtol=0)


def test_where_nothing_was_learned_a_stays_bit_for_bit():
    low, received = truncate_dense(torch.zeros(8, 6).double(), 4, 1e-12), normal(4, 6)
    a, b = balanced_factors(low, 2.0, 4, received)
    assert torch.equal(a, received)
    assert torch.equal(b, torch.zeros(8, 4).double())


def test_without_free_directions_the_rest_is_zero():
    low = truncate_dense(torch.eye(3).double()[:, :2], 4, 1e-12)
    a, b = balanced_factors(low, 1.0, 4, normal(1, 2))
    assert a.shape == (4, 2)
    assert (a[2:] == 0).all()
    torch.testing.assert_close(b @ a, product(low))
