"""Singular values by power iteration against the dense ones; neurons of any layout."""

import pytest
import torch

from warmfree.optim import norms


def estimate(matrix, iterations, vector=None):
    random = norms.random_direction(matrix.shape[1], device=matrix.device, dtype=matrix.dtype)
    starts = torch.stack([random if vector is None else vector, random])
    [sigma], [vector] = norms.largest_singular_values([matrix], [starts], iterations=iterations)
    return sigma.item(), vector


def test_a_cold_estimate_of_noise_is_low_by_the_known_amount():
    torch.manual_seed(0)
    errors = {2: [], 3: [], 10: []}
    for _ in range(5):
        matrix = torch.randn(256, 256)
        exact = torch.linalg.matrix_norm(matrix, ord=2).item()
        for iterations, values in errors.items():
            values.append(estimate(matrix, iterations)[0] / exact)
    means = {iterations: sum(values) / 5 for iterations, values in errors.items()}
    assert 0.80 < means[2] < means[3] < means[10] < 1.0
    assert means[10] > 0.95


def test_a_warm_estimate_of_a_drifting_matrix_is_within_half_a_percent():
    torch.manual_seed(0)
    matrix = torch.randn(128, 96)
    _, vector = estimate(matrix, 10)
    for _ in range(30):
        matrix += 0.003 * torch.randn(128, 96)
        sigma, vector = estimate(matrix, 2, vector)
    assert sigma == pytest.approx(torch.linalg.matrix_norm(matrix, ord=2).item(), rel=5e-3)


def test_a_stored_vector_that_sees_nothing_does_not_matter():
    """The row space moves to where the vector is zero: an estimate of 0 would switch the bound off."""
    first, second = torch.zeros(4, 10), torch.zeros(4, 10)
    first[0, 0], second[1, 7] = 1.0, 1.0
    _, vector = estimate(first, 5)
    assert vector[7].abs() < 1e-6
    assert estimate(second, 1, vector)[0] == pytest.approx(1.0)


@pytest.mark.parametrize("scale", [1e-25, 1e-12, 1.0, 1e12, 1e25])
def test_scale_does_not_matter(scale):
    torch.manual_seed(0)
    matrix = torch.outer(torch.randn(20), torch.randn(30))
    exact = torch.linalg.matrix_norm(matrix, ord=2).item()
    assert estimate(matrix * scale, 2)[0] == pytest.approx(exact * scale, rel=1e-5)


def test_zero_is_exactly_zero_and_keeps_the_vector():
    sigma, vector = estimate(torch.zeros(3, 5), 2)
    assert sigma == 0
    assert vector.norm() == pytest.approx(1.0)


def test_random_directions_are_fixed_and_do_not_touch_the_global_state():
    state = torch.get_rng_state()
    one, two = (norms.random_direction(50, device=torch.device("cpu"), dtype=torch.float64) for _ in range(2))
    assert torch.equal(one, two)
    assert one.norm().item() == pytest.approx(1.0)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("shape", "out_dim"), [((5, 7), 0), ((5, 7), 1), ((4, 3, 2, 2), 0), ((4, 3, 2, 2), 1), ((4, 3), -1)]
)
def test_rows_are_neurons(shape, out_dim):
    tensor = torch.randn(shape, dtype=torch.float64)
    matrix = norms.as_matrix(tensor, out_dim=out_dim)
    assert matrix.shape == (shape[out_dim], norms.fan_in(tensor, out_dim=out_dim))
    rows = torch.linalg.vector_norm(tensor, dim=norms.row_dims(tensor, out_dim=out_dim), keepdim=True)
    torch.testing.assert_close(rows.flatten(), matrix.norm(dim=1))
    assert (tensor / rows).norm().item() == pytest.approx(shape[out_dim] ** 0.5)
