"""The Lanczos method against dense eigenvalues: random matrices, and every way in which it can break down."""

import math

import pytest
import torch
from curvature_cases import Matrix, close, dense, flat
from hypothesis import example, given, settings
from hypothesis import strategies as st

from warmfree.measure.curvature import lanczos


def symmetric(eigenvalues, seed=0):
    generator = torch.Generator().manual_seed(seed)
    size = len(eigenvalues)
    basis, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    return basis @ torch.tensor(eigenvalues, dtype=torch.float64).diag() @ basis.T


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-(10**6), 10**6), min_size=3, max_size=30),
    st.integers(0, 1000),
    st.sampled_from(["largest", "smallest", "magnitude"]),
    st.sampled_from([1e-20, 1.0, 1e20]),
)
@example([0, -999505, -999506], 0, "smallest", 1e-20)
def test_as_many_products_as_dimensions_give_the_extreme_eigenvalue(eigenvalues, seed, which, scale):
    matrix = symmetric(eigenvalues, seed) * scale
    exact = torch.linalg.eigvalsh(matrix)
    # A tolerance that is never met before: two eigenvalues that nearly coincide look like one that has converged.
    found = lanczos(Matrix(matrix), which=which, tolerance=1e-30, max_products=len(exact), seed=seed)
    expected = {"largest": exact[-1], "smallest": exact[0], "magnitude": exact.abs().max()}[which]
    value = abs(found.values[0]) if which == "magnitude" else found.values[0]
    assert abs(value - expected) <= 1e-9 * exact.abs().max()
    assert found.converged
    assert found.products <= len(exact)


@settings(max_examples=40, deadline=None)
@given(st.integers(10, 60), st.integers(0, 1000), st.integers(2, 9))
def test_residual_and_vector_are_what_they_say(size, seed, products):
    matrix = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    matrix = matrix + matrix.T
    found = lanczos(Matrix(matrix), tolerance=1e-9, max_products=products, seed=seed)
    vector = flat(found.vector)
    assert torch.linalg.vector_norm(vector).item() == pytest.approx(1)
    residual = torch.linalg.vector_norm(matrix @ vector - found.values[0] * vector).item()
    assert residual == pytest.approx(found.residuals[0], rel=1e-6, abs=1e-9)
    exact = torch.linalg.eigvalsh(matrix)
    assert (exact - found.values[0]).abs().min() <= found.residuals[0] * (1 + 1e-9)
    assert found.values[0] <= exact[-1] + 1e-9  # a Rayleigh quotient is never above
    assert found.errors[0] <= found.residuals[0]


def test_it_stops_at_the_tolerance_and_says_so():
    matrix = symmetric([50.0, *torch.linspace(-1, 10, 199).tolist()])
    rough = lanczos(Matrix(matrix), tolerance=0.01, max_products=50)
    fine = lanczos(Matrix(matrix), tolerance=1e-8, max_products=50)
    short = lanczos(Matrix(matrix), tolerance=1e-8, max_products=3)
    assert rough.converged
    assert rough.products < fine.products < 50
    assert rough.values[0] == pytest.approx(50, rel=0.01)
    assert fine.values[0] == pytest.approx(50, rel=1e-8)
    assert not short.converged
    assert short.products == 3


def test_several_values_come_in_order_and_a_multiple_one_once():
    found = lanczos(Matrix(symmetric([9.0, 7.0, 7.0, 5.0, 1.0, -8.0])), count=3, tolerance=1e-10)
    close(found.values, [9.0, 7.0, 5.0])
    assert found.products == 5
    found = lanczos(Matrix(symmetric([3.0] * 6)), count=2, tolerance=1e-10)
    close(found.values, [3.0])
    assert found.products == 1
    assert found.converged


