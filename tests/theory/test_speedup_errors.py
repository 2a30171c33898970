"""Worst errors after T steps: the exponents, what the noise does to them, and that the worst case is found."""

import math

import numpy as np
import pytest

from warmfree.theory.noise import ABCNoise
from warmfree.theory.speedup import NOISES, error_after
from warmfree.theory.speedup.candidates import NON_INCREASING
from warmfree.theory.speedup.slopes import SMOOTHNESS, final_gaps
from warmfree.theory.speedup.valley import edge, start_of

STEPS = [64, 256, 1024]


@pytest.fixture(scope="module")
def exact():
    return error_after(steps=[64, 256, 1024, 2048])


@pytest.fixture(scope="module")
def noisy():
    return {
        name: error_after(noise=NOISES[name], name=name, steps=STEPS, seeds=2)
        for name in ("additive", "affine")
    }


def law_of(found, quantity, logs):
    return next(law for law in found.laws if law.quantity == quantity and law.logs == logs)


def errors_of(found, family):
    return [row.error for row in found.rows if row.family == family]


def test_without_noise_the_gain_is_linear_up_to_a_logarithm(exact):
    assert 0.95 < law_of(exact, "error ratio", 1).slope < 1.1
    assert 0.8 < law_of(exact, "error ratio", 0).slope < 0.95
    assert exact.ratios[-1][1] > 25
    assert abs(law_of(exact, "error, best that never rises", 1).slope) < 0.03
    assert -1.1 < law_of(exact, "error, warmup", 0).slope < -0.98


def test_without_noise_errors_are_near_what_the_sums_of_learning_rates_give(exact):
    for row in exact.rows:
        if row.family == "constant":  # y0^2 / (4 sum lr) at the worst slope of a straight floor
            total = row.steps * float(edge(start_of(row.gap)))
            assert row.error == pytest.approx(1 / (4 * total), rel=0.15)
        if row.family == "warmup" and row.steps > 1000:
            assert row.error == pytest.approx(1 / row.steps, rel=0.15)


def test_a_constant_is_the_best_that_never_rises_without_noise(exact):
    for steps in (64, 2048):
        errors = {row.family: row.error for row in exact.rows if row.steps == steps}
        assert min(errors[family] for family in NON_INCREASING) == errors["constant"]
        assert errors["linear warmup"] < errors["constant"]  # a length that suits T does what the gap does


def test_with_additive_noise_the_gain_is_the_square_root(noisy):
    found = noisy["additive"]
    assert 0.35 < law_of(found, "error ratio", 1).slope < 0.75
    assert -0.75 < law_of(found, "error, warmup", 0).slope < -0.4
    assert abs(law_of(found, "error, best that never rises", 1).slope) < 0.15
    assert found.ratios[0][1] < found.ratios[-1][1]


def test_with_noise_in_proportion_to_the_gradient_schedules_that_never_rise_do_not_get_better(noisy):
    found = noisy["affine"]
    assert 0.35 < law_of(found, "error ratio", 0).slope < 0.85
    assert abs(law_of(found, "error, best that never rises", 0).slope) < 0.15
    assert found.ratios[-1][1] > noisy["additive"].ratios[-1][1] > 1


def test_noise_costs_most_of_the_gain(exact, noisy):
    gains = dict(exact.ratios)
    assert all(ratio < 0.5 * gains[steps] for steps, ratio in noisy["additive"].ratios if steps >= 1024)
    louder = error_after(noise=ABCNoise.additive(variance=1.0), steps=[1024], seeds=2)
    assert louder.ratios[0][1] < dict(noisy["additive"].ratios)[1024]
    assert louder.laws == ()


def test_a_warmup_that_sees_the_gap_through_noise_is_about_as_good(noisy):
    for found in noisy.values():
        clear, blurred = errors_of(found, "warmup"), errors_of(found, "warmup, noisy gap")
        assert clear == pytest.approx(blurred, rel=0.35)


def test_the_worst_slope_is_inside_the_slopes_tried(exact, noisy):
    for found in (exact, *noisy.values()):
        for row in found.rows:
            assert 0.05 / row.steps * 1.01 < row.slope < 7.9


def test_intervals_contain_their_errors_and_exact_errors_have_none(exact, noisy):
    assert all(row.low == row.error == row.high for row in exact.rows)
    for row in noisy["affine"].rows:
        assert row.low < row.error < row.high


def test_the_tuned_constant_is_not_beaten_by_its_neighbours(exact):
    row = next(row for row in exact.rows if row.family == "constant" and row.steps == 256)
    lr = row.parameters["lr"] * np.concatenate([np.geomspace(0.5, 1, 40), np.geomspace(1.0005, 1.3, 20)])
    slopes = np.geomspace(0.05 / 256, 8.0, 31)
    gaps = final_gaps(
        lambda step, gap, draws: lr[:, None, None],
        count=lr.size,
        start=float(start_of(256.0)),
        height=1.0,
        slopes=slopes,
        steps=256,
        noise=None,
        runs=1,
        seed=0,
    )
    worst = np.nan_to_num(gaps[:, :, 0], nan=math.inf).max(axis=1)
    assert worst.min() > 0.99 * row.error


def test_same_seed_same_errors_other_seed_others():
    one, same, other = (
        error_after(noise=NOISES["ABC"], name="ABC", steps=[64], seeds=1, seed=seed) for seed in (0, 0, 1)
    )
    assert one == same
    assert errors_of(one, "warmup") != errors_of(other, "warmup")
    assert one.constants == {"gap": 1.0, "gradient": 0.5, "constant": 0.1}


def test_the_warmup_of_the_loop_is_the_shared_one(exact):
    row = next(row for row in exact.rows if row.family == "warmup" and row.steps == 256)
    gaps = final_gaps(
        lambda step, gap, draws: np.minimum(row.parameters["lr"], SMOOTHNESS.step(gap)),
        count=1,
        start=float(start_of(256.0)),
        height=1.0,
        slopes=np.array([row.slope]),
        steps=256,
        noise=None,
        runs=1,
        seed=0,
    )
    assert float(gaps[0, 0, 0]) == pytest.approx(row.error, rel=1e-9)
