"""The quantities of attention against their definitions in float64, and the laws that they obey."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from warmfree.measure.attention import (
    attention_entropy,
    collapse,
    effective_rank,
    entropy_ratio,
    spectral_energy_concentration,
    spectrum,
    stable_rank,
)

seeds = st.integers(0, 2**31 - 1)
sizes = st.integers(1, 7)


def random(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def equal(ours, expected, atol=1e-10):
    torch.testing.assert_close(ours, expected, rtol=0, atol=atol, equal_nan=True)


@settings(deadline=None, max_examples=60)
@given(
    seed=seeds,
    key_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    head_dim=sizes,
    model_dim=sizes,
    key_dim=sizes,
)
def test_spectrum_of_any_shape_is_that_of_the_dense_product(
    seed, key_heads, group, head_dim, model_dim, key_dim
):
    query = random(seed, key_heads * group, head_dim, model_dim)
    key = random(seed + 1, key_heads, head_dim, key_dim)
    values = spectrum(query, key)
    assert values.shape == (key_heads * group, min(head_dim, model_dim, key_dim))
    for head, ours in enumerate(values):
        dense = torch.linalg.svdvals(query[head].mT @ key[head // group])
        equal(ours, dense[: len(ours)])
        assert dense[len(ours) :].sum() < 1e-10


@settings(deadline=None, max_examples=30)
@given(seed=seeds, factor=st.floats(1e-150, 1e150))
def test_shares_and_ranks_do_not_change_with_the_scale(seed, factor):
    values = random(seed, 2, 6).abs().sort(descending=True).values
    equal(spectral_energy_concentration(values * factor, num=2), spectral_energy_concentration(values, num=2))
    equal(stable_rank(values * factor), stable_rank(values))


@settings(deadline=None, max_examples=30)
@given(seed=seeds)
def test_a_change_of_basis_leaves_the_spectrum(seed):
    query, key = random(seed, 2, 3, 5), random(seed + 1, 2, 3, 5)
    inner, outer = (torch.linalg.qr(random(seed + k, n, n)).Q for k, n in ((2, 3), (3, 5)))
    equal(spectrum(inner @ query, inner @ key), spectrum(query, key))
    equal(spectrum(query @ outer, key @ outer), spectrum(query, key))


def test_concentration_is_the_definition():
    values = random(3, 4, 8).abs().sort(descending=True).values
    energy = values.square()
    for num in (1, 3, 8, 10):
        equal(spectral_energy_concentration(values, num=num), energy[:, :num].sum(1) / energy.sum(1))
    curve = spectral_energy_concentration(values, num=None)
    equal(curve, torch.stack([spectral_energy_concentration(values, num=num) for num in range(1, 9)], 1))
    assert (curve.diff(dim=1) >= 0).all()
    equal(curve[:, -1], torch.ones(4, dtype=torch.float64))
    with pytest.raises(ValueError, match="num must be >= 1, got 0"):
        spectral_energy_concentration(values, num=0)


def test_stable_rank_is_frobenius_over_spectral():
    matrix = random(4, 6, 5)
    expected = matrix.square().sum() / torch.linalg.matrix_norm(matrix, 2).square()
    equal(stable_rank(torch.linalg.svdvals(matrix)), expected)


def test_zero_and_non_finite_weights_keep_to_their_heads():
    query, key = random(5, 4, 3, 6), random(6, 2, 3, 6)
    healthy = spectrum(query, key)
    query[1], query[2, 0, 0] = 0, math.nan
    values = spectrum(query, key)
    equal(values[[0, 3]], healthy[[0, 3]])
    assert (values[1] == 0).all()
    assert values[2].isnan().all()
    for quantity in (spectral_energy_concentration(values, num=1), stable_rank(values)):
        assert quantity.isnan().tolist() == [False, True, True, False]
    key[0, 0, 0] = math.inf
    assert spectrum(query, key).isnan().all(1).tolist() == [True, True, True, False]


def test_half_precision_weights_are_decomposed_in_float32():
    query, key = random(7, 2, 4, 6).bfloat16(), random(8, 2, 4, 6).bfloat16()
    values = spectrum(query, key)
    assert values.dtype == torch.float32
    equal(values, spectrum(query.double(), key.double()).float(), atol=1e-5)


@pytest.mark.parametrize("shapes", [((2, 3, 4), (2, 2, 4)), ((3, 2, 4), (2, 2, 4)), ((3, 2, 4), (2, 4))])
def test_heads_that_do_not_match_are_refused(shapes):
    with pytest.raises(ValueError, match="heads a multiple of the key's, got"):
        spectrum(*(torch.ones(shape) for shape in shapes))


@settings(deadline=None, max_examples=40)
@given(seed=seeds, rows=sizes, keys=sizes, sharpness=st.floats(0, 1000))
def test_entropy_lies_between_one_key_and_all_alike(seed, rows, keys, sharpness):
    attention = (random(seed, 2, rows, keys) * sharpness).softmax(-1)
    entropy = attention_entropy(attention)
    assert ((entropy >= 0) & (entropy <= math.log(keys) + 1e-12)).all()
    expected = [[-sum(p * math.log(p) for p in row if p > 0) for row in one] for one in attention.tolist()]
    equal(entropy, torch.tensor(expected, dtype=torch.float64), atol=1e-12)
    ratio = entropy_ratio(entropy, torch.full((2, rows), keys))
    equal(ratio, entropy / math.log(keys) if keys > 1 else torch.full_like(entropy, math.nan))


@settings(deadline=None, max_examples=40)
@given(seed=seeds, rows=sizes, keys=sizes)
def test_effective_rank_is_the_participation_ratio_of_the_singular_values(seed, rows, keys):
    attention = (random(seed, 3, rows, keys) * 5).softmax(-1)
    energy = torch.linalg.svdvals(attention).square()
    rank = effective_rank(attention)
    equal(rank, energy.sum(1).square() / energy.square().sum(1))
    assert ((rank > 1 - 1e-12) & (rank < min(rows, keys) + 1e-12)).all()
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    equal(effective_rank(attention[:, order]), rank)


def test_effective_rank_counts_the_clusters():
    for clusters in (1, 2, 4, 8):
        attention = torch.eye(clusters, dtype=torch.float64).repeat_interleave(8 // clusters, 0)
        equal(effective_rank(attention), torch.tensor(float(clusters), dtype=torch.float64))
    assert effective_rank(torch.zeros(2, 2)).isnan()
    assert effective_rank(torch.full((2, 2), math.nan)).isnan()


def test_collapse_is_benign_at_the_identity_and_malignant_at_one_key():
    nan = math.nan
    ratio = torch.tensor([0.9, 0.9, 0.05, 0.05, nan, 0.05, 0.05])
    rank = torch.tensor([20.0, 1.0, 20.0, 1.0, 1.0, nan, 1.0])
    size = torch.tensor([20.0] * 6 + [1.0])
    equal(collapse(ratio, rank, size), torch.tensor([0.0, 0.0, 1.0, 2.0, nan, nan, nan]))
