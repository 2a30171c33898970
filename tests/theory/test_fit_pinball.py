import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmfree.theory.fit.envelope import fit_floor, fit_power, fit_sum
from warmfree.theory.fit.pinball import mean_pinball, profiled_quantile
from warmfree.theory.fit.ranks import ranks, spearman
from warmfree.theory.fit.resample import autocorrelation, block_length, block_weights, interval

VALUES = st.lists(st.integers(-20, 20), min_size=1, max_size=20)


@given(VALUES, st.integers(1, 19), st.integers(0, 10_000))
def test_no_value_has_a_lower_pinball_loss_than_the_profiled_quantile(
    values: list[int], twentieths: int, seed: int
) -> None:
    residuals = np.array(values, np.float64)
    weights = np.random.default_rng(seed).exponential(size=residuals.size)
    quantile = twentieths / 20
    value, loss = profiled_quantile(residuals, weights, quantile=quantile)
    tried = mean_pinball(residuals - residuals[:, None], weights, quantile=quantile)
    assert loss == pytest.approx(tried.min(), abs=1e-12)
    assert mean_pinball(residuals - value, weights, quantile=quantile) == pytest.approx(loss, abs=1e-12)


@given(VALUES, st.integers(1, 19))
def test_with_equal_weights_it_is_the_quantile_of_numpy(values: list[int], twentieths: int) -> None:
    residuals = np.array(values, np.float64)
    value, _ = profiled_quantile(residuals, np.ones(residuals.size), quantile=twentieths / 20)
    # NumPy rounds n * q up where it is whole but for rounding; one more value is then as good.
    near = [np.quantile(residuals, twentieths / 20 - e, method="inverted_cdf") for e in (1e-9, 0.0)]
    assert float(value) in near


def test_many_weightings_of_many_residuals_are_each_done_alone() -> None:
    rng = np.random.default_rng(0)
    residuals, weights = rng.normal(size=(4, 1, 30)), rng.exponential(size=(1, 5, 30))
    values, losses = profiled_quantile(residuals, weights, quantile=0.8)
    assert values.shape == losses.shape == (4, 5)
    for i in range(4):
        for j in range(5):
            value, loss = profiled_quantile(residuals[i, 0], weights[0, j], quantile=0.8)
            assert (values[i, j], losses[i, j]) == pytest.approx((float(value), float(loss)), rel=1e-12)


def test_a_whole_weight_is_that_many_points() -> None:
    rng = np.random.default_rng(1)
    log_gaps, counts = rng.uniform(-3.0, 2.0, 25), rng.integers(1, 4, 25)
    logs = np.log(1.0 + np.exp(log_gaps)) + 0.1 * rng.normal(size=25)
    for fit in (fit_power, fit_sum):
        one = fit(log_gaps, logs, counts[None].astype(float), quantile=0.9, refinements=10)
        many = fit(
            np.repeat(log_gaps, counts),
            np.repeat(logs, counts),
            np.ones((1, counts.sum())),
            quantile=0.9,
            refinements=10,
        )
        assert one.exponent == pytest.approx(many.exponent, rel=1e-6)
        assert one.loss == pytest.approx(many.loss, rel=1e-9)


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_nested_models_never_do_better_than_the_sum(noise: float) -> None:
    rng = np.random.default_rng(2)
    log_gaps = rng.uniform(-3.0, 2.0, 60)
    logs = np.log(1.0 + np.exp(log_gaps)) + noise * rng.normal(size=60)
    weights = np.ones((1, 60))
    total = fit_sum(log_gaps, logs, weights, quantile=0.95, refinements=20).loss
    assert total <= fit_floor(logs, weights, quantile=0.95).loss
    assert total <= fit_power(log_gaps, logs, weights, quantile=0.95, refinements=20).loss


def test_the_search_finds_no_worse_than_many_random_tries() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        log_gaps = rng.uniform(-3.0, 2.0, 50)
        logs = np.log(1.0 + np.exp(1.3 * log_gaps)) + 0.3 * rng.normal(size=50)
        weights = rng.exponential(size=(1, 50))
        found = fit_sum(log_gaps, logs, weights, quantile=0.9, refinements=20, reach=6)
        exponents, breaks = rng.uniform(0.05, 4.0, 4000), rng.uniform(-6.0, 4.0, 4000)
        shapes = np.logaddexp(0.0, exponents[:, None] * (log_gaps - breaks[:, None]))
        _, losses = profiled_quantile(logs - shapes, weights, quantile=0.9)
        assert float(found.loss[0]) <= losses.min() * (1.0 + 3e-4)


@given(st.lists(st.integers(0, 9), min_size=2, max_size=20))
def test_equal_weights_give_the_usual_ranks_and_their_correlation(values: list[int]) -> None:
    one = np.array(values, np.float64)
    usual = np.array([(one < v).sum() + 0.5 * (one == v).sum() for v in one])
    assert ranks(one, np.full(one.size, 1.0 / one.size)) * one.size == pytest.approx(usual)
    other = np.sin(np.arange(one.size))
    found = float(spearman(one, other))
    if np.ptp(one) == 0.0:
        assert found == 0.0
    else:
        places = np.argsort(np.argsort(other))
        assert found == pytest.approx(np.corrcoef(usual, places)[0, 1], abs=1e-12)


def test_autocorrelation_is_that_of_the_series_and_sets_the_block() -> None:
    rng = np.random.default_rng(4)
    noise = rng.normal(size=2000)
    series = noise.copy()
    for i in range(1, series.size):
        series[i] += 0.8 * series[i - 1]
    assert autocorrelation(noise) == pytest.approx(0.0, abs=0.06)
    assert autocorrelation(series) == pytest.approx(0.8, abs=0.05)
    assert block_length(noise) <= 3 < block_length(series) <= 2000 // 8
    assert autocorrelation(np.ones(20)) == 0.0
    assert autocorrelation(np.arange(300.0)) == 0.98  # at most
    assert block_length(np.arange(20.0)) == 2  # an eighth


def test_blocks_share_a_weight_and_every_point_has_one() -> None:
    weights = block_weights(50, length=5, resamples=400, rng=np.random.default_rng(5))
    assert weights.shape == (400, 50)
    assert weights.min() > 0.0
    assert weights.mean() == pytest.approx(1.0, abs=0.03)
    for row in weights:
        lengths = np.diff(np.flatnonzero(np.diff(row) != 0.0))
        assert (lengths == 5).all()
    assert interval(np.arange(101.0), confidence=0.9) == pytest.approx((5.0, 95.0))
