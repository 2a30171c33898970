"""The noise is unbiased and has exactly the size that it states, and its outcomes are all there are."""

import math

import numpy as np
import pytest
from descent_cases import SEEDS
from hypothesis import given
from hypothesis import strategies as st

from warmfree.theory.noise import ABCNoise

SIZES = st.just(0.0) | st.floats(1e-9, 1e3)


@given(seed=SEEDS, dimension=st.integers(1, 6), a=SIZES, b=SIZES, c=SIZES)
def test_outcomes_are_unbiased_and_have_the_stated_size(seed, dimension, a, b, c):
    generator = np.random.default_rng(seed)
    noise = ABCNoise(gap=a, gradient=b, constant=c)
    gradient, gap = generator.normal(size=(3, dimension)), generator.exponential(size=3)
    outcomes = noise.outcomes(gradient, gap)
    assert outcomes.shape == (2**dimension, 3, dimension)
    squares = ((outcomes - gradient) ** 2).sum(axis=-1)
    stated = a * gap + b * (gradient**2).sum(axis=-1) + c
    scale = np.sqrt(stated)
    np.testing.assert_allclose(outcomes.mean(axis=0), gradient, atol=1e-12 * (1.0 + scale.max()))
    np.testing.assert_allclose(squares, np.broadcast_to(stated, squares.shape), rtol=1e-9, atol=1e-12)
    norms = np.linalg.norm(gradient, axis=-1)
    np.testing.assert_allclose(noise.second_moment(gap, norms), stated, rtol=1e-12)
    np.testing.assert_allclose(noise.largest(gap, norms), scale, rtol=1e-12)
    np.testing.assert_allclose(noise.deviation(gap, norms), scale, rtol=1e-12)


def test_draws_are_the_outcomes_each_as_often():
    noise = ABCNoise(gap=0.5, gradient=0.1, constant=1.0)
    gradient, gap = np.array([0.3, -2.0, 1.0]), np.array(0.7)
    outcomes = noise.outcomes(gradient, gap)
    runs = 40_000
    drawn = noise.draw(np.random.default_rng(0), np.tile(gradient, (runs, 1)), np.full(runs, 0.7))
    counts = np.array([np.isclose(drawn, outcome, rtol=1e-12).all(axis=1).sum() for outcome in outcomes])
    assert counts.sum() == runs
    expected = runs / 8
    assert (((counts - expected) ** 2) / expected).sum() < 24.3  # chi^2 of 7 degrees: 1 in 1000


def test_draws_of_different_runs_differ_and_a_seed_repeats_them():
    noise = ABCNoise(constant=1.0)
    gradient, gap = np.zeros((50, 4)), np.zeros(50)
    first = noise.draw(np.random.default_rng(5), gradient, gap)
    assert (first == noise.draw(np.random.default_rng(5), gradient, gap)).all()
    assert (first != noise.draw(np.random.default_rng(6), gradient, gap)).any()
    assert len(np.unique(first, axis=0)) > 8


def test_additive_and_affine_noise_are_special_cases():
    assert ABCNoise.additive(variance=2.0) == ABCNoise(constant=2.0)
    assert ABCNoise.affine(relative=0.5, variance=2.0) == ABCNoise(gradient=0.5, constant=2.0)
    silent = ABCNoise()
    gradient = np.array([[1.0, 2.0]])
    assert (silent.draw(np.random.default_rng(0), gradient, np.array([1.0])) == gradient).all()


def test_the_size_does_not_overflow_before_the_gradient_does():
    noise = ABCNoise(gap=1.0, gradient=4.0, constant=1.0)
    assert noise.largest(1e300, 1e300) == pytest.approx(2e300)
    assert noise.second_moment(1e300, 1e300) == math.inf
    estimate = noise.outcomes(np.array([1e200]), np.array(1e200))
    np.testing.assert_allclose(estimate.ravel(), [-1e200, 3e200])


@pytest.mark.parametrize("name", ["gap", "gradient", "constant"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_constants_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} .* must be finite and >= 0"):
        ABCNoise(**{name: value})


def test_too_many_outcomes_are_not_listed():
    with pytest.raises(ValueError, match="too many to list"):
        ABCNoise(constant=1.0).outcomes(np.zeros(17), np.array(0.0))