def test_a_basis_too_large_for_the_memory_is_not_kept_and_the_eigenvalue_found_all_the_same():
    matrix = symmetric([50.0, 30.0, *torch.linspace(-40, 10, 300).tolist()])
    size = 302 * 8
    kept = lanczos(Matrix(matrix), tolerance=1e-8, max_products=60, memory=60 * size)
    bare = lanczos(Matrix(matrix), tolerance=1e-8, max_products=60, memory=60 * size - 1, count=2)
    assert kept.vector is not None
    assert bare.vector is None
    assert len(bare.values) == 1
    assert bare.values[0] == pytest.approx(kept.values[0], rel=1e-8)
    # Far beyond convergence, where orthogonality is long lost.
    long = lanczos(Matrix(matrix), tolerance=1e-300, max_products=300, memory=0)
    assert long.values[0] == pytest.approx(50, rel=1e-9)


def test_float32_vectors_and_float64_products_of_them():
    matrix = symmetric([5.0, *torch.linspace(-1, 4, 400).tolist()])
    found = lanczos(Matrix(matrix, torch.float32), tolerance=1e-6, max_products=200)
    assert found.values[0] == pytest.approx(5, rel=1e-6)
    assert found.vector[0].dtype == torch.float32


def test_zero_and_one_dimension_and_invariant_subspaces():
    zero = lanczos(Matrix(torch.zeros(5, 5)))
    assert (zero.values, zero.residuals, zero.products, zero.converged) == ((0.0,), (0.0,), 1, True)
    one = lanczos(Matrix(torch.tensor([[-4.0]])), max_products=20)
    assert (one.values, one.products, one.converged) == ((-4.0,), 1, True)
    rank_one = torch.ones(9, 9)
    found = lanczos(Matrix(rank_one), tolerance=1e-10)
    assert found.values[0] == pytest.approx(9)
    assert found.products == 2


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_product_that_is_not_finite_ends_the_search(bad):
    matrix = torch.eye(4)
    matrix[2, 2] = bad
    found = lanczos(Matrix(matrix))
    assert math.isnan(found.values[0])
    assert math.isnan(found.residuals[0])
    assert not found.converged
    assert found.vector is None


def test_a_warm_start_saves_products_and_does_not_hide_what_has_overtaken():
    spectrum = torch.linspace(-5, 20, 300).tolist()
    matrix = symmetric([40.0, 30.0, *spectrum])
    cold = lanczos(Matrix(matrix), tolerance=1e-4, max_products=60)
    warm = lanczos(Matrix(matrix), tolerance=1e-4, max_products=60, start=cold.vector)
    assert warm.products < cold.products
    assert warm.values[0] == pytest.approx(40, rel=1e-4)
    overtaken = symmetric([40.0, 60.0, *spectrum])  # the start is an exact eigenvector still, not the top one
    for tolerance in (1e-2, 1e-4):
        found = lanczos(Matrix(overtaken), tolerance=tolerance, max_products=60, start=cold.vector)
        assert found.values[0] == pytest.approx(60, rel=tolerance)


def test_a_seed_decides_all():
    matrix = symmetric(torch.linspace(-5, 20, 100).tolist())
    first, second = (lanczos(Matrix(matrix), seed=3, max_products=7) for _ in range(2))
    other = lanczos(Matrix(matrix), seed=4, max_products=7)
    assert first.values == second.values
    assert torch.equal(flat(first.vector), flat(second.vector))
    assert first.values != other.values


def test_bad_arguments_are_refused():
    operator = Matrix(torch.eye(4))
    for options in (
        {"count": 0},
        {"max_products": 0},
        {"tolerance": 0.0},
        {"tolerance": math.nan},
        {"memory": -1},
    ):
        with pytest.raises(ValueError, match="lanczos needs"):
            lanczos(operator, **options)
    for fill in (0.0, math.nan):
        with pytest.raises(ValueError, match="start must be"):
            lanczos(operator, start=[torch.full_like(tensor, fill) for tensor in operator.parameters])
    assert torch.equal(dense(operator), torch.eye(4).double())
